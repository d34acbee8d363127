"""RNN: the cell's definition made fast; time, padding, layout, parameters, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rdrop
from rdrop import Bernoulli, Dropout

MIXED = [
    Dropout(
        inputs=Bernoulli(0.4, per="step", gates="each"),
        outputs=Bernoulli(0.3),
        recurrent=Bernoulli(0.5, batch="shared"),
        update=Bernoulli(0.2, per="step", scale="expectation"),
    ),
    Dropout(
        inputs=Bernoulli(0.4, scale="expectation"),
        outputs=Bernoulli(0.3, per="step", batch="shared"),
        recurrent=Bernoulli(0.5, per="step", gates="each"),
        update=Bernoulli(0.2),
    ),
]


QUICK = {"xla_backend_optimization_level": 0}  # compiles three times as fast


def assert_close(actual, expected, tolerance=1e-12):
    for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def assert_equal(actual, expected):
    for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_array_equal(a, b)


def by_definition(problem, dropout, lengths, reverse):
    """The cell unrolled by lax.scan, drawing the masks of each step as it goes."""
    keys = problem.keys.replace(direction="backward" if reverse else "forward")

    def unroll(params, xs, carry):
        def step(carry, x_and_t):
            x, t = x_and_t
            keys_t = keys.replace(step=keys.step + t)
            new, y = problem.cell.apply(params, carry, x, dropout, keys_t)
            valid = (t < lengths)[:, None]
            carry = jax.tree.map(lambda a, b: jnp.where(valid, a, b), new, carry)
            return carry, jnp.where(valid, y, 0)

        steps = (xs.swapaxes(0, 1), jnp.arange(xs.shape[1]))
        carry, ys = jax.lax.scan(step, carry, steps, reverse=reverse)
        return carry, ys.swapaxes(0, 1)

    return unroll


def by_rnn(problem, dropout=None, keys=None, lengths=None, reverse=False):
    rnn = rdrop.RNN(problem.cell, reverse=reverse)

    def run(params, xs, carry):
        return rnn.apply(
            params, xs, dropout, keys, initial_carry=carry, lengths=lengths
        )

    return run


def with_gradients(run, cotangents):
    """Carry and outputs, and gradients in parameters, inputs and initial carry."""

    @functools.partial(jax.jit, compiler_options=QUICK)
    def both(*arguments):
        results, pull_back = jax.vjp(run, *arguments)
        return results, pull_back(cotangents)

    return both


@pytest.fixture
def cotangents(rng):
    c, h = jnp.asarray(rng.normal(size=(2, 4, 3)))
    return (c, h), jnp.asarray(rng.normal(size=(4, 5, 3)))


@pytest.mark.parametrize(
    ("dropout", "reverse", "padded"),
    [(MIXED[0], False, False), (MIXED[1], True, True)],
    ids=["whole", "padded-reverse"],
)
def test_rnn_is_its_definition(problem, cotangents, dropout, reverse, padded):
    arguments = (problem.params, problem.xs, problem.carry)
    lengths = problem.lengths if padded else np.full(4, 5)
    slow = by_definition(problem, dropout, lengths, reverse)
    lengths = problem.lengths if padded else None
    fast = by_rnn(problem, dropout, problem.keys, lengths, reverse)
    actual = with_gradients(fast, cotangents)(*arguments)
    expected = with_gradients(slow, cotangents)(*arguments)
    assert_close(actual, expected, tolerance=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("dropout", MIXED, ids=["first", "second"])
def test_rnn_uses_the_masks_that_draw_returns(problem, dropout):
    arguments = (problem.params, problem.xs, problem.carry)
    masks = problem.draw(dropout, time=5)
    from_keys = by_rnn(problem, dropout, problem.keys)(*arguments)
    assert_equal(by_rnn(problem, masks)(*arguments), from_keys)


def test_directions_have_their_own_masks(problem, every_site):
    noise, ones = every_site(0.5, per="step"), jnp.ones_like(problem.xs)
    runs = [by_rnn(problem, noise, problem.keys, reverse=r) for r in (False, True)]
    (_, forward), (_, backward) = (
        run(problem.params, ones, problem.carry) for run in runs
    )
    assert ((forward == 0) != (backward == 0)).any()


def test_two_chunks_are_one_sequence(problem):
    dropout = Dropout(
        inputs=Bernoulli(0.4), recurrent=Bernoulli(0.5, per="step", gates="each")
    )

    def run(xs, carry, step):
        keys = problem.keys.replace(step=step)
        return by_rnn(problem, dropout, keys)(problem.params, xs, carry)

    whole = run(problem.xs[:, :4], problem.carry, 7)
    carry, first = run(problem.xs[:, :2], problem.carry, 7)
    carry, second = run(problem.xs[:, 2:4], carry, 9)
    assert_close((carry, jnp.concatenate([first, second], axis=1)), whole)


def test_two_chunks_have_the_masks_of_one_sequence(problem, every_site):
    dropout = every_site(0.5, per="step")
    whole = problem.draw(dropout, 5, step=7)
    for step in (7, 9):
        chunk = problem.draw(dropout, 2, step=step)
        part = jax.tree.map(lambda mask, t=step - 7: mask[t : t + 2], whole)
        assert_equal(chunk, part)


@pytest.fixture
def padding(problem):
    return np.arange(5)[None] >= problem.lengths[:, None]


def filled(xs, padding, filling):
    return jnp.where(padding[..., None], filling, xs)


@pytest.mark.parametrize("reverse", [False, True])
def test_padding_is_invisible(problem, rng, cotangents, padding, reverse):
    """In results and gradients, also where it is not a number."""
    masks = problem.draw(MIXED[1], time=5)
    run = by_rnn(problem, masks, lengths=problem.lengths, reverse=reverse)
    run = with_gradients(run, cotangents)
    expected = run(problem.params, problem.xs, problem.carry)
    garbage = rng.normal(size=problem.xs.shape)
    for filling in (garbage, 1e30 * garbage, np.inf, np.nan):
        xs = filled(problem.xs, padding, filling)
        actual = run(problem.params, xs, problem.carry)
        assert_equal(actual, expected)
        _, (_, gradient_in_xs, _) = actual
        assert not gradient_in_xs[padding].any()


@pytest.mark.parametrize("reverse", [False, True])
def test_padded_outputs_are_zero_and_the_carry_is_held(problem, padding, reverse):
    masks = problem.draw(Dropout(update=Bernoulli(0.5)), time=5)
    run = by_rnn(problem, masks, lengths=problem.lengths, reverse=reverse)
    carry, ys = run(problem.params, problem.xs, problem.carry)
    assert (ys[padding] == 0).all()
    assert (ys[~padding] != 0).all()
    empty = jax.tree.map(lambda leaf: leaf[3], (carry, problem.carry))
    assert_equal(*empty)


@pytest.mark.parametrize("reverse", [False, True])
def test_padded_sequence_is_the_sequence_alone(problem, every_site, reverse):
    """The mask is shared by the batch, so that it is also that of an example alone."""
    masks = problem.draw(every_site(0.5, batch="shared"))
    run = by_rnn(problem, masks, lengths=problem.lengths, reverse=reverse)
    alone = jax.jit(by_rnn(problem, masks, reverse=reverse))
    results = run(problem.params, problem.xs, problem.carry)
    for n, length in enumerate(problem.lengths[:3]):
        own, xs, initial = jax.tree.map(
            lambda leaf, n=n: leaf[n : n + 1], (results, problem.xs, problem.carry)
        )
        carry, ys = own
        expected = alone(problem.params, xs[:, :length], initial)
        assert_close((carry, ys[:, :length]), expected)


def test_traced_lengths_are_the_known_ones(problem):
    def run(lengths):
        arguments = (problem.params, problem.xs, problem.carry)
        return by_rnn(problem, lengths=lengths)(*arguments)

    assert_close(jax.jit(run)(jnp.asarray(problem.lengths)), run(problem.lengths))


def test_lengths_may_be_a_list_or_of_another_integer_type(problem):
    arguments = (problem.params, problem.xs, problem.carry)
    expected = by_rnn(problem, lengths=problem.lengths)(*arguments)
    for lengths in (
        problem.lengths.tolist(),
        tuple(problem.lengths.tolist()),
        jnp.asarray(problem.lengths, jnp.int32),
        np.asarray(problem.lengths, np.uint8),
    ):
        assert_equal(by_rnn(problem, lengths=lengths)(*arguments), expected)


def test_time_major_is_the_transpose(problem):
    masks = problem.draw(MIXED[0], time=5)
    rnn = rdrop.RNN(problem.cell, time_major=True)
    xs = problem.xs.swapaxes(0, 1)
    carry, ys = rnn.apply(problem.params, xs, masks, lengths=problem.lengths)
    expected = by_rnn(problem, masks, lengths=problem.lengths)
    assert_equal((carry, ys.swapaxes(0, 1)), expected(problem.params, problem.xs, None))


def test_initial_carry_is_zero_by_default(problem):
    zeros = jax.tree.map(jnp.zeros_like, problem.carry)
    arguments = (problem.params, problem.xs)
    run = by_rnn(problem)
    assert_equal(run(*arguments, None), run(*arguments, zeros))


def test_parameters_are_those_of_the_cell(problem):
    key = jax.random.key(3)
    from_cell = problem.cell.init(key, problem.carry, problem.xs[:, 0])
    from_rnn = rdrop.RNN(problem.cell).init(key, problem.xs)
    assert jax.tree.structure(from_rnn) == jax.tree.structure(from_cell)
    assert_equal(from_rnn, from_cell)


def test_noise_does_not_change_the_parameters(problem):
    key, rnn = jax.random.key(3), rdrop.RNN(problem.cell)
    noisy = rnn.init(key, problem.xs, MIXED[0], problem.keys)
    assert_equal(noisy, rnn.init(key, problem.xs))


def apply(problem, xs=None, time_major=False, **arguments):
    rnn = rdrop.RNN(problem.cell, time_major=time_major)
    return rnn.apply(problem.params, problem.xs if xs is None else xs, **arguments)


@pytest.mark.parametrize("shape", [(4, 2), (4, 5, 2, 1)])
@pytest.mark.parametrize("time_major", [False, True])
def test_inputs_of_a_wrong_rank_are_refused(problem, shape, time_major):
    axes = "T, B, D" if time_major else "B, T, D"
    message = rf"`xs` must have the axes \[{axes}\], got shape \(4, [25]"
    with pytest.raises(ValueError, match=message):
        apply(problem, jnp.zeros(shape), time_major)


def test_inputs_of_other_features_are_refused(problem):
    message = "`xs` must have 2 features, as the parameters do, got 7"
    with pytest.raises(ValueError, match=message):
        apply(problem, jnp.zeros((4, 5, 7)))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shapes", [[(5, 3)] * 2, [(4, 7)] * 2, [(4, 3)]])
def test_initial_carry_of_a_wrong_shape_is_refused(problem, shapes):
    carry = tuple(jnp.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match="`initial_carry` must be") as error:
        apply(problem, initial_carry=carry)
    assert str(error.value) == (
        "`initial_carry` must be a tuple (c, h), each of shape [B, H] = (4, 3), got "
        f"tuple of {shapes}."
    )


@pytest.mark.parametrize("lengths", [[5, 6, 1, 0], [5, -1, 1, 0]])
@pytest.mark.parametrize("array", [np.array, jnp.array])
def test_lengths_outside_the_sequence_are_refused(problem, lengths, array):
    message = r"`lengths` must lie in \[0, T = 5\], got \[ ?5 +(6|-1)"
    with pytest.raises(ValueError, match=message):
        apply(problem, lengths=array(lengths))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("lengths", "got"),
    [
        (np.array([5, 3, 1]), r"int64\[3\]"),
        (np.array(5), r"int64\[\]"),
        (np.array([[5, 3, 1, 0]]), r"int64\[1, 4\]"),
        (np.array([5.0, 3.0, 1.0, 0.0]), r"float64\[4\]"),
        (np.array([True, True, False, False]), r"bool\[4\]"),
    ],
)
def test_lengths_of_a_wrong_kind_are_refused(problem, lengths, got):
    message = rf"`lengths` must be integers of shape \[B\] = \(4,\), got {got}"
    with pytest.raises(ValueError, match=message):
        apply(problem, lengths=lengths)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (3, r"must be integers of shape \[B\] = \(4,\), got int64\[\]"),
        ([5, 3], r"must be integers of shape \[B\] = \(4,\), got int64\[2\]"),
        ([5.0, 3, 1, 0], r"must be integers of shape .*, got float64\[4\]"),
        ([5, 3, 1, 6], r"must lie in \[0, T = 5\], got \[5 3 1 6\]"),
    ],
)
def test_wrong_lengths_that_are_no_array_are_refused(problem, lengths, message):
    with pytest.raises(ValueError, match=f"`lengths` {message}"):
        apply(problem, lengths=lengths)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("keys", [jax.random.PRNGKey(0), jax.random.key(0), 3])
def test_keys_that_are_no_stream_keys_are_refused(problem, keys):
    message = "`keys` must be StreamKeys, made by rdrop.stream_keys"
    with pytest.raises(TypeError, match=message):
        apply(problem, dropout=MIXED[0], keys=keys)


@pytest.mark.usefixtures("unchecked")
def test_untyped_keys_are_refused(problem):
    raw = jax.random.PRNGKey(0)
    keys = rdrop.StreamKeys(inputs=raw, recurrent=raw)
    message = r"`keys.inputs` must be a typed PRNG key .*, got uint32\[2\]"
    with pytest.raises(TypeError, match=message):
        apply(problem, dropout=MIXED[0], keys=keys)


@pytest.mark.parametrize("with_keys", [False, True])
def test_rate_that_does_not_fit_is_refused_in_training_and_evaluation(
    problem, with_keys
):
    dropout = Dropout(recurrent=Bernoulli(jnp.zeros(7)))
    keys = problem.keys if with_keys else None
    message = r"Site `recurrent`: `rate` must broadcast .*\(4, 1, 3\), got shape \(7,\)"
    with pytest.raises(ValueError, match=message):
        apply(problem, dropout=dropout, keys=keys)


GRUCell = functools.partial(rdrop.GRUCell, param_dtype=jnp.float64)
SimpleCell = functools.partial(rdrop.SimpleCell, param_dtype=jnp.float64)
NOISE = Dropout(inputs=Bernoulli(0.4, per="step"), recurrent=Bernoulli(0.5))


def layers_of(*cells):
    return rdrop.Stack([rdrop.RNN(cell) for cell in cells])


def test_stack_is_its_layers_one_after_the_other(problem, rng):
    """Layer n draws as a layer at that depth, whatever stands above it."""
    cells = [problem.cell.clone(), GRUCell(2), SimpleCell(3)]
    noises = (NOISE, NOISE, Dropout(outputs=Bernoulli(0.5)))
    stack = layers_of(*cells)
    params = stack.init(jax.random.key(0), problem.xs)
    options = {"lengths": problem.lengths}
    carries, ys = stack.apply(params, problem.xs, noises, problem.keys, **options)
    expected, xs = [], problem.xs
    for depth, (cell, noise) in enumerate(zip(cells, noises, strict=True)):
        own = {"params": params["params"][f"layers_{depth}"]}
        keys = problem.keys.replace(layer=depth)
        carry, xs = rdrop.RNN(cell).apply(own, xs, noise, keys, **options)
        expected.append(carry)
    assert_equal((carries, ys), (tuple(expected), xs))


def test_stack_spreads_one_dropout_over_all_layers(problem):
    stack = layers_of(problem.cell.clone(), problem.cell.clone())
    params = stack.init(jax.random.key(0), problem.xs)
    run = lambda noise: stack.apply(params, problem.xs, noise, problem.keys)  # noqa: E731
    assert_equal(run(NOISE), run([NOISE, NOISE]))


def test_stack_continues_from_its_carries(problem):
    stack = layers_of(GRUCell(2), SimpleCell(3))
    params = stack.init(jax.random.key(0), problem.xs)
    _, whole = stack.apply(params, problem.xs)
    carries, first = stack.apply(params, problem.xs[:, :2])
    _, second = stack.apply(params, problem.xs[:, 2:], initial_carry=carries)
    assert_close(jnp.concatenate([first, second], axis=1), whole)


def test_bidirectional_is_both_directions_side_by_side(problem):
    """Each direction has its own masks, and starts at its end of the valid steps."""
    forward, backward = problem.cell.clone(), GRUCell(2)
    both = rdrop.Bidirectional(forward, backward)
    params = both.init(jax.random.key(0), problem.xs)
    noises = (NOISE, Dropout(inputs=Bernoulli(0.5)))
    options = {"lengths": problem.lengths}
    carries, ys = both.apply(params, problem.xs, noises, problem.keys, **options)
    results = [
        rdrop.RNN(cell, reverse=reverse).apply(
            {"params": params["params"][name]},
            problem.xs,
            noise,
            problem.keys,
            **options,
        )
        for cell, reverse, name, noise in (
            (forward, False, "forward", noises[0]),
            (backward, True, "backward", noises[1]),
        )
    ]
    (first, ys_forward), (last, ys_backward) = results
    expected = jnp.concatenate([ys_forward, ys_backward], axis=-1)
    assert_equal((carries, ys), ((first, last), expected))


@pytest.mark.usefixtures("unchecked")
def test_one_entry_is_needed_for_each_layer_and_direction(problem):
    stack = layers_of(GRUCell(2), SimpleCell(3))
    both = rdrop.Bidirectional(GRUCell(2), GRUCell(2))
    for layers in (stack, both):
        params = layers.init(jax.random.key(0), problem.xs)
        for argument in ({"dropout": [NOISE] * 3}, {"initial_carry": (None,)}):
            ((name, value),) = argument.items()
            message = f"`{name}` must have 2 entries, one for each, got {len(value)}"
            with pytest.raises(ValueError, match=message):
                layers.apply(params, problem.xs, **argument)


def test_modules_that_stand_twice_are_refused():
    cell = GRUCell(2)
    layer = rdrop.RNN(cell)
    message = "must be modules of their own, got one and the same twice"
    with pytest.raises(ValueError, match=f"`layers` {message}"):
        rdrop.Stack([layer, layer])
    with pytest.raises(ValueError, match=f"`forward, backward` {message}"):
        rdrop.Bidirectional(cell, cell)
