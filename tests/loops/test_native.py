"""Native: the compiled loop agrees with the plain one, which runs in float64 here."""

import os
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_all_matter, assert_close, quickly, random_like, stack_trees
from jax import export
from loop_cases import KEYS, SETTINGS, Setting
from test_sharding import assert_agree, run

import rdrop
from rdrop import Additive, Bernoulli, Concrete, DropConnect, Dropout
from rdrop.loops import native

needs_native = pytest.mark.skipif(
    not native.is_installed(), reason="rdrop-cpu is not installed; `make native` does"
)
CELLS = {"lstm": rdrop.LSTMCell, "gru": rdrop.GRUCell, "simple": rdrop.SimpleCell}
ADDED = Setting(
    Dropout(
        recurrent=Bernoulli(0.5, per="step"),
        cell_state=Additive(0.5, per="step"),
        hidden_state=Additive(0.5),
    ),
    reverse=True,
)
NOISES = {**SETTINGS, "added": ADDED}
# B, T, D, H: one of each; fewer, and more, than a vector, a tile and a block of rows.
SHAPES = [(1, 1, 1, 1), (3, 2, 1, 7), (7, 21, 33, 17), (67, 3, 20, 70)]


def loss_of(rnn, noise, lengths=None, resets=None):
    """A loss with curvature, of parameters, inputs and initial carry."""

    def loss(params, xs, carry, noise=noise):
        more = {} if resets is None else {"resets": resets}
        carry, ys = rnn.apply(
            params, xs, noise, KEYS, initial_carry=carry, lengths=lengths, **more
        )
        leaves = jax.tree.leaves((carry, ys))
        return sum((leaf * jnp.cos(leaf)).sum() for leaf in leaves), leaves

    return loss


def problem_of(cell, shape, time_major=False):
    """Random parameters, inputs and initial carry, in float32."""
    batch, time, features, units = shape
    xs = (time, batch, features) if time_major else (batch, time, features)
    like = jax.ShapeDtypeStruct(xs, np.float32)
    rnn = rdrop.RNN(cell(units), time_major)
    (carry, _), params = jax.eval_shape(rnn.init_with_output, jax.random.key(0), like)
    scale = 1 / np.sqrt(units)
    tree = jax.tree.map(lambda leaf: scale * leaf, random_like(params, 1))
    return as_type(np.float32, (tree, random_like(like, 2), random_like(carry, 3)))


def as_type(dtype, tree):
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def marks_of(setting, batch, time):
    """Lengths, and resets, of rows that are as different as they can be."""
    lengths = None if setting.lengths is None else np.arange(batch) % (time + 1)
    resets = np.random.default_rng(5).random((batch, time)) < 0.3
    return lengths, resets.T if setting.time_major else resets


def assert_native_is_plain(cell, setting, shape, tolerance=1e-4):
    """In values and gradients, relative to the largest of each array.

    Noise that doubles a state at each step amplifies rounding, so that the plain loop
    in float32 is further away, too: the compiled one may be as far.
    """
    batch, time, features, units = shape
    lengths, resets = marks_of(setting, batch, time)
    problem = problem_of(cell, shape, setting.time_major)
    noise = supported_noise(setting.dropout, cell(units).sites(features))

    def run(loop, dtype):
        equations = cell(units, param_dtype=dtype)
        rnn = rdrop.RNN(equations, setting.time_major, setting.reverse, loop)
        loss = loss_of(rnn, noise, lengths, resets)
        both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
        (_, values), gradients = both(*as_type(dtype, problem))
        return values, gradients

    loops = ("native", jnp.float32), ("plain", jnp.float32), ("plain", jnp.float64)
    results = [jax.tree.leaves(run(*loop)) for loop in loops]
    for leaves in zip(*results, strict=True):
        assert leaves[0].dtype == jnp.float32
        actual, rounded, exact = map(np.asarray, leaves)
        allowed = tolerance * max(abs(exact).max(), 1e-3)
        assert abs(actual - exact).max() <= max(allowed, 4 * abs(rounded - exact).max())


def supported_noise(dropout, sites):
    """The noise on the sites of a cell; a site without gates has one mask."""

    def fit(site, noise):
        if sites[site].gates == 1 and isinstance(noise, Bernoulli | Additive):
            return noise.replace(gates="shared")
        return noise

    noises = [(site, noise) for site, noise in dropout.sites() if site in sites]
    return Dropout(**{site: fit(site, noise) for site, noise in noises})


@needs_native
@pytest.mark.parametrize(
    ("name", "setting", "shape"),
    quickly(
        [(n, s, shape) for n in CELLS for s in NOISES for shape in SHAPES],
        ("lstm", "mixed_states", SHAPES[2]),
        ("lstm", "multiplied_states", SHAPES[3]),
        ("gru", "added", SHAPES[2]),
        ("gru", "some_shared", SHAPES[1]),
        ("simple", "no_noise", SHAPES[0]),
    ),
)
def test_native_is_plain(name, setting, shape):
    assert_native_is_plain(CELLS[name], NOISES[setting], shape)


# Which loop runs.


def calls_native(cell, noise=None, dtype=jnp.float32, loop="native"):
    """Whether the program of a gradient calls the compiled code, twice."""
    rnn = rdrop.RNN(cell, loop=loop)
    loss = loss_of(rnn, noise)
    single = cell.clone(param_dtype=jnp.float32)
    problem = as_type(dtype, problem_of(lambda units: single, (2, 3, 4, 5)))
    text = jax.jit(jax.grad(loss, has_aux=True)).lower(*problem).as_text()
    calls = [text.count(f'"{name}"') + text.count(f"@{name}(") for name in TARGETS]
    assert calls in ([0, 0], [1, 1])
    return any(calls)


TARGETS = ("rdrop_cpu_forward", "rdrop_cpu_backward")


@needs_native
@pytest.mark.parametrize("loop", ["native", "fused"])
@pytest.mark.parametrize("name", CELLS)
def test_the_fused_loop_is_the_native_one_if_it_is_installed(name, loop):
    noise = Dropout(recurrent=Bernoulli(0.5), recurrent_weights=DropConnect(0.5))
    assert calls_native(CELLS[name](5), noise, loop=loop)


UNSUPPORTED = {
    "reset before": rdrop.GRUCell(5, reset_after=False),
    "normalised": rdrop.LayerNormLSTMCell(5),
    "projected": rdrop.LSTMCell(5, projection=5),
    "other gates": rdrop.GRUCell(5, recurrent_activation=jax.nn.hard_sigmoid),
    "other activation": rdrop.SimpleCell(5, activation=jax.nn.relu),
    "bfloat16": rdrop.LSTMCell(5, dtype=jnp.bfloat16),
}


@needs_native
@pytest.mark.parametrize("what", UNSUPPORTED)
def test_other_cells_run_in_the_fused_loop(what):
    assert not calls_native(UNSUPPORTED[what])


@needs_native
def test_float64_runs_in_the_fused_loop():
    cell = rdrop.LSTMCell(5, param_dtype=jnp.float64)
    assert not calls_native(cell, dtype=jnp.float64)


@needs_native
def test_a_derivative_in_a_mask_is_the_one_of_the_fused_loop():
    """A learned rate."""
    problem = problem_of(rdrop.LSTMCell, (3, 4, 2, 5))

    def slope(loop):
        loss = loss_of(rdrop.RNN(rdrop.LSTMCell(5), loop=loop), None)

        def of_rate(rate):
            return loss(*problem, Dropout(recurrent=Concrete(rate)))[0]

        return jax.jit(jax.grad(of_rate))(jnp.float32(0.3))

    assert slope("native") != 0
    assert_close(slope("native"), slope("plain"), 1e-5)


def test_without_the_package_the_native_loop_is_refused(monkeypatch):
    monkeypatch.setattr(native, "is_installed", lambda: False)
    with pytest.raises(ModuleNotFoundError, match=r"rdrop-cpu .* `make native`"):
        rdrop.RNN(rdrop.LSTMCell(5), loop="native")


@needs_native
def test_without_a_step_the_carry_passes():
    params, xs, carry = problem_of(rdrop.LSTMCell, (3, 1, 2, 5))
    rnn = rdrop.RNN(rdrop.LSTMCell(5), loop="native")
    last, ys = rnn.apply(params, xs[:, :0], initial_carry=carry)
    chex.assert_trees_all_equal(last, carry)
    assert ys.shape == (3, 0, 5)


# Transformations.

PROBLEM = (5, 4, 3, 6)
NOISE = Dropout(inputs=Bernoulli(0.5), recurrent=Bernoulli(0.5, per="step"))


def lstm_loss(loop, keys=KEYS):
    rnn = rdrop.RNN(rdrop.LSTMCell(PROBLEM[-1]), loop=loop)

    def loss(params, xs, carry, keys=keys):
        carry, ys = rnn.apply(params, xs, NOISE, keys, initial_carry=carry)
        return sum(jnp.sum(leaf**3) for leaf in jax.tree.leaves((carry, ys)))

    return loss


@needs_native
def test_lanes_are_one_call_and_agree_with_one_at_a_time():
    """Lanes of parameters inside of lanes of keys; inputs and carry are shared."""
    params, xs, carry = problem_of(rdrop.LSTMCell, PROBLEM)
    lanes = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf]), params)
    steps = jnp.arange(3)

    def gradient(step, params):
        loss = lstm_loss("native", KEYS.replace(step=step))
        return jax.grad(loss, argnums=(0, 1, 2))(params, xs, carry)

    over = jax.vmap(jax.vmap(gradient, (None, 0)), (0, None))
    one = jax.jit(gradient)
    each = [jax.tree.map(lambda leaf, n=n: leaf[n], lanes) for n in (0, 1)]
    expected = stack_trees([stack_trees([one(s, p) for p in each]) for s in steps])
    assert_close(jax.jit(over)(steps, lanes), expected, 1e-6)
    text = jax.jit(over).lower(steps, lanes).as_text()
    assert all(text.count(f"@{name}(") == 1 for name in TARGETS)


@needs_native
def test_second_derivatives_and_lanes_of_cotangents():
    problem = problem_of(rdrop.LSTMCell, PROBLEM)

    def second(loop):
        gradient = jax.grad(lstm_loss(loop))

        def norm(*problem):
            return sum((leaf**2).sum() for leaf in jax.tree.leaves(gradient(*problem)))

        return jax.jit(jax.grad(norm, argnums=(0, 1, 2)))(*problem)

    def jacobian(loop):
        rnn = rdrop.RNN(rdrop.LSTMCell(PROBLEM[-1]), loop=loop)
        last = lambda params: rnn.apply(params, problem[1], NOISE, KEYS)[0][1]  # noqa: E731
        return jax.jit(jax.jacrev(last))(problem[0])

    assert_all_matter(second("plain"))
    assert_close(second("native"), second("plain"), 1e-4)
    assert_close(jacobian("native"), jacobian("plain"), 1e-5)


@needs_native
def test_inside_a_scan_and_with_checkpoints():
    problem = problem_of(rdrop.LSTMCell, PROBLEM)

    def train(loop):
        loss = jax.checkpoint(lstm_loss(loop))

        def step(params, number):
            keys = KEYS.replace(step=number)
            gradients = jax.grad(loss)(params, *problem[1:], keys)
            return jax.tree.map(lambda p, g: p - 0.01 * g, params, gradients), None

        return jax.jit(lambda p: jax.lax.scan(step, p, jnp.arange(3))[0])(problem[0])

    assert_close(train("native"), train("plain"), 1e-5)


@needs_native
@pytest.mark.slow
def test_sharded_batches_agree_with_one_device():
    case = "LSTMCell:native"
    assert_agree(run(case), case)


@needs_native
@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_only_the_program_for_cpu_calls_compiled_code(platform):
    """Its calls are not stable over versions, which JAX wants to be told."""
    checks = [export.DisabledSafetyCheck.custom_call(name) for name in TARGETS]
    gradient = jax.jit(jax.grad(lstm_loss("native")))
    problem = problem_of(rdrop.LSTMCell, PROBLEM)
    exported = export.export(gradient, platforms=[platform], disabled_checks=checks)(
        *problem
    )
    text = exported.mlir_module()
    assert [name in text for name in TARGETS] == [platform == "cpu"] * 2


# Threads, and instruction sets.

THREADS = """
import os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[1])])
import hashlib, jax, test_native
digest = hashlib.sha256()
for name in ("lstm", "gru"):
    for leaf in jax.tree.leaves(test_native.gradients_of_many_rows(name)):
        digest.update(leaf.tobytes())
print(digest.hexdigest())
"""
INSTRUCTIONS = """
import conftest, test_native
for name, setting in ("lstm", "mixed_states"), ("gru", "added"):
    noise = test_native.NOISES[setting]
    test_native.assert_native_is_plain(test_native.CELLS[name], noise, (7, 21, 33, 17))
"""


def run_program(text, *arguments, **variables):
    """What a program prints, in a process of its own."""
    command = [sys.executable, "-c", text, *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | variables
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def gradients_of_many_rows(name):
    """Gradients of a case with more rows, steps and columns than one part has."""
    cell, shape = CELLS[name], (23, 40, 19, 150)
    loss = loss_of(rdrop.RNN(cell(shape[-1]), loop="native"), NOISE)
    results = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(
        *problem_of(cell, shape)
    )
    return jax.tree.map(np.asarray, results)


@needs_native
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_results_are_bitwise_identical_for_one_thread_and_two():
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core")
    assert run_program(THREADS, "1") == run_program(THREADS, "2")


@needs_native
@pytest.mark.slow
@pytest.mark.parametrize("instructions", ["portable", "avx2"])
def test_narrower_instructions_agree(instructions):
    run_program(INSTRUCTIONS, RDROP_CPU_INSTRUCTIONS=instructions)
