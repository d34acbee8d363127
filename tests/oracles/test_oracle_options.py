"""Options of cells are those of Keras, PyTorch and flax: values and gradients."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers import assert_close, quickly, random_like

import rdrop
import rdrop.nnx

os.environ["KERAS_BACKEND"] = "jax"  # read when keras is imported

BATCH, TIME, FEATURES, UNITS = 3, 5, 2, 4
ACTIVATIONS = {
    "relu": jax.nn.relu,
    "elu": jax.nn.elu,
    "softsign": jax.nn.soft_sign,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "softmax": jax.nn.softmax,
}
LOOPS = ("fused", "recompute", "plain")


@pytest.fixture
def xs():
    return jnp.asarray(np.random.default_rng(0).normal(size=(BATCH, TIME, FEATURES)))


def results(cell, params, xs, loop="fused"):
    """Outputs, and gradients of their weighted sum in parameters and inputs."""
    rnn = rdrop.RNN(cell, loop=loop)
    weights = np.random.default_rng(1).normal(size=(BATCH, TIME, cell.equations.width))

    @jax.jit
    def run(params, xs):
        def loss(params, xs):
            ys = rnn.apply({"params": params}, xs)[1]
            return (ys * weights).sum(), ys

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, xs)

    (_, ys), (d_params, d_xs) = run(params, xs)
    return ys, d_params, d_xs, weights


def double(cell, **options):
    return cell(UNITS, param_dtype=jnp.float64, **options)


@pytest.mark.parametrize("loop", quickly(LOOPS, "fused"))
@pytest.mark.parametrize("bias", [True, False])
def test_projection_is_that_of_torch(xs, loop, bias):
    """nn.LSTM with proj_size, whose kernels lie as [4H, .]."""
    torch = pytest.importorskip("torch")
    layer = torch.nn.LSTM(
        FEATURES, UNITS, proj_size=3, bias=bias, batch_first=True, dtype=torch.float64
    )
    theirs = dict(layer.named_parameters())
    ours = {
        "kernel": theirs["weight_ih_l0"].T,
        "recurrent_kernel": theirs["weight_hh_l0"].T,
        "projection": theirs["weight_hr_l0"].T,
    }
    if bias:
        ours["bias"] = theirs["bias_ih_l0"] + theirs["bias_hh_l0"]
    ours = {n: jnp.asarray(p.detach().numpy()) for n, p in ours.items()}
    cell = double(rdrop.LSTMCell, projection=3, use_bias=bias)
    ys, d_params, d_xs, weights = results(cell, ours, xs, loop)
    inputs = torch.tensor(np.asarray(xs), requires_grad=True)
    expected, (h, c) = layer(inputs)
    (expected * torch.tensor(weights)).sum().backward()
    assert_close(ys, expected.detach().numpy(), 1e-10)
    assert_close(d_xs, inputs.grad.numpy(), 1e-10)
    assert_close(d_params["projection"], theirs["weight_hr_l0"].grad.numpy().T, 1e-10)
    assert_close(
        d_params["recurrent_kernel"], theirs["weight_hh_l0"].grad.numpy().T, 1e-10
    )
    carry, _ = rdrop.RNN(cell).apply({"params": ours}, xs)
    assert_close(carry, (c[0].detach().numpy(), h[0].detach().numpy()), 1e-10)


CASES = [
    ("LSTM", rdrop.LSTMCell, {}),
    ("GRU", rdrop.GRUCell, {"reset_after": True}),
    ("GRU", rdrop.GRUCell, {"reset_after": False}),
    ("SimpleRNN", rdrop.SimpleCell, {}),
]


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of Keras
@pytest.mark.parametrize(("name", "cell", "options"), CASES)
@pytest.mark.parametrize("activation", quickly(["relu", "softmax", "tanh"], "relu"))
@pytest.mark.parametrize("use_bias", quickly([True, False], True))
def test_activations_are_those_of_keras(xs, name, cell, options, activation, use_bias):
    keras = pytest.importorskip("keras")
    given = options | {"activation": activation, "use_bias": use_bias}
    ours = {"activation": ACTIVATIONS.get(activation, jnp.tanh), "use_bias": use_bias}
    if name != "SimpleRNN":
        given["recurrent_activation"] = "hard_sigmoid"
        ours["recurrent_activation"] = jax.nn.hard_sigmoid
    layer = getattr(keras.layers, name)(
        UNITS, return_sequences=True, dtype="float32", **given
    )
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.enable_x64(False),
    ):
        expected = np.asarray(layer(np.asarray(xs, np.float32)))
    made = cell(UNITS, **options, **ours)
    params = dict(
        zip(("kernel", "recurrent_kernel", "bias"), layer.get_weights(), strict=False)
    )
    if name == "GRU" and options["reset_after"] and use_bias:
        both = params["bias"]
        params["bias"] = both[0] + both[1] * np.repeat(np.float32([1, 1, 0]), UNITS)
        params["recurrent_bias"] = both[1][2 * UNITS :]
    assert ("bias" in params) == use_bias
    params = jax.tree.map(jnp.asarray, params)
    ys = rdrop.RNN(made).apply({"params": params}, xs.astype(np.float32))[1]
    np.testing.assert_allclose(ys, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("loop", quickly(LOOPS, "fused"))
@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "SimpleCell"])
@pytest.mark.parametrize("activation", quickly(ACTIVATIONS, "softmax"))
def test_every_loop_differentiates_every_activation(xs, name, loop, activation):
    """As the cell in a plain scan, differentiated by JAX."""
    options = {"activation": ACTIVATIONS[activation]}
    if name != "SimpleCell":
        options["recurrent_activation"] = jax.nn.soft_sign
    if name == "LSTMCell":
        options["projection"] = 3
    cell = double(getattr(rdrop, name), **options)
    params = random_like(
        jax.eval_shape(rdrop.RNN(cell).init, jax.random.key(0), xs)["params"], 3
    )

    def by_definition(params, xs):
        carry = cell.initialize_carry(jax.random.key(0), (BATCH, UNITS))

        def step(carry, x):
            return cell.apply({"params": params}, carry, x)

        return jax.lax.scan(step, carry, xs.swapaxes(0, 1))[1].swapaxes(0, 1)

    ys, d_params, d_xs, weights = results(cell, params, xs, loop)
    expected, pull = jax.vjp(by_definition, params, xs)
    assert_close((ys, (d_params, d_xs)), (expected, pull(jnp.asarray(weights))), 1e-9)


def test_initialisers_are_used_where_flax_uses_them(xs):
    """With the same functions, orthogonal and normal, on kernels of the same shapes."""
    shape = {}

    def noted(name):
        def initialise(key, shape_, dtype):
            shape[name] = shape_
            return jnp.full(
                shape_, {"kernel": 1, "recurrent": 2, "bias": 3}[name], dtype
            )

        return initialise

    options = {f"{name}_init": noted(name) for name in ("kernel", "recurrent", "bias")}
    params = rdrop.RNN(double(rdrop.LSTMCell, **options)).init(jax.random.key(0), xs)
    found = params["params"]
    assert set(np.ravel(found["kernel"])) == {1}
    assert set(np.ravel(found["recurrent_kernel"])) == {2}
    np.testing.assert_array_equal(found["bias"], [3] * 4 + [1] * 4 + [3] * 8)
    assert shape["kernel"] == (FEATURES, 4 * UNITS)
    cell = double(rdrop.LSTMCell, forget_bias=None, **options)
    assert set(
        np.ravel(rdrop.RNN(cell).init(jax.random.key(0), xs)["params"]["bias"])
    ) == {3}
    cell = double(rdrop.LSTMCell, forget_bias=-2.5)
    bias = rdrop.RNN(cell).init(jax.random.key(0), xs)["params"]["bias"]
    np.testing.assert_array_equal(bias, [0] * 4 + [-2.5] * 4 + [0] * 8)


def test_without_options_nothing_changes(xs):
    """The initial values are those of the first versions."""
    xs = xs.astype(np.float32)
    found = rdrop.RNN(rdrop.LSTMCell(UNITS)).init(jax.random.key(0), xs)["params"]
    given = rdrop.RNN(
        rdrop.LSTMCell(
            UNITS,
            kernel_init=nn.initializers.glorot_uniform(),
            recurrent_init=nn.initializers.orthogonal(),
            bias_init=nn.initializers.zeros,
        )
    ).init(jax.random.key(0), xs)["params"]
    for name, leaf in found.items():
        np.testing.assert_array_equal(leaf, given[name])


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "SimpleCell"])
def test_options_are_those_of_the_nnx_cells(xs, name):
    options, xs = {"activation": jax.nn.relu, "use_bias": False}, xs.astype(np.float32)
    cell = getattr(rdrop, name)(UNITS, **options)
    params = rdrop.RNN(cell).init(jax.random.key(0), xs)
    module = rdrop.nnx.from_linen(rdrop.RNN(cell), params)
    assert_close(module(xs)[1], rdrop.RNN(cell).apply(params, xs)[1], 1e-6)
    back, again = rdrop.nnx.to_linen(module)
    assert back.cell == cell
    assert again["params"].keys() == params["params"].keys()


@pytest.mark.parametrize(
    ("cell", "options", "error", "message"),
    [
        ("LSTMCell", {"activation": "relu"}, TypeError, "`activation` must be a func"),
        (
            "GRUCell",
            {"recurrent_activation": None},
            TypeError,
            "`recurrent_activation`",
        ),
        (
            "SimpleCell",
            {"recurrent_activation": abs},
            TypeError,
            "recurrent_activation",
        ),
        ("LSTMCell", {"projection": 0}, ValueError, "`projection` must be an integer"),
        ("LSTMCell", {"kernel_init": 3}, TypeError, "`kernel_init` must be a function"),
        ("MinGRUCell", {"recurrent_init": abs}, ValueError, "must be None in MinGRU"),
        (
            "LSTMCell",
            {"use_bias": False, "bias_init": abs},
            ValueError,
            "`bias_init` must be None if `use_bias` is False",
        ),
        (
            "LSTMCell",
            {"use_bias": False, "forget_bias": 2.0},
            ValueError,
            "`forget_bias` must be 1 or None if",
        ),
        (
            "LayerNormLSTMCell",
            {"use_bias": False},
            ValueError,
            "`use_bias` must be True",
        ),
        (
            "LayerNormLSTMCell",
            {"bias_init": abs},
            ValueError,
            "`bias_init` must be None",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_options_that_a_cell_lacks_are_rejected(cell, options, error, message):
    with pytest.raises(error, match=message):
        getattr(rdrop, cell)(UNITS, **options)
