"""Classes, numbers and text of a file are read as they are, or refused."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.config import ConfigError
from experiments.config import Task as Options
from experiments.data.convert_japanese_vowels import read_ts
from experiments.tasks import characters, classify, label, regress
from experiments.tasks.finite import LARGEST, first_bad
from experiments.text import read_text

ROOT = Path(__file__).parents[2]
HEADER = "sequence,split,target,f"


@pytest.fixture
def save(tmp_path):
    """Writes a table or the arrays of an archive; returns options that name it."""

    def write(content):
        if isinstance(content, dict):
            np.savez(tmp_path / "my.npz", **content)
            return Options(data=str(tmp_path / "my.npz"))
        path = tmp_path / "my.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return Options(data=str(path))

    return write


def refusal(load, options):
    with pytest.raises(ConfigError) as error:
        load(options)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(options.data)


# Classes


def rows(names):
    """A table of one sequence per class, twice."""
    lines = [
        f'{n}{split},{split},"{name}",{n}'
        for split in ("train", "test")
        for n, name in enumerate(names)
    ]
    return "\n".join([HEADER, *lines])


@pytest.mark.parametrize(
    "names",
    [
        ["1_11", "11_1"],
        ["01", "1"],
        ["007", "7", "8"],
        ["+1", "-1", "1"],
        ["0", "-0"],
        ["1", "\u0661"],  # the Arabic digit one
        ["1", "\uff11"],  # the full-width digit one
        ["11", "1\u0661", "1\uff11"],
        ["1", "1\u00a0"],
        ["a", "A"],
        ["9" * 30, "9" * 31],
        ["9223372036854775808", "1"],
        ["1" * 5000, "2" * 5000],
        ["1e5", "a"],
    ],
)
@pytest.mark.parametrize("task", [classify, label])
def test_names_of_classes_do_not_merge(save, task, names):
    data = task.load(save(rows(names)))
    assert data.outputs == len(names)
    ranks = np.argsort(np.argsort(names))
    assert data.train.targets.ravel().tolist() == ranks.tolist()


def test_classes_that_are_integers_are_in_numeric_order(save):
    data = classify.load(save(rows(["10", "9", "-3", "0"])))
    assert data.train.targets.tolist() == [3, 2, 0, 1]


@pytest.mark.parametrize("name", ["1.5", "1e5", "nan", "-inf", ".5", "2."])
def test_classes_that_are_numbers_but_not_integers_are_refused(save, name):
    expected = (
        f": target of sequence '1train' must be an integer or text, got '{name}'."
    )
    assert refusal(classify.load, save(rows(["01", name]))) == expected


# Numbers


@pytest.mark.parametrize(
    "cell",
    ["1_000", "\u0661\u0662", "\uff11", "inf", "nan", "0x10", "1e39", "1 0", "."],
)
@pytest.mark.parametrize(
    ("task", "row"), [(classify, "a,train,x,{}"), (regress, "a,train,{},1")]
)
def test_only_plain_numbers_are_numbers(save, task, row, cell):
    found = refusal(task.load, save("\n".join([HEADER, row.format(cell)])))
    column = "f" if task is classify else "target"
    assert found == f":2: {column} must be a finite float32 number, got {cell!r}."


def test_plain_numbers_are_read_as_python_reads_them(save):
    cells = ["1", "-2", "+3.", ".5", "1e-3", "-2.5E+1"]
    lines = [f"{n},train,{cell},{n}" for n, cell in enumerate(cells)]
    data = regress.load(save("\n".join([HEADER, *lines, "t,test,0,0"])))
    numbers = np.array([float(cell) for cell in cells])
    expected = (numbers - numbers.mean()) / numbers.std()
    np.testing.assert_allclose(data.train.targets[:, 0, 0], expected, rtol=1e-6)


FLOATS = (np.float16, np.float32, np.float64, np.longdouble)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_numbers_that_are_not_finite_are_refused_in_every_dtype(save, dtype, value):
    x = np.arange(40).reshape(10, 4).astype(dtype)
    y = np.arange(10).astype(dtype)
    x[3, 2] = y[4] = value
    found = refusal(classify.load, save({"x": x, "y": np.arange(10) % 2}))
    expected = f"must be a finite float32 number, got {value}."
    assert found == f": x[3, 2] (sequence, step) {expected}"
    found = refusal(regress.load, save({"x": np.arange(10.0)[:, None], "y": y}))
    assert found == f": y[4] {expected}"


@pytest.mark.parametrize("dtype", [*FLOATS, bool, np.int8, np.uint64, np.int64])
def test_finite_numbers_of_every_dtype_pass(dtype):
    info = np.finfo if np.issubdtype(dtype, np.floating) else np.iinfo
    most = True if dtype is bool else min(float(info(dtype).max), LARGEST) * 0.999
    values = np.zeros((2, 3), dtype)
    values[1, 2] = most
    assert first_bad(values) is None
    values = values.astype(np.longdouble)
    values[1, 2] = 2 * np.longdouble(LARGEST)
    assert first_bad(values) == (1, 2)
    assert first_bad(values, np.array([True, False])) is None


# Forms of a table


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "sequence\ttarget\tf\na\tb\t1\n",
            r": must have commas between the columns of its header, got "
            r"'sequence\ttarget\tf'.",
        ),
        (
            "sequence|target|f\n",
            ": must have commas between the columns of its header, got "
            "'sequence|target|f'.",
        ),
        (
            "sequence,target\tf\n",
            r": must have a column target, got sequence, target\tf.",
        ),
        (
            f"{HEADER}\na\ttrain\t0\t1\n",
            ":2: must have 4 cells, as the header has, separated by commas, got 1: "
            r"'a\ttrain\t0\t1'.",
        ),
        (f"{HEADER}\na,train,x\0,1\n", ":2: must be UTF-8 text, got byte 0x00."),
        (HEADER.encode("utf-16"), ":1: must be UTF-8 text, got byte 0xff."),
        (
            f"{HEADER}\n".encode() + b"a,train,\xe9,1\n",
            ":2: must be UTF-8 text, got by",
        ),
    ],
)
def test_other_tables_are_refused_with_what_was_found(save, content, message):
    assert refusal(classify.load, save(content)).startswith(message)


def test_a_byte_order_mark_is_one_only_at_the_start(save):
    table = f"\ufeff{HEADER}\na,train,x,1\n\ufeffa,train,\ufeffx,1\nc,test,x,1\n"
    data = classify.load(save(table))
    assert data.train.targets.tolist() == [0, 1]


# Text


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_text_is_utf_8_with_or_without_a_mark(tmp_path, mark):
    path = tmp_path / "my.txt"
    path.write_bytes(mark + "é\u2028\x85\x0c\r \r\n\ufeff".encode())
    assert read_text(path) == "é\u2028\x85\x0c\r \n\ufeff"


@pytest.mark.parametrize("load", [classify.load, characters.load])
def test_a_name_that_no_file_can_have_is_refused(load):
    found = refusal(load, Options(data="a\0b.csv", window=2))
    assert found == "'a\\x00b.csv': embedded null byte."


LATIN = """
import locale
from pathlib import Path
from experiments.config import Task
from experiments.data.convert_japanese_vowels import read_ts
from experiments.language import config, corpus
from experiments.tasks import characters, classify, find
assert locale.getpreferredencoding(False) != "utf-8"
print(ascii(corpus.load(config.Task("characters", "text")).vocabulary))
print(classify.load(Task(data="my.csv")).outputs)
print(characters.load(Task(data="my.txt", window=2)).outputs)
print(find("own.py").__doc__ == "\\xe9", len(read_ts(Path("my.ts"))[0]))
"""


def test_files_are_utf_8_whatever_the_locale(tmp_path):
    for split in ("train", "valid", "test"):
        (tmp_path / "text").mkdir(exist_ok=True)
        (tmp_path / "text" / f"{split}.txt").write_text("é", encoding="utf-8")
    (tmp_path / "my.csv").write_text(rows(["é", "è"]), encoding="utf-8-sig")
    (tmp_path / "my.txt").write_text("éè" * 100, encoding="utf-8")
    (tmp_path / "my.ts").write_text("é\n@data\n1,2:1\n", encoding="utf-8")
    own = '"""é"""\nload = inputs = score = print'
    (tmp_path / "own.py").write_text(own, encoding="utf-8")
    posix = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment = {n: v for n, v in os.environ.items() if n != "PYTHONWARNINGS"}
    found = subprocess.run(
        [sys.executable, "-W", "error::EncodingWarning", "-c", LATIN],
        cwd=tmp_path,
        env=environment
        | posix
        | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert found.split("\n") == [r"('<eos>', '\xe9')", "2", "3", "True 1", ""]


def test_the_ts_reader_takes_any_header(tmp_path):
    path = tmp_path / "x.ts"
    path.write_text("@problemName é\n@data\n1,2:3,4:1\n", encoding="utf-8")
    assert read_ts(path)[1].tolist() == [0]
