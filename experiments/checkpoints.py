"""Checkpoints: where a round of lanes stands, on disk, to go on from after anything.

Orbax writes them beside the training and renames them when they are whole, so that a
half-written one never counts. A checkpoint holds where a training stands, and the
conditions that it depends on: keys, PRNG and devices.
"""

import contextlib
import shutil
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from experiments.results import WHOLE, StorageError, fingerprint

T = TypeVar("T")

OVERHEAD = 1_000_000  # bytes of a checkpoint besides its arrays


def conditions(keys: jax.Array, **others: Any) -> dict[str, Any]:
    """What must not have changed where a checkpoint is gone on with."""
    drawn = fingerprint(np.asarray(jax.random.key_data(keys)))
    return {"prng": str(jax.random.key_impl(keys)), "keys": drawn} | others


class Checkpoints:
    """The checkpoints of one training, of which the latest is kept.

    Args:
        folder: where they are.
        here: the conditions of this training.
    """

    def __init__(self, folder: Path, here: dict[str, Any]):
        self.folder, self._here = folder.absolute(), here
        self._options = ocp.CheckpointManagerOptions(max_to_keep=1)

    def __enter__(self) -> "Checkpoints":
        self._manager = self._guard(
            ocp.CheckpointManager, self.folder, options=self._options
        )
        return self

    def __exit__(self, kind, error, trace) -> None:
        """Waits until what was saved is on disk."""
        if kind is None:
            self._guard(self._manager.wait_until_finished)
        self._guard(self._manager.close)

    def restore(self, blank: T) -> tuple[T, int]:
        """Returns the latest state, and its number; those given and 0 if there is none.

        Args:
            blank: a state, as arrays on the devices that it is to be on.

        Raises:
            StorageError: it is of other conditions.
        """
        number = self._manager.latest_step()
        if number is None:
            return blank, 0
        leaves, structure = jax.tree.flatten(blank)
        target = [
            jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
            for leaf in leaves
        ]
        self._check(self._restore(number, facts=ocp.args.JsonRestore()).facts)
        restored = self._restore(number, state=ocp.args.StandardRestore(target)).state
        return jax.tree.unflatten(structure, restored), number

    def save(self, number: int, state: Any) -> None:
        """Starts to write; the state may be used, and given away, at once.

        Args:
            number: higher than those before; none is written twice.
            state: arrays.

        Raises:
            StorageError: the disk is full, or cannot be written.
        """
        if self._manager.latest_step() == number:
            return
        self._check_space(state)
        leaves = [jnp.copy(leaf) for leaf in jax.tree.leaves(state)]
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(leaves), facts=ocp.args.JsonSave(self._here)
        )
        self._guard(self._manager.save, number, args=args)

    def remove(self) -> None:
        """Removes the checkpoints of a training that ended."""
        if jax.process_index() == 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                self.folder.parent.rmdir()  # if there are no others

    def _restore(self, step, **items):
        return self._guard(
            self._manager.restore, step, args=ocp.args.Composite(**items)
        )

    def _check(self, there: dict[str, Any]) -> None:
        if there != (here := self._here):
            changed = ", ".join(
                f"{name} {there.get(name)} there and {here[name]} here"
                for name in here
                if there.get(name) != here[name]
            )
            raise StorageError(f"{self.folder}: cannot be gone on with: {changed}.")

    def _guard(self, function, *arguments, **options) -> Any:
        """Makes one error of the many that disks and libraries over them raise."""
        try:
            return function(*arguments, **options)
        except Exception as error:
            raise self._error(" ".join(str(error).split())[:200]) from error

    def _check_space(self, state: Any) -> None:
        """Raises before Orbax begins, whose threads each print that they failed."""
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + OVERHEAD
        if (free := shutil.disk_usage(self.folder).free) < needed:
            raise self._error(
                f"No space left on device; needs {needed / 1e6:.1f} MB, "
                f"{free / 1e6:.1f} MB are free"
            )

    def _error(self, reason: str) -> StorageError:
        return StorageError(
            f"{self.folder}: a checkpoint cannot be written or read: {reason}. {WHOLE}"
        )
