"""The command reproduce: from a config with a table [paper] to a compared figure."""

import itertools
import re
import shutil

import jax
import numpy as np
import pytest
from folders import MODEL, PAPER, no_reports, recipe

import experiments.engine
import experiments.language.evaluate
import experiments.reproduce
from experiments.__main__ import main
from experiments.classify.run import SequencesProgram
from experiments.language.run import ModelProgram, ModelTraining
from experiments.papers import Paper, compare, read_result, write_result
from experiments.progress import Watch
from experiments.runs.checkpoints import Checkpoints
from experiments.runs.evaluations import read_evaluations
from experiments.runs.facts import read_facts, write_facts
from experiments.runs.files import StorageError
from experiments.runs.records import read_records

TINY = (
    MODEL
    + """
[dropout.words]
rate = 0.3

[train]
epochs = 2
batch = 2
window = 5

[evaluation]
batch = 2
test_batch = 1
passes = 3
"""
)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for split, lines in (("train", 30), ("valid", 8), ("test", 8)):
        (folder / f"{split}.txt").write_text("a cat sat on the mat\n" * lines)
    return folder


@pytest.fixture(autouse=True)
def no_report():
    with no_reports():
        yield


NUMBERS = """
kind = "sequences"
[task]
name = "regress"
test = 0.2
[model]
cell = "simple"
units = 4
[train]
epochs = 2
batch = 4
evaluate_every = 1
validation = 0.2
"""


def numbers(folder, rng, most=1.0):
    """Writes sequences with a number each; the last one may be huge."""
    x, y = rng.normal(size=(20, 5, 2)), rng.normal(size=(20, 1))
    y[-1] *= most
    path = folder / "data.npz"
    np.savez(path, x=x.astype(np.float32), y=y.astype(np.float32))
    return path


def run_row(path, data, folder, *options):
    arguments = ["reproduce", str(path), "--data", str(data), "--out", str(folder)]
    return main([*arguments, *options])


def test_a_row_is_trained_evaluated_and_compared(text, tmp_path, capsys, monkeypatch):
    path = recipe(tmp_path, PAPER + TINY, "seeds = 2\n")
    arguments = path, text, tmp_path / "run", "--keep-result"
    assert run_row(*arguments) == 0
    output = capsys.readouterr().out
    assert "ours, 2 seeds" in output
    assert re.search(r"row: (better|worse) than published", output)
    result = read_result(path)
    assert result["unit"] == "perplexity"
    assert (result["seeds"], result["diverged"]) == ([0, 1], [])
    assert f"{path.name} --seeds 2 --data DATA" in result["command"]
    assert result["device"]
    assert all(len(curve) == 2 for curve in result["curves"])
    lines = read_records(tmp_path / "run")
    for ours, line in zip(result["valid"], lines, strict=True):
        assert ours == pytest.approx(line["metrics"]["valid_perplexity"][-1], rel=1e-5)
    assert len(set(result["montecarlo"] + result["test"])) == 4
    evaluations = read_evaluations(tmp_path / "run")
    assert len(evaluations) == 6
    assert run_row(*arguments) == 0
    assert read_evaluations(tmp_path / "run") == evaluations
    assert read_result(path) == result
    # Of a third seed, which is trained alone.
    begun, begin = [], ModelProgram.begin
    monkeypatch.setattr(
        ModelProgram,
        "begin",
        lambda self, which, *rest: begun.extend(which) or begin(self, which, *rest),
    )
    assert run_row(*arguments, "--seeds", "3") == 0
    assert begun == [2]
    facts = read_facts(tmp_path / "run")
    assert (facts["seeds"], facts["lanes"]) == ([0, 1, 2], 3)
    more = read_result(path)
    assert more["seeds"] == [0, 1, 2]
    assert more["test"][:2] == result["test"]
    assert read_records(tmp_path / "run")[:2] == lines
    assert run_row(*arguments, "--seeds", "1") == 2
    assert "seeds was [0, 1, 2], is [0]" in capsys.readouterr().err
    longer = TINY.replace("epochs = 2", "epochs = 3")
    recipe(tmp_path, PAPER + longer, "seeds = 4\n")
    assert run_row(*arguments) == 2
    assert "train.epochs was 2, is 3" in capsys.readouterr().err
    assert "seeds = 3\n" in (tmp_path / "run/config.toml").read_text()


def test_figures_are_of_the_final_parameters(text, tmp_path, capsys):
    """Not of those that somebody evaluated during the training."""
    path, folder = recipe(tmp_path, PAPER + TINY), tmp_path / "run"
    fields = tmp_path / "fields.toml"
    fields.write_text(TINY)
    command = ["train", str(fields), "--task.data", str(text), "--out", str(folder)]
    assert main([*command, "--seeds", "1", "--stop-after", "20"]) == 130
    assert main(["evaluate", str(folder), "--passes", "3"]) == 0
    early = read_evaluations(folder)
    assert run_row(path, text, folder, "--keep-result") == 0
    (record,) = read_records(folder)
    result = read_result(path)
    for name, before in zip(("test", "montecarlo"), early, strict=True):
        (figure,) = result[name]
        assert before["parameters"] != record["parameters"]
        assert before["perplexity"] != pytest.approx(figure, rel=1e-4)
        final = [e for e in read_evaluations(folder) if e["perplexity"] == figure]
        assert [each["parameters"] for each in final] == [record["parameters"]]


def test_a_stopped_row_has_no_result(text, tmp_path, capsys, monkeypatch):
    """Also if some of its seeds are trained."""
    ended, record = [], ModelTraining._record
    monkeypatch.setattr(
        ModelTraining, "_record", lambda self: ended.append(self.ended) or record(self)
    )
    monkeypatch.setattr(Watch, "stopped", lambda self: any(ended))
    path = recipe(tmp_path, PAPER + TINY, "seeds = 2\n")
    assert run_row(path, text, tmp_path / "run", "--keep-result") == 130
    assert [r["status"] for r in read_records(tmp_path / "run")] == ["finished"]
    assert read_result(path) is None


def test_a_seed_that_diverges_is_named_and_the_others_compared(
    text, tmp_path, capsys, monkeypatch
):
    def diverge(*seeds):
        monkeypatch.setattr(
            ModelTraining,
            "_has_diverged",
            lambda self: self.number > 0 and self._setting.config.seeds in seeds,
        )

    diverge(1)
    path = recipe(tmp_path, PAPER + TINY, "seeds = 3\n")
    assert run_row(path, text, tmp_path / "run", "--keep-result") == 0
    assert "not in these figures: seed 1." in capsys.readouterr().out
    result = read_result(path)
    assert (result["seeds"], result["diverged"]) == ([0, 2], [1])
    assert len(result["valid"]) == len(result["curves"]) == 2
    diverge(0, 1)
    path = recipe(tmp_path, PAPER + TINY, "seeds = 2\n")
    assert run_row(path, text, tmp_path / "all") == 2
    assert "diverged with every seed (0, 1)" in capsys.readouterr().err


def test_other_data_than_the_papers_are_refused(text, tmp_path, capsys):
    path = recipe(tmp_path, PAPER + 'data = "0123"\n' + TINY)
    assert run_row(path, text, tmp_path / "run") == 2
    assert "figures are of data with the hash 0123, got" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_networks_of_sequences_are_rows_too(tmp_path, rng):
    """Also those whose loss is not the likelihood of a distribution."""
    path, data = recipe(tmp_path, PAPER + NUMBERS), numbers(tmp_path, rng)
    with jax.numpy_dtype_promotion("standard"):
        assert run_row(path, data, tmp_path / "run", "--keep-result") == 0
    result = read_result(path)
    assert result["unit"] == "mse"
    assert result["montecarlo"] == []
    assert len(result["curves"][0]) == 2
    # A training may be too short for the clock.
    facts = read_facts(tmp_path / "run")
    facts["programs"][0]["train_seconds"] = 0.0
    write_facts(tmp_path / "run", facts)
    assert run_row(path, data, tmp_path / "run", "--keep-result") == 0
    assert read_result(path)["seconds"] == 0.0


def test_networks_of_sequences_have_the_figures_of_their_best_epoch(tmp_path):
    from experiments.reproduce import _of_best

    metrics = {"valid_nll": [3.0, None, 1.0, 2.0], "test_nll": [4.0, 5.0, 6.0, 1.0]}
    assert _of_best(metrics, "nll") == {"valid": 1.0, "test": 6.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no table"),
        (PAPER + "\n[train]\nepochs = [1, 2]\n", "train.epochs: must have one value"),
        (PAPER + "\n[train]\nepoch = 1\n", "train.epoch: unknown field"),
        (PAPER + "montecarlo = 9.0\n", "paper.montecarlo: needs evaluation.passes"),
        ("task = 3\n" + PAPER, "task: must be a table"),
        (
            PAPER + NUMBERS.replace('kind = "sequences"', ""),
            'paper.kind: must be "sequences" for these fields, got "language"',
        ),
    ],
)
def test_mistakes_are_named_before_any_work(tmp_path, capsys, text, message):
    path = recipe(tmp_path, text)
    assert main(["reproduce", str(path), "--data", "x"]) == 2
    assert message in capsys.readouterr().err


def test_a_text_must_have_a_token_per_row_of_its_evaluation(text, tmp_path, capsys):
    fields = TINY.replace("test_batch = 1", "test_batch = 1000000000")
    path = recipe(tmp_path, PAPER + fields)
    assert run_row(path, text, tmp_path / "run") == 2
    assert "evaluation.test_batch: must be at most 55, a row per token" in (
        capsys.readouterr().err
    )


# More seeds.


@pytest.fixture
def begun(monkeypatch):
    """The lanes that begin to train."""
    lanes = []
    for kind in (ModelProgram, SequencesProgram):

        def begin(self, which, *rest, before=kind.begin):
            lanes.extend(which)
            return before(self, which, *rest)

        monkeypatch.setattr(kind, "begin", begin)
    return lanes


def test_more_seeds_of_sequences_are_trained_alone(tmp_path, rng, begun):
    path, data = recipe(tmp_path, PAPER + NUMBERS), numbers(tmp_path, rng)
    folder = tmp_path / "run"
    with jax.numpy_dtype_promotion("standard"):
        assert run_row(path, data, folder, "--seeds", "2") == 0
        before = read_records(folder)
        assert run_row(path, data, folder, "--seeds", "5", "--keep-result") == 0
    assert begun == [0, 1, 2, 3, 4]
    assert read_records(folder)[:2] == before
    assert read_result(path)["seeds"] == [0, 1, 2, 3, 4]
    assert "--seeds 5" in read_facts(folder)["command"]


@pytest.mark.slow
def test_lanes_that_were_trained_with_others_replay(tmp_path, rng):
    path, data = recipe(tmp_path, PAPER + NUMBERS), numbers(tmp_path, rng)
    folder = tmp_path / "run"
    with jax.numpy_dtype_promotion("standard"):
        for seeds in ("2", "5"):
            assert run_row(path, data, folder, "--seeds", seeds) == 0
        for line in (1, 4):
            assert main(["replay", f"{folder}/results.jsonl:{line}"]) == 0


def test_seeds_are_not_added_to_a_run_in_training(tmp_path, rng, capsys, monkeypatch):
    """Its checkpoints are of all lanes that began together."""
    path, data = recipe(tmp_path, PAPER + NUMBERS), numbers(tmp_path, rng)
    folder = tmp_path / "run"
    with jax.numpy_dtype_promotion("standard"):
        with monkeypatch.context() as patch:
            asked = iter([False, False, True, True])
            patch.setattr(Watch, "stopped", lambda self: next(asked))
            assert run_row(path, data, folder, "--seeds", "2") == 130
        assert (folder / "checkpoints").exists()
        assert run_row(path, data, folder, "--seeds", "3") == 2
        assert "2 seeds are trained, got 0" in capsys.readouterr().err
        assert run_row(path, data, folder, "--seeds", "2") == 0


def test_a_refused_command_changes_nothing(trained, text, tmp_path, capsys):
    path, folder = trained
    before = (folder / "config.toml").read_bytes()
    (text / "test.txt").rename(tmp_path / "kept")
    (text / "test.txt").write_text("a cat\n" * 8)
    try:
        assert run_row(path, text, folder, "--seeds", "3") == 1
    finally:
        (tmp_path / "kept").rename(text / "test.txt")
    assert "was trained on other data" in capsys.readouterr().err
    assert (folder / "config.toml").read_bytes() == before
    assert run_row(path, text, folder) == 0


# Requests to stop.


@pytest.mark.parametrize("at", ["training", "evaluation"])
def test_a_stop_at_the_end_of_a_part_ends_the_command(
    text, tmp_path, monkeypatch, capsys, at
):
    path, folder = recipe(tmp_path, PAPER + TINY, "seeds = 2\n"), tmp_path / "run"
    name, owner = {
        "training": ("_time", experiments.engine._Run),
        "evaluation": ("add_evaluations", experiments.language.evaluate),
    }[at]
    before, stopped = getattr(owner, name), []

    def stop(*arguments):
        before(*arguments)
        ended = [each["status"] for each in read_records(folder)]
        stopped.append(at == "evaluation" or ended == ["finished"] * 2)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stop)
        patch.setattr(Watch, "stopped", lambda self: any(stopped))
        assert run_row(path, text, folder) == 130
    assert "Stopped. The same command resumes." in capsys.readouterr().err
    assert len(read_evaluations(folder)) == (at == "evaluation")
    assert run_row(path, text, folder) == 0
    assert len(read_evaluations(folder)) == 6


def test_the_time_of_a_training_is_stored_with_its_checkpoints(
    tmp_path, rng, monkeypatch
):
    """After kill -9 it would be missing otherwise."""
    folder, times, save = tmp_path / "run", [], Checkpoints.save
    monkeypatch.setattr(
        experiments.engine.time, "perf_counter", itertools.count().__next__
    )

    def spy(self, *arguments):
        times.append(read_facts(folder)["programs"][-1]["train_seconds"])
        save(self, *arguments)

    monkeypatch.setattr(Checkpoints, "save", spy)
    fields = NUMBERS + "checkpoint_every = 1\n"
    path, data = recipe(tmp_path, PAPER + fields), numbers(tmp_path, rng)
    with jax.numpy_dtype_promotion("standard"):
        assert run_row(path, data, folder) == 0
    assert times
    assert all(times)


# Files that are damaged, or of somebody else.


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    path = recipe(folder, PAPER + TINY, "seeds = 2\n")
    with no_reports():
        assert run_row(path, text, folder / "run") == 0
    return folder


@pytest.fixture
def trained(finished, tmp_path):
    """A row of two seeds, and its run."""
    folder = shutil.copytree(finished, tmp_path / "finished")
    return folder / "row.toml", folder / "run"


@pytest.mark.parametrize("damage", ["swapped", "flipped"])
def test_weights_of_another_lane_are_refused(trained, text, capsys, damage):
    path, folder = trained
    (folder / "evaluations.jsonl").unlink()
    weights = folder / "weights/1.safetensors"
    if damage == "swapped":
        shutil.copy(folder / "weights/2.safetensors", weights)
        message = "has the parameters of another lane than line 1 of results.jsonl"
    else:
        content = bytearray(weights.read_bytes())
        content[-2] ^= 1
        weights.write_bytes(content)
        message = "its arrays are not the ones that were saved"
    assert run_row(path, text, folder) == 1
    assert message in capsys.readouterr().err
    assert read_evaluations(folder) == []


def test_results_without_facts_are_refused(trained, text, capsys):
    path, folder = trained
    (folder / "run.json").unlink()
    assert run_row(path, text, folder) == 1
    assert "has results of lanes but no run.json" in capsys.readouterr().err


@pytest.mark.parametrize("value", [None, "NaN", '"12"'])
def test_a_damaged_evaluation_is_refused(trained, text, capsys, value):
    path, folder = trained
    lines = (folder / "evaluations.jsonl").read_text().splitlines()
    changed = "12" if value is None else value
    name = "figure" if value is None else "perplexity"
    lines = [
        re.sub(r'"perplexity": [\d.]+', f'"{name}": {changed}', line) for line in lines
    ]
    (folder / "evaluations.jsonl").write_text("\n".join(lines) + "\n")
    assert run_row(path, text, folder) == 1
    assert re.search(
        r"evaluations\.jsonl: not an evaluation: perplexity: must be a finite number, "
        "got (None|nan|'12')",
        capsys.readouterr().err,
    )


def test_a_config_of_the_user_is_not_taken_for_that_of_a_run(
    text, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine/config.toml"
    path.parent.mkdir()
    path.write_text("# my notes\n" + "seeds = 1\n" + PAPER + TINY)
    before = path.read_text()
    assert main(["reproduce", str(path), "--data", str(text), "--seeds", "2"]) == 0
    assert path.read_text() == before
    assert (tmp_path / "runs/config/run.json").exists()


# Losses.


@pytest.mark.parametrize("test", [0.2, 0.4])
def test_a_loss_that_is_not_finite_has_no_figure(tmp_path, rng, capsys, test):
    data = numbers(tmp_path, rng, most=1e30)
    fields = NUMBERS.replace("test = 0.2", f"test = {test}")
    path = recipe(tmp_path, PAPER + fields)
    with jax.numpy_dtype_promotion("standard"):
        assert run_row(path, data, tmp_path / "run") == 2
    assert re.search(
        r"line 1 of results\.jsonl: has no finite \w+_mse", capsys.readouterr().err
    )


def test_a_loss_may_be_negative(tmp_path):
    """As that of a density."""
    paper = Paper("a", "b", "c")
    figures = {"valid": [-2.0], "test": [-1.0], "montecarlo": []}
    assert [each.mean for each in compare(paper, figures)] == [-2.0, -1.0]
    result = figures | {
        "command": "",
        "unit": "nll",
        "seeds": [0],
        "curves": [[-1.0]],
        "seconds": 1.0,
        "device": "",
        "versions": {},
    }
    path = recipe(tmp_path)
    write_result(path, result)
    assert read_result(path) == result
    with pytest.raises(StorageError, match=r"test\.0: must be a finite number"):
        write_result(path, result | {"test": [np.inf]})


# Names.


def test_a_name_is_no_markup(trained, text, capsys):
    path, folder = trained
    path.write_text(path.read_text().replace("small", "2 x 8 [tied] [/]"))
    assert run_row(path, text, folder) == 0
    assert "Nobody 2020: 2 x 8 [tied] [/]" in " ".join(capsys.readouterr().out.split())


def test_a_folder_may_end_in_a_slash(trained, text):
    path, folder = trained
    assert run_row(path, f"{text}/", folder) == 0


def test_arguments_are_utf8(tmp_path, capsys):
    path = recipe(tmp_path, PAPER + TINY)
    assert main(["reproduce", str(path), "--data", "te\udcffxt"]) == 2
    assert "command line: must be UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize("message", ["", "RESOURCE_EXHAUSTED: Out of memory"])
def test_too_little_memory_is_one_line(
    trained, text, tmp_path, monkeypatch, capsys, message
):
    path, folder = trained
    kind = jax.errors.JaxRuntimeError if message else MemoryError

    def fail(*arguments):
        raise kind(message)

    monkeypatch.setattr(experiments.reproduce, "read_records", fail)
    assert run_row(path, text, folder) == 1
    assert f"error: not enough memory: {message}" in capsys.readouterr().err
