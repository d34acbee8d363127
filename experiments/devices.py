"""Devices: a mesh of them, what lies where on it, and how much memory they have.

The mesh has the axes "lane", over which lanes are dealt, and "data", over which the
batches of a lane are.
"""

import os
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.config import ConfigError

T = TypeVar("T")

LANE, DATA, EVERYWHERE = PartitionSpec("lane"), PartitionSpec("data"), PartitionSpec()
CGROUP = Path("/sys/fs/cgroup")
SHARE_OF_FREE = 0.8  # of free memory; the rest is for XLA's and our own odds and ends


def make_mesh(lanes: int, data_devices: int = 1) -> Mesh:
    """Returns a mesh of all devices, or as many as the lanes need.

    Raises:
        ConfigError: the devices cannot be dealt out in rows of `data_devices`.
    """
    devices = jax.devices()
    if data_devices < 1 or len(devices) % data_devices:
        raise ConfigError(
            f"data-devices: must divide the {len(devices)} devices, got {data_devices}."
        )
    rows = len(devices) // data_devices
    if jax.process_count() == 1:
        rows = min(rows, lanes)
    return jax.make_mesh(
        (rows, data_devices),
        ("lane", "data"),
        devices=devices[: rows * data_devices],
        axis_types=(AxisType.Auto, AxisType.Auto),
    )


def put(values: T, mesh: Mesh, spec: PartitionSpec) -> T:
    """Puts arrays, which every process has whole, onto the devices of a mesh."""
    sharding = NamedSharding(mesh, spec)

    def place(value):
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            bits = place(jax.random.key_data(value))
            return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(value))
        value = np.asarray(value)
        return jax.make_array_from_callback(
            value.shape, sharding, lambda index: value[index]
        )

    return jax.tree.map(place, values)


def local(array: jax.Array) -> dict[int, np.ndarray | np.generic]:
    """Returns the rows of an array over lanes that this process holds, by number."""
    rows: dict[int, np.ndarray | np.generic] = {}
    for shard in array.addressable_shards:
        first = shard.index[0].start or 0
        rows |= dict(enumerate(np.asarray(shard.data), first))
    return rows


def spread(mesh: Mesh, batch: T) -> T:
    """Divides a batch among the devices of the axis "data"."""
    if mesh.shape["data"] == 1:
        return batch
    sharding = NamedSharding(mesh, DATA)
    return jax.lax.with_sharding_constraint(batch, sharding)


def free_bytes(mesh: Mesh) -> int:
    """Returns the memory that each device of a mesh has to itself."""
    here = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    stats = here[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(SHARE_OF_FREE * (stats["bytes_limit"] - stats["bytes_in_use"]))
    free = min(psutil.virtual_memory().available, _left_in_cgroup())
    return int(SHARE_OF_FREE * free / len(here))


def needed_bytes(compiled: Any) -> int:
    """Returns the memory that a compiled program needs on each device, as measured."""
    sizes = compiled.memory_analysis()
    return (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        + sizes.temp_size_in_bytes
        - sizes.alias_size_in_bytes
    )


def one_device_a_core() -> None:
    """Lets each processor core train its own lanes; without effect on GPU and TPU."""
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))


def _left_in_cgroup() -> float:
    """What a container may still use; infinite where nobody set a limit."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = (CGROUP / "memory.current").read_text()
        return float("inf") if limit == "max" else int(limit) - int(used)
    except (OSError, ValueError):
        return float("inf")
