"""Sequences as a file has them, before anything is computed."""

from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int

Kind: TypeAlias = Literal["classify", "regress", "label"]


class Part(NamedTuple):
    """The sequences of one split.

    Attributes:
        x: features [N, T, D], zero in padding.
        lengths: valid steps of each sequence.
        y: targets: [N] classes, [N, K] numbers, or [N, T] classes.
        ids: names of the sequences in the file.
        target: name of the targets in the file.
    """

    x: Float[np.ndarray, "N T D"]
    lengths: Int[np.ndarray, "N"]
    y: np.ndarray
    ids: list[int] | list[str]
    target: str

    @property
    def inside(self) -> Bool[np.ndarray, "N T"]:
        """Returns which steps are valid."""
        return np.arange(self.x.shape[1]) < self.lengths[:, None]

    def take(self, index: Int[np.ndarray, "n"]) -> "Part":
        """Returns some of the sequences."""
        ids = [self.ids[i] for i in index]
        return Part(self.x[index], self.lengths[index], self.y[index], ids, self.target)
