"""Corpus: a text as tokens, cut into rows that are read side by side.

Lines are words between spaces, or characters, and each line ends in a token of its own.
The vocabulary is that of the training text, the most frequent token first.

References:
    [1] Merity, Keskar, Socher. Regularizing and optimizing LSTM language models. ICLR
        2018. arXiv:1708.02182; section 5, and main.py of their code.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from experiments.config import ConfigError
from experiments.language.config import Task, Train
from experiments.text import read_text

SPLITS = ("train", "valid", "test")
END, SPACE, UNKNOWN = "<eos>", "_", "<unk>"
UNITS = {
    "words": {"nll": "nats a word", "perplexity": ""},
    "characters": {"nll": "nats a character", "bits": "bits a character"},
}
SHORTEST = 5  # steps of a window whose length is drawn
SPREAD = 5  # standard deviation of its length


class Corpus(NamedTuple):
    """A text in three parts.

    Attributes:
        vocabulary: the tokens, in the order of their ids.
        train, valid, test: ids.
    """

    vocabulary: tuple[str, ...]
    train: Int[np.ndarray, "n"]
    valid: Int[np.ndarray, "m"]
    test: Int[np.ndarray, "k"]


class Rows(NamedTuple):
    """A text cut into B rows of L steps, each going on where the one before ends.

    Attributes:
        inputs: [B, L] ids.
        targets: [B, L] the ids that follow.
        weights: [B, L] 1, or 0 where the last rows are filled up.
    """

    inputs: Int[np.ndarray, "B L"]
    targets: Int[np.ndarray, "B L"]
    weights: Float[np.ndarray, "B L"]


class Windows(NamedTuple):
    """The windows of an epoch.

    Attributes:
        starts: first step of each.
        lengths: its steps.
    """

    starts: Int[np.ndarray, "W"]
    lengths: Int[np.ndarray, "W"]


def load(task: Task) -> Corpus:
    """Reads the three files of a folder.

    Raises:
        ConfigError: the folder or a file is missing or not text, or a token is neither
            in the training text nor replaced there by "<unk>".
    """
    texts = {split: _text(_path(task.data, split)) for split in SPLITS}
    tokens = {split: list(_tokens(text, task.name)) for split, text in texts.items()}
    counts = Counter(tokens["train"])
    vocabulary = sorted(counts, key=lambda token: (-counts[token], token))
    ids = {token: number for number, token in enumerate(vocabulary)}
    numbered = (_number(tokens[split], ids, task.data, split) for split in SPLITS)
    return Corpus(tuple(vocabulary), *numbered)


def training_rows(tokens: Int[np.ndarray, "n"], batch: int) -> Rows:
    """Cuts a text into rows of equal length; what is left over at its end is dropped.

    Raises:
        ConfigError: it has fewer than two tokens a row.
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
    """Cuts a text into rows that hold all of it, each a number of whole windows.

    Every token but the first of the text is the target of one step.
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
    """Returns the windows of an epoch over rows of so many steps.

    With `train.vary_window`, lengths are drawn as in [1]: normal around `window`, or
    half of it for 5 %, with a standard deviation of 5, in [5, `longest(train)`].
    Otherwise steps that do not fill a window are left out.

    Args:
        train: how.
        steps: of a row.
        seed: what is drawn from.
    """
    if not train.vary_window:
        starts = np.arange(steps // train.window, dtype=np.int32) * train.window
        return Windows(starts, np.full_like(starts, train.window))
    generator = np.random.default_rng(seed)
    drawn: list[int] = []
    left = steps
    while left:
        mean = train.window if generator.random() < 0.95 else train.window / 2
        length = max(SHORTEST, int(generator.normal(mean, SPREAD)))
        drawn.append(min(length, longest(train), left))
        left -= drawn[-1]
    lengths = np.array(drawn, np.int32)
    return Windows(np.cumsum(lengths, dtype=np.int32) - lengths, lengths)


def longest(train: Train) -> int:
    """Returns the most steps that a window has: with varied ones, 4 deviations more."""
    return train.window + 4 * SPREAD * train.vary_window


def quoted(task: Task, nll: Any) -> dict[str, Any]:
    """Returns what people quote of a mean loss, by its name; numbers or arrays."""
    if task.name == "characters":
        return {"bits": nll / math.log(2)}
    with np.errstate(over="ignore"):
        return {"perplexity": np.exp(nll)}


def _path(data: str, split: str) -> Path:
    """Returns the one text file of a folder that is named after a split."""
    expected = (
        "must be a folder with three text files that have train, valid and test in "
        "their names, as ptb.train.txt, ptb.valid.txt and ptb.test.txt"
    )
    if not data or not Path(data).is_dir():
        raise ConfigError(f"task.data: {expected}, got {data!r}.")
    found = sorted(p for p in Path(data).iterdir() if split in p.name.split("."))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ConfigError(f"{data}: {expected}; named after {split}: {names}.")
    return found[0]


def _text(path: Path) -> str:
    text = read_text(path)
    if not text.split():
        raise ConfigError(f"{path}: must be a text, got nothing in it.")
    return text


def _tokens(text: str, name: str) -> Iterator[str]:
    """The tokens of a text.

    Of characters, a space is "_", and those at the ends of a line are no part of it.
    """
    for line in text.splitlines():
        if name == "words":
            yield from line.split()
        else:
            yield from SPACE.join(line.split())
        yield END


def _number(tokens, ids: dict[str, int], data: str, split: str):
    unknown = ids.get(UNKNOWN)
    numbers = [ids.get(token, unknown) for token in tokens]
    if None in numbers:
        token = tokens[numbers.index(None)]
        raise ConfigError(
            f"{data}: the {split} text has {token!r}, which the training text has not, "
            f"nor {UNKNOWN!r} for it."
        )
    return np.array(numbers, np.int32)
