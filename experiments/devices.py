"""Devices: their mesh, the placement of arrays, and their memory.

The mesh has the axes "lane", which shards lanes, and "data", which shards the batches
of a lane.
"""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.config import ConfigError
from experiments.wording import count_text

T = TypeVar("T")

LANE, DATA, EVERYWHERE = PartitionSpec("lane"), PartitionSpec("data"), PartitionSpec()
CGROUP = Path("/sys/fs/cgroup")
SHARE_OF_FREE = 0.8  # the rest of the free memory is for everything else


@dataclass(frozen=True)
class Machine:
    """Devices and processes of a run; results are the same up to rounding."""

    data_devices: int = 1
    """Devices that share each batch of a lane, for large models."""
    memory: float | None = None
    """GB that each device may use; by default its free memory."""
    distributed: bool = False
    """Whether other processes take part; JAX detects the options that are not given."""
    coordinator: str | None = None
    """Address of the first process, as host:port."""
    processes: int | None = None
    """Number of processes."""
    process: int | None = None
    """Number of this process, from 0."""

    def check(self) -> None:
        """Raises a ConfigError for impossible memory, addresses or numbers."""
        if self.memory is not None and not 0 < self.memory < math.inf:
            raise ConfigError(f"memory: must be above 0 GB, got {self.memory}.")
        address = self.coordinator
        if address is not None and not re.fullmatch(r"\S+:[0-9]{1,5}", address):
            raise ConfigError(f"coordinator: must be host:port, got {address!r}.")
        processes, process = self.processes, self.process
        if processes is not None and processes < 1:
            raise ConfigError(f"processes: must be at least 1, got {processes}.")
        if process is not None and not 0 <= process < (processes or math.inf):
            most = "" if processes is None else f" and below {processes}"
            raise ConfigError(f"process: must be at least 0{most}, got {process}.")

    @property
    def bytes(self) -> float | None:
        """Bytes that each device may use."""
        return None if self.memory is None else self.memory * 1e9


HERE = Machine()
"""One process, with all its devices and their free memory."""


def make_mesh(lanes: int, data_devices: int = 1) -> Mesh:
    """Returns a mesh of all devices, or of as many as the lanes need.

    Raises:
        ConfigError: the devices cannot be divided into rows of `data_devices`.
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
    """Puts arrays, which each process has in full, onto the devices of a mesh."""
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
    """Returns the rows of an array of lanes that this process holds, by number."""
    rows: dict[int, np.ndarray | np.generic] = {}
    for shard in array.addressable_shards:
        first = shard.index[0].start or 0
        rows |= dict(enumerate(np.asarray(shard.data), first))
    return rows


def spread(mesh: Mesh, batch: T) -> T:
    """Shards a batch over the axis "data"."""
    if mesh.shape["data"] == 1:
        return batch
    sharding = NamedSharding(mesh, DATA)
    return jax.lax.with_sharding_constraint(batch, sharding)


def free_bytes(mesh: Mesh) -> int:
    """Returns the free memory of each device of a mesh."""
    here = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    stats = here[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(SHARE_OF_FREE * (stats["bytes_limit"] - stats["bytes_in_use"]))
    free = min(psutil.virtual_memory().available, _left_in_cgroup())
    return int(SHARE_OF_FREE * free / len(here))


def needed_bytes(compiled: Any) -> int:
    """Returns the memory that a program needs per device, by the compiler's count."""
    sizes = compiled.memory_analysis()
    return (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        + sizes.temp_size_in_bytes
        - sizes.alias_size_in_bytes
    )


def device_text() -> str:
    """Returns the devices of this process, in a few words."""
    if jax.default_backend() == "cpu":
        return count_text(len(os.sched_getaffinity(0)), "CPU core")
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def one_device_per_core() -> None:
    """Makes each processor core a device; without effect on GPU and TPU."""
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))


def _left_in_cgroup() -> float:
    """Returns the bytes that a container may still use; infinite without a limit."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = (CGROUP / "memory.current").read_text()
        return float("inf") if limit == "max" else int(limit) - int(used)
    except (OSError, ValueError):
        return float("inf")
