"""Threefry: JAX's random numbers, bit for bit, in one pass over memory.

On CPU `jax.random` runs the rounds of Threefry as a loop over whole arrays, which takes
several times as long to run and twice as long to compile as the rounds written out.
Keys of another kind, and a process without partitionable Threefry, get JAX's own.

References:
    [1] Salmon et al. Parallel random numbers: as easy as 1, 2, 3. SC 2011.
    [2] JAX, jax/_src/prng.py: the numbering of blocks, and `fold_in`.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Integer, Key, UInt32

Words = tuple[UInt32[Array, "..."], UInt32[Array, "..."]]
# A single key, or an array of keys.
Keys = Key[Array, "..."]
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA

_SPEC: ContextVar[PartitionSpec | None] = ContextVar("spec", default=None)


@contextmanager
def sharded(spec: PartitionSpec | None) -> Iterator[None]:
    """Shards the numbers that are drawn inside over explicit axes of the mesh.

    Each device then draws the part of the numbers that it holds; they are the same.

    Args:
        spec: of numbers (B, G, U), ignored along axes of size 1; None to leave them
            whole.
    """
    token = _SPEC.set(spec)
    try:
        yield
    finally:
        _SPEC.reset(token)


def fold_in(key: Keys, data: int | Integer[Array, "..."]) -> Keys:
    """Returns the key that `jax.random.fold_in` does.

    Args:
        key: a typed key; or an array of keys, of a shape that broadcasts with the data.
        data: an integer, or an array of them; a Python one in [0, 2^32).
    """
    if not _is_threefry(key):
        folded = jnp.broadcast_shapes(key.shape, jnp.shape(data))
        function = jax.random.fold_in
        for _ in folded:
            function = jax.vmap(function)
        return function(
            jnp.broadcast_to(key, folded), jnp.broadcast_to(jnp.asarray(data), folded)
        )
    low = jnp.uint32(data) if isinstance(data, int) else data.astype(jnp.uint32)
    words = _block(jax.random.key_data(key), jnp.zeros_like(low), low)
    return jax.random.wrap_key_data(jnp.stack(words, axis=-1), impl="threefry2x32")


def uniform(key: Keys, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Returns the float32 numbers in [0, 1) that `jax.random.uniform` does.

    Args:
        key: a typed key; or an array of keys [B], one for each row. Row n then has the
            numbers of row n of `shape` with its key, or of the only row there.
        shape: of the result with one key, of fewer than 2^32 numbers.

    Returns:
        The numbers, of the given shape, or [B, *shape[1:]].
    """
    partitionable = jax.threefry_partitionable.value
    own = _is_threefry(key) and partitionable and math.prod(shape) < 2**32
    if own:
        return _uniform(jax.random.key_data(key), key.shape, shape)
    if key.shape:
        return _by_row(partial(jax.random.uniform, shape=shape), key, shape)
    return jax.random.uniform(key, shape, jnp.float32, out_sharding=_spec(shape))


def normal(key: Keys, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Returns the float32 numbers that `jax.random.normal` does; see `uniform`."""
    if not key.shape:
        return jax.random.normal(key, shape, jnp.float32, out_sharding=_spec(shape))
    if not _is_threefry(key) or not jax.threefry_partitionable.value:
        return _by_row(partial(jax.random.normal, shape=shape), key, shape)
    return normal_of(uniform(key, shape))


def normal_of(numbers: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns the normal numbers that JAX makes of uniform ones in [0, 1)."""
    least = np.nextafter(np.float32(-1), np.float32(0))
    inside = numbers * (np.float32(1) - least) + least
    return np.float32(np.sqrt(2)) * jax.lax.erf_inv(jnp.maximum(least, inside))


def _is_threefry(key) -> bool:
    return str(jax.random.key_impl(key)) == "threefry2x32"


def _spec(shape):
    """The sharding of numbers of a shape; None if none was asked for."""
    if (spec := _SPEC.get()) is None:
        return None
    axes = (axis if size > 1 else None for axis, size in zip(spec, shape, strict=True))
    return PartitionSpec(*axes)


def _by_row(draw, keys, shape):
    """Draws all rows with each key, and takes the row of the key.

    One key at a time: under `vmap`, some kinds of keys have other numbers.
    """
    rows = jnp.arange(len(keys)) % shape[0]
    return jax.lax.map(lambda at: draw(at[0])[at[1]], (keys, rows))


def _uniform(key_data, rows, shape):
    """Makes a number of the two words that its index is enciphered to."""
    full = (*rows, *shape[1:]) if rows else shape
    spec = _spec(full)
    index = jnp.zeros(full, jnp.uint32, out_sharding=spec)
    stride = 1
    for axis in reversed(range(len(shape))):
        if shape[axis] > 1:
            place = jax.lax.broadcasted_iota(jnp.uint32, full, axis, out_sharding=spec)
            index = index + jnp.uint32(stride) * place
        stride *= shape[axis]
    inner = (1,) * (len(shape) - 1) if rows else ()
    key_data = key_data.reshape(*rows, *inner, 2)
    high, low = _block(key_data, jnp.zeros_like(index), index)
    # 23 random bits behind the exponent of 1 make a float in [1, 2).
    one = jnp.uint32(0x3F800000)
    bits = one | ((high ^ low) >> jnp.uint32(9))
    return jax.lax.bitcast_convert_type(bits, jnp.float32) - 1


@jax.jit
def _block(key_data: UInt32[Array, "... 2"], high, low) -> Words:
    """Enciphers counters of two words with Threefry-2x32, 20 rounds [1]."""
    first, second = key_data[..., 0], key_data[..., 1]
    schedule = (first, second, first ^ second ^ PARITY)
    high, low = high + schedule[0], low + schedule[1]
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            high = high + low
            left = low << jnp.uint32(rotation)
            low = high ^ (left | (low >> jnp.uint32(32 - rotation)))
        high = high + schedule[(group + 1) % 3]
        low = low + schedule[(group + 2) % 3] + jnp.uint32(group + 1)
    return high, low
