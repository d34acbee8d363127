"""Parts: sequences as they stand in a file, before anything is computed of them."""

from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int

Kind: TypeAlias = Literal["classify", "regress", "label"]

LARGEST = float(np.finfo(np.float32).max)


class Part(NamedTuple):
    """The sequences of one split.

    Attributes:
        x: features [N, T, D], zero in padding.
        lengths: valid steps of each sequence.
        y: targets: [N] classes, [N, K] numbers, or [N, T] classes.
        ids: what the file calls each sequence.
        target: what the file calls the targets.
    """

    x: Float[np.ndarray, "N T D"]
    lengths: Int[np.ndarray, "N"]
    y: np.ndarray
    ids: list[int] | list[str]
    target: str

    @property
    def inside(self) -> Bool[np.ndarray, "N T"]:
        """Which steps are valid."""
        return np.arange(self.x.shape[1]) < self.lengths[:, None]

    def take(self, index: Int[np.ndarray, "n"]) -> "Part":
        """The sequences of an index."""
        ids = [self.ids[i] for i in index]
        return Part(self.x[index], self.lengths[index], self.y[index], ids, self.target)


def first_bad(
    values: np.ndarray, inside: Bool[np.ndarray, "..."] | None = None
) -> tuple[int, ...] | None:
    """Returns the index of the first number that is not a finite float32.

    Args:
        values: numbers.
        inside: which of them count, by their leading axes; None for all.
    """
    bad = ~(np.abs(values) <= LARGEST)
    if inside is not None:
        bad &= inside.reshape(inside.shape + (1,) * (bad.ndim - inside.ndim))
    found = np.argwhere(bad)
    return tuple(found[0].tolist()) if len(found) else None
