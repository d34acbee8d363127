"""Converts the published Japanese Vowels files into `japanese_vowels.npz`, once.

    python experiments/data/convert_japanese_vowels.py FOLDER_WITH_TS_FILES

In a `.ts` file each line after `@data` is an utterance: channels separated by colons,
frames by commas, the speaker last.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent


def read_ts(path: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """Reads utterances [T, 12] float32 and their speakers, 0 to 8."""
    rows = path.read_text(encoding="utf-8").split("@data\n")[1].split()
    fields = [row.split(":") for row in rows]
    utterances = [
        np.array([channel.split(",") for channel in row[:-1]], np.float32).T
        for row in fields
    ]
    return utterances, np.array([int(row[-1]) - 1 for row in fields], np.int8)


def convert(folder: Path) -> dict[str, Any]:
    """Returns, for each split, all frames end to end, lengths and speakers."""
    arrays = {}
    for split in ("train", "test"):
        utterances, speakers = read_ts(folder / f"JapaneseVowels_{split.upper()}.ts")
        arrays[f"{split}_frames"] = np.concatenate(utterances)
        arrays[f"{split}_lengths"] = np.array([len(u) for u in utterances], np.int8)
        arrays[f"{split}_speakers"] = speakers
    return arrays


if __name__ == "__main__":
    np.savez_compressed(HERE / "japanese_vowels.npz", **convert(Path(sys.argv[1])))
