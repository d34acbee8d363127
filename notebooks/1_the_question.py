# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # dropout or recurrent_dropout?
#
# The two arguments of a Keras LSTM mask different arrows of the unrolled network. This
# notebook draws the masks, shows what each does to the state, and trains a small
# network at several rates at once. It takes about a minute.

# %%
# On Colab and the like: the address of the repository that you use, such as
# "git+https://HOST/OWNER/rdrop". Leave it empty where rdrop is installed.
REPOSITORY = ""
if REPOSITORY:
    import subprocess
    import sys

    wanted = f"rnn-dropout-jax[experiments] @ {REPOSITORY}"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", wanted], check=True)

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from flax import linen as nn

import rdrop
from rdrop import plot

# %% [markdown]
# ## Two arrows
#
# `dropout` is noise on the vertical arrows, the inputs $x_t$. `recurrent_dropout` is
# noise on the horizontal arrows, the state $h_{t-1}$. In rdrop each is a field.

# %%
dropout = rdrop.Dropout(inputs=rdrop.Bernoulli(0.2), recurrent=rdrop.Bernoulli(0.5))
cell = rdrop.LSTMCell(8)
keys = rdrop.stream_keys(jax.random.key(0))
masks = rdrop.draw(dropout, keys, cell.sites(features=4), batch=1, time=6)
_, axes = plt.subplots(figsize=(10, 3.2))
plot.masks(masks, time=6, axes=axes)
plt.show()

# %% [markdown]
# A mask is held over the sequence: a unit that is dropped is dropped at every step.
# With `per="step"` it is drawn again at each step. The arrays say so: the second one
# has an axis of time.


# %%
def shape(noise):
    dropout = rdrop.Dropout(recurrent=noise)
    masks = rdrop.draw(dropout, keys, cell.sites(features=4), batch=1, time=6)
    return masks.recurrent.shape


print("held:    ", shape(rdrop.Bernoulli(0.5)))
print("per step:", shape(rdrop.Bernoulli(0.5, per="step")))

# %% [markdown]
# ## What a preset is
#
# A paper or a version of a library is a value. Print it, and you see what it does.

# %%
for preset in (
    rdrop.presets.keras(dropout=0.2, recurrent_dropout=0.5),
    rdrop.presets.semeniuta(0.5),
    rdrop.presets.zoneout(0.5, 0.05),
):
    print(preset, "\n")

# %% [markdown]
# ## What it does to a memory
#
# A cell should keep a number for 100 steps. Here the forget gate is open and nothing
# is added, so that the memory $c_t$ would stay at 1. Noise on the memory makes it
# forget or explode; noise on the update, and zoneout, leave it alone.

# %%
units = 64
lstm = rdrop.LSTMCell(units)
x = jnp.zeros((1, 1))
start = (jnp.ones((1, units)), jnp.zeros((1, units)))  # c and h
params = jax.tree.map(jnp.zeros_like, lstm.init(jax.random.key(0), start, x))
# The gates i, f, g, o: only f and o are open.
bias = jnp.concatenate([jnp.full(units, v) for v in (-20.0, 20.0, 0.0, 20.0)])
params = jax.tree.map(lambda leaf: bias if leaf.shape == bias.shape else leaf, params)


@jax.jit
def memory(noise):
    """Returns the mean of |c| after each step."""

    def step(carry, t):
        carry, _ = lstm.apply(params, carry, x, noise, keys.replace(step=t))
        return carry, jnp.abs(carry[0]).mean()

    return jax.lax.scan(step, start, jnp.arange(100))[1]


sites = {
    "update (Semeniuta)": rdrop.Dropout(update=rdrop.Bernoulli(0.2, per="step")),
    "cell_state, zoneout": rdrop.Dropout(cell_state=rdrop.Zoneout(0.2)),
    "cell_state, per step": rdrop.Dropout(cell_state=rdrop.Bernoulli(0.2, per="step")),
    "cell_state, held": rdrop.Dropout(cell_state=rdrop.Bernoulli(0.2)),
}
styles = ("-", "--", "-", "-.")
_, axes = plt.subplots(figsize=(7, 3.5))
for (name, noise), style in zip(sites.items(), styles, strict=True):
    axes.semilogy(memory(noise), style, label=name)
axes.set(xlabel="step", ylabel="mean |c|", title="A memory that should stay at 1")
axes.set_ylim(1e-3, 1e4)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## All rates at once
#
# A rate is data: `jit` compiles once for all rates, and `vmap` trains them side by
# side. The task: a noisy sequence has one of four marks in its first half; name it.
# There are 128 sequences, few enough for a network to learn them by heart.


# %%
def make(key, count, time=20, features=8, classes=4):
    keys = jax.random.split(key, 3)
    labels = jax.random.randint(keys[0], (count,), 0, classes)
    shown = jax.random.randint(keys[1], (count,), 0, time // 2)
    marks = 5 * jax.nn.one_hot(labels, features)
    noise = jax.random.normal(keys[2], (count, time, features))
    return noise.at[jnp.arange(count), shown].add(marks), labels


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, xs, dropout=None, keys=None):
        (_, h), _ = rdrop.RNN(rdrop.LSTMCell(16))(xs, dropout, keys)
        return nn.Dense(4)(h)


train, test = make(jax.random.key(3), 128), make(jax.random.key(4), 1000)
model, optimiser = Classifier(), optax.adam(1e-2)


def loss(params, batch, dropout=None, keys=None):
    logits = model.apply(params, batch[0], dropout, keys)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()


def fit(dropout, key):
    params = model.init(key, train[0])

    def step(state, n):
        params, moments = state
        keys = rdrop.stream_keys(jax.random.fold_in(key, n))
        slope = jax.grad(loss)(params, train, dropout, keys)
        updates, moments = optimiser.update(slope, moments)
        return (optax.apply_updates(params, updates), moments), None

    state, _ = jax.lax.scan(step, (params, optimiser.init(params)), jnp.arange(100))
    return loss(state[0], test)


@jax.jit
def sweep(inputs, recurrent, keys):
    def one(i, r, key):
        noise = rdrop.Dropout(inputs=rdrop.Bernoulli(i), recurrent=rdrop.Bernoulli(r))
        return fit(noise, key)

    over_seeds = jax.vmap(one, in_axes=(None, None, 0))
    return jax.vmap(over_seeds, in_axes=(0, 0, None))(inputs, recurrent, keys)


inputs = jnp.array([0.0, 0.3, 0.0, 0.3])
recurrent = jnp.array([0.0, 0.0, 0.3, 0.3])
losses = sweep(inputs, recurrent, jax.random.split(jax.random.key(6), 4))
for i, r, row in zip(inputs, recurrent, losses, strict=True):
    spread = f"{row.mean():.3f} ± {row.std(ddof=1):.3f}"
    print(f"dropout {i:.1f}, recurrent_dropout {r:.1f}: test loss {spread}")

# %% [markdown]
# All networks of one seed start from the same parameters, and their masks are nested:
# a unit that is dropped at a low rate is dropped at a higher one too. So the rates can
# be compared in pairs. The next notebook does this on data of your own.
