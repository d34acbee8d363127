"""A config is data: its axes, and what is wrong in it in one line before any work."""

import time

import pytest

from experiments import axes
from experiments.__main__ import main
from experiments.config import ConfigError
from experiments.language.config import Config as ModelConfig
from experiments.runs.files import write_lines
from experiments.runs.records import make_record

SHIPPED = (
    "vowels_plane vowels_methods vowels_concrete vowels_two_passes classify regress "
    "label characters"
)


def sweep(text, path):
    path.write_text(text)
    return axes.make_sweep(axes.read_toml(path), str(path))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "c.toml"


@pytest.mark.parametrize("name", SHIPPED.split())
def test_shipped_configs_are_valid(pytestconfig, name):
    file = pytestconfig.rootpath / "configs" / f"{name}.toml"
    text = file.read_text()
    found = axes.make_sweep(axes.read_toml(file), str(file))
    assert found.lanes()
    assert f"python -m experiments ablate configs/{name}.toml" in text


def test_lists_are_axes_and_structure_comes_first(path):
    found = sweep(
        "seeds = 2\n[model]\nunits = [4, 8]\n[train]\nlearning_rate = [0.1, 0.2]\n"
        "[dropout.recurrent]\nrate = [0.0, 0.5]",
        path,
    )
    assert list(found.axes) == [
        "model.units",
        "dropout.recurrent.rate",
        "train.learning_rate",
    ]
    lanes = found.lanes()
    assert len(lanes) == 16
    assert lanes[0].structure == {"model.units": 4}
    assert lanes[-1].setting == {
        "model.units": 8,
        "dropout.recurrent.rate": 0.5,
        "train.learning_rate": 0.2,
    }
    assert [lane.config.seeds for lane in lanes[:4]] == [0, 1, 0, 1]
    assert lanes[2].config.train.learning_rate == 0.2
    assert lanes[-1].config.dropout.recurrent.rate == 0.5


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("seed = 0", (0, 1, 2, 3)), ("seeds = 2", (0, 1)), ("seeds = [3, 1]", (3, 1))],
)
def test_seeds_are_a_number_or_a_list(path, text, seeds):
    assert sweep(text, path).seeds == seeds


@pytest.mark.parametrize(
    "text",
    [
        "seed = 0",
        "seeds = [5, 7]\n[model]\ncell = ['lstm', 'gru']",
        "[dropout]\nmethod = ['keras', 'awd']\nrate = [0.0, 0.5]",
        "[dropout.gates]\nrate = 0.5\nper = 'step'\ndrift = [0.0, 0.1]",
    ],
)
def test_toml_round_trip(path, text):
    first = sweep(text, path)
    again = sweep(axes.to_toml(first), path)
    assert again == first
    assert axes.differences(first, again) == []


def test_differences_name_the_field(path):
    first = sweep("seeds = 2", path)
    second = sweep("[train]\nepochs = 8\n[dropout.gates]\nrate = 0.5", path)
    lines = axes.differences(first, second)
    assert "seeds was [0, 1], is [0, 1, 2, 3]" in lines
    assert "train.epochs was 60, is 8" in lines
    assert "dropout.gates.rate was not set, is 0.5" in lines


WRONG = [
    ("sedes = 3", "sedes: unknown field; did you mean seeds?"),
    ("[model]\nunits = 64\ndepth = 2", "model.depth: unknown field."),
    ("[model]\ndepth = [2, 3]", "model.depth: unknown field."),
    ("seeds = 0", "seeds: must be at least 1, got 0."),
    ("seeds = 2.5", "seeds: must be a valid integer, got 2.5."),
    ('seeds = "3"', "seeds: must be a valid integer, got '3'."),
    ("seeds = [1, 1]", "seeds: values must differ, got [1, 1]."),
    ("seeds = []", "seeds: must have at least one value, got []."),
    ("seeds = [7]", "seeds: must be a number of seeds, or a list of two or more, got"),
    ("seeds = [-1, 2]", "seeds: must be greater than or equal to 0, got -1."),
    ("seed = -1", "seed: must be greater than or equal to 0, got -1."),
    (
        'task = "imdb"',
        "task: must be a table (name, data, test, window, horizon, head).",
    ),
    ("[task]\ntest = 1.5", "task.test: must be less than 1, got 1.5."),
    (
        '[task]\ndata = ["a", "b"]',
        'task.data: must have one value in the whole sweep, got ["a", "b"].',
    ),
    (
        "[train]\nepochs = [4, 8]",
        "train.epochs: must have one value in the whole sweep, got [4, 8].",
    ),
    (
        "[dropout.inputs]\nrate = [0.0, 1.5]",
        "dropout.inputs.rate: must be less than or equal to 1, got 1.5.",
    ),
    (
        "[dropout.inputs]\nrate = []",
        "dropout.inputs.rate: must have at least one value, got [].",
    ),
    (
        "[dropout.inputs]\nrate = [0.5, 0.5]",
        "dropout.inputs.rate: values must differ, got [0.5, 0.5].",
    ),
    (
        '[dropout.recurrent]\nper = "batch"',
        "dropout.recurrent.per: must be 'sequence' or 'step', got 'batch'.",
    ),
    (
        '[dropout.recurrent]\nkind = "zoneout"',
        "dropout.recurrent.kind: must be 'bernoulli', 'gaussian' or "
        "'concrete', got 'zoneout'.",
    ),
    (
        '[dropout]\nmethod = "bayes"',
        "dropout.method: must be one of none, pham, zaremba,",
    ),
    (
        "[train]\nlearning_rate = -1.0",
        "train.learning_rate: must be greater than 0, got -1.0.",
    ),
    (
        "[train]\nlearning_rate = inf",
        "train.learning_rate: must be a finite number, got inf.",
    ),
    (
        "[train]\nlearning_rate = [0.1, nan]",
        "train.learning_rate: must be a finite number, got nan.",
    ),
    (
        "[train]\nevaluate_every = 7",
        "train.evaluate_every: must divide train.epochs, got 7 and 60.",
    ),
    (
        "[train]\ncheckpoint_every = 0",
        "train.checkpoint_every: must be greater than or equal to 1, got 0.",
    ),
    ("[train]\nepochs = 1e2", "train.epochs: must be a valid integer"),
    ("[model]\nunits = 0", "model.units: must be greater than or equal to 1"),
    ('[model]\ncell = "elman"', "model.cell: must be 'lstm', "),
    ("seeds = ", "not a TOML file: "),
    (
        "[dropout.inputs]\nrate = ["
        + ",".join(f"0.{n:04}" for n in range(1000))
        + "]\n[dropout.recurrent]\nrate = ["
        + ",".join(f"0.{n:04}" for n in range(1000))
        + "]",
        "has 4,000,000 lanes; the most are 1,000,000.",
    ),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_a_wrong_config_is_one_clear_line(path, text, message):
    with pytest.raises(ConfigError) as error:
        sweep(text, path)
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < len(str(path)) + 500


HOSTILE = [
    ("", "has no fields; configs/ has examples."),
    ("# only a comment", "has no fields"),
    ("seeds = " + "[" * 5000 + "]" * 5000, "is nested too deeply"),
    ("task = " + "{a = " * 5000 + "1" + "}" * 5000, "is nested too deeply"),
    (".".join(["a"] * 100_000) + " = 1", "is nested too deeply"),
    (".".join(["a"] * 10) + " = 1", "a.a.a.a.a.a.a.a.a.a: unknown field"),
    ("[" + ".".join(["'a'"] * 100_000) + "]", "is nested too deeply"),
    ("task.name = " + "[" * 50 + "]" * 50, "task.name: must be a valid string, got"),
    ("[dropout.inputs]\nrate = [[0.1]]", "dropout.inputs.rate: must be a valid number"),
    ("[dropout.inputs]\nrate = {a = 1}", "dropout.inputs.rate.a: unknown field"),
    ("seed.x = 1", "seed.x: unknown field"),
    ("[train.epochs]\nx = 1", "train.epochs.x: unknown field"),
    ('"train.epochs" = 5', '"train.epochs": unknown field; did you mean train.epochs?'),
    ("seed = " + "9" * 5000, "not a TOML file: "),
    ("seed = 1" + "0" * 30, "seed: must be less than or equal to 2147483647, got 1000"),
    ("seeds = 1000000000", "has 1,000,000,000 lanes; the most are 1,000,000."),
    ("seeds = 10000000", "has 10,000,000 lanes"),
    ("[train]\nbatch = 2147483648", "train.batch: must be less than or equal to 2147"),
    ("[dropout]\nrate = 2020-01-01", "dropout.rate: must be a valid number, got date"),
    ("seed = true", "seed: must be a valid integer, got True."),
    ("[train]\nepochs = nan", "train.epochs: must be a valid integer"),
    (f"[model]\n{'x' * 100_000} = 1", "model.xxxx"),
]


@pytest.mark.parametrize(("text", "message"), HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_config_is_one_short_line_at_once(path, text, message):
    started = time.process_time()
    test_a_wrong_config_is_one_clear_line(path, text, message)
    assert time.process_time() - started < 2.0


@pytest.mark.parametrize(
    "content",
    [
        "\ufeffseeds = 3\n# naïve".encode(),
        "seeds = 3\r\n# naïve".encode(),
    ],
)
def test_a_config_is_utf8_whatever_the_locale(path, content, monkeypatch):
    monkeypatch.setattr("locale.getpreferredencoding", lambda *_: "ascii")
    path.write_bytes(content)
    assert axes.read_toml(path) == {"seeds": 3}
    path.write_bytes(b"seeds = 3 # \xff")
    with pytest.raises(ConfigError, match="UTF-8"):
        axes.read_toml(path)


def test_values_of_static_axes_are_checked_together():
    raw = {"model": {"layers": [1, 2], "top_units": [0, 4]}}
    swept = axes.make_sweep(raw, "test", ModelConfig)
    with pytest.raises(ConfigError, match=r"^test: model\.top_units: must be 0 if"):
        swept.lanes()


def test_an_integer_is_a_number_where_a_number_is_asked_for():
    swept = axes.make_sweep({"train": {"learning_rate": 1}}, "test")
    assert repr(swept.base.train.learning_rate) == "1.0"


def test_ten_thousand_lanes_are_listed_and_checked_at_once():
    rates = [n / 1000 for n in range(50)]
    raw = {"seeds": 4, "dropout": {s: {"rate": rates} for s in ("inputs", "recurrent")}}
    started = time.process_time()
    lanes = axes.make_sweep(raw, "test").lanes()
    assert len(lanes) == 10_000
    assert lanes[-1].config.dropout.recurrent.rate == rates[-1]
    assert time.process_time() - started < 5.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.toml"], "missing.toml: No such file or directory."),
        (["--seeds", "0"], "command line: seeds: must be at least 1, got 0."),
        (["--memory", "nan"], "memory: must be above 0 GB, got nan."),
        (["--memory", "-1"], "memory: must be above 0 GB, got -1.0."),
        (["--coordinator", "nowhere"], "coordinator: must be host:port, got 'nowhere'"),
        (["--coordinator", "a:b"], "coordinator: must be host:port, got 'a:b'."),
        (["--processes", "0"], "processes: must be at least 1, got 0."),
        (
            ["--processes", "2", "--process", "2"],
            "process: must be at least 0 and below 2, got 2.",
        ),
        (["--distributed"], "distributed: the processes cannot meet: "),
        (
            ["--dropout.inputs.kind", "gaussian", "--dropout.inputs.rate", "1"],
            'dropout.inputs.rate: must be below 1 for kind = "gaussian", got 1.',
        ),
        (
            ["--dropout.inputs.rate", "0", "2"],
            "dropout.inputs.rate: must be less than or equal to 1, got 2.0.",
        ),
        (
            ["--train.validation", "0.001"],
            "train.validation: must hold out some of 270 training sequences and leave "
            "some, got 0.001, which is 0.",
        ),
        (
            ["--train.batch", "300"],
            "train.batch: must be at most 216, the sequences left to train on, got "
            "300.",
        ),
        (["--task.name", "imdb"], "task.name: must be one of japanese_vowels, "),
        (
            ["--dropout.method", "keras"],
            "dropout.inputs.rate: must be 0 with the method keras.",
        ),
        (["--dropout.rate", "0.5"], "dropout.rate: must be 0 without a method; set "),
        (
            ["--dropout.recurrent.drift", "0.5"],
            'dropout.recurrent.drift: must be 1 unless per = "step".',
        ),
        (
            ["--dropout.recurrent.learn", "True"],
            'dropout.recurrent.learn: the kind must be "concrete", whose mask '
            'has a gradient in the rate, got "bernoulli".',
        ),
        (
            [
                "--dropout.recurrent.learn",
                "True",
                "--dropout.recurrent.kind",
                "concrete",
            ],
            "dropout.recurrent.rate: must lie inside (0, 1) if it is learned, got",
        ),
        (
            [
                "--dropout.inputs.kind",
                "gaussian",
                "--dropout.inputs.scale",
                "expectation",
            ],
            'dropout.inputs.scale: must be "inverted" unless the kind is "bernoulli", '
            'got "expectation".',
        ),
        (
            [
                "--dropout.input-weights.kind",
                "weight_noise",
                "--dropout.input-weights.by",
                "row",
                "--dropout.input-weights.rate",
                "0.1",
            ],
            'dropout.input_weights.by: must be "weight" unless the kind is',
        ),
        (
            ["--model.cell", "gru", "--dropout.cell-state.rate", "0.1"],
            "The network cannot be built: Site `cell_state` does not exist in this c",
        ),
        (
            ["--dropout.update.rate", "0.1", "--dropout.update.gates", "each"],
            "The network cannot be built: Site `update`: `gates` must be",
        ),
        (["--data-devices", "3"], "data-devices: must divide the "),
    ],
)
def test_the_command_line_refuses_before_any_work(
    arguments, message, capsys, pytestconfig, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    config = str(pytestconfig.rootpath / "configs" / "vowels_plane.toml")
    named = arguments if arguments[0].endswith(".toml") else [config, *arguments]
    assert main(["ablate", *named]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("runs/*/results.jsonl"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["nothing"],
            "line: must be FILE:NUMBER, such as runs/x/results.jsonl:17, got not",
        ),
        (["missing.jsonl:3"], "line: must be FILE:NUMBER"),
        (["results.jsonl:0"], "results.jsonl: has lanes 1 to 1, got 0."),
        (["results.jsonl:2"], "results.jsonl: has lanes 1 to 1, got 2."),
        (["results.jsonl:1"], "must be a lane that has ended, got an interrupted one"),
        (["results.jsonl:9999999999999"], "line: must be FILE:NUMBER"),
    ],
)
def test_replay_refuses(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (lane,) = axes.make_sweep({"seeds": 1}, "test").lanes()
    record = make_record(lane, [4], {"valid_nll": [1.0]}, None, None)
    write_lines(tmp_path / "results.jsonl", [record])
    assert main(["replay", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([], "ablate train configs evaluate replay report export --version"),
        (
            ["ablate"],
            "--dropout.recurrent.rate recurrent_dropout --train.epochs Passes",
        ),
        (["replay"], "RESULTS.jsonl:LINE"),
        (["report"], "--figure"),
    ],
)
def test_help_reads_well(capsys, command, words):
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in words.split())
