"""A config is data: what is wrong in it is said in one line, before any work."""

import pytest

from experiments.__main__ import main
from experiments.config import (
    ConfigError,
    MethodsConfig,
    PlaneConfig,
    Train,
    load,
    to_toml,
)


def write(path, text):
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "kind"), [("vowels_plane", PlaneConfig), ("vowels_methods", MethodsConfig)]
)
def test_shipped_config_is_the_default_one(pytestconfig, name, kind):
    assert load(pytestconfig.rootpath / "configs" / f"{name}.toml", kind) == kind()


def test_an_unknown_method_is_named(tmp_path):
    path = write(tmp_path / "c.toml", 'methods = ["gal_tied", "bayes"]')
    with pytest.raises(ConfigError, match="methods: no such method as bayes"):
        load(path, MethodsConfig)


def test_toml_round_trip(tmp_path):
    config = PlaneConfig(seeds=2, train=Train(learning_rate=1e-4))
    path = write(tmp_path / "c.toml", to_toml(config))
    assert load(path, PlaneConfig) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sedes = 3", r"sedes: unknown field"),
        ("[model]\nunits = 64\ndepth = 2", r"model\.depth: unknown field"),
        ("seeds = 0", r"seeds: .*greater than or equal to 1, got 0"),
        ("seeds = 2.5", r"seeds: .*integer, got 2.5"),
        ('seeds = "3"', r"seeds: .*integer, got '3'"),
        ('task = "imdb"', r"task: .*'japanese_vowels', got 'imdb'"),
        (
            "[dropout.inputs]\nrate = [0.0, 1.5]",
            r"dropout\.inputs\.rate\.1: .*less than or equal to 1, got 1.5",
        ),
        (
            "[dropout.inputs]\nrate = []",
            r"dropout\.inputs\.rate: .*include the baseline 0, got",
        ),
        ("[dropout.inputs]\nrate = [0.5]", r"rate: .*include the baseline 0, got"),
        ("[dropout.inputs]\nrate = [0.0, 0.0]", r"rate: .*differ from each other"),
        ("[dropout.recurrent]\nrate = [0.0, nan]", r"recurrent\.rate\.1: .*got"),
        ('[dropout.recurrent]\nper = "batch"', r"per: .*'sequence' or 'step'"),
        ("[train]\nlearning_rate = -1.0", r"learning_rate: .*greater than 0"),
        ("[train]\nlearning_rate = inf", r"learning_rate: .*got"),
        ("[train]\nevaluate_every = 7", r"evaluate_every = 7 must divide epochs"),
        ("seeds = ", r"not a TOML file"),
    ],
)
def test_a_wrong_config_is_one_clear_line(tmp_path, text, message):
    path = write(tmp_path / "c.toml", text)
    with pytest.raises(ConfigError, match=message) as error:
        load(path, PlaneConfig)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.toml"], "missing.toml: No such file or directory"),
        (["--seeds", "0"], "seeds: Input should be greater than or equal to 1"),
        (["--dropout.inputs.rate", "0", "2"], "rate.1: Input should be less than"),
        (["--train.validation", "30"], "train.validation: must leave some of the 30"),
        (["--train.batch", "300"], "train.batch: must be at most 216"),
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
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_help_reads_well(capsys):
    for arguments in (["--help"], ["ablate", "--help"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
        assert "recurrent" in capsys.readouterr().out
