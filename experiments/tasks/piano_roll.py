"""Polyphonic music: which of 88 notes sound in the next frame of a piece.

The file is a piano roll in MATLAB's format, with the splits of Boulanger-Lewandowski et
al. 2012 as Bai et al. 2018 published them: `traindata`, `validdata` and `testdata` are
cell arrays of matrices [frames, 88] of zeros and ones, one per piece. The network reads
a frame and predicts the next one; the loss is the negative log-likelihood of the 88
notes, each a Bernoulli variable, and a mean over all frames of a split.

References:
    [1] Boulanger-Lewandowski, Bengio, Vincent. Modeling temporal dependencies in
        high-dimensional sequences. ICML 2012. arXiv:1206.6392.
    [2] Bai, Kolter, Koltun. An empirical evaluation of generic convolutional and
        recurrent networks for sequence modeling. 2018. arXiv:1803.01271; their code,
        TCN/poly_music (music_test.py: the mean over frames).
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.io
from jaxtyping import Float

from experiments.config import ConfigError
from experiments.config import Task as Options
from experiments.task import Arrays, Batch, Data, Score

NOTES = 88
SPLITS = ("traindata", "testdata", "validdata")
EXPECTED = (
    "a .mat file with the cell arrays traindata, validdata and testdata of "
    f"matrices [frames, {NOTES}] of zeros and ones, such as JSB_Chorales.mat"
)


def load(options: Options) -> Data:
    """Reads `options.data`.

    Raises:
        ConfigError: the file cannot be read or is not such a file.
    """
    splits = _read(options.data)
    train, test, valid = (_batch(splits[name]) for name in SPLITS)
    return Data(
        train=train,
        test=test,
        valid=valid,
        outputs=NOTES,
        readout="each",
        strata=None,
        units={"nll": "nats per frame"},
    )


def inputs(batch: Batch) -> Float[Arrays, "B T N"]:
    """Returns the frames as numbers."""
    return jnp.asarray(batch.inputs).astype(jnp.float32)


def score(outputs: Float[Arrays, "B T N"], batch: Batch) -> Score:
    """Judges the logits of the notes of the valid frames."""
    on = jnp.asarray(batch.targets).astype(outputs.dtype)
    nll = (jax.nn.softplus(outputs) - on * outputs).sum(axis=-1)
    count = batch.lengths.astype(nll.dtype)
    nll = jnp.where(batch.valid_steps(nll.shape[1]), nll, 0).sum(axis=1) / count
    return Score({"nll": nll}, count)


def _read(data: str) -> dict[str, list[np.ndarray]]:
    """Returns the pieces of each split."""
    try:
        found = Path(data).is_file()
    except (OSError, ValueError):  # no file has such a name
        found = False
    if not found:
        raise ConfigError(f"task.data: must name {EXPECTED}, got {data!r}.")
    try:
        content = scipy.io.loadmat(data)
    except Exception as error:  # a damaged file can raise anything
        reason = " ".join(str(error).split()).rstrip(".")
        raise ConfigError(
            f"{data}: must be {EXPECTED}; it cannot be read: {reason}."
        ) from None
    return {name: _pieces(data, name, content) for name in SPLITS}


def _pieces(data: str, name: str, content: dict) -> list[np.ndarray]:
    """Returns the checked matrices of a cell array."""
    if name not in content:
        raise ConfigError(f"{data}: must be {EXPECTED}; {name} is missing.")
    cells = content[name]
    if cells.dtype != object or not cells.size:
        raise ConfigError(
            f"{data}: must be {EXPECTED}; {name} is not a cell array of them."
        )
    pieces = [np.asarray(piece) for piece in cells.ravel()]
    for number, piece in enumerate(pieces, 1):
        place = f"{data}: {name}: piece {number}"
        if piece.ndim != 2 or piece.shape[1] != NOTES:
            raise ConfigError(
                f"{place}: must have the shape [frames, {NOTES}], got {piece.shape}."
            )
        if len(piece) < 2:
            raise ConfigError(f"{place}: must have two frames, got {len(piece)}.")
        if piece.dtype.kind not in "biuf" or not np.isin(piece, (0, 1)).all():
            raise ConfigError(f"{place}: must be zeros and ones.")
    return [piece.astype(np.uint8) for piece in pieces]


def _batch(pieces: list[np.ndarray]) -> Batch:
    """Pads pieces with zeros; a target is the frame that follows its input."""
    lengths = np.array([len(piece) - 1 for piece in pieces], np.int32)
    frames = np.zeros((2, len(pieces), lengths.max(), NOTES), np.uint8)
    for number, piece in enumerate(pieces):
        frames[0, number, : len(piece) - 1] = piece[:-1]
        frames[1, number, : len(piece) - 1] = piece[1:]
    return Batch(frames[0], lengths, frames[1])
