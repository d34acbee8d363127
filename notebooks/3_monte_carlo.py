# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Monte Carlo dropout, and when not to use it
#
# A network with dropout gives another answer with each mask. The mean of many answers
# is Monte Carlo dropout. It costs as many passes as there are masks; this notebook
# measures what they buy. It takes about a minute.

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
from rdrop import calibration, montecarlo, plot

# %% [markdown]
# ## A network that is too sure
#
# The task is hard, and there are few sequences to learn from.


# %%
def make(key, count, time=20, features=8, classes=4):
    keys = jax.random.split(key, 3)
    labels = jax.random.randint(keys[0], (count,), 0, classes)
    shown = jax.random.randint(keys[1], (count,), 0, time)
    marks = 3.5 * jax.nn.one_hot(labels, features)
    noise = jax.random.normal(keys[2], (count, time, features))
    return noise.at[jnp.arange(count), shown].add(marks), labels


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, xs, dropout=None, keys=None):
        _, ys = rdrop.RNN(rdrop.LSTMCell(24))(xs, dropout, keys)
        return nn.Dense(4)(ys.max(axis=1))


train, test = make(jax.random.key(1), 512), make(jax.random.key(2), 2000)
held_out = make(jax.random.key(3), 500)
model, optimiser = Classifier(), optax.adam(1e-2)
dropout = rdrop.Dropout(inputs=rdrop.Bernoulli(0.25), recurrent=rdrop.Bernoulli(0.25))


def log_probs(params, xs, keys=None, dropout=dropout):
    return jax.nn.log_softmax(model.apply(params, xs, dropout, keys))


def nll(log_probs, labels):
    return -jnp.take_along_axis(log_probs, labels[:, None], axis=1).mean()


@jax.jit
def fit(dropout, key):
    params = model.init(key, train[0])

    def step(state, n):
        params, moments = state
        keys = rdrop.stream_keys(jax.random.fold_in(key, n))

        def loss(params):
            return nll(log_probs(params, train[0], keys, dropout), train[1])

        updates, moments = optimiser.update(jax.grad(loss)(params), moments)
        return (optax.apply_updates(params, updates), moments), None

    state, _ = jax.lax.scan(step, (params, optimiser.init(params)), jnp.arange(150))
    return state[0]


params = fit(dropout, jax.random.key(5))

# %% [markdown]
# ## Thirty-two masks
#
# `pass_keys` gives the keys of the passes, `predict` averages them in chunks. Without
# keys there is one pass, in expectation over the noise.

# %%
keys = montecarlo.pass_keys(jax.random.key(6), 32)


@jax.jit
def monte_carlo(params, xs):
    return montecarlo.predict(lambda k: log_probs(params, xs, k), keys, chunk=8)


alone = log_probs(params, test[0])
mean = monte_carlo(params, test[0])
ensemble = [fit(dropout, jax.random.key(seed)) for seed in range(5, 9)]
together = jax.nn.logsumexp(
    jnp.stack([log_probs(p, test[0]) for p in ensemble]), axis=0
) - jnp.log(len(ensemble))
rows = {
    "one pass, no noise": alone,
    "32 masks": mean.log_probs,
    "four networks": together,
}
for name, found in rows.items():
    error = calibration.calibration_error(found, test[1])
    accuracy = (found.argmax(axis=1) == test[1]).mean()
    print(f"{name:20} NLL {nll(found, test[1]):.3f}", end="  ")
    print(f"calibration error {error:.3f}  accuracy {accuracy:.3f}")

# %% [markdown]
# ## A temperature may do as well
#
# One number, fitted on sequences that were held out, makes a single pass less sure of
# itself. It costs nothing at prediction. Compare before you pay for 32 passes.

# %%
temperature = calibration.fit_temperature(log_probs(params, held_out[0]), held_out[1])
tempered = calibration.temper(alone, temperature)
error = calibration.calibration_error(tempered, test[1])
print(f"temperature {temperature:.2f}: NLL {nll(tempered, test[1]):.3f}", end="  ")
print(f"calibration error {error:.3f}")

# %% [markdown]
# ## What the passes alone can tell
#
# The mutual information of answer and mask says how much the masks disagree. Leave out
# the answers that are least certain, and look at the accuracy of the rest: a measure
# that finds the wrong answers rises to the left. Here the entropy of the mean does, and
# the disagreement does not.

# %%
_, axes = plt.subplots(figsize=(5, 3.5))
for name, colour, uncertainty, found in (
    ("masks disagree", "tab:red", mean.mutual_information, mean.log_probs),
    ("entropy of the mean", "tab:purple", mean.entropy, mean.log_probs),
    ("entropy of one pass", "black", montecarlo.entropy(alone), alone),
):
    correct = found.argmax(axis=1) == test[1]
    measured = calibration.coverage(uncertainty, correct)
    plot.coverage(measured, name, colour, "Accuracy of the rest", axes)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## When not to use it
#
# - If one pass with a temperature has the same loss and the same calibration.
# - If several networks can be trained: their mean needs no noise, and fewer passes.
#   On this task the masks are better, on Japanese Vowels the networks are.
# - If the noise was not there in training, or at another rate: the passes then measure
#   the noise that you put in, not what the network does not know.
