"""A language model's windows are those of the papers, and of PyTorch."""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import rdrop
from experiments.axes import make_sweep
from experiments.config import ConfigError, Noise, StateNoise, WeightNoise
from experiments.language.config import (
    SHARED,
    Config,
    Dropout,
    Evaluation,
    Model,
    Train,
    Words,
)
from experiments.language.corpus import Corpus, whole_rows
from experiments.language.evaluate import MonteCarlo
from experiments.language.model import (
    drop_words,
    init,
    make_model,
    noises,
    noisy_sites,
    start_carry,
)
from experiments.language.program import Program, make_lanes, pace
from experiments.language.softmax import token_losses
from experiments.language.train import make_evaluate

V = 11
SMALL = Model(embedding=6, units=6, layers=2, init=0.3)
TRAIN = Train(epochs=2, batch=3, window=5, clip=0.5)
ROWS = Evaluation(batch=2)
RECURRENT = SHARED[4:]
NOISY = Dropout(
    words=Words(0.2),
    inputs=Noise(rate=0.3),
    between=Noise(rate=0.3, per="step"),
    outputs=Noise(rate=0.4, scale="expectation"),
    recurrent=Noise(rate=0.3, gates="each"),
    update=Noise(rate=0.2),
    cell_state=StateNoise(rate=0.2),
    recurrent_weights=WeightNoise(rate=0.3),
)


@pytest.fixture(scope="module")
def corpus():
    rng = np.random.default_rng(0)
    train, valid, test = (rng.integers(0, V, n, np.int32) for n in (70, 23, 31))
    return Corpus(tuple("abcdefghijk"), train, valid, test)


@pytest.fixture(scope="module")
def run(corpus):
    """Returns the state after an epoch of a config, or its first windows."""
    programs = {}

    def run(config, windows=None, corpus=corpus):
        lane = make_lanes([config])[0]
        if (config, id(corpus)) not in programs:
            programs[config, id(corpus)] = program = Program([config], corpus)
            program.compile()
        program = programs[config, id(corpus)]
        state = program.begin_epoch(program.start(lane).state)
        plan = program.plan(0, 0)
        last = np.int32(plan.used if windows is None else windows)
        bounds = pace(0, 1.0, False), np.int32(0), last
        return program.advance(state, lane, program.rows, plan.windows, *bounds)

    return run


@pytest.fixture(scope="module")
def params():
    """Of the small model, drawn by NumPy: fast."""
    rng, model = np.random.default_rng(2), make_model(make_config(), V)
    shapes = jax.eval_shape(lambda: init(model, jax.random.key(0)))
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(-0.3, 0.3, leaf.shape), leaf.dtype), shapes
    )


def make_config(model=SMALL, dropout=None, train=TRAIN, **options):
    options = {"evaluation": ROWS} | options
    return Config(model=model, dropout=dropout or Dropout(), train=train, **options)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


# The model.


@pytest.mark.slow
def test_a_text_in_windows_is_the_text_in_one_piece(rng, params):
    model = make_model(make_config(), V)
    tokens = jnp.asarray(rng.integers(0, V, (3, 12), np.int32))
    apply, blank = jax.jit(model.apply), start_carry(model, params, 3)
    whole = apply(params, tokens, carry=blank)
    first = apply(params, tokens[:, :7], carry=blank)
    second = apply(params, tokens[:, 7:], carry=first.carry)
    halves = jnp.concatenate([first.logits, second.logits], axis=1)
    np.testing.assert_allclose(whole.logits, halves, rtol=1e-6, atol=1e-7)


def test_words_shared_by_the_batch_are_those_of_embedding_dropout(rng):
    key, table = jax.random.key(3), jnp.asarray(rng.normal(size=(V, 4)), jnp.float32)
    tokens = jnp.asarray(rng.integers(0, V, (3, 12), np.int32))
    noise = rdrop.Bernoulli(0.4, batch="shared")

    @jax.jit
    def run():
        mask = drop_words(key, noise, tokens, V)
        dropped = rdrop.embedding_dropout(key, 0.4, table)[tokens]
        return table[tokens] * mask, dropped

    np.testing.assert_array_equal(*run())


def test_rows_that_drop_their_own_words_drop_all_occurrences_of_one(rng):
    tokens, key = rng.integers(0, V, (30, 40), np.int32), jax.random.key(0)
    draw = jax.jit(lambda t: drop_words(key, rdrop.Bernoulli(0.5), t, V)[..., 0])
    mask = np.asarray(draw(tokens))
    words = [
        set(zip(*(part.tolist() for part in row), strict=True))
        for row in zip(tokens, mask, strict=True)
    ]
    assert all(len(row) == len({word for word, _ in row}) for row in words)
    assert len({m for row in words for w, m in row if w == 0}) == 2
    assert set(np.unique(mask)) == {0.0, 2.0}


@pytest.mark.parametrize(
    "per", [pytest.param("sequence", marks=pytest.mark.slow), "step"]
)
def test_outputs_are_dropped_by_the_masks_of_the_stack(rng, params, per):
    """The model applies the noise of the top outputs itself; the bits are the same."""
    dropout = Dropout(outputs=Noise(rate=0.5, per=per))
    config = make_config(dropout=dropout)
    model, keys = make_model(config, V), rdrop.stream_keys(jax.random.key(1))
    noise = rdrop.Dropout(outputs=rdrop.Bernoulli(0.5, per=per))
    stack = rdrop.Stack([rdrop.RNN(rdrop.LSTMCell(6)) for _ in range(2)])

    @jax.jit
    def run(params, tokens):
        reading = model.apply(params, tokens, noises([config])[0], keys)
        xs = params["params"]["embedding"][tokens]
        layers = {f"layers_{n}": params["params"][f"LSTMCell_{n}"] for n in range(2)}
        _, ys = stack.apply({"params": layers}, xs, (None, noise), keys)
        return reading.raw, reading.dropped, ys

    raw, dropped, ys = map(
        np.asarray, run(params, rng.integers(0, V, (3, 7), np.int32))
    )
    np.testing.assert_array_equal(dropped, ys)
    assert (dropped == 0).any()
    assert not (raw == 0).any()


def test_evaluation_takes_the_expectation_of_the_noise(rng, params):
    config = make_config(dropout=NOISY)
    tokens = rng.integers(0, V, (3, 7), np.int32)
    noise, apply = noises([config])[0], jax.jit(make_model(config, V).apply)
    reading = apply(params, tokens, noise)
    np.testing.assert_allclose(reading.dropped, 0.6 * reading.raw, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "names"),
    [
        (Model(embedding=4, units=6, tied=True), {"projection": (6, 4)}),
        (Model(embedding=4, units=6, top_units=4, tied=True), {}),
        (Model(embedding=4, units=6), {"readout": (6, V)}),
    ],
)
def test_a_tied_softmax_has_the_embedding_and_a_projection_where_sizes_differ(
    model, names
):
    params = init(make_model(make_config(model), V), jax.random.key(0))["params"]
    assert params["embedding"].shape == (V, 4)
    found = {n: params[n].shape for n in ("projection", "readout") if n in params}
    assert found == names


def test_parameters_begin_within_their_bounds():
    options = Model(embedding=40, units=50, layers=1, init=0.3, init_embedding=0.1)
    model = make_model(make_config(options), 200)
    params = jax.jit(lambda: init(model, jax.random.key(0)))()["params"]
    bounds = {"embedding": 0.1, "readout": 0.1, "bias": 0.0}
    for name, leaf in params.items():
        for part in jax.device_get(jax.tree.leaves(leaf)):
            bound = bounds.get(name, 0.3)
            assert np.abs(part).max() <= bound
            assert np.abs(part).max() >= 0.9 * bound
            assert abs(part.mean()) <= 5 * bound / math.sqrt(3 * part.size)


@pytest.mark.parametrize(
    ("cell", "name"),
    [("layernorm_lstm", "gain"), ("rg_lru", "decay"), ("lru", "diagonal")],
)
def test_parameters_other_than_kernels_have_their_own_start(cell, name):
    """Others have a start of their own, such as eigenvalues near the unit circle."""
    model = make_model(make_config(Model(cell=cell, units=6, layers=1, init=0.1)), V)
    found, own = (
        flatten_dict(start(model, jax.random.key(0)))
        for start in (
            init,
            lambda model, key: model.init(key, jnp.zeros((1, 1), jnp.int32)),
        )
    )
    assert name in {path[-1] for path in found}
    for path, leaf in found.items():
        if path[-1] == name:
            np.testing.assert_array_equal(leaf, own[path])
            assert np.abs(leaf).max() > 0.1
        elif "kernel" in path[-1]:
            assert 0.05 < np.abs(leaf).max() <= 0.1


def test_the_projection_of_a_tied_softmax_has_its_own_noise(rng):
    options = Model(embedding=6, units=9, layers=1, tied=True, init=0.3)
    dropped = dataclasses.replace(NOISY, between=Noise(), projected=Noise(rate=0.5))
    config = make_config(options, dropped)
    model, (noise,) = make_model(config, V), noises([config])
    params = jax.jit(lambda: init(model, jax.random.key(0)))()
    tokens = jnp.asarray(rng.integers(0, V, (3, 7), np.int32))
    keys = rdrop.stream_keys(jax.random.key(1))
    reading = jax.jit(model.apply)(params, tokens, noise, keys)
    weights = jax.tree.map(np.asarray, params["params"])
    projected = np.asarray(reading.dropped @ weights["projection"])
    site = {"outputs": rdrop.Site(1, 6)}
    above = keys.replace(layer=1)
    mask = rdrop.draw(rdrop.Dropout(outputs=noise.projected), above, site, 3, 7).outputs
    assert set(np.unique(mask)) == {0.0, 2.0}
    expected = projected * np.asarray(mask) @ weights["embedding"].T + weights["bias"]
    np.testing.assert_allclose(reading.logits, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_bfloat16_keeps_parameters_memory_and_softmax_in_float32(run):
    config = make_config(Model(embedding=6, units=6, dtype="bfloat16"))
    model = make_model(config, V)
    params = init(model, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    tokens = jnp.zeros((3, 7), jnp.int32)
    reading = model.apply(params, tokens, carry=start_carry(model, params, 3))
    (c, h), *_ = reading.carry
    assert (c.dtype, h.dtype, reading.logits.dtype) == (
        "float32",
        "bfloat16",
        "float32",
    )
    state = run(config)
    full = run(make_config(Model(embedding=6, units=6)))
    assert float(state.nll) == pytest.approx(float(full.nll), rel=0.01)
    chex.assert_trees_all_close(state.params, full.params, atol=1e-3)
    readouts = (each.params["params"]["readout"] for each in (state, full))
    assert float(jnp.abs(jnp.subtract(*readouts)).max()) > 1e-6


def test_learned_rates_are_refused():
    config = make_config(dropout=Dropout(inputs=Noise(kind="concrete", learn=True)))
    with pytest.raises(ConfigError, match=r"dropout.inputs.learn: must be false"):
        noises([config])[0]


# A window, beside PyTorch.


@pytest.mark.parametrize("per", ["row", pytest.param("token", marks=pytest.mark.slow)])
@pytest.mark.parametrize("clip", [0.5, pytest.param(0.0, marks=pytest.mark.slow)])
def test_an_epoch_is_that_of_pytorch(run, corpus, per, clip):
    torch = pytest.importorskip("torch")
    train = Train(
        epochs=1,
        batch=3,
        window=5,
        per=per,
        clip=clip,
        learning_rate=0.7,
        weight_decay=0.01,
        activation=0.5,
        temporal_activation=0.4,
    )
    config = make_config(train=train)
    program = Program([config], corpus)
    key = jax.random.fold_in(program.lanes[0].key, 0)
    params = init(program.training.model, key)
    expected, nll = torch_epoch(torch, params["params"], corpus, train)
    state = run(config)
    np.testing.assert_allclose(flat(state.params), flat(expected), rtol=0, atol=2e-6)
    assert float(state.nll) == pytest.approx(nll, rel=1e-6)
    assert int(state.tokens) == 3 * 5 * 4


@pytest.mark.parametrize(
    ("two_biases", "penalty_on"),
    [
        (True, "clipped"),
        (False, "gradients"),
        (False, "parameters"),
        pytest.param(True, "parameters", marks=pytest.mark.slow),
    ],
)
def test_two_biases_and_each_penalty_are_those_of_pytorch(
    run, corpus, two_biases, penalty_on
):
    torch = pytest.importorskip("torch")
    train = Train(
        epochs=1,
        batch=3,
        window=5,
        clip=0.2,
        weight_decay=0.05,
        weight_decay_on=penalty_on,
    )
    config = make_config(dataclasses.replace(SMALL, two_biases=two_biases), train=train)
    program = Program([config], corpus)
    key = jax.random.fold_in(program.lanes[0].key, 0)
    params = init(program.training.model, key)["params"]
    expected, _ = torch_epoch(torch, params, corpus, train, two_biases)
    found = run(config).params
    np.testing.assert_allclose(flat(found), flat(expected), rtol=0, atol=2e-6)


def torch_epoch(torch, params, corpus, train, two_biases=False):
    """Trains an nn.LSTM of the same parameters; returns them and the sum of the nll."""
    names = ("embedding", "readout", "bias")
    outer = {n: torch.tensor(np.asarray(params[n]), requires_grad=True) for n in names}
    lstm = torch.nn.LSTM(6, 6, 2, batch_first=True)
    zero = torch.zeros(24)
    with torch.no_grad():
        for n in range(2):
            layer = params[f"LSTMCell_{n}"]
            for ours, theirs in (("kernel", "ih"), ("recurrent_kernel", "hh")):
                weight = torch.tensor(np.asarray(layer[ours])).T
                getattr(lstm, f"weight_{theirs}_l{n}").copy_(weight)
            getattr(lstm, f"bias_ih_l{n}").copy_(
                torch.tensor(np.asarray(layer["bias"]))
            )
            getattr(lstm, f"bias_hh_l{n}").copy_(zero).requires_grad_(two_biases)
    weights = [*outer.values(), *(p for p in lstm.parameters() if p.requires_grad)]
    rows = torch.tensor(corpus.train[:69].reshape(3, 23).astype(np.int64))
    carry, total = None, 0.0
    for start in range(0, 20, 5):
        xs, targets = rows[:, start : start + 5], rows[:, start + 1 : start + 6]
        ys, carry = lstm(outer["embedding"][xs], carry)
        logits = ys @ outer["readout"] + outer["bias"]
        nll = torch.nn.functional.cross_entropy(
            logits.reshape(-1, V), targets.reshape(-1), reduction="sum"
        )
        loss = nll / (3 if train.per == "row" else 15)
        loss = loss + train.activation * ys.pow(2).mean()
        change = (ys[:, 1:] - ys[:, :-1]).pow(2).mean()
        penalties = train.weight_decay_on, train.weight_decay
        inside, outside, share = (
            size * (place == penalties[0])
            for place, size in zip(
                ("gradients", "clipped", "parameters"), [penalties[1]] * 3, strict=True
            )
        )
        loss = loss + inside / 2 * sum(weight.pow(2).sum() for weight in weights)
        (loss + train.temporal_activation * change).backward()
        if train.clip:
            torch.nn.utils.clip_grad_norm_(weights, train.clip)
        with torch.no_grad():
            for weight in weights:
                step = weight.grad + outside * weight
                weight -= train.learning_rate * step
                weight -= share * weight
                weight.grad = None
        carry, total = (
            tuple(part.detach() for part in carry),
            total + float(nll.detach()),
        )
    layers = {
        f"LSTMCell_{n}": {
            "kernel": getattr(lstm, f"weight_ih_l{n}").detach().numpy().T,
            "recurrent_kernel": getattr(lstm, f"weight_hh_l{n}").detach().numpy().T,
            "bias": sum(
                getattr(lstm, f"bias_{part}_l{n}").detach().numpy()
                for part in ("ih", "hh")
            ),
        }
        for n in range(2)
    }
    return {n: v.detach().numpy() for n, v in outer.items()} | layers, total


@pytest.mark.slow
def test_ar_is_of_dropped_outputs_and_tar_of_raw_ones(corpus):
    """One window of Merity et al. 2017 (arXiv:1708.01009), equations 3 and 4."""
    losses, keys = {}, rdrop.stream_keys(jax.random.key(1))
    inputs, targets = corpus.train[None, :6], corpus.train[None, 1:7]
    for ar, tar in ((0.0, 0.0), (2.0, 0.0), (0.0, 3.0)):
        train = Train(batch=1, window=6, activation=ar, temporal_activation=tar)
        config = make_config(dropout=NOISY, train=train)
        (lane,), training = make_lanes([config]), Program([config], corpus).training
        params = training.start(lane).params
        losses[ar, tar] = training._loss(
            params, lane, inputs, targets, 6, None, [keys]
        )[0]
    reading = training.model.apply(params, inputs, lane.noise, keys)
    raw, dropped = (np.asarray(ys, float) for ys in (reading.raw, reading.dropped))
    assert np.abs(raw - dropped).max() > 0.01
    without = float(losses[0.0, 0.0])
    penalties = float(losses[2.0, 0.0]) - without, float(losses[0.0, 3.0]) - without
    expected = 2 * (dropped**2).mean(), 3 * (np.diff(raw, axis=1) ** 2).mean()
    np.testing.assert_allclose(penalties, expected, rtol=1e-3)


def test_short_varied_windows_are_all_read():
    """Also those below five steps, the least length of the paper."""
    train = Train(batch=1, window=3, vary_window=True, longer_by=1)
    corpus = Corpus(tuple("abc"), *(np.arange(n) % 3 for n in (101, 9, 9)))
    plan = Program([make_config(train=train)], corpus).plan(0, 0)
    starts, lengths = (part[: plan.used] for part in plan.windows)
    assert plan.used == 25
    np.testing.assert_array_equal(lengths, 4)
    np.testing.assert_array_equal(starts, np.arange(0, 100, 4))


@pytest.mark.slow
def test_a_varied_window_is_one_of_its_length(run, corpus):
    """Padding changes nothing, and the learning rate is in proportion to the length."""
    train = Train(epochs=1, batch=3, window=6, vary_window=True, activation=0.3)
    config = make_config(dropout=NOISY, train=train)
    varied = run(config, windows=1)
    length = int(Program([config], corpus).plan(0, 0).windows.lengths[0])
    assert length != 6
    fixed = Train(
        epochs=1,
        batch=3,
        window=length,
        activation=0.3,
        learning_rate=length / 6,
    )
    same = run(make_config(dropout=NOISY, train=fixed), windows=1)
    assert int(varied.tokens) == 3 * length
    np.testing.assert_allclose(flat(varied.params), flat(same.params), atol=1e-6)


def test_an_epoch_begins_with_a_blank_carry_and_counts_anew(run, corpus):
    config = make_config()
    state = run(config)
    assert all(leaf.any() for leaf in jax.tree.leaves(state.carry))
    begun = Program([config], corpus).begin_epoch(state)
    assert not any(leaf.any() for leaf in jax.tree.leaves(begun.carry))
    assert begun.nll == begun.tokens == 0
    assert begun.window == state.window == 4
    np.testing.assert_array_equal(flat(begun.params), flat(state.params))


def test_masks_are_drawn_anew_for_each_window_or_held_over_an_epoch(run, corpus):
    """With a learning rate of next to nothing, a text of one token says which."""
    one_token = corpus._replace(train=np.zeros(70, np.int32))
    train = Train(epochs=1, batch=3, window=1, learning_rate=1e-12)
    inputs = Noise(rate=0.5)
    losses = {}
    for held in ("window", "epoch"):
        model = Model(cell="simple", embedding=6, units=6, layers=1, init=0.3)
        dropout = Dropout(outputs=inputs, held=held)
        config = make_config(model, dropout, train)
        sums = [float(run(config, n, one_token).nll) for n in range(14, 20)]
        losses[held] = np.diff(sums)
    assert np.ptp(losses["epoch"]) < 1e-4 < np.ptp(losses["window"])


# A second pass.


def penalised(**options):
    raw = {"second_pass": options}
    return make_sweep(raw, "test", Config).base.second_pass


@pytest.mark.slow
def test_passes_that_share_all_masks_are_one(run):
    shared = penalised(penalty="fraternal", weight=3.0, shares=" ".join(SHARED))
    once = run(make_config(dropout=NOISY))
    twice = run(make_config(dropout=NOISY, second_pass=shared))
    np.testing.assert_allclose(flat(once.params), flat(twice.params), atol=1e-6)


@pytest.mark.parametrize("held", ["window", "epoch"])
def test_passes_share_the_keys_of_the_sites_that_are_named(corpus, held):
    dropout = dataclasses.replace(NOISY, held=held)
    second_pass = penalised(penalty="r_drop", shares="words recurrent_weights")
    config = make_config(dropout=dropout, second_pass=second_pass)
    training = Program([config], corpus).training
    first, second = training._passes(make_lanes([config])[0], 4, 0, 20)
    assert first.step == second.step == (20 if held == "epoch" else 0)
    for name in SHARED:
        stream = "recurrent" if name in RECURRENT else "inputs"
        same = first.site(stream, name) == second.site(stream, name)
        assert same == (name in ("words", "recurrent_weights")), name


def test_passes_may_share_the_masks_of_each_site_that_has_some(corpus):
    second_pass = penalised(penalty="r_drop", shares="words recurrent_weights")
    config = make_config(dropout=NOISY, second_pass=second_pass)
    Program([config], corpus).check()
    layers = {"inputs", "recurrent", "update", "cell_state", "recurrent_weights"}
    assert noisy_sites(noises([config])[0]) == layers | {"words", "outputs"}


@pytest.mark.slow
def test_expectation_linear_reads_a_second_time_without_noise(corpus):
    """One window: the loss of the first pass, and the mean squared difference."""
    second = penalised(penalty="expectation_linear", weight=0.5)
    config = make_config(dropout=NOISY, second_pass=second)
    program, lane = Program([config], corpus), make_lanes([config])[0]
    training, state = program.training, program.start(make_lanes([config])[0]).state
    passes = training._passes(lane, 0, 0, 0)
    assert passes[1] is None
    inputs, targets = program.rows.inputs[:, :5], program.rows.targets[:, :5]
    loss, (nll, _) = training._loss(
        state.params, lane, inputs, targets, 5, state.carry, passes
    )
    noisy, plain = (
        training.model.apply(state.params, inputs, lane.noise, keys).logits
        for keys in passes
    )
    expected = float(nll) / 3 + 0.5 * float(np.mean((noisy - plain) ** 2))
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    unknown = {"second_pass": {"shares": "word"}}
    with pytest.raises(ConfigError, match="shares: must be names of sites"):
        make_sweep(unknown, "test", Config)


def test_a_loss_that_is_not_finite_is_noted_with_its_window(run):
    train = dataclasses.replace(TRAIN, learning_rate=1e30)
    assert int(run(make_config(train=train)).diverged_at) in (0, 1)
    assert int(run(make_config()).diverged_at) == -1


# Evaluation.


@pytest.mark.parametrize(("batch", "window"), [(1, 5), (2, 7)])
def test_evaluation_is_the_mean_over_all_tokens(corpus, params, batch, window):
    config = make_config()
    model = make_model(config, V)
    text, apply = corpus.valid, jax.jit(model.apply)
    rows = whole_rows(text, batch, window)
    found = jax.jit(make_evaluate(config, model, window))(
        params, noises([config])[0], rows, 2.0
    )
    pieces = [text] if batch == 1 else [text[:12], text[11:]]
    losses = []
    for piece in pieces:
        logits = apply(params, piece[None, :-1]).logits / 2.0
        losses.append(token_losses(logits, jnp.asarray(piece[None, 1:]))[0])
    assert float(found) == pytest.approx(np.concatenate(losses).mean(), rel=1e-6)


def test_the_mean_over_windows_is_that_of_perplexities(corpus, params):
    """Windows of 2 rows and 4 steps; the last one has 6 tokens."""
    config = make_config(evaluation=Evaluation(batch=2, mean="windows"))
    model = make_model(config, V)
    rows = whole_rows(corpus.valid, 2, 4)
    noise = noises([config])[0]
    found = jax.jit(make_evaluate(config, model, 4))(params, noise, rows)
    logits = model.apply(params, jnp.asarray(rows.inputs)).logits
    losses = np.asarray(token_losses(logits, jnp.asarray(rows.targets)))
    parts = np.split(losses, 3, axis=1)
    counts = [part.sum() for part in np.split(rows.weights, 3, axis=1)]
    sums = [
        (part * weight).sum()
        for part, weight in zip(parts, np.split(rows.weights, 3, axis=1), strict=True)
    ]
    means = np.exp(np.divide(sums, counts))
    assert float(found) == pytest.approx(
        np.log(np.average(means, weights=counts)), rel=1e-6
    )
    assert counts == [8, 8, 6]


@pytest.mark.slow
def test_without_a_carry_each_window_is_a_text_of_its_own(corpus, params):
    config = make_config(train=dataclasses.replace(TRAIN, carry=False))
    model, (noise,) = make_model(config, V), noises([config])
    rows = whole_rows(corpus.valid[:21], 2, 5)
    params = jax.tree.map(lambda leaf: 5 * leaf, params)
    found = jax.jit(make_evaluate(config, model, 5))(params, noise, rows)
    losses = [
        token_losses(model.apply(params, inputs).logits, jnp.asarray(targets))
        for inputs, targets in zip(
            np.split(rows.inputs, 2, axis=1),
            np.split(rows.targets, 2, axis=1),
            strict=True,
        )
    ]
    assert float(found) == pytest.approx(float(np.mean(losses)), rel=1e-6)
    carried = make_config()
    other = jax.jit(make_evaluate(carried, model, 5))(params, noise, rows)
    assert float(other) != pytest.approx(float(found), rel=1e-4)


def test_a_learned_start_is_trained(run, corpus):
    options = dataclasses.replace(SMALL, start="learned")
    train = dataclasses.replace(TRAIN, carry=False)
    config = make_config(options, train=train)
    program = Program([config], corpus)
    state = program.start(program.lanes[0]).state
    names = ("start_0", "start_1")
    weights = state.params["params"]
    assert [weights[n].shape for n in names] == [(2, 6)] * 2
    assert not any(weights[n].any() for n in names)
    trained = run(config, windows=2).params["params"]
    assert all(trained[n].any() for n in names)
    given = jax.tree.map(lambda leaf: leaf, trained)
    given |= {n: jnp.full((2, 6), 0.1 * (n == "start_0") + 0.2) for n in names}
    first, second = start_carry(program.training.model, {"params": given}, 3)
    assert {float(x) for x in np.ravel(first)} == {float(np.float32(0.3))}
    assert {float(x) for x in np.ravel(second)} == {float(np.float32(0.2))}
    tokens = jnp.zeros((3, 4), jnp.int32)
    apply = jax.jit(program.training.model.apply)
    np.testing.assert_array_equal(
        apply({"params": given}, tokens).logits,
        apply({"params": given}, tokens, carry=(first, second)).logits,
    )


@pytest.mark.parametrize("drawn", [True, False])
def test_one_mask_of_h_serves_its_layer_and_the_one_above(rng, params, drawn):
    """Beside cells that are run one after the other on masked outputs."""
    noise = Noise(rate=0.4, scale="inverted" if drawn else "expectation")
    config = make_config(dropout=Dropout(recurrent=noise, same_mask=True))
    model, (noise,) = make_model(config, V), noises([config])
    tokens = jnp.asarray(rng.integers(0, V, (3, 7), np.int32))
    keys = rdrop.stream_keys(jax.random.key(1)) if drawn else None
    reading = model.apply(params, tokens, noise, keys)
    weights = params["params"]
    ys = weights["embedding"][tokens]
    for n in range(2):
        layer = rdrop.RNN(rdrop.LSTMCell(6))
        dropout = noise.layers[n]
        masks = dropout.expected()
        if drawn:
            at, sites = keys.replace(layer=n), rdrop.LSTMCell(6).sites(6)
            masks = rdrop.draw(dropout, at, sites, 3, 7)
            assert set(np.unique(masks.recurrent)) == {0.0, np.float32(1 / 0.6)}
        _, ys = layer.apply({"params": weights[f"LSTMCell_{n}"]}, ys, masks)
        ys = ys * masks.recurrent
    np.testing.assert_allclose(reading.dropped, ys, rtol=1e-5, atol=1e-7)
    logits = ys @ weights["readout"] + weights["bias"][None, None]
    np.testing.assert_allclose(reading.logits, logits, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_tokens_without_an_embedding_are_one_hot(rng):
    options = Model(embedding=0, units=6, layers=1, init=0.3)
    model = make_model(make_config(options), V)
    params = init(model, jax.random.key(0))
    assert "embedding" not in params["params"]
    assert params["params"]["LSTMCell_0"]["kernel"].shape == (V, 24)
    wide = make_model(make_config(dataclasses.replace(options, embedding=V)), V)
    given = {"params": params["params"] | {"embedding": jnp.eye(V)}}
    tokens = jnp.asarray(rng.integers(0, V, (3, 7), np.int32))
    np.testing.assert_array_equal(
        model.apply(params, tokens).logits, wide.apply(given, tokens).logits
    )


def test_words_are_not_dropped_in_passes_if_the_config_says_so(corpus, params):
    """With noise on words alone, such passes are without noise."""
    rows, keys = whole_rows(corpus.valid, 2, 4), jax.random.split(jax.random.key(0), 3)
    params, found = jax.tree.map(lambda leaf: 5 * leaf, params), []
    for words in (True, False):
        evaluation = Evaluation(batch=2, words=words)
        config = make_config(dropout=Dropout(words=Words(0.5)), evaluation=evaluation)
        model, (noise,) = make_model(config, V), noises([config])
        passes = MonteCarlo(config, model, 4, 3, True).loss(params, noise, rows, keys)
        plain = jax.jit(make_evaluate(config, model, 4))(params, noise, rows)
        found.append(passes - float(plain))
    assert abs(found[0]) > 1e-3
    assert abs(found[1]) < 1e-6
