"""Japanese Vowels: which of nine speakers said it?

Utterances of 7 to 29 frames with 12 cepstrum coefficients each, shipped in `data/` with
their source and licence. Coefficients are normalised by the mean and the standard
deviation of all frames of the training file; padding frames are zero.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

SPEAKERS = 9
FILE = Path(__file__).parent / "data" / "japanese_vowels.npz"


class Utterances(NamedTuple):
    """A set of N utterances, padded to T frames."""

    frames: Float[np.ndarray, "N T 12"]
    lengths: Int[np.ndarray, "N"]
    speakers: Int[np.ndarray, "N"]


def load() -> tuple[Utterances, Utterances]:
    """Returns the 270 utterances for training and the 370 for test."""
    with np.load(FILE) as arrays:
        mean = arrays["train_frames"].mean(axis=0)
        sd = arrays["train_frames"].std(axis=0)
        train, test = (
            _pad(
                (arrays[f"{split}_frames"] - mean) / sd,
                arrays[f"{split}_lengths"].astype(np.int32),
                arrays[f"{split}_speakers"].astype(np.int32),
            )
            for split in ("train", "test")
        )
    return train, test


def split(
    speakers: Int[np.ndarray, "N"], held_out: int, seed: tuple[int, ...]
) -> tuple[Int[np.ndarray, "fit"], Int[np.ndarray, "valid"]]:
    """Splits utterances at random into those to fit and those to validate on.

    Args:
        speakers: the speaker of each utterance.
        held_out: utterances of each speaker to validate on.
        seed: the same seed gives the same split.

    Returns:
        Ascending indices of the two parts.
    """
    order = np.random.default_rng(seed).permutation(len(speakers))
    valid = np.sort(
        np.concatenate(
            [order[speakers[order] == s][:held_out] for s in range(SPEAKERS)]
        )
    )
    return np.setdiff1d(np.arange(len(speakers)), valid), valid


def _pad(frames, lengths, speakers) -> Utterances:
    """Cuts frames that lie end to end into rows of zeros as long as the longest."""
    inside = np.arange(lengths.max()) < lengths[:, None]
    padded = np.zeros((*inside.shape, frames.shape[1]), np.float32)
    padded[inside] = frames
    return Utterances(padded, lengths, speakers)
