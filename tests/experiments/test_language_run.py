"""Language models end to end, as a user trains and evaluates them."""

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from folders import MODEL, no_reports
from scipy import special

import rdrop
from experiments import axes
from experiments.__main__ import main
from experiments.config import Noise
from experiments.language import run
from experiments.language.config import Config, Dropout, Model, Words
from experiments.language.corpus import whole_rows
from experiments.language.evaluate import MonteCarlo, scale_rates
from experiments.language.model import init, make_model, noises, start_carry
from experiments.language.train import make_evaluate
from experiments.progress import Watch, watch
from experiments.runs.checkpoints import Checkpoints
from experiments.runs.evaluations import read_evaluations
from experiments.runs.files import fingerprint, write_lines
from experiments.runs.records import read_records
from experiments.runs.weights import load_weights, weights_path

TOML = (
    MODEL
    + """
[dropout.outputs]
rate = 0.3

[train]
epochs = 3
batch = 2
window = 5
hold = 1

[evaluation]
batch = 2
"""
)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A folder of words that a word or two decide the next one of."""
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    words = ["a", "cat", "sat", "on", "the", "mat", "and", "so", "did", "we"]
    for split, lines in (("train", 40), ("valid", 10), ("test", 10)):
        drawn = [" ".join(np.roll(words, n)[:7]) for n in rng.integers(0, 10, lines)]
        (folder / f"ptb.{split}.txt").write_text("\n".join(drawn) + "\n")
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "small.toml"
    path.write_text(TOML)
    return path


@pytest.fixture(scope="module")
def finished(text, config, tmp_path_factory):
    """A run of two lanes, in one program."""
    folder = tmp_path_factory.mktemp("run") / "small"
    assert train(text, config, folder, "--dropout.outputs.rate", "0", "0.3") == 0
    return folder


def train(text, config, folder, *arguments):
    there = ["--task.data", str(text), "--out", str(folder)]
    return main(["train", str(config), *there, *arguments])


@pytest.fixture
def no_report():
    with no_reports():
        yield


def lines(folder):
    return read_records(folder)


def contents(folder):
    """What must be bitwise equal."""
    files = [folder / "results.jsonl", *sorted((folder / "weights").iterdir())]
    return [path.read_bytes() for path in files]


def test_each_lane_has_a_line_parameters_and_a_part_in_the_report(finished):
    found = lines(finished)
    assert [line["setting"] for line in found] == [
        {"dropout.outputs.rate": 0.0},
        {"dropout.outputs.rate": 0.3},
    ]
    for place, line in enumerate(found):
        metrics = line["metrics"]
        assert line["status"] == "finished"
        assert line["evaluated_at"] == [1, 2, 3]
        assert metrics["valid_nll"][-1] < metrics["valid_nll"][0]
        perplexity = np.exp(metrics["test_nll"])
        np.testing.assert_allclose(metrics["test_perplexity"], perplexity, rtol=1e-6)
        weights = load_weights(weights_path(finished, place))
        assert fingerprint(weights.params) == line["parameters"]
        assert "<eos>" in weights.names
        assert ("rate = 0.3" in weights.config) == bool(place)
    quiet, noisy = (line["metrics"]["train_nll"] for line in found)
    assert all(a != b for a, b in zip(quiet, noisy, strict=True))
    assert "dropout.outputs.rate" in (finished / "report.html").read_text()
    assert not (finished / "checkpoints").exists()
    assert len(json.loads((finished / "run.json").read_text())["programs"]) == 1


def test_kept_parameters_have_the_losses_that_are_written(finished, text):
    sweep = axes.make_sweep(axes.read_toml(finished / "config.toml"), "run", Config)
    config = sweep.lanes()[1].config
    params = load_weights(weights_path(finished, 1)).params
    corpus = run.load(config.task)
    model = make_model(config, len(corpus.vocabulary))
    nll = jax.jit(make_evaluate(config, model, 5))(
        params, noises([config])[0], whole_rows(corpus.test, 2, 5)
    )
    written = lines(finished)[1]["metrics"]["test_nll"][-1]
    assert float(nll) == pytest.approx(written, rel=1e-6)


class _Stops(Watch):
    """Somebody who asks to stop after so many windows."""

    windows = 40

    def announce(self, name, note):
        super().announce(name, note)
        self.windows -= 1
        if self.windows < 0:
            self.request_stop()


@pytest.mark.slow
def test_stopped_in_mid_epoch_it_goes_on_to_the_same_bits(
    finished, text, config, tmp_path, monkeypatch
):
    """Stopped every 40 windows, of which an epoch has 31, a window at a time."""
    monkeypatch.setattr("experiments.progress.Watch", _Stops)
    monkeypatch.setattr(run, "SECONDS_PER_STEP", 0.0)
    arguments = text, config, tmp_path / "run", "--dropout.outputs.rate", "0", "0.3"
    statuses = [train(*arguments)]
    while statuses[-1] == 130:
        statuses.append(train(*arguments))
    assert len(statuses) >= 4
    assert statuses[-1] == 0
    assert contents(tmp_path / "run") == contents(finished)


@pytest.mark.usefixtures("no_report")
def test_stopped_after_some_windows_it_says_where(text, config, tmp_path, capsys):
    folder = tmp_path / "run"
    assert train(text, config, folder, "--stop-after", "40") == 130
    output = " ".join(capsys.readouterr().out.split())
    assert re.search(r"stopped after window 9 of 31 of epoch 2; train_nll \d", output)
    assert lines(folder)[0]["status"] == "interrupted"


@pytest.mark.usefixtures("no_report")
def test_epochs_of_one_step_are_saved_too(text, config, tmp_path, monkeypatch):
    """After five steps, each is an epoch of 31 windows; the last one ends it."""
    saved, save = [], Checkpoints.save
    monkeypatch.setattr(run, "SECONDS_PER_CHECKPOINT", 0.0)
    monkeypatch.setattr(run, "SECONDS_PER_STEP", 1e9)
    monkeypatch.setattr(
        Checkpoints,
        "save",
        lambda self, number, state: saved.append(number) or save(self, number, state),
    )
    assert train(text, config, tmp_path / "run", "--train.epochs", "12") == 0
    assert saved[-1] == 31 * 11


@pytest.mark.usefixtures("no_report")
def test_a_loss_that_is_not_a_number_is_never_the_best(
    text, config, tmp_path, monkeypatch
):
    """The second validation loss overflows, and the training recovers."""
    judge = judge_with_nan(run.ModelTraining._judge)
    monkeypatch.setattr(run.ModelTraining, "_judge", judge)
    options = ["--train.keep", "best"]
    assert train(text, config, tmp_path / "run", *options) == 0
    (line,) = lines(tmp_path / "run")
    own, kept = (line["metrics"][n] for n in ("epoch_nll", "valid_nll"))
    assert own[1] is None
    assert own[2] < own[0]
    assert kept == [own[0], own[0], own[2]]


def judge_with_nan(judge):
    """Returns `_judge` whose second validation loss is not a number."""

    def judged(self):
        if int(self.state.epoch) != 1:
            return judge(self)
        evaluate, self._program.evaluate = self._program.evaluate, lambda *_: np.nan
        try:
            return judge(self)
        finally:
            self._program.evaluate = evaluate

    return judged


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_in_the_same_bits(text, config, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    longer = ["--train.epochs", "60"]
    assert train(text, config, whole, *longer) == 0
    command = [sys.executable, "-m", "experiments", "train", str(config), *longer]
    command += ["--task.data", str(text), "--out", str(killed)]
    faster = "import experiments.language.run as r; r.SECONDS_PER_CHECKPOINT = 0.0; "
    faster += "from experiments.__main__ import main; import sys; main(sys.argv[1:])"
    command[1:3] = ["-c", faster]
    generator = random.Random(0)
    for _ in range(4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        time.sleep(generator.uniform(6, 12))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert contents(killed) == contents(whole)


@pytest.mark.slow
def test_with_the_best_kept_the_figures_are_those_of_the_best(text, config, tmp_path):
    """With so large a learning rate the loss rises now and then."""
    options = ["--train.keep", "best", "--train.learning-rate", "40"]
    options += ["--train.hold", "8", "--train.epochs", "8"]
    train(text, config, tmp_path / "run", *options)
    (line,) = lines(tmp_path / "run")
    own, kept = (np.array(line["metrics"][n]) for n in ("epoch_nll", "valid_nll"))
    np.testing.assert_array_equal(kept, np.minimum.accumulate(own))
    assert own[-1] > kept[-1]
    test = np.array(line["metrics"]["test_nll"])
    np.testing.assert_array_equal(np.diff(test) != 0, np.diff(kept) < 0)


@pytest.mark.usefixtures("no_report")
def test_training_ends_at_the_lowest_rate(text, config, tmp_path):
    """The rate halves after each of three epochs, from 1; epoch 3 has 0.25."""
    arguments = ["--train.lowest-rate", "0.2", "0.3"]
    assert train(text, config, tmp_path / "run", *arguments) == 0
    whole, shorter = lines(tmp_path / "run")
    assert (whole["epochs"], shorter["epochs"]) == (3, 2)
    assert {whole["status"], shorter["status"]} == {"finished"}
    for name, values in shorter["metrics"].items():
        assert values == whole["metrics"][name][:2]


@pytest.mark.usefixtures("no_report")
def test_a_lane_that_diverges_is_marked_and_the_next_is_trained(text, config, tmp_path):
    rates = ["--train.learning-rate", "1e30", "1"]
    assert train(text, config, tmp_path / "run", *rates) == 0
    diverged, well = lines(tmp_path / "run")
    assert diverged["status"] == "diverged"
    assert diverged["diverged_at"] in (0, 1)
    assert diverged["metrics"]["valid_nll"] == [None] * 3
    assert well["status"] == "finished"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task.data", "nowhere"], "task.data: must be a folder with three"),
        (["--stop-after", "0"], "stop-after: must be 1 or more, got 0"),
        (["--train.window", "500"], "train.window: must be at most"),
        (["--train.batch", "500"], "train.batch: must leave each row two"),
        (["--model.cell", "gru", "--dropout.cell-state.rate", "0.1"], "cell_state"),
        (
            ["--model.layers", "1", "--model.top-units", "3"],
            "top_units: must be 0 if",
        ),
        (["--dropout.inputs.learn", "True"], "dropout.inputs.learn: must be false"),
        (["--dropout.projected.rate", "0.1"], "projected.rate: must be 0 unless"),
        (["--train.shuffle", "True"], "train.shuffle: must be false if train.carry"),
        (["--dropout.same-mask", "True"], "dropout.same_mask: must be false if"),
        (
            shlex.split(
                "--dropout.same-mask True --dropout.recurrent.gates each "
                "--dropout.outputs.rate 0"
            ),
            "dropout.recurrent.gates: must be",
        ),
        (["--model.start", "learned"], "model.start: must be"),
        (["--model.embedding", "0", "--model.tied", "True"], "model.tied: must be"),
        (["--model.two-biases", "True"], "two_biases: must be false unless"),
        (["--train.decay", "1.5"], "train.decay: .* less than or equal to 1"),
        (["--train.lowest-rate", "2"], "lowest_rate: must be at most train.learning"),
        (["--dropout.between.rate", "0.1"], "between.rate: must be 0 if model.layers"),
        (
            shlex.split("--dropout.same-mask True --dropout.outputs.rate 0"),
            "same_mask: must be false without recurrent noise",
        ),
        (
            shlex.split(
                "--model.cell lstm --model.two-biases True --train.clip-on step"
            ),
            "two_biases: must be false unless",
        ),
        (
            shlex.split("--second-pass.penalty r_drop --dropout.outputs.rate 0"),
            "second_pass.penalty: r_drop compares passes that differ",
        ),
        (
            shlex.split("--second-pass.penalty r_drop --second-pass.shares words"),
            "second_pass.shares: the second pass has no noise at words",
        ),
        (["--second-pass.shares", "no"], "second_pass.shares: must be names of sites"),
    ],
)
def test_mistakes_are_named_before_any_work(
    text, config, tmp_path, capsys, arguments, message
):
    assert train(text, config, tmp_path / "run", *arguments) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_report")
def test_a_folder_of_another_text_is_refused(finished, text, config, tmp_path, capsys):
    other = tmp_path / "text"
    other.mkdir()
    for path in text.iterdir():
        (other / path.name).write_text(path.read_text() + "a cat\n")
    folder = tmp_path / "run"
    arguments = ["--stop-after", "3"]
    assert train(text, config, folder, *arguments) == 130
    for path in other.iterdir():
        (text / path.name).write_text(path.read_text())
    try:
        assert train(text, config, folder, *arguments) == 1
        assert "was trained on other data" in capsys.readouterr().err
    finally:
        for path in text.iterdir():
            path.write_text(path.read_text().removesuffix("a cat\n"))


def test_a_lane_replays_bitwise_and_a_difference_is_seen(finished, tmp_path, capsys):
    assert main(["replay", f"{finished}/results.jsonl:2"]) == 0
    assert "results.jsonl:2: bitwise identical." in capsys.readouterr().out
    folder = tmp_path / "spoilt"
    shutil.copytree(finished, folder)
    spoilt = lines(folder)
    spoilt[1]["metrics"]["valid_nll"][1] += 1e-6
    write_lines(folder / "results.jsonl", spoilt)
    assert main(["replay", f"{folder}/results.jsonl:2"]) == 1
    assert "differs: valid_nll[1] was" in " ".join(capsys.readouterr().out.split())


def test_a_dry_run_measures_and_writes_nothing(text, config, tmp_path, capsys):
    assert train(text, config, tmp_path / "run", "--dry-run") == 0
    assert re.search(r"lanes +1 .*training +about", capsys.readouterr().out, re.DOTALL)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("keep", [pytest.param("none", marks=pytest.mark.slow), "best"])
@pytest.mark.usefixtures("no_report")
def test_weights_that_are_not_wanted_are_removed(text, config, tmp_path, keep):
    rates = ["--train.learning-rate", "1e-6", "0.1", "--train.epochs", "1"]
    assert train(text, config, tmp_path / "run", *rates, "--keep", keep) == 0
    losses = [line["metrics"]["valid_nll"][-1] for line in lines(tmp_path / "run")]
    best = [str(1 + int(np.argmin(losses)))]
    left = [path.stem for path in (tmp_path / "run").glob("weights/*")]
    assert left == (best if keep == "best" else [])


# Evaluation.


def test_a_changed_text_is_noticed(finished, text, capsys):
    """Also one with the same number of each word."""
    path = text / "ptb.test.txt"
    before = path.read_text()
    try:
        for after in (before + "a cat\n", before.replace("a cat", "cat a", 1)):
            path.write_text(after)
            assert evaluate(finished) == 1
            error = capsys.readouterr().err
            assert "was trained on other data" in error
            assert error.count("\n") == 1
    finally:
        path.write_text(before)
    assert evaluate(finished) == 0


def evaluate(folder, *arguments):
    return main(["evaluate", str(folder), *arguments])


def test_evaluations_are_printed_and_kept(finished, capsys):
    arguments = ["--lane", "2", "--passes", "1", "3", "--powers", "1", "0"]
    assert evaluate(finished, *arguments) == 0
    output = capsys.readouterr().out
    assert "deterministic" in output
    assert "geometric" in output
    found = read_evaluations(finished)
    assert [(line["passes"], line["powers"]) for line in found[-5:]] == [
        (0, None),
        (1, 1.0),
        (1, 0.0),
        (3, 1.0),
        (3, 0.0),
    ]
    deterministic, one, same, *_ = (line["nll"] for line in found[-5:])
    written = lines(finished)[1]["metrics"]["test_nll"][-1]
    assert deterministic == pytest.approx(written, rel=1e-6)
    assert one == pytest.approx(same, rel=1e-5)
    assert one != pytest.approx(deterministic, rel=1e-4)


def test_one_program_serves_all_means_and_temperatures(finished, monkeypatch):
    """Of one number of passes, over one text."""
    traced = []
    predict = rdrop.montecarlo.predict

    def watched(*arguments, **options):
        traced.append(options)
        return predict(*arguments, **options)

    monkeypatch.setattr(rdrop.montecarlo, "predict", watched)
    arguments = ["--passes", "3", "--powers", "1", "0", "0.5"]
    assert evaluate(finished, *arguments, "--lane", "2") == 0
    once = len(traced)
    tuned = ["--temperature", "tuned", "--split", "valid"]
    assert evaluate(finished, *arguments, *tuned, "--lane", "2") == 0
    assert len(traced) == 2 * once == 2


def test_a_tuned_temperature_is_the_best_for_the_validation_text(finished):
    assert evaluate(finished, "--temperature", "tuned", "--split", "valid") == 0
    tuned = read_evaluations(finished)[-1]
    for temperature in (tuned["temperature"] * 0.98, tuned["temperature"] * 1.02, 1.0):
        arguments = ["--temperature", str(temperature), "--split", "valid"]
        assert evaluate(finished, *arguments) == 0
        other = read_evaluations(finished)[-1]
        assert other["nll"] >= tuned["nll"] - 1e-7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lane", "3"], "lane: must be 1 to 2, got 3"),
        (["--passes", "0"], "passes: must be 1 to 2,147,483,647, got 0"),
        (["--chunk", "0"], "chunk: must be 1 to 2,147,483,647, got 0"),
        (["--noise", "-1"], "noise: must be 0 or more"),
        (["--temperature", "0"], "temperature: must be above 0"),
        (["--window", "-1"], "window: must be 0 to 2,147,483,647, got -1"),
        (["--window", "1000"], "window: must be at most "),
        (["--passes", "2", "--powers"], "powers: must have at least one value"),
        (["--passes", "2", "--powers", "nan"], "powers: must be finite, got nan"),
    ],
)
def test_mistakes_in_an_evaluation_are_named(finished, capsys, arguments, message):
    assert evaluate(finished, *arguments) == 2
    assert message in capsys.readouterr().err


NOISY = Config(
    model=Model(embedding=6, units=6, layers=1, init=1.0),
    dropout=Dropout(
        words=Words(0.2, "each"),
        inputs=Noise(rate=0.4),
        outputs=Noise(rate=0.4, per="step"),
        recurrent=Noise(rate=0.4),
    ),
)


@pytest.fixture(scope="module")
def noisy():
    """A model with its noise, and a text."""
    model = make_model(NOISY, 9)
    text = np.random.default_rng(0).integers(0, 9, 60, np.int32)
    return model, init(model, jax.random.key(0)), noises([NOISY])[0], text


@pytest.mark.slow
@pytest.mark.parametrize("held", [False, True])
def test_montecarlo_is_the_mean_over_passes_each_read_by_itself(noisy, held):
    """In plain NumPy: K passes over the text, of the probabilities of its tokens."""
    model, params, noise, text = noisy
    rows, keys = whole_rows(text, 2, 7), jax.random.split(jax.random.key(1), 3)
    total = np.zeros((2, rows.inputs.shape[1], 9))
    apply = jax.jit(model.apply)
    for key in keys:
        carry = start_carry(model, params, 2)
        for number in range(rows.inputs.shape[1] // 7):
            at = slice(7 * number, 7 * number + 7)
            streams = rdrop.stream_keys(
                key if held else jax.random.fold_in(key, number)
            ).replace(step=7 * number if held else 0)
            reading = apply(params, rows.inputs[:, at], noise, streams, carry)
            carry = reading.carry
            logits = np.asarray(reading.logits, float) / 1.3
            total[:, at] += special.softmax(logits, axis=-1)
    found = np.take_along_axis(total / 3, rows.targets[..., None], axis=2)[..., 0]
    weights = rows.weights.astype(float)
    expected = -(np.log(found) * weights).sum() / weights.sum()
    for chunk in (1, 2, 3):
        montecarlo = MonteCarlo(NOISY, model, 7, chunk, held)
        actual = montecarlo.loss(params, noise, rows, keys, 1.0, 1.3)
        assert actual == pytest.approx(expected, rel=1e-5)


def test_stopped_passes_continue_to_the_same_bits(noisy, tmp_path):
    """Stopped after every window, of which there are five."""
    model, params, noise, text = noisy
    rows, keys = whole_rows(text, 2, 7), jax.random.split(jax.random.key(1), 3)
    montecarlo = MonteCarlo(NOISY, model, 7, 2, True)
    whole = montecarlo.loss(params, noise, rows, keys)
    stops, saved = 0, tmp_path / "passes"
    while True:
        with watch(0, 1) as watcher:
            asked = iter([False, True])
            watcher.stopped = lambda asked=asked: next(asked)
            try:
                found = montecarlo.loss(
                    params, noise, rows, keys, saved=saved, watcher=watcher
                )
            except KeyboardInterrupt:
                assert saved.exists()
                stops += 1
            else:
                break
    assert stops == rows.inputs.shape[1] // 7 - 1 == 4
    assert found == whole
    assert not saved.exists()


@pytest.mark.slow
def test_more_passes_come_near_their_expectation(noisy):
    """Of the probability of a text of one token, the error falls as 1 / sqrt(K)."""
    model, params, noise, text = noisy
    rows = whole_rows(text[:2], 1, 1)
    montecarlo = MonteCarlo(NOISY, model, 1, 64, True)
    keys = jax.random.split(jax.random.key(2), 2048)
    single = [montecarlo.loss(params, noise, rows, key[None]) for key in keys]
    probabilities = np.exp(-np.array(single))
    expectation, sd = probabilities.mean(), probabilities.std()
    for count in (16, 128, 1024):
        estimate = np.exp(-montecarlo.loss(params, noise, rows, keys[-count:]))
        assert abs(estimate - expectation) < 4 * sd / np.sqrt(count)
        assert estimate != pytest.approx(expectation, rel=1e-6)


def test_rates_are_multiplied_up_to_one():
    noise = noises([NOISY])[0]
    twice = scale_rates(noise, 3.0)
    assert float(twice.words.rate) == pytest.approx(0.6)
    assert float(twice.layers[0].inputs.rate) == 1.0
    assert jax.tree.leaves(scale_rates(noise, 0.0)) == [0.0] * 4
    assert jnp.result_type(twice.words.rate) == jnp.float32


def test_a_stopped_evaluation_continues(finished, monkeypatch):
    arguments = ["--lane", "2", "--passes", "3"]
    assert evaluate(finished, *arguments) == 0
    whole = read_evaluations(finished)[-1]
    advanced, advance = [], Watch.advance
    with monkeypatch.context() as patch:
        asked = iter([False] * 4 + [True])  # after two of the windows
        patch.setattr(Watch, "stopped", lambda self: next(asked))
        assert evaluate(finished, *arguments) == 130
    left = list((finished / "checkpoints").iterdir())
    assert len(left) == 1
    # Another text or temperature does not continue there.
    for other in (["--split", "valid"], ["--temperature", "1.1"]):
        assert evaluate(finished, *arguments, *other) == 0
        assert list((finished / "checkpoints").iterdir()) == left
    monkeypatch.setattr(
        Watch, "advance", lambda self, n: advanced.append(n) or advance(self, n)
    )
    assert evaluate(finished, *arguments) == 0
    assert advanced[0] == 2
    assert read_evaluations(finished)[-1]["nll"] == whole["nll"]
    assert not (finished / "checkpoints").exists()


def test_a_loss_that_is_not_a_number_counts_as_infinite(
    text, config, tmp_path, monkeypatch
):
    paces, pace = [], run.pace
    monkeypatch.setattr(run, "pace", lambda *now: paces.append(now) or pace(*now))
    judge = judge_with_nan(run.ModelTraining._judge)
    monkeypatch.setattr(run.ModelTraining, "_judge", judge)
    monkeypatch.setattr(
        run, "is_non_monotone", lambda losses, _: losses[1:2] == [np.inf]
    )
    with no_reports():
        assert train(text, config, tmp_path / "run") == 0
    averaging = {int(epoch): on for epoch, _, on in paces}
    assert averaging == {0: False, 1: False, 2: True}
