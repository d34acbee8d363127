"""Checkpoints: training states on disk, from which a run resumes.

Orbax writes them in the background and renames them when they are complete, so that a
half-written one never counts. A checkpoint has a hash of its arrays and the conditions
that the state depends on: keys, PRNG and devices.
"""

import contextlib
import hashlib
import shutil
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from experiments.runs.files import SAFE, StorageError, fingerprint

T = TypeVar("T")

AGAIN = "To start these lanes again, remove the folder."
OVERHEAD = 1_000_000  # bytes of a checkpoint in addition to its arrays


def conditions(keys: jax.Array, **others: Any) -> dict[str, Any]:
    """Returns the conditions that must be the same when a checkpoint is restored."""
    drawn = fingerprint(np.asarray(jax.random.key_data(keys)))
    return {"prng": str(jax.random.key_impl(keys)), "keys": drawn} | others


class Checkpoints:
    """The checkpoints of one training; the latest is kept.

    Args:
        folder: where they are.
        now: the conditions of this training.
    """

    def __init__(self, folder: Path, now: dict[str, Any]):
        self.folder, self._now = folder.absolute(), now
        self._options = {
            "options": ocp.CheckpointManagerOptions(max_to_keep=1),
            "item_handlers": {
                "state": ocp.StandardCheckpointHandler(),
                "facts": ocp.JsonCheckpointHandler(),
            },
        }

    def __enter__(self) -> "Checkpoints":
        self._manager = self._guard(ocp.CheckpointManager, self.folder, **self._options)
        return self

    def __exit__(self, kind, error, trace) -> None:
        """Waits until everything is on disk."""
        if kind is None:
            self._guard(self._manager.wait_until_finished)
        self._guard(self._manager.close)

    def restore(self, blank: T) -> tuple[T, int]:
        """Returns the latest state and its number; `blank` and 0 if there is none.

        Args:
            blank: a state, as arrays with the devices that the result should have.

        Raises:
            StorageError: the conditions differ, the checkpoint is damaged, or its
                arrays are of another version.
        """
        number = self._manager.latest_step()
        if number is None:
            return blank, 0
        leaves, structure = jax.tree.flatten(blank)
        target = [
            jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
            for leaf in leaves
        ]
        facts = self._restore(number, "facts", ocp.args.JsonRestore())
        self._check_conditions(facts)
        self._check_layout(number, target)
        restored = self._restore(number, "state", ocp.args.StandardRestore(target))
        if facts.get("hash") != _hash(restored):
            raise self._error("its arrays are not the ones that were saved")
        return jax.tree.unflatten(structure, restored), number

    def save(self, number: int, state: Any) -> None:
        """Starts to write; the state may be used and donated at once.

        Args:
            number: higher than before; an existing number is not written again.
            state: arrays.

        Raises:
            StorageError: the disk is full, or cannot be written.
        """
        if self._manager.latest_step() == number:
            return
        self._check_space(state)
        leaves = [jnp.copy(leaf) for leaf in jax.tree.leaves(state)]
        facts = self._now | {"hash": _hash(leaves)}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(leaves), facts=ocp.args.JsonSave(facts)
        )
        self._guard(self._manager.save, number, args=args)

    def remove(self) -> None:
        """Removes the checkpoints of a training that has ended."""
        if jax.process_index() == 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                self.folder.parent.rmdir()  # unless there are others

    def _restore(self, step, item, how):
        args = ocp.args.Composite(**{item: how})
        return self._guard(lambda: self._manager.restore(step, args=args)[item])

    def _check_conditions(self, before: Any) -> None:
        if not isinstance(before, dict):
            raise self._error("its conditions are missing")
        changed = ", ".join(
            f"{name} (checkpoint: {before.get(name)}, now: {value})"
            for name, value in self._now.items()
            if before.get(name) != value
        )
        if changed:
            raise StorageError(
                f"{self.folder}: cannot resume; changed since the checkpoint: "
                f"{changed}. {AGAIN}"
            )

    def _check_layout(self, number: int, target: list[jax.ShapeDtypeStruct]) -> None:
        """Raises for arrays that another version saved, or that are missing."""
        state = self._guard(lambda: self._manager.item_metadata(number).state)
        before, now = ([_form(leaf) for leaf in some] for some in (state.tree, target))
        if len(before) != len(now):
            before, now = [f"{len(before)} arrays"], [str(len(now))]
        for old, new in zip(before, now, strict=True):
            if old != new:
                raise StorageError(
                    f"{self.folder}: cannot resume; another version saved this "
                    f"checkpoint, with {old} instead of {new}. {AGAIN}"
                )

    def _guard(self, function, *arguments, **options) -> Any:
        """Turns the many errors of disks and Orbax into one."""
        try:
            return function(*arguments, **options)
        except Exception as error:
            raise self._error(" ".join(str(error).split())[:200]) from error

    def _check_space(self, state: Any) -> None:
        """Raises before Orbax starts threads, each of which would print its error."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + OVERHEAD
        if (free := shutil.disk_usage(self.folder).free) < needed:
            raise self._error(
                f"no space left on device; needs {needed / 1e6:.1f} MB, "
                f"{free / 1e6:.1f} MB are free"
            )

    def _error(self, reason: str) -> StorageError:
        return StorageError(
            f"{self.folder}: a checkpoint cannot be written or read: {reason}. {SAFE} "
            f"{AGAIN}"
        )


def _form(leaf: Any) -> str:
    """Returns the type and shape of an array as text."""
    return f"{np.dtype(leaf.dtype)}{[*leaf.shape]}"


def _hash(leaves: list[jax.Array]) -> list[str]:
    """Returns one hash per process, of the shards that it holds."""
    digest = hashlib.blake2b(digest_size=16)
    for leaf in leaves:
        for shard in leaf.addressable_shards:
            digest.update(np.asarray(shard.data).tobytes())
    own = np.frombuffer(digest.digest(), np.uint8)
    rows = multihost_utils.process_allgather(own).reshape(-1, len(own))
    return [row.tobytes().hex() for row in rows]
