"""Japanese Vowels: utterances of nine speakers, who are to be recognised.

Utterances have 7 to 29 frames with 12 cepstrum coefficients each and are shipped in
`experiments/data/` with their source and licence. Coefficients are normalised by the
mean and the standard deviation of all frames of the training file; padding frames are
zero.
"""

from pathlib import Path

import numpy as np

from experiments.config import Task as Options
from experiments.task import Batch, Data
from experiments.tasks.classify import inputs, score

__all__ = ["inputs", "load", "score"]

SPEAKERS = 9
FILE = Path(__file__).parents[1] / "data" / "japanese_vowels.npz"
SOURCE = (
    "M. Kudo, J. Toyama, M. Shimbo, Japanese Vowels, UCI Machine Learning Repository, "
    "1999, CC BY 4.0."
)


def load(options: Options) -> Data:
    """Returns the 270 utterances for training and the 370 for test.

    Args:
        options: not used; the data are shipped.
    """
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
    return Data(
        train=train,
        test=test,
        valid=None,
        outputs=SPEAKERS,
        readout="last",
        strata=np.asarray(train.targets),
        units={"nll": "nats per utterance", "accuracy": ""},
        source=SOURCE,
    )


def _pad(frames, lengths, speakers) -> Batch:
    """Pads utterances, given end to end, with zeros to the longest one."""
    inside = np.arange(lengths.max()) < lengths[:, None]
    padded = np.zeros((*inside.shape, frames.shape[1]), np.float32)
    padded[inside] = frames
    return Batch(padded, lengths, speakers)
