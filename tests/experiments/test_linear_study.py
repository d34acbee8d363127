"""The study of linear recurrences: blocks, noise at one site, and selective copying."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close

import rdrop
from experiments.classify import consistency
from experiments.classify.methods import METHODS
from experiments.classify.model import Network, depth_of, dropout_of
from experiments.classify.train import _kernels, with_forget_bias
from experiments.config import Config, ConfigError, with_values
from experiments.config import Task as Options
from experiments.language.config import Config as LanguageConfig
from experiments.papers import flops
from experiments.tasks import selective_copy

XS = jnp.asarray(np.random.default_rng(0).normal(size=(64, 5, 3)), jnp.float32)
LENGTHS = jnp.full(64, 5, jnp.int32)
KEYS = rdrop.stream_keys(jax.random.key(0))


def config_of(**values):
    return with_values(
        Config(), {name.replace("__", "."): value for name, value in values.items()}
    )


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def dense(x, layer):
    return x @ layer["kernel"] + layer["bias"]


def normalised(x, layer):
    deviation = np.sqrt(x.var(axis=-1, keepdims=True) + 1e-6)
    return (x - x.mean(axis=-1, keepdims=True)) / deviation * layer["scale"] + layer[
        "bias"
    ]


@pytest.mark.parametrize("mix", ["glu", "mlp"])
def test_a_residual_block_is_its_equation(mix):
    network = Network(rdrop.MinGRUCell, 4, 1, 2, "last", mix)

    @jax.jit
    def run(key):
        weights = network.init(key, XS, LENGTHS)
        cell = {"params": weights["params"]["MinGRUCell_0"]}
        return weights, network.apply(weights, XS, LENGTHS), cell

    weights, actual, cell = run(jax.random.key(1))
    params = jax.tree.map(np.float64, weights["params"])
    block = params["block_0"]
    x = dense(np.float64(XS), params["encoder"])
    z = normalised(x, block["norm"])
    ys = rdrop.RNN(rdrop.MinGRUCell(4)).apply(cell, jnp.float32(z))[1]
    z = np.float64(ys)
    if mix == "glu":
        a, b = np.split(dense(gelu(z), block["mix"]), 2, axis=-1)
        z = a / (1 + np.exp(-b))
    else:
        z = dense(gelu(dense(z, block["mix"])), block["out"])
    expected = dense(normalised(x + z, params["norm"])[:, -1], params["readout"])
    assert_close(actual, jnp.float32(expected), 1e-4)


def test_stochastic_depth_leaves_out_the_block_of_a_sequence():
    """All or nothing per sequence, in training only; each block by itself."""
    network = Network(rdrop.SimpleCell, 4, 2, 2, "last", "glu")

    @jax.jit
    def run(key):
        weights = network.init(key, XS, LENGTHS)
        silent = jax.tree.map(jnp.copy, weights)
        for n in range(2):
            mix = silent["params"][f"block_{n}"]["mix"]
            mix |= jax.tree.map(jnp.zeros_like, dict(mix))
        rate = jnp.float32(0.5)
        return (
            network.apply(weights, XS, LENGTHS),
            network.apply(weights, XS, LENGTHS, None, None, rate),
            network.apply(weights, XS, LENGTHS, None, KEYS, rate),
            network.apply(silent, XS, LENGTHS),
        )

    clean, evaluated, noisy, without = run(jax.random.key(1))
    np.testing.assert_array_equal(clean, evaluated)
    both_left_out = (abs(noisy - without) < 1e-6).all(axis=-1)
    assert 5 < both_left_out.sum() < 30  # a quarter of 64
    assert (abs(noisy - clean) > 1e-4).any(axis=-1).all()  # the rest is twice as large


def test_depth_without_blocks_is_refused():
    configs = [config_of(dropout__depth__rate=0.2)]
    message = 'dropout.depth.rate: must be 0 if model.block is "none", got 0.2'
    with pytest.raises(ConfigError, match=message):
        depth_of(configs)
    assert depth_of([config_of()]) is None
    blocks = config_of(dropout__depth__rate=0.2, model__block="mlp")
    np.testing.assert_array_equal(depth_of([blocks]), np.float32([0.2]))


@pytest.mark.parametrize("cell", ["lstm", "mingru", "lru"])
def test_methods_of_one_site_have_noise_there_alone(cell):
    state = "hidden_state" if cell == "mingru" else "cell_state"
    kinds = {"mixed": rdrop.Zoneout}
    for name in ("inputs", "update", "state", "mixed", "outputs"):
        for word, per in (("held", "sequence"), ("step", "step")):
            values = {"model.cell": cell, "dropout.rate": 0.25}
            values["dropout.method"] = f"{name}_{word}"
            dropout = dropout_of([with_values(Config(), values)])
            ((site, noise),) = dropout.sites()
            assert site == (state if name in ("state", "mixed") else name)
            assert isinstance(noise, kinds.get(name, rdrop.Bernoulli))
            assert noise.per == per
            assert noise.rate == np.float32([0.25])
            if name == "state":
                assert noise.scale == "expectation"
    assert {"inputs_held", "mixed_step"} < set(METHODS)


def test_kernels_of_learned_rates_in_blocks():
    """The mix reads the outputs of a block; nothing reads those of a linear state."""
    network = Network(rdrop.LRUCell, 4, 2, 2, "last", "glu")
    shapes = jax.eval_shape(network.init, jax.random.key(0), XS, LENGTHS)
    params = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)["params"]
    assert [k.shape for k in _kernels(params, "outputs")] == [(4, 8)] * 2
    assert [k.shape for k in _kernels(params, "inputs")] == [(4, 8)] * 2
    assert [k.shape for k in _kernels(params, "update")] == [(4, 1)] * 2


def test_a_forget_bias_is_set_in_the_cells_of_blocks_alone():
    network = Network(rdrop.LSTMCell, 4, 2, 2, "last", "glu")
    shapes = jax.eval_shape(network.init, jax.random.key(0), XS, LENGTHS)
    weights = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    changed = with_forget_bias(weights, 3.0)["params"]
    for n in range(2):
        cell = changed.pop(f"LSTMCell_{n}")
        np.testing.assert_array_equal(cell["bias"], np.repeat([0, 3, 0, 0], 4))
    assert not any(leaf.any() for leaf in jax.tree.leaves(changed))


def test_stochastic_depth_alone_is_noise_for_a_second_pass():
    values = {"model.block": "glu", "second_pass.penalty": "fraternal"}
    data = selective_copy.load(Options("selective_copy", window=20))
    quiet = with_values(Config(), values)
    noisy = with_values(Config(), values | {"dropout.depth.rate": 0.2})
    consistency.check([noisy], dropout_of([noisy]), data)
    with pytest.raises(ConfigError):
        consistency.check([quiet], dropout_of([quiet]), data)


def test_products_of_a_linear_cell_have_no_recurrent_kernel():
    """Of two layers of a minGRU behind an embedding, and of the softmax."""
    model = {"model.cell": "mingru", "model.embedding": 3, "model.units": 4}
    config = with_values(LanguageConfig(), model | {"train.epochs": 2})
    weights = 2 * 3 * 4 + 2 * 4 * 4 + 4 * 10
    assert flops(config, 100, 0, 10) == 6 * weights * 100 * 2


def test_selective_copy_asks_for_the_tokens_in_their_order():
    data = selective_copy.load(Options("selective_copy", window=20))
    assert [len(split.inputs) for split in data.splits] == [1000, 1000, 500]
    for split in data.splits:
        assert (split.lengths == 28).all()
        assert (split.inputs[:, 20:] == 9).all()
        for steps, targets in zip(split.inputs, split.targets, strict=True):
            shown = [step for step in steps[:20] if step < 8]
            assert shown == targets[20:].tolist()
    places = (data.train.inputs[:, :20] < 8).mean(axis=0)
    np.testing.assert_allclose(places, 0.4, atol=0.06)
    again = selective_copy.load(Options("selective_copy", window=20))
    np.testing.assert_array_equal(again.test.inputs, data.test.inputs)


def test_selective_copy_judges_the_answers_alone():
    data = selective_copy.load(Options("selective_copy", window=20))
    batch = jax.tree.map(lambda leaf: leaf[:3], data.test)
    outputs = 9 * jax.nn.one_hot(batch.targets, 8, dtype=jnp.float32)
    outputs = outputs.at[:, :20].set(jnp.nan).at[0, 20].set(jnp.zeros(8, jnp.float32))
    outputs = outputs.at[0, 20, (batch.targets[0, 20] + 1) % 8].set(9)
    score = selective_copy.score(outputs, batch)
    np.testing.assert_allclose(score.values["accuracy"], [7 / 8, 1, 1])
    right, wrong = np.log1p(7 * np.exp(-9.0)), 9 + np.log1p(7 * np.exp(-9.0))
    expected = [(7 * right + wrong) / 8, right, right]
    np.testing.assert_allclose(score.values["nll"], expected, rtol=1e-3)
    assert (score.weight == 1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "my.npz"}, "task.data: must be empty for selective_copy"),
        ({"window": 7}, "task.window: must be at least 8, got 7"),
    ],
)
def test_impossible_options_of_selective_copy_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        selective_copy.load(Options("selective_copy", **options))
