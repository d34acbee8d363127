"""Corpus: a text as tokens, cut into rows that are read in parallel.

Tokens are words, separated by whitespace, or characters, which all stay as they are. A
newline, and nothing else, ends a line and becomes the token "<eos>". If every line
stands between two spaces, as in the Penn Treebank, these are not part of it. The
vocabulary holds the tokens of the training text, the most frequent one first.

References:
    [1] Merity, Keskar, Socher. Regularizing and optimizing LSTM language models. ICLR
        2018. arXiv:1708.02182; section 5, and main.py of their code.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from experiments.config import ConfigError
from experiments.language.config import Task, Train
from experiments.text import read_text

SPLITS = ("train", "valid", "test")
END, UNKNOWN = "<eos>", "<unk>"
UNITS = {
    "words": {"nll": "nats per word", "perplexity": ""},
    "characters": {"nll": "nats per character", "bits": "bits per character"},
}
SHORTEST = 5  # steps of a window of random length
SPREAD = 5  # standard deviation of its length


class Corpus(NamedTuple):
    """A text in three parts.

    Attributes:
        vocabulary: the tokens, in the order of their ids; JSON stores it as a list.
        train, valid, test: ids.
    """

    vocabulary: tuple[str, ...]
    train: Int[np.ndarray, "n"]
    valid: Int[np.ndarray, "m"]
    test: Int[np.ndarray, "k"]

    @property
    def fingerprint(self) -> str:
        """Hash of the vocabulary and of the ids of each part."""
        content = hashlib.sha256(json.dumps(self.vocabulary).encode())
        for ids in (self.train, self.valid, self.test):
            content.update(b"%d:" % len(ids) + ids.astype("<i4").tobytes())
        return content.hexdigest()[:16]


class Rows(NamedTuple):
    """A text cut into B rows of L steps; each row continues the one before.

    Attributes:
        inputs: [B, L] ids.
        targets: [B, L] the ids that follow.
        weights: [B, L] 1, or 0 for padding.
    """

    inputs: Int[np.ndarray, "B L"]
    targets: Int[np.ndarray, "B L"]
    weights: Float[np.ndarray, "B L"]


class Windows(NamedTuple):
    """The windows of an epoch.

    Attributes:
        starts: first step of each window.
        lengths: steps of each window.
    """

    starts: Int[np.ndarray, "W"]
    lengths: Int[np.ndarray, "W"]


def load(task: Task) -> Corpus:
    """Reads the three files of a folder.

    Raises:
        ConfigError: the folder or a file is missing or is not text; a word is "<eos>";
            or a token is not in the training text, which has no "<unk>" for it either.
    """
    paths = {split: _path(task.data, split) for split in SPLITS}
    lines = {split: _lines(path) for split, path in paths.items()}
    if task.name == "words":
        tokens = {split: _words(lines[split], path) for split, path in paths.items()}
    else:
        tokens = {split: [*_characters(each)] for split, each in _bare(lines).items()}
    counts = Counter(tokens["train"])
    vocabulary = sorted(counts, key=lambda token: (-counts[token], token))
    ids = {token: number for number, token in enumerate(vocabulary)}
    numbered = (_number(tokens[split], ids, task.data, split) for split in SPLITS)
    return Corpus(tuple(vocabulary), *numbered)


def training_rows(tokens: Int[np.ndarray, "n"], batch: int) -> Rows:
    """Cuts a text into rows of equal length; the rest at its end is dropped.

    Raises:
        ConfigError: there are fewer than two tokens per row.
    """
    length = len(tokens) // batch
    if length < 2:
        raise ConfigError(
            f"train.batch: must leave each row two of the {len(tokens)} tokens of the "
            f"training text, got {batch}."
        )
    rows = tokens[: batch * length].reshape(batch, length)
    inputs, targets = rows[:, :-1], rows[:, 1:]
    return Rows(inputs, targets, np.ones(targets.shape, np.float32))


def whole_rows(tokens: Int[np.ndarray, "n"], batch: int, window: int) -> Rows:
    """Cuts a text into rows that hold all of it, padded to whole windows.

    Every token except the first one is the target of one step.
    """
    steps = len(tokens) - 1
    length = -(-steps // batch)
    padded = -(-length // window) * window
    flat = np.zeros((3, batch * length))
    flat[0, :steps], flat[1, :steps], flat[2, :steps] = tokens[:-1], tokens[1:], 1
    rows = np.zeros((3, batch, padded))
    rows[:, :, :length] = flat.reshape(3, batch, length)
    inputs, targets = rows[:2].astype(np.int32)
    return Rows(inputs, targets, rows[2].astype(np.float32))


def windows(train: Train, steps: int, seed: Sequence[int]) -> Windows:
    """Returns the windows of an epoch.

    With `train.vary_window`, lengths are random as in [1]: normal around `window`, or
    around half of it for 5 %, with standard deviation 5, in [`shortest(train)`,
    `longest(train)`].
    Otherwise steps that do not fill a window are dropped; with `train.shuffle` also
    those before a random offset below `window`.

    Args:
        train: options of the training.
        steps: length of a row.
        seed: seed of the random lengths, or of the random order.
    """
    if train.shuffle:
        generator = np.random.default_rng(seed)
        offset = generator.integers(min(train.window, steps - train.window + 1))
        count = (steps - offset) // train.window
        order = generator.permutation(count).astype(np.int32)
        starts = np.int32(offset) + np.int32(train.window) * order
        return Windows(starts, np.full_like(starts, train.window))
    if not train.vary_window:
        starts = np.arange(steps // train.window, dtype=np.int32) * train.window
        return Windows(starts, np.full_like(starts, train.window))
    generator = np.random.default_rng(seed)
    drawn: list[int] = []
    left = steps
    while left:
        mean = train.window if generator.random() < 0.95 else train.window / 2
        length = max(shortest(train), int(generator.normal(mean, SPREAD)))
        drawn.append(min(length, longest(train), left))
        left -= drawn[-1]
    lengths = np.array(drawn, np.int32)
    return Windows(np.cumsum(lengths, dtype=np.int32) - lengths, lengths)


def longest(train: Train) -> int:
    """Returns the most steps of a window."""
    return train.window + train.longer_by * train.vary_window


def shortest(train: Train) -> int:
    """Returns the fewest steps of a window, except of the last one of an epoch."""
    return min(SHORTEST, longest(train)) if train.vary_window else train.window


def quoted(task: Task, nll: Any) -> dict[str, Any]:
    """Returns a mean loss in the unit that papers quote, by its name."""
    if task.name == "characters":
        return {"bits": nll / math.log(2)}
    with np.errstate(over="ignore"):
        return {"perplexity": np.exp(nll)}


def _path(data: str, split: str) -> Path:
    """Returns the one text file of a folder that is named after a split."""
    expected = (
        "must be a folder with three text files that have train, valid and test "
        "between the dots of their names, such as ptb.train.txt, ptb.valid.txt and "
        "ptb.test.txt"
    )
    try:
        if not data or not Path(data).is_dir():
            raise ConfigError(f"task.data: {expected}, got {data!r}.")
        found = sorted(p for p in Path(data).iterdir() if split in p.name.split("."))
    except OSError as error:
        raise ConfigError(f"{data}: {error.strerror or error}.") from None
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ConfigError(f"{data}: {expected}; named after {split}: {names}.")
    return found[0]


def _lines(path: Path) -> list[str]:
    text = read_text(path)
    if not text.split():
        raise ConfigError(f"{path}: must be a text, got only whitespace.")
    return text.removesuffix("\n").split("\n")


def _words(lines: Sequence[str], path: Path) -> list[str]:
    words = []
    for number, line in enumerate(lines, 1):
        found = line.split()
        if END in found:
            raise ConfigError(
                f"{path}:{number}: the word {END!r} stands for the end of a line and "
                "must not be in the text."
            )
        words += [*found, END]
    return words


def _bare(lines: Mapping[str, list[str]]) -> Mapping[str, list[str]]:
    """Returns lines without the spaces around them, if all of them have both."""
    every = [line for each in lines.values() for line in each]
    if all(len(n) > 1 and n[0] == n[-1] == " " for n in every):
        return {split: [line[1:-1] for line in each] for split, each in lines.items()}
    return lines


def _characters(lines: Sequence[str]) -> Iterator[str]:
    for line in lines:
        yield from line
        yield END


def _number(
    tokens: Sequence[str], ids: Mapping[str, int], data: str, split: str
) -> Int[np.ndarray, "n"]:
    unknown = ids.get(UNKNOWN)
    numbers = [ids.get(token, unknown) for token in tokens]
    if None in numbers:
        token = tokens[numbers.index(None)]
        raise ConfigError(
            f"{data}: the {split} text has {token!r}, which is not in the training "
            f"text, and neither is {UNKNOWN!r}."
        )
    return np.array(numbers, np.int32)
