"""`wrap` puts the noise of rdrop around cells of flax, and around any function.

The cells of rdrop with the same weights are the reference: masks bitwise, values and
gradients to rounding. Keras and equinox are in tests/oracles.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from helpers import assert_all_matter, assert_close, quickly, traced_once

import rdrop
from rdrop import interop

BATCH, TIME, FEATURES, UNITS = 3, 5, 2, 4
LENGTHS = np.array([5, 3, 0])
RESETS = np.zeros((BATCH, TIME), bool)
RESETS[:2, 2] = True
KEYS = rdrop.stream_keys(jax.random.key(1))
NOISE = {
    "inputs": rdrop.Bernoulli(0.3),
    "outputs": rdrop.Bernoulli(0.2, per="step"),
    "hidden_state": rdrop.Zoneout(0.3),
    "cell_state": rdrop.Zoneout(0.2),
    "input_weights": rdrop.DropConnect(0.3),
    "recurrent_weights": rdrop.DropConnect(0.3),
}
MULTIPLIED = {"hidden_state": rdrop.Bernoulli(0.4)}
LINEN = [nn.LSTMCell, nn.OptimizedLSTMCell, nn.GRUCell, nn.SimpleCell]
NNX = [nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.GRUCell, nnx.SimpleCell]
CALLS = {
    "all": ({}, {}),
    "padded": ({}, {"lengths": LENGTHS}),
    "episodes": ({}, {"resets": RESETS, "lengths": LENGTHS}),
    "backwards": ({"reverse": True}, {"lengths": LENGTHS}),
}


@pytest.fixture(autouse=True)
def lenient():
    """Lets flax promote dtypes and ranks as usual."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def xs():
    return jax.random.normal(jax.random.key(5), (BATCH, TIME, FEATURES))


def params_of(cell, xs):
    """Random float64 parameters; an nnx cell is its own."""
    if isinstance(cell, nnx.Module):
        return cell
    params = rdrop.wrap(cell).init(jax.random.key(0), xs)
    numbers = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(numbers.normal(size=leaf.shape)), params
    )


def made(kind):
    if issubclass(kind, nnx.Module):
        options = {"dtype": jnp.float64, "param_dtype": jnp.float64}
        return kind(FEATURES, UNITS, rngs=nnx.Rngs(0), **options)
    return kind(UNITS)


def noise_for(wrapped, params, noise=NOISE):
    """The noise at the sites of a cell; nnx orders the gates of a GRU otherwise."""
    sites = wrapped.sites(params, FEATURES)
    named = {name: kind for name, kind in noise.items() if name in sites}
    if isinstance(params, nnx.GRUCell):
        del named["input_weights"], named["recurrent_weights"]
    return rdrop.Dropout(**named)


@pytest.mark.parametrize("call", quickly(CALLS, "episodes"))
@pytest.mark.parametrize(
    "kind",
    quickly([*LINEN, *NNX], nn.LSTMCell, nnx.GRUCell),
    ids=lambda k: k.__module__[5:9] + k.__name__,
)
def test_a_wrapped_cell_is_the_cell_of_rdrop(kind, call, xs):
    options, arguments = CALLS[call]
    cell = made(kind)
    params, wrapped = params_of(cell, xs), rdrop.wrap(cell, **options)
    ours = interop.from_flax(params)
    layer = ours.module.clone(**options)
    dropout = noise_for(wrapped, params)
    theirs = partial(wrapped.apply, params, **arguments)
    own = partial(layer.apply, ours.params, **arguments)
    assert_close(*(jax.jit(run)(xs, dropout, KEYS) for run in (theirs, own)), 1e-6)


@pytest.mark.parametrize("kind", quickly(LINEN, nn.LSTMCell))
def test_gradients_are_those_of_rdrop(kind, xs):
    cell = kind(UNITS)
    params, wrapped = params_of(cell, xs), rdrop.wrap(cell)

    dropout, ported = noise_for(wrapped, params), interop.from_flax(params)

    def loss(layer):
        return lambda params, xs: jnp.sin(
            layer.apply(params, xs, dropout, KEYS)[1]
        ).sum()

    theirs, ours = loss(wrapped), loss(ported.module)
    d_params, d_xs = jax.jit(jax.grad(theirs, (0, 1)))(params, xs)
    d_ported, d_expected = jax.jit(jax.grad(ours, (0, 1)))(ported.params, xs)
    assert_all_matter(d_params)
    assert_close(d_xs, d_expected, 1e-10)
    moved = interop.from_flax(d_params).params["params"]
    assert_close(dict(moved), dict(d_ported["params"]), 1e-10)


@pytest.mark.parametrize("kind", quickly([nn.LSTMCell, nn.GRUCell], nn.GRUCell))
def test_masks_are_bitwise_those_of_rdrop(kind, xs):
    cell = kind(UNITS)
    params, wrapped = params_of(cell, xs), rdrop.wrap(cell)
    dropout = noise_for(wrapped, params)
    ours = interop.from_flax(params).module.cell
    both = [
        rdrop.draw(dropout, KEYS, sites, BATCH, TIME)
        for sites in (wrapped.sites(params, FEATURES), ours.sites(FEATURES))
    ]
    jax.tree.map(np.testing.assert_array_equal, *both)


@pytest.mark.parametrize(
    ("kind", "noise"),
    quickly(
        [(c, n) for c in ("linen", "nnx") for n in ("mixed", "multiplied")],
        ("linen", "multiplied"),
    ),
)
def test_steps_are_the_sequence(kind, noise, xs):
    cell = made({"linen": nn.LSTMCell, "nnx": nnx.GRUCell}[kind])
    params, wrapped = params_of(cell, xs), rdrop.wrap(cell)
    multiplied = MULTIPLIED if noise == "multiplied" else {}
    dropout = noise_for(wrapped, params, NOISE | multiplied)
    carry, ys = wrapped.apply(params, xs, dropout, KEYS)
    start = jax.tree.map(jnp.zeros_like, carry)
    for step in range(TIME):
        keys = KEYS.replace(step=step)
        start, y = wrapped.step(params, start, xs[:, step], dropout, keys)
        assert_close(y, ys[:, step], 1e-12)
    assert_close(start, carry, 1e-12)


@pytest.mark.slow
def test_time_may_come_first(xs):
    params = params_of(nn.LSTMCell(UNITS), xs)
    first = rdrop.wrap(nn.LSTMCell(UNITS))
    second = rdrop.wrap(nn.LSTMCell(UNITS), time_major=True)
    dropout = noise_for(first, params)
    carry, ys = first.apply(params, xs, dropout, KEYS)
    swapped = second.apply(params, xs.swapaxes(0, 1), dropout, KEYS)
    assert_close(swapped, (carry, ys.swapaxes(0, 1)))


@pytest.mark.slow
def test_an_nnx_cell_is_differentiated_as_it_is(xs):
    cell = made(nnx.GRUCell)
    wrapped = rdrop.wrap(cell)
    dropout = noise_for(wrapped, cell)

    def loss(cell):
        return (wrapped.apply(cell, xs, dropout, KEYS)[1] ** 2).sum()

    found = nnx.to_pure_dict(nnx.state(nnx.grad(loss)(cell), nnx.Param))
    ported = interop.from_flax(cell)
    expected = jax.grad(
        lambda params: (ported.module.apply(params, xs, dropout, KEYS)[1] ** 2).sum()
    )(ported.params)
    h = found["dense_h"]["kernel"].reshape(UNITS, 3, UNITS)[:, (1, 0, 2)]  # r z n
    ours = expected["params"]["recurrent_kernel"].reshape(UNITS, 3, UNITS)
    assert_close(h, ours, 1e-6)


@pytest.mark.slow
def test_a_convolution_has_a_unit_per_value():
    """Dropout of Keras' ConvLSTM: each value of the images has its number."""
    xs = jax.random.normal(jax.random.key(2), (BATCH, TIME, 4, 4, 2))
    cell = nn.ConvLSTMCell(3, (2, 2))
    params, wrapped = params_of(cell, xs), rdrop.wrap(cell)
    dropout = rdrop.Dropout(
        inputs=rdrop.Bernoulli(0.3),
        outputs=rdrop.Bernoulli(0.3, per="step"),
        hidden_state=rdrop.Bernoulli(0.4),
        cell_state=rdrop.Zoneout(0.4),
    )
    found = wrapped.apply(params, xs, dropout, KEYS)
    sites = wrapped.sites(params, (4, 4, 2))
    assert sites["hidden_state"].units == 4 * 4 * 3
    masks = rdrop.draw(dropout, KEYS, sites, BATCH, TIME)
    c = h = jnp.zeros((BATCH, 4, 4, 3))
    ys = []
    for t in range(TIME):
        x = xs[:, t] * masks.inputs.reshape(BATCH, 4, 4, 2)
        (new_c, new_h), y = cell.apply(params, (c, h), x)
        share = masks.cell_state.share[t].reshape(c.shape)
        c = share * c + (1 - share) * new_c
        h = new_h * masks.hidden_state.reshape(h.shape)
        ys.append(y * masks.outputs[t].reshape(y.shape))
    assert_close(found, ((c, h), jnp.stack(ys, axis=1)), 1e-5)


def own(params, carry, x):
    """A cell of two states, whose kernels are one per gate."""
    slow = 0.9 * carry["slow"] + jnp.tanh(
        x @ params["W"][0] + carry["fast"] @ params["U"][0]
    )
    fast = jnp.tanh(slow + x @ params["W"][1] + carry["fast"] @ params["U"][1])
    return {"slow": slow, "fast": fast}, fast


def zeros(params, shape):
    return {name: jnp.zeros((shape[0], UNITS)) for name in ("slow", "fast")}


OWN = {
    "carry": zeros,
    "states": ["hidden_state", "cell_state"],  # fast, slow: as the tree is flattened
    "kernels": {"recurrent_weights": ["U/0", "U/1"], "input_weights": "W/1"},
}


@pytest.fixture
def weights():
    numbers = np.random.default_rng(1)
    return {
        "W": [jnp.asarray(numbers.normal(size=(FEATURES, UNITS))) for _ in range(2)],
        "U": [jnp.asarray(numbers.normal(size=(UNITS, UNITS))) for _ in range(2)],
    }


@pytest.mark.parametrize("output", quickly([None, "hidden_state"], "hidden_state"))
def test_a_function_of_the_reader(output, xs, weights):
    wrapped = rdrop.wrap(own, output=output, **OWN)
    dropout = rdrop.Dropout(**NOISE)
    carry, ys = wrapped.apply(weights, xs, dropout, KEYS)
    masks = rdrop.draw(dropout, KEYS, wrapped.sites(weights, FEATURES), BATCH, TIME)
    dropped = {
        "W": [weights["W"][0], weights["W"][1] * masks.input_weights[:, 0]],
        "U": [weights["U"][g] * masks.recurrent_weights[:, g] for g in range(2)],
    }
    state = zeros(None, (BATCH,))
    for t in range(TIME):
        new, y = own(dropped, state, xs[:, t] * masks.inputs[:, 0])
        for name, mix in (("fast", masks.hidden_state), ("slow", masks.cell_state)):
            share = mix.share[t, :, 0]
            state[name] = share * state[name] + (1 - share) * new[name]
        y = y if output is None else state["fast"]
        assert_close(ys[:, t], y * masks.outputs[t, :, 0], 1e-6)
    assert_close(carry, state, 1e-6)


def test_one_program_serves_all_rates(xs, weights):
    wrapped = rdrop.wrap(own, **OWN)

    @traced_once
    def run(rate):
        dropout = rdrop.Dropout(
            inputs=rdrop.Bernoulli(rate), recurrent_weights=rdrop.DropConnect(rate)
        )
        return wrapped.apply(weights, xs, dropout, KEYS)[1]

    quiet, noisy = run(jnp.float32(0)), run(jnp.float32(0.5))
    assert_close(quiet, wrapped.apply(weights, xs)[1], 1e-6)
    assert not np.allclose(quiet, noisy)


@pytest.mark.parametrize(
    ("dropout", "message"),
    [
        ({"update": rdrop.Bernoulli(0.1)}, "Site `update` lies inside the cell"),
        ({"recurrent": rdrop.Bernoulli(0.1)}, "`hidden_state` multiplies the h"),
        ({"cell_state": rdrop.Bernoulli(0.1)}, "takes Zoneout"),
        ({"inputs": rdrop.Bernoulli(0.1, gates="each")}, 'must be "shared"'),
    ],
)
def test_sites_inside_a_cell_are_refused(dropout, message, xs, weights):
    with pytest.raises(ValueError, match=message):
        rdrop.wrap(own, **OWN).apply(weights, xs, rdrop.Dropout(**dropout), KEYS)


@pytest.mark.parametrize(
    ("options", "site", "message"),
    [
        ({"states": None}, "hidden_state", "by `states`"),
        ({"kernels": None}, "recurrent_weights", "by `kernels`"),
        ({"kernels": {"recurrent_weights": "V"}}, "inputs", "W/0, W/1"),
        ({"states": ["hidden_state"]}, "inputs", "each of the 2 leaves"),
        ({"carry": None}, "inputs", "`carry` must be given"),
    ],
)
def test_a_function_says_where_its_sites_are(options, site, message, xs, weights):
    kind = {"hidden_state": rdrop.Zoneout, "recurrent_weights": rdrop.DropConnect}
    dropout = rdrop.Dropout(**{site: kind.get(site, rdrop.Bernoulli)(0.1)})
    with pytest.raises(ValueError, match=message):
        rdrop.wrap(own, **(OWN | options)).apply(weights, xs, dropout, KEYS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"states": ["h"]}, "must name"),
        ({"output": "hidden_state"}, "must be one of `states`"),
        ({"kernels": {"kernel": "U"}}, "must be for"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        rdrop.wrap(own, **options)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (rdrop.LSTMCell(3), "rdrop's own"),
        (rdrop.RNN(rdrop.LSTMCell(3)), "rdrop's own"),
        (nn.RNN(nn.LSTMCell(3)), "initialize_carry"),
        (nn.Dense(3), "initialize_carry"),
        (0.5, "function of"),
    ],
)
def test_what_is_not_a_cell_is_refused(cell, message):
    with pytest.raises(TypeError, match=message):
        rdrop.wrap(cell)


def test_carries_and_inputs_of_a_wrong_shape(xs):
    params, wrapped = params_of(nn.GRUCell(UNITS), xs), rdrop.wrap(nn.GRUCell(UNITS))
    with pytest.raises(ValueError, match="leaves of shape"):
        wrapped.apply(params, xs, initial_carry=jnp.zeros((BATCH, UNITS + 1)))
    with pytest.raises(ValueError, match="structure"):
        wrapped.apply(params, xs, initial_carry=(xs[:, 0], xs[:, 0]))
    with pytest.raises(ValueError, match="must have the axes"):
        wrapped.apply(params, xs[0])
    with pytest.raises(TypeError, match="its own `params`"):
        rdrop.wrap(made(nnx.GRUCell)).init(jax.random.key(0), xs)
