"""Sweep: the lanes of one structure, trained by one compiled program.

Lanes are sharded across the devices, and each device trains its own: `group` lanes at a
time by `jax.vmap`, and the groups in turn. The numbers of a lane do not depend on its
device or on the other lanes. If not all lanes fit into memory, the same program trains
them in rounds.
"""

import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Int

from experiments.classify import consistency
from experiments.classify.model import depth_of, dropout_of
from experiments.classify.splits import check_sizes, split
from experiments.classify.train import (
    Functions,
    Lane,
    Metrics,
    Models,
    make_train,
    metric_shapes,
    step_counts,
)
from experiments.config import Config, ConfigError
from experiments.devices import (
    EVERYWHERE,
    LANE,
    free_bytes,
    make_mesh,
    needed_bytes,
    put,
    spread,
)
from experiments.task import Batch, Data, Task

Slots: TypeAlias = Int[np.ndarray, "lanes"]


class State(NamedTuple):
    """State of the lanes in training; each leaf has an axis of lanes.

    Attributes:
        models: the models of each lane.
        history: metrics by name, [lanes, evaluations, ...]; NaN before an evaluation.
    """

    models: Models
    history: Metrics


class Program(NamedTuple):
    """A compiled sweep.

    Attributes:
        start: (lanes, data) -> state.
        advance: (state, lanes, bounds, evaluation, data) -> state after an evaluation.
        mesh: the devices.
        lanes: all lanes, in host memory.
        data: training, test and validation split, on the devices.
        share: lanes that each device holds.
        group: lanes that each device trains by one vmap.
        names: names of the metrics.
        compiles: programs that were compiled to find one that fits into memory.
        compile_seconds: time of all of them.
        needed: bytes of memory per device.
    """

    start: Any
    advance: Any
    mesh: Mesh
    lanes: Lane
    data: tuple[Batch, Batch, Batch | None]
    share: int
    group: int
    names: list[str]
    compiles: int
    compile_seconds: float
    needed: int

    @property
    def resident(self) -> int:
        """Lanes that are trained at a time."""
        return self.share * self.mesh.shape["lane"]

    def rounds(self, which: Sequence[int]) -> list[Sequence[int]]:
        """Divides lanes into rounds, by their numbers."""
        starts = range(0, len(which), self.resident)
        return [which[start : start + self.resident] for start in starts]

    def slots(self, count: int) -> Slots:
        """Returns the slots of so many lanes, divided evenly among the devices."""
        each = -(-count // self.mesh.shape["lane"])
        device, within = np.divmod(np.arange(count), each)
        return device * self.share + within

    def place(self, which: Sequence[int]) -> Lane:
        """Puts lanes into their slots; the last lane fills the others."""
        index = np.full(self.resident, which[-1])
        index[self.slots(len(which))] = which
        return put(jax.tree.map(lambda leaf: leaf[index], self.lanes), self.mesh, LANE)

    def all_of(self, count: int) -> Int[np.ndarray, "devices 2"]:
        """Returns the range of groups that each device trains for so many lanes."""
        devices = np.arange(self.mesh.shape["lane"])
        held = self.slots(count) // self.share == devices[:, None]
        return np.stack([0 * devices, -(-held.sum(axis=1) // self.group)], axis=1)

    def only(self, slot: int) -> Int[np.ndarray, "devices 2"]:
        """Returns the range of groups that trains the group of one slot alone."""
        device, within = divmod(slot, self.share)
        bounds = np.zeros((self.mesh.shape["lane"], 2), int)
        bounds[device] = within // self.group + np.arange(2)
        return bounds

    def move(self, state: State, before: Slots, now: Slots) -> State:
        """Returns the state of the lanes of some slots in other slots."""
        index = np.zeros(self.resident, int)
        index[now] = before
        sharding = NamedSharding(self.mesh, LANE)
        gather = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf[index], tree))
        return jax.device_put(gather(state), sharding)

    def step(self, state: State, lanes: Lane, bounds, evaluation: int) -> State:
        """Trains the groups within bounds until the next evaluation."""
        bounds = put(bounds.astype(np.int32), self.mesh, LANE)
        number = put(np.int32(evaluation), self.mesh, EVERYWHERE)
        return self.advance(state, lanes, bounds, number, self.data)


def make_lanes(configs: Sequence[Config], data: Data) -> Lane:
    """Returns the lanes of one structure, in host memory.

    Args:
        configs: one per lane.
        data: without a validation split, each seed holds out other sequences.

    Raises:
        ConfigError: too few sequences for the validation split or for one batch, or
            options of the noise or of a second pass that do not go together.
        ValueError: options of the noise that rdrop rejects.
    """
    first = configs[0]
    check_sizes(first.train, data)
    seeds = np.array([config.seeds for config in configs], np.uint32)
    root = jax.random.key(first.seed)
    keys = jax.vmap(lambda s: jax.random.fold_in(root, s))(jnp.asarray(seeds))
    fit = valid = None
    if data.valid is None:
        splits = {
            s: split(data, first.train.validation, (first.seed, int(s)))
            for s in np.unique(seeds)
        }
        fit, valid = (
            np.stack([splits[s][part] for s in seeds]).astype(np.int32)
            for part in (0, 1)
        )
    dropout = dropout_of(configs)
    consistency.check(configs, dropout, data)
    return Lane(
        key=keys,
        dropout=dropout,
        depth=depth_of(configs),
        learning_rate=_column(c.train.learning_rate for c in configs),
        weight_decay=_column(c.train.weight_decay for c in configs),
        penalty=_column(c.second_pass.weight for c in configs),
        fit=fit,
        valid=valid,
    )


def compile_sweep(
    configs: Sequence[Config],
    task: Task,
    data: Data,
    group: int | None = None,
    resident: int | None = None,
    data_devices: int = 1,
    memory: float | None = None,
) -> Program:
    """Compiles the program that trains lanes of one structure.

    Args:
        configs: one per lane.
        task: the task.
        data: its data.
        group: lanes that a device trains by one vmap. By default 1 on CPU, where
            batches of small matrix products are slower than single products and two
            devices can starve XLA's thread pool, and otherwise all of its lanes.
        resident: the most lanes that are trained at a time; by default all.
        data_devices: devices that share each batch of a lane.
        memory: bytes that each device may use; by default its free memory.

    Raises:
        ConfigError: the devices cannot be divided, or one lane per device does not fit
            into memory.
    """
    begun = time.perf_counter()
    lanes = make_lanes(configs, data)
    mesh = make_mesh(len(configs), data_devices)
    parts = _Parts(configs[0], task, data, mesh)
    limit = memory or free_bytes(mesh)
    most = group or (1 if mesh.devices.flat[0].platform == "cpu" else len(configs))
    most_resident = resident or len(configs)
    share, compiles = math.ceil(most_resident / mesh.shape["lane"]), 0
    while True:
        side_by_side = min(most, share)
        share = math.ceil(share / side_by_side) * side_by_side
        start, advance = parts.compile(lanes, share, side_by_side)
        compiles += 1
        needed = needed_bytes(advance)
        if needed <= limit:
            break
        if share == 1:
            raise ConfigError(
                f"One lane needs {needed / 1e6:,.1f} MB of memory on its device, which "
                f"has {limit / 1e6:,.1f} MB."
            )
        share = max(1, min(share - 1, int(share * limit / needed)))
    return Program(
        start=start,
        advance=advance,
        mesh=mesh,
        lanes=lanes,
        data=put(parts.splits, mesh, EVERYWHERE),
        share=share,
        group=side_by_side,
        names=list(metric_shapes(data, configs[0])),
        compiles=compiles,
        compile_seconds=time.perf_counter() - begun,
        needed=needed,
    )


def check(configs: Sequence[Config], task: Task, data: Data) -> None:
    """Traces a forward pass of one lane, to find mistakes before any work.

    Raises:
        ConfigError: as `make_lanes`, or the cell lacks a site, for example.
    """
    try:
        lane = jax.tree.map(lambda leaf: leaf[0], make_lanes(configs, data))
        data = data.with_splits(jax.tree.map(jnp.asarray, data.splits))
        jax.eval_shape(make_train(configs[0], task, data).probe, lane)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"The network cannot be built: {reason}") from error


class _Parts(NamedTuple):
    """The parts of a program's two functions."""

    config: Config
    task: Task
    data: Data
    mesh: Mesh

    @property
    def splits(self) -> tuple[Batch, Batch, Batch | None]:
        """The splits in JAX's dtypes: a user's arrays may have 64 bits."""
        return jax.tree.map(
            lambda leaf: np.asarray(leaf, jax.dtypes.canonicalize_dtype(leaf.dtype)),
            self.data.splits,
        )

    def functions(self, splits, group: int = 1) -> Functions:
        """Returns the training of a lane; several lanes do not cut their batches."""
        train, size = self.data.train, self.config.train.batch
        alone = group == 1 and self.mesh.shape["data"] == 1
        lengths, time = np.asarray(train.lengths), train.inputs.shape[1]
        return make_train(
            self.config,
            self.task,
            self.data.with_splits(splits),
            partial(spread, self.mesh),
            step_counts(lengths, time, size) if alone else (),
        )

    def compile(self, lanes: Lane, share: int, group: int) -> tuple[Any, Any]:
        """Compiles `start` and `advance` for `share` lanes per device."""
        index = np.zeros(share * self.mesh.shape["lane"], int)
        example = jax.tree.map(lambda leaf: leaf[index], lanes)
        lanes, splits = self._like(example, LANE), self._like(self.splits, EVERYWHERE)
        bounds = self._like(np.zeros((self.mesh.shape["lane"], 2), np.int32), LANE)
        number = self._like(np.zeros((), np.int32), EVERYWHERE)

        def advance(state, lanes, bounds, evaluation, splits):
            return self._advance(state, lanes, bounds[0], evaluation, splits, group)

        start = jax.jit(self._on_devices(self._start, LANE, EVERYWHERE))
        state = self._like(jax.eval_shape(start, lanes, splits), LANE)
        specs = LANE, LANE, LANE, EVERYWHERE, EVERYWHERE
        program = jax.jit(self._on_devices(advance, *specs), donate_argnums=0)
        lowered = program.lower(state, lanes, bounds, number, splits)
        return start.lower(lanes, splits).compile(), lowered.compile()

    def _start(self, lanes, splits):
        functions = self.functions(splits)
        train = self.config.train
        evaluations = train.epochs // train.evaluate_every
        history = {
            name: jnp.full((evaluations, *shape), jnp.nan, jnp.float32)
            for name, shape in metric_shapes(self.data, self.config).items()
        }
        return jax.lax.map(lambda lane: State(functions.init(lane), history), lanes)

    def _advance(self, state, lanes, bounds, evaluation, splits, group):
        """Trains the groups within bounds in turn, each in its own place."""
        functions = self.functions(splits, group)

        def one(state, lane):
            models, metrics = functions.advance(state.models, lane)
            history = jax.tree.map(
                lambda old, new: old.at[evaluation].set(new), state.history, metrics
            )
            return State(models, history)

        def train_group(number, state):
            first = number * group
            new = _map(one, group)(*_slice((state, lanes), first, group))
            return jax.tree.map(
                lambda a, b: jax.lax.dynamic_update_slice_in_dim(a, b, first, 0),
                state,
                new,
            )

        return jax.lax.fori_loop(bounds[0], bounds[1], train_group, state)

    def _on_devices(self, function, *specs):
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=specs,
            out_specs=LANE,
            axis_names={"lane"},
            check_vma=False,
        )

    def _like(self, values, spec):
        sharding = NamedSharding(self.mesh, spec)
        return jax.tree.map(
            lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=sharding), values
        )


def _map(function, group):
    """Maps over a group; a single lane has no batch axis, which would be slower."""
    if group > 1:
        return jax.vmap(function)

    def alone(*arguments):
        result = function(*jax.tree.map(lambda leaf: leaf[0], arguments))
        return jax.tree.map(lambda leaf: leaf[None], result)

    return alone


def _slice(values, first, count):
    return jax.tree.map(
        lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, count), values
    )


def _column(values) -> np.ndarray:
    return np.array([*values], np.float32)
