"""Sweep: many lanes, trained by one compiled program.

The lanes are dealt to the devices, and each device trains its own, `group` at a time by
`jax.vmap` and the groups in turn. A lane's numbers do not depend on where it runs.
"""

import math
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import rdrop
from experiments import vowels
from experiments.config import ConfigError, Model, Train
from experiments.train import Lane, Metrics, Models, Noise, make_train
from experiments.vowels import Utterances


class Program(NamedTuple):
    """A compiled sweep and what it starts from."""

    advance: jax.stages.Compiled
    models: Models
    lanes: Lane
    lane_count: int
    compile_seconds: float


def make_lanes(
    dropout: Noise, lane_seeds: np.ndarray, seed: int, config: Train, train: Utterances
) -> Lane:
    """Returns lanes that differ in dropout and seed.

    Args:
        dropout: its leaves have a leading axis of lanes.
        lane_seeds: the seed of each lane, 0 and up; lanes of one seed share everything
            but the dropout.
        seed: the root of all random numbers.
        config: the sizes of batch and validation split.
        train: the training utterances, which each seed splits anew.

    Raises:
        ConfigError: too few utterances for the validation split or for one batch.
    """
    check_sizes(config, train)
    root = jax.random.key(seed)
    splits = [
        vowels.split(train.speakers, config.validation, (seed, s))
        for s in range(lane_seeds.max() + 1)
    ]
    fit, valid = (
        jnp.asarray(np.stack(part)[lane_seeds]) for part in zip(*splits, strict=True)
    )
    keys = jax.vmap(lambda s: jax.random.fold_in(root, s))(jnp.asarray(lane_seeds))
    return Lane(keys, dropout, fit, valid)


def compile_sweep(
    lanes: Lane,
    model: Model,
    config: Train,
    train: Utterances,
    test: Utterances,
    cell: type[rdrop.Cell] = rdrop.LSTMCell,
    group: int | None = None,
) -> Program:
    """Initialises every lane and compiles the program that trains them all.

    Args:
        lanes: leaves have a leading axis of lanes.
        model: its size.
        config: how it is trained.
        train: utterances that lanes index.
        test: utterances that are reported.
        cell: the recurrence.
        group: lanes that a device trains side by side. By default all of its lanes,
            but 1 on CPU: batched small matrix products are slower there than the plain
            ones, and two devices that both batch can starve XLA's one thread pool.
    """
    count = len(lanes.key)
    devices = jax.devices()[:count]
    share = math.ceil(count / len(devices))
    group = min(group or (1 if devices[0].platform == "cpu" else share), share)
    mesh = jax.make_mesh(
        (len(devices),), ("lane",), devices=devices, axis_types=(AxisType.Auto,)
    )
    # The last lane is repeated until every device has whole groups.
    whole = math.ceil(share / group) * group * len(devices)
    index = np.minimum(np.arange(whole), count - 1)
    sharding = NamedSharding(mesh, PartitionSpec("lane"))
    lanes = jax.device_put(jax.tree.map(lambda leaf: leaf[index], lanes), sharding)

    functions = make_train(model, config, train, test, cell)
    start = time.perf_counter()
    models = _over_lanes(functions.init, mesh, group)(lanes)
    advance = _over_lanes(functions.advance, mesh, group).lower(models, lanes).compile()
    return Program(advance, models, lanes, count, time.perf_counter() - start)


def check_sizes(config: Train, train: Utterances) -> None:
    """Raises a ConfigError where there are too few utterances for the config."""
    smallest = int(np.bincount(train.speakers).min())
    if config.validation >= smallest:
        raise ConfigError(
            f"train.validation: must leave some of the {smallest} training utterances "
            f"of a speaker, got {config.validation}."
        )
    left = len(train.speakers) - config.validation * vowels.SPEAKERS
    if config.batch > left:
        raise ConfigError(
            f"train.batch: must be at most {left}, the utterances left to train on, "
            f"got {config.batch}."
        )


def run(program: Program, chunks: int) -> Iterator[Metrics]:
    """Trains all lanes, yielding the metrics [lanes, ...] of each chunk of epochs."""
    models = program.models
    for _ in range(chunks):
        models, metrics = program.advance(models, program.lanes)
        yield jax.tree.map(lambda leaf: np.asarray(leaf)[: program.lane_count], metrics)


def _over_lanes(function, mesh, group):
    """Maps a function of one lane over all of them: across devices, then in groups."""

    def on_device(*lanes):
        # A batch of one would make every product a batched one, which is slower.
        size = group if group > 1 else None
        return jax.lax.map(lambda lane: function(*lane), lanes, batch_size=size)

    spec = PartitionSpec("lane")
    return jax.jit(
        jax.shard_map(
            on_device, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
        )
    )
