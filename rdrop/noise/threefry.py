"""Threefry: JAX's random numbers, bit for bit, in one pass over memory.

On CPU `jax.random` runs the rounds of Threefry as a loop over whole arrays, which takes
several times as long to run and twice as long to compile as the rounds written out.
Keys of another kind, and a process without partitionable Threefry, get JAX's own.

References:
    [1] Salmon et al. Parallel random numbers: as easy as 1, 2, 3. SC 2011.
    [2] JAX, jax/_src/prng.py: the numbering of blocks, and `fold_in`.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, Key, UInt32

Words = tuple[UInt32[Array, "..."], UInt32[Array, "..."]]
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA


def fold_in(key: Key[Array, ""], data: int | Integer[Array, ""]) -> Key[Array, ""]:
    """Returns the key that `jax.random.fold_in` does.

    Args:
        key: a single typed key.
        data: an integer; a Python one in [0, 2^32).
    """
    if not _is_threefry(key):
        return jax.random.fold_in(key, data)
    low = jnp.uint32(data) if isinstance(data, int) else data.astype(jnp.uint32)
    words = _block(jax.random.key_data(key), jnp.zeros_like(low), low)
    return jax.random.wrap_key_data(jnp.stack(words), impl="threefry2x32")


def uniform(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Returns the float32 numbers in [0, 1) that `jax.random.uniform` does.

    Args:
        key: a single typed key.
        shape: of the result, of fewer than 2^32 numbers.
    """
    partitionable = jax.threefry_partitionable.value
    if not _is_threefry(key) or not partitionable or math.prod(shape) >= 2**32:
        return jax.random.uniform(key, shape, jnp.float32)
    return _uniform(jax.random.key_data(key), shape)


def _is_threefry(key) -> bool:
    return str(jax.random.key_impl(key)) == "threefry2x32"


def _uniform(key_data, shape):
    """Makes a number of the two words that its index is enciphered to."""
    index = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        place = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        index = index + jnp.uint32(stride) * place
        stride *= shape[axis]
    high, low = _block(key_data, jnp.zeros_like(index), index)
    # 23 random bits behind the exponent of 1 make a float in [1, 2).
    one = jnp.uint32(0x3F800000)
    bits = one | ((high ^ low) >> jnp.uint32(9))
    return jax.lax.bitcast_convert_type(bits, jnp.float32) - 1


@jax.jit
def _block(key_data: UInt32[Array, "2"], high, low) -> Words:
    """Enciphers counters of two words with Threefry-2x32, 20 rounds [1]."""
    schedule = (key_data[0], key_data[1], key_data[0] ^ key_data[1] ^ PARITY)
    high, low = high + schedule[0], low + schedule[1]
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            high = high + low
            left = low << jnp.uint32(rotation)
            low = high ^ (left | (low >> jnp.uint32(32 - rotation)))
        high = high + schedule[(group + 1) % 3]
        low = low + schedule[(group + 2) % 3] + jnp.uint32(group + 1)
    return high, low
