"""A run folder: one process uses it, and damaged files are named and lose nothing."""

import gc
import json
import os
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from folders import no_reports

from experiments import __main__ as commands
from experiments import axes, engine
from experiments.classify.run import Sequences
from experiments.config import ConfigError
from experiments.runs.checkpoints import Checkpoints
from experiments.runs.files import StorageError
from experiments.runs.folder import LOCK, open_run
from experiments.runs.records import read_records
from experiments.runs.weights import load_weights

CONFIG = """
seeds = 1
[model]
units = 4
cell = "simple"
[dropout.inputs]
rate = [0.0, 0.3]
[train]
epochs = 6
evaluate_every = 2
checkpoint_every = 2
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "small.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def no_report():
    with no_reports():
        yield


def ablate(config, folder, *arguments):
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        return commands.main(["ablate", str(config), "--out", str(folder), *arguments])


def sweep_of(config):
    return axes.make_sweep(axes.read_toml(config), str(config))


class _Impatient(Sequences):
    """Stops after two evaluations, as Ctrl-C would."""

    def compile(self, *arguments, **options):
        program = super().compile(*arguments, **options)
        begin = program.begin

        def begin_and_stop(*arguments):
            training = begin(*arguments)
            advance = training.advance

            def advance_and_stop():
                step = advance()
                training.paused = training.number == 2
                return step

            training.advance = advance_and_stop
            return training

        program.begin = begin_and_stop
        return program


@pytest.fixture(scope="module")
def runs(config, tmp_path_factory):
    """A finished run, and one that was interrupted after two of three evaluations."""
    folder = tmp_path_factory.mktemp("runs")
    swept = sweep_of(config)
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        assert engine.run(Sequences(), swept, folder / "finished")
        assert not engine.run(_Impatient(), swept, folder / "interrupted")
    return folder


def figures(folder):
    names = ("setting", "seed", "status", "metrics", "parameters")
    return [{name: line[name] for name in names} for line in read_records(folder)]


def test_an_interrupted_run_resumes_to_identical_results(
    runs, config, tmp_path, no_report
):
    folder = shutil.copytree(runs / "interrupted", tmp_path / "run")
    assert {line["status"] for line in figures(folder)} == {"interrupted"}
    assert ablate(config, folder) == 0
    assert figures(folder) == figures(runs / "finished")
    assert not (folder / "checkpoints").exists()


# One process at a time.


def test_a_second_process_is_refused_by_name_and_a_stale_lock_is_not(config, tmp_path):
    folder, swept = tmp_path / "run", sweep_of(config)
    code = (
        "import sys, time; from pathlib import Path; from experiments import axes; "
        "from experiments.runs.folder import open_run; path = Path(sys.argv[1]); "
        "swept = axes.make_sweep(axes.read_toml(path), str(path)); "
        "lock = open_run(Path(sys.argv[2]), swept); lock.__enter__(); "
        "print('locked', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(config), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        words = rf"another process \(pid {other.pid} on \S+, since 20.*\) is using th"
        with pytest.raises(ConfigError, match=words), open_run(folder, swept):
            pass
        other.kill()
    assert str(other.pid) in (folder / LOCK).read_text()
    with open_run(folder, swept):
        assert str(os.getpid()) in (folder / LOCK).read_text()


# Damaged files.

DEEP = "[" * 100_000
LINE = "results.jsonl:2: not a record of a lane: "


def change(record, **fields):
    return json.dumps(record | fields)


GARBLED = {
    "not UTF-8": (lambda r: b"\xff\xfe", "results.jsonl: not UTF-8 text, at byte 0."),
    "null": (lambda r: "null", LINE),
    "a list": (lambda r: "[]", LINE),
    "an empty object": (lambda r: "{}", LINE + "setting: Field required"),
    "an empty line": (lambda r: "", LINE),
    "truncated": (lambda r: json.dumps(r)[:50], LINE),
    "deep": (lambda r: DEEP, LINE),
    "no seed": (lambda r: json.dumps({k: r[k] for k in r if k != "seed"}), "seed: Fi"),
    "another status": (lambda r: change(r, status="done"), LINE + "status: must be 'f"),
    "another seed": (
        lambda r: change(r, seed=7),
        "results.jsonl:2: its lane is not in",
    ),
    "another setting": (lambda r: change(r, setting={"model.units": 9}), "is not in"),
    "a metric of text": (lambda r: change(r, metrics={"valid_nll": ["x"]}), LINE),
    "too few figures": (lambda r: change(r, metrics={"valid_nll": [1.0]}), "must have"),
    "the lane before": (
        lambda r: change(r, setting={"dropout.inputs.rate": 0.0}),
        "an",
    ),
}


@pytest.mark.parametrize("garbled", GARBLED)
def test_a_garbled_line_is_named_and_nothing_is_lost(
    runs, config, tmp_path, capsys, no_report, garbled
):
    spoil, message = GARBLED[garbled]
    folder = shutil.copytree(runs / "interrupted", tmp_path / "run")
    path = folder / "results.jsonl"
    first, second = path.read_text().splitlines()
    text = spoil(json.loads(second))
    content = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(first.encode() + b"\n" + content + b"\n" if text else b"\n\n")
    if isinstance(text, bytes):
        path.write_bytes(content)
    before = path.read_bytes()
    assert ablate(config, folder) == 1
    assert_one_line(capsys.readouterr().err, message if text else "results.jsonl:1: no")
    assert path.read_bytes() == before
    if garbled == "truncated":  # mended by hand, the run resumes
        path.write_text(f"{first}\n{second}\n")
        assert ablate(config, folder) == 0
        assert figures(folder) == figures(runs / "finished")


def assert_one_line(error, message):
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert len(error) < 600


FACTS = {
    "empty": "",
    "garbage": "%$",
    "a list": "[]",
    "null": "null",
    "not UTF-8": b"\xff",
    "deep": DEEP,
    "without a task": lambda f: json.dumps({k: f[k] for k in f if k != "task"}),
    "a negative number of lanes": lambda f: json.dumps(f | {"resident": {"0": -1}}),
    "a number of lanes as text": lambda f: json.dumps(f | {"resident": {"0": "2"}}),
    "programs of another form": lambda f: json.dumps(f | {"programs": [{"lanes": 2}]}),
    "programs as a number": lambda f: json.dumps(f | {"programs": 3}),
}


@pytest.mark.parametrize("garbled", FACTS)
def test_garbled_facts_are_named(runs, config, tmp_path, capsys, no_report, garbled):
    folder = shutil.copytree(runs / "interrupted", tmp_path / "run")
    path = folder / "run.json"
    spoil = FACTS[garbled]
    text = spoil(json.loads(path.read_text())) if callable(spoil) else spoil
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    results = (folder / "results.jsonl").read_bytes()
    assert ablate(config, folder) == 1
    assert_one_line(capsys.readouterr().err, "run.json: not ")
    assert (folder / "results.jsonl").read_bytes() == results


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"seeds = ", b"seeds = 3", DEEP.encode()]
)
def test_a_garbled_config_is_named(runs, config, tmp_path, capsys, content):
    folder = shutil.copytree(runs / "interrupted", tmp_path / "run")
    (folder / "config.toml").write_bytes(content)
    assert ablate(config, folder) == 2
    assert_one_line(capsys.readouterr().err, str(folder))


def test_the_folder_of_another_version_says_what_to_do(tmp_path, capsys):
    """Its config has a field that this version does not know."""
    row, folder = tmp_path / "row.toml", tmp_path / "run"
    row.write_text(CONFIG)
    folder.mkdir()
    (folder / "config.toml").write_text(CONFIG.replace("units", "width"))
    assert ablate(row, folder) == 2
    assert capsys.readouterr().err == (
        f"error: {folder}/config.toml: model.width: unknown field. Another version "
        "wrote this run, or it is damaged; use another folder with --out.\n"
    )


@pytest.mark.parametrize("name", ["results.jsonl", "run.json", "config.toml"])
def test_a_folder_in_the_place_of_a_file_is_named(runs, config, tmp_path, capsys, name):
    folder = shutil.copytree(runs / "interrupted", tmp_path / "run")
    (folder / name).unlink()
    (folder / name).mkdir()
    assert ablate(config, folder) in (1, 2)
    assert_one_line(capsys.readouterr().err, str(folder))


def checkpoint_files(folder):
    return [path for path in sorted(folder.rglob("checkpoints/**/*")) if path.is_file()]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_garbled_checkpoints_are_named_or_do_no_harm(
    runs, config, tmp_path, capsys, no_report
):
    """Each file emptied, cut in half and overwritten, in turn."""
    names = checkpoint_files(runs / "interrupted")
    assert len(names) > 4
    for number, name in enumerate(names):
        place = name.relative_to(runs / "interrupted")
        folder = shutil.copytree(runs / "interrupted", tmp_path / str(number))
        content = name.read_bytes()
        (folder / place).write_bytes(
            [b"", content[: len(content) // 2], b"{}"][number % 3]
        )
        status = ablate(config, folder)
        error = capsys.readouterr().err
        if status == 0:
            assert figures(folder) == figures(runs / "finished")
        else:
            assert status == 1
            last = error.splitlines()[-1]
            assert last.startswith("error: "), error
            assert "a checkpoint cannot be written or read" in last
        gc.collect()  # errors in Orbax' futures show here, not in a later test


@pytest.mark.parametrize("item", ["state", "facts"])
def test_a_checkpoint_without_an_item_is_named(tmp_path, item):
    state = [jax.numpy.arange(3)]
    with Checkpoints(tmp_path / "c", {}) as saved:
        saved.save(1, state)
    shutil.rmtree(tmp_path / "c/1" / item)
    with (
        Checkpoints(tmp_path / "c", {}) as saved,
        pytest.raises(StorageError, match="a checkpoint cannot be written or read: "),
    ):
        saved.restore(state)


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_a_flipped_bit_of_a_checkpoint_is_noticed(tmp_path, dtype):
    """What Orbax reads is not what was saved; its own files have no hash of it."""
    state = [jax.numpy.arange(100, dtype=dtype)]
    with Checkpoints(tmp_path / "c", {"prng": "x"}) as saved:
        saved.save(1, state)
    with Checkpoints(tmp_path / "c", {"prng": "x"}) as saved:
        restored, number = saved.restore(state)
        assert number == 1
        np.testing.assert_array_equal(restored[0], state[0])
        read = saved._restore

        def flipped(step, item, how):
            found = read(step, item, how)
            if item == "state":
                bits = np.array(found[0])
                bits.view(np.uint8)[17] ^= 4
                found[0] = jax.numpy.asarray(bits)
            return found

        saved._restore = flipped
        with pytest.raises(StorageError, match="its arrays are not the ones that were"):
            saved.restore(state)
    with (
        Checkpoints(tmp_path / "c", {"prng": "y"}) as saved,
        pytest.raises(StorageError, match=r"prng \(checkpoint: x, now: y\)\. To start"),
    ):
        saved.restore(state)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": (3,), "b": (2, 2), "c": ()}, "2 arrays instead of 3"),
        ({"a": (3,)}, "2 arrays instead of 1"),
        ({"a": (4,), "b": (2, 2)}, "float32[3] instead of float32[4]"),
    ],
)
def test_a_checkpoint_of_another_layout_says_so(tmp_path, state, message):
    before = {"a": jax.numpy.ones(3, "float32"), "b": jax.numpy.ones((2, 2), "float32")}
    with Checkpoints(tmp_path / "c", {}) as saved:
        saved.save(1, before)
    blank = {name: jax.numpy.ones(shape, "float32") for name, shape in state.items()}
    with (
        Checkpoints(tmp_path / "c", {}) as saved,
        pytest.raises(StorageError) as error,
    ):
        saved.restore(blank)
    assert str(error.value) == (
        f"{tmp_path}/c: cannot resume; another version saved this checkpoint, with "
        f"{message}. To start these lanes again, remove the folder."
    )


# Weights.


@pytest.mark.parametrize(
    ("keep", "lanes"),
    [
        ("none", []),
        ("best", ["1"]),
        pytest.param("all", ["1", "2"], marks=pytest.mark.slow),
    ],
)
def test_weights_are_kept_and_evaluated(
    config, tmp_path, no_report, capsys, keep, lanes
):
    folder = tmp_path / "run"
    assert ablate(config, folder, "--keep", keep) == 0
    found = sorted(path.stem for path in folder.glob("weights/*"))
    records = read_records(folder)
    losses = [record["metrics"]["valid_nll"][-1] for record in records]
    best = str(1 + int(np.argmin(losses)))
    assert found == ([best] if keep == "best" else lanes)
    for name in found:
        weights = load_weights(folder / "weights" / f"{name}.safetensors")
        assert weights.config.startswith("seeds = ")
        capsys.readouterr()
        with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
            assert commands.main(["evaluate", str(folder), "--lane", name]) == 0
        shown = re.search(r" nll ([\d.e-]+)", capsys.readouterr().out)
        written = records[int(name) - 1]["metrics"]["test_nll"][-1]
        assert float(shown[1]) == pytest.approx(written, rel=1e-5)
    if keep == "none":
        assert commands.main(["evaluate", str(folder)]) == 2
        assert "the run kept no weights of the lane" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("garbled", "message"),
    [(b"", "has no weights of a lane"), (b"x" * 100, "has no weights of a lane")],
)
def test_garbled_weights_are_named(runs, tmp_path, garbled, message):
    path = tmp_path / "1.safetensors"
    path.write_bytes(garbled)
    with pytest.raises(StorageError, match=message):
        load_weights(path)


def test_evaluating_something_else_is_refused(tmp_path, capsys):
    assert commands.main(["evaluate", str(tmp_path / "none")]) == 2
    assert "is not the folder of a run" in capsys.readouterr().err


# Before a run.


def test_a_dry_run_measures_and_writes_nothing(config, tmp_path, capsys):
    assert ablate(config, tmp_path / "run", "--dry-run") == 0
    shown = capsys.readouterr().out
    for words in ("programs +1", "lanes +2 ", "memory +[0-9.]+ MB", "training +about"):
        assert re.search(words, shown), shown
    assert not (tmp_path / "run").exists()


def test_without_a_command_there_is_an_overview(capsys, pytestconfig):
    assert commands.main(["configs"]) == 0
    configs = capsys.readouterr().out
    assert commands.main([]) == 0
    shown = capsys.readouterr().out
    assert configs in shown
    assert re.search("^replay +Trains one lane of a run again", shown, re.MULTILINE)
    config = re.search(r"To begin: python -m experiments ablate (\S+)", shown)[1]
    assert (pytestconfig.rootpath / config).exists()


def test_shipped_configs_are_listed(capsys, pytestconfig):
    assert commands.main(["configs"]) == 0
    shown = capsys.readouterr().out
    for path in (pytestconfig.rootpath / "configs").glob("*.toml"):
        assert f"configs/{path.name}  " in shown
