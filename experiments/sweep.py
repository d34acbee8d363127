"""Sweep: every lane of a plane, trained by one compiled program.

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
from experiments.config import Config, ConfigError, Noise
from experiments.train import Lane, Metrics, Models, make_train
from experiments.vowels import Utterances


class Program(NamedTuple):
    """A compiled sweep and what it starts from."""

    advance: jax.stages.Compiled
    models: Models
    lanes: Lane
    lane_count: int
    compile_seconds: float


def make_lanes(config: Config, speakers: np.ndarray) -> Lane:
    """Returns all lanes of the plane, in the order (inputs, recurrent, seed).

    Args:
        config: rates and seeds.
        speakers: of the training utterances, which each seed splits anew.

    Raises:
        ConfigError: too few utterances for the validation split or for one batch.
    """
    _check_sizes(config, speakers)
    axes = config.dropout
    inputs, recurrent, seeds = (
        grid.ravel()
        for grid in np.meshgrid(
            np.asarray(axes.inputs.rate, np.float32),
            np.asarray(axes.recurrent.rate, np.float32),
            np.arange(config.seeds, dtype=np.uint32),
            indexing="ij",
        )
    )
    root = jax.random.key(config.seed)
    splits = [
        vowels.split(speakers, config.train.validation, (config.seed, seed))
        for seed in range(config.seeds)
    ]
    fit, valid = (
        jnp.asarray(np.stack(part)[seeds]) for part in zip(*splits, strict=True)
    )
    return Lane(
        key=jax.vmap(lambda seed: jax.random.fold_in(root, seed))(jnp.asarray(seeds)),
        dropout=rdrop.Dropout(
            inputs=_noise(axes.inputs, inputs),
            recurrent=_noise(axes.recurrent, recurrent),
        ),
        fit=fit,
        valid=valid,
    )


def compile_sweep(
    config: Config,
    lanes: Lane,
    train: Utterances,
    test: Utterances,
    group: int | None = None,
) -> Program:
    """Initialises every lane and compiles the program that trains them all.

    Args:
        config: model and training.
        lanes: leaves have a leading axis of lanes.
        train: utterances that lanes index.
        test: utterances that are reported.
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

    functions = make_train(config, train, test)
    start = time.perf_counter()
    models = _over_lanes(functions.init, mesh, group)(lanes)
    advance = _over_lanes(functions.advance, mesh, group).lower(models, lanes).compile()
    return Program(advance, models, lanes, count, time.perf_counter() - start)


def run(program: Program, chunks: int) -> Iterator[Metrics]:
    """Trains all lanes, yielding the metrics [lanes, ...] of each chunk of epochs."""
    models = program.models
    for _ in range(chunks):
        models, metrics = program.advance(models, program.lanes)
        yield jax.tree.map(lambda leaf: np.asarray(leaf)[: program.lane_count], metrics)


def _over_lanes(function, mesh, group):
    """Maps a function of one lane over all of them: across devices, then in groups."""

    def on_device(*lanes):
        return jax.lax.map(lambda lane: function(*lane), lanes, batch_size=group)

    spec = PartitionSpec("lane")
    return jax.jit(
        jax.shard_map(
            on_device, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
        )
    )


def _noise(axis: Noise, rates: np.ndarray) -> rdrop.Bernoulli:
    return rdrop.Bernoulli(
        jnp.asarray(rates),
        per=axis.per,
        gates=axis.gates,
        batch=axis.batch,
        scale=axis.scale,
    )


def _check_sizes(config, speakers):
    held_out, batch = config.train.validation, config.train.batch
    smallest = int(np.bincount(speakers).min())
    if held_out >= smallest:
        raise ConfigError(
            f"train.validation: must leave some of the {smallest} training utterances "
            f"of a speaker, got {held_out}."
        )
    left = len(speakers) - held_out * vowels.SPEAKERS
    if batch > left:
        raise ConfigError(
            f"train.batch: must be at most {left}, the utterances left to train on, "
            f"got {batch}."
        )
