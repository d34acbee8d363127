"""The contract of a task, checked before anything is compiled."""

from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.dtypes import canonicalize_dtype

from experiments.config import ConfigError
from experiments.task import Batch, Data, Score, Task
from experiments.tasks.finite import first_bad, first_true

READOUTS = ("last", "each")


def check_contract(task: Task, data: Any, name: str) -> None:
    """Checks the data of a task and, by their shapes alone, its functions.

    Args:
        task: the module.
        data: the result of `load`.
        name: name of the task, for errors.

    Raises:
        ConfigError: the data or a function are not as `experiments.task` says; one line
            names the field.
    """
    if not isinstance(data, Data):
        _refuse(name, f"load must return a Data, got {type(data).__name__}")
    _check_facts(name, data)
    splits = ["train", "test", *(["valid"] if data.valid is not None else [])]
    for split in splits:
        _check_batch(f"{name}: {split}", getattr(data, split), data)
    _check_strata(name, data)
    _check_alike(name, data, splits)
    for split in splits:
        _check_functions(name, task, data, getattr(data, split))


def _refuse(place: str, reason: str) -> NoReturn:
    raise ConfigError(f"{place}: {reason}.")


def _kind(values: Any) -> str:
    """Returns a description of an array, or of the type of something else."""
    if isinstance(values, np.ndarray | jax.Array | jax.ShapeDtypeStruct):
        return f"{values.dtype} of shape {values.shape}"
    return f"{type(values).__name__}"


def _check_facts(name: str, data: Data) -> None:
    """Checks all fields of `Data` except the arrays."""
    outputs, units = data.outputs, data.units
    if isinstance(outputs, bool) or not isinstance(outputs, int | np.integer):
        _refuse(name, f"outputs must be an integer, got {outputs!r}")
    if outputs < 1:
        _refuse(name, f"outputs must be at least 1, got {outputs}")
    if data.readout not in READOUTS:
        _refuse(name, f'readout must be "last" or "each", got {data.readout!r}')
    texts = isinstance(units, dict) and [*units.keys(), *units.values()]
    if not texts or not all(isinstance(text, str) for text in texts):
        _refuse(
            name,
            "units must be a dict from each name in a score, the loss first, to its "
            f"unit, such as {{'nll': 'nats'}}, got {units!r}",
        )
    if not isinstance(data.source, str):
        _refuse(name, f"source must be text, got {data.source!r}")


def _check_batch(place: str, batch: Any, data: Data) -> None:
    """Checks the arrays of a split."""
    if not isinstance(batch, Batch):
        _refuse(place, f"must be a Batch, got {type(batch).__name__}")
    for field in Batch._fields:
        _check_numbers(place, field, getattr(batch, field))
    inputs, lengths, targets = (np.asarray(field) for field in batch)
    if inputs.ndim < 2 or 0 in inputs.shape:
        expected = "[N, T, ...] with at least one sequence and one step"
        _refuse(place, f"inputs must have shape {expected}, got {inputs.shape}")
    count, time = inputs.shape[:2]
    if lengths.dtype.kind not in "iu" or lengths.shape != (count,):
        expected = f"integers of shape ({count},)"
        _refuse(place, f"lengths must be {expected}, got {_kind(lengths)}")
    if (bad := first_true((lengths < 1) | (lengths > time))) is not None:
        _refuse(
            place, f"lengths{[*bad]} must lie in 1 to {time} steps, got {lengths[bad]}"
        )
    if targets.ndim < 1 or len(targets) != count:
        _refuse(place, f"targets must have shape [{count}, ...], got {_kind(targets)}")
    _check_classes(place, batch, data)


def _check_numbers(place: str, field: str, values: Any) -> None:
    """Checks that JAX can hold an array, in 32 bits unless 64 are enabled."""
    if not isinstance(values, np.ndarray | jax.Array):
        _refuse(place, f"{field} must be a NumPy or JAX array, got {_kind(values)}")
    real = jnp.issubdtype(values.dtype, jnp.floating)
    if not real and values.dtype.kind not in "biu":
        _refuse(place, f"{field} must be real numbers, got {_kind(values)}")
    array = np.asarray(values)
    if real:
        bad, expected = first_bad(array), "a finite float32 number, also in padding"
    elif array.dtype.kind == "b":
        return
    else:
        dtype = canonicalize_dtype(array.dtype)
        least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
        bad, expected = first_true((array < least) | (array > most)), f"an {dtype}"
    if bad is not None:
        _refuse(place, f"{field}{[*bad]} must be {expected}, got {array[bad]}")


def _check_classes(place: str, batch: Batch, data: Data) -> None:
    """Checks classes: integer targets, one for each vector of several outputs."""
    lengths, targets = np.asarray(batch.lengths), np.asarray(batch.targets)
    shape = batch.inputs.shape[: 1 if data.readout == "last" else 2]
    if targets.dtype.kind not in "biu" or targets.shape != shape or data.outputs < 2:
        return
    inside = None
    if data.readout == "each":
        inside = np.arange(shape[1]) < lengths[:, None]
    outside = (targets < 0) | (targets >= data.outputs)
    if (bad := first_true(outside, inside)) is not None:
        _refuse(
            place,
            f"targets{[*bad]} must be a class from 0 to {data.outputs - 1}, got "
            f"{targets[bad]}; return numbers that are not classes as floats",
        )


def _check_strata(name: str, data: Data) -> None:
    count = len(data.train.lengths)
    strata = data.strata
    if strata is None:
        return
    array = isinstance(strata, np.ndarray | jax.Array)
    if not array or strata.dtype.kind not in "biu" or strata.shape != (count,):
        expected = f"integers of shape ({count},), one per training sequence"
        _refuse(name, f"strata must be {expected}, got {_kind(strata)}")


def _check_alike(name: str, data: Data, splits: list[str]) -> None:
    """Checks that all splits have the dtypes of train, and its shape of one step."""
    for split in splits[1:]:
        for field in ("inputs", "targets"):
            first, other = (getattr(getattr(data, s), field) for s in ("train", split))
            start = 2 if field == "inputs" or data.readout == "each" else 1
            if (first.dtype, first.shape[start:]) != (other.dtype, other.shape[start:]):
                _refuse(
                    name,
                    f"{split}.{field} must be like train.{field}, {_kind(first)}, got "
                    f"{_kind(other)}",
                )


def _check_functions(name: str, task: Task, data: Data, batch: Batch) -> None:
    """Traces `inputs` and `score` for a few sequences of a split."""
    time, outputs = batch.inputs.shape[1], int(data.outputs)
    count = next(n for n in (2, 3, 4) if n not in (time, outputs))
    few = Batch(*(_shape((count, *x.shape[1:]), x.dtype) for x in batch))
    xs = _trace(f"{name}: inputs(batch)", task.inputs, few)
    shape = getattr(xs, "shape", ())
    if len(shape) != 3 or shape[:2] != (count, time) or not _is_floating(xs):
        expected = f"floats [B, T, D], here ({count}, {time}, D)"
        _refuse(name, f"inputs(batch) must return {expected}, got {_kind(xs)}")
    read = (count, outputs) if data.readout == "last" else (count, time, outputs)
    _check_score(f"{name}: score(outputs, batch)", task, data, _shape(read), few)


def _check_score(place: str, task: Task, data: Data, outputs: Any, few: Batch) -> None:
    names: list[str] = []  # in their order, which JAX does not keep

    def judge(outputs, batch):
        score = task.score(outputs, batch)
        names.extend(score.values if isinstance(score, Score) else ())
        return score

    score = _trace(place, judge, outputs, few)
    if not isinstance(score, Score):
        _refuse(place, f"must return a Score, got {type(score).__name__}")
    if names != [*data.units]:
        expected = f"values named as units are: {', '.join(data.units)}"
        _refuse(place, f"must return {expected}; got {', '.join(names)}")
    count = few.lengths.shape[0]
    for number, field in enumerate([*names, "weight"]):
        found = score.values.get(field, score.weight)
        real = _is_floating(found) if number == 0 else hasattr(found, "shape")
        if not real or found.shape != (count,):
            expected = f"floats [B], here ({count},)"
            _refuse(place, f"must return {field} as {expected}, got {_kind(found)}")


def _shape(shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
    return jax.ShapeDtypeStruct(shape, canonicalize_dtype(dtype))


def _is_floating(values: Any) -> bool:
    return hasattr(values, "dtype") and jnp.issubdtype(values.dtype, jnp.floating)


def _trace(place: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Returns the shapes of a result."""
    try:
        return jax.eval_shape(function, *arguments)
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no message"])[0].strip(".")
        raise ConfigError(
            f"{place} fails: {type(error).__name__}: {reason}."
        ) from error
