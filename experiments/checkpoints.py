"""Checkpoints: where a round of lanes stands, on disk, to go on from after anything.

Orbax writes them beside the training and renames them when they are whole, so that a
half-written one never counts. A checkpoint holds the parameters, the state of the
optimiser and the history of the metrics; it counts for the same keys, PRNG and devices.
"""

import contextlib
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from experiments.results import WHOLE, StorageError, fingerprint
from experiments.sweep import Program, State
from experiments.train import Lane

OVERHEAD = 1_000_000  # bytes of a checkpoint besides its arrays


class Checkpoints:
    """The checkpoints of one round, of which the latest is kept."""

    def __init__(self, folder: Path):
        self.folder = folder.absolute()
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

    def restore(self, program: Program, lanes: Lane) -> tuple[State, int]:
        """Returns the state, and how many evaluations are done, of the latest if any.

        Raises:
            StorageError: it is of other keys or of another number of devices.
        """
        blank = program.start(lanes, program.data)
        step = self._manager.latest_step()
        if step is None:
            return blank, 0
        leaves, structure = jax.tree.flatten(blank)
        target = [
            jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
            for leaf in leaves
        ]
        self._check(self._restore(step, facts=ocp.args.JsonRestore()).facts, program)
        restored = self._restore(step, state=ocp.args.StandardRestore(target)).state
        return jax.tree.unflatten(structure, restored), step

    def save(self, evaluations: int, program: Program, state: State) -> None:
        """Starts to write; the state may be used, and given away, at once.

        Raises:
            StorageError: the disk is full, or cannot be written.
        """
        if self._manager.latest_step() == evaluations:
            return
        self._check_space(state)
        leaves = [jnp.copy(leaf) for leaf in jax.tree.leaves(state)]
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(leaves),
            facts=ocp.args.JsonSave(_facts(program)),
        )
        self._guard(self._manager.save, evaluations, args=args)

    def remove(self) -> None:
        """Removes the checkpoints of a round that ended."""
        if jax.process_index() == 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                self.folder.parent.rmdir()  # if there are no others

    def _restore(self, step, **items):
        return self._guard(
            self._manager.restore, step, args=ocp.args.Composite(**items)
        )

    def _check(self, facts: dict, program: Program) -> None:
        if facts != (here := _facts(program)):
            changed = ", ".join(
                f"{name} {facts.get(name)} there and {here[name]} here"
                for name in here
                if facts.get(name) != here[name]
            )
            raise StorageError(f"{self.folder}: cannot be gone on with: {changed}.")

    def _guard(self, function, *arguments, **options) -> Any:
        """Makes one error of the many that disks and libraries over them raise."""
        try:
            return function(*arguments, **options)
        except Exception as error:
            raise self._error(" ".join(str(error).split())[:200]) from error

    def _check_space(self, state: State) -> None:
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


def _facts(program: Program) -> dict:
    keys = np.asarray(jax.random.key_data(program.lanes.key))
    return {
        "prng": str(jax.random.key_impl(program.lanes.key)),
        "keys": fingerprint(keys),
        "devices": program.mesh.size,
        "resident": program.resident,
    }
