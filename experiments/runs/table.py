"""Tidy tables of a run: CSV, Parquet and JSON files."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import xarray as xr

from experiments.config import ConfigError
from experiments.runs.dataset import axis_names, load_dataset
from experiments.runs.files import write_bytes


def export_table(folder: Path, kind: str, out: Path | None = None) -> Path:
    """Writes the table of a run, see `experiments.runs.export`."""
    if kind not in ENCODERS:
        expected = ", ".join(ENCODERS)
        raise ConfigError(f"kind: must be one of {expected}, got {kind!r}.")
    if kind == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ConfigError(
            "kind = 'parquet' needs pyarrow: python -m pip install pyarrow."
        )
    path = out or folder / f"table.{kind}"
    write_bytes(path, ENCODERS[kind](tidy(load_dataset(folder))))
    return path


def tidy(data: xr.Dataset) -> pd.DataFrame:
    """Returns one row per lane and evaluation."""
    metrics = [name for name in data.data_vars if "evaluation" in data[name].dims]
    order = [*axis_names(data), "seed", "epoch", *metrics, "status"]
    return data[[*metrics, "status"]].to_dataframe().reset_index()[order]


def _to_csv(table: pd.DataFrame) -> bytes:
    return table.to_csv(index=False, lineterminator="\n").encode()


def _to_json(table: pd.DataFrame) -> bytes:
    return (table.to_json(orient="records", double_precision=15) + "\n").encode()


def _to_parquet(table: pd.DataFrame) -> bytes:
    return table.to_parquet(engine="pyarrow", index=False)


ENCODERS: dict[str, Callable[[pd.DataFrame], bytes]] = {
    "csv": _to_csv,
    "parquet": _to_parquet,
    "json": _to_json,
}
