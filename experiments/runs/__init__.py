"""Run folders: the results of a run as a labelled data set and as a tidy table.

`load` and `export` import xarray when they are called, since that takes a second.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import xarray

__all__ = ["export", "load"]


def load(folder: str | Path) -> "xarray.Dataset":
    """Returns the results of a run as a labelled data set.

    Every metric has the dimensions of the sweep: its axes by their dotted paths, then
    `seed` and `evaluation`. `load(folder).to_dataframe()` is a tidy table.

    Args:
        folder: a run, such as `runs/vowels_plane`.

    Raises:
        ConfigError: the folder cannot be read or holds no finished evaluation.
    """
    from experiments.runs.dataset import load_dataset

    return load_dataset(Path(folder))


def export(
    folder: str | Path,
    kind: Literal["csv", "parquet", "json"] = "csv",
    out: str | Path | None = None,
) -> Path:
    """Writes the results of a run as a table and returns its path.

    The table has one row per lane and evaluation. Its columns are the axes of the
    sweep, `seed`, `epoch`, the metrics and `status`.

    Args:
        folder: a run, such as `runs/vowels_plane`.
        kind: the format of the file. "json" is a list of one object per row.
        out: the file; by default `table.KIND` in the folder.

    Raises:
        ConfigError: the folder cannot be read, or pyarrow is missing for "parquet".
        StorageError: the file cannot be written.
    """
    from experiments.runs.table import export_table

    return export_table(Path(folder), kind, None if out is None else Path(out))
