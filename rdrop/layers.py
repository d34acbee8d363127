"""Layers: a cell run over whole sequences.

Masks are drawn in bulk before the time loop, and the input projection of all steps is
one matrix product; both give what the cell gives step by step.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from rdrop.cells import Carry, LSTMCell, check_carry, mask_units
from rdrop.dropout import Dropout, Masks, resolve
from rdrop.keys import StreamKeys
from rdrop.scan import scan


class RNN(nn.Module):
    """Unrolls a cell over time by `jax.lax.scan`.

    The parameters are those of the bare cell, under the same names.

    Attributes:
        cell: the recurrence, for example `LSTMCell(128)`.
        time_major: whether sequences are [T, B, D] rather than [B, T, D].
        reverse: whether to run from the last step to the first. Outputs stay at the
            time steps of their inputs, and keys are those of direction "backward".

    Example:
        >>> rnn, xs = RNN(LSTMCell(8)), jnp.ones((2, 5, 3))
        >>> params = rnn.init(jax.random.key(0), xs)
        >>> (c, h), ys = rnn.apply(params, xs)
        >>> ys.shape
        (2, 5, 8)
    """

    cell: LSTMCell
    time_major: bool = False
    reverse: bool = False

    def setup(self):  # noqa: D102
        nn.share_scope(self, self.cell)

    def __call__(
        self,
        xs: Float[Array, "..."],
        dropout: Dropout | Masks | None = None,
        keys: StreamKeys | None = None,
        *,
        initial_carry: Carry | None = None,
        lengths: Int[Array, "B"] | np.ndarray | None = None,
    ) -> tuple[Carry, Float[Array, "..."]]:
        """Runs over the sequences of a batch.

        Args:
            xs: the inputs, [B, T, D], or [T, B, D] if `time_major`.
            dropout: where noise enters; or `Masks` of the whole sequence, used as they
                are.
            keys: explicit keys; `keys.step` is the absolute index of xs's first step.
                No keys, no noise: the expectation is evaluated.
            initial_carry: (c, h), each [B, H]; zeros by default.
            lengths: number of valid steps of each sequence, in [0, T]. Later steps are
                padding: they change nothing, and their outputs are zero. Traced lengths
                are not checked.

        Returns:
            The final carry (c, h), and the outputs, [B, T, H] or [T, B, H].

        Raises:
            TypeError: `keys` are not typed, or `dropout` is of another type.
            ValueError: wrong ranks or sizes, lengths outside [0, T], or a rate that
                does not broadcast.
        """
        if xs.ndim != 3:
            axes = "[T, B, D]" if self.time_major else "[B, T, D]"
            raise ValueError(f"`xs` must have the axes {axes}, got shape {xs.shape}.")
        xs = xs if self.time_major else xs.swapaxes(0, 1)
        carry, ys = self._unroll(xs, dropout, keys, initial_carry, lengths)
        return carry, ys if self.time_major else ys.swapaxes(0, 1)

    def _unroll(self, xs, dropout, keys, carry, lengths):
        time, batch, features = xs.shape
        if isinstance(keys, StreamKeys) and self.reverse:
            keys = keys.replace(direction="backward")
        if carry is None:
            carry = self.cell.initialize_carry(jax.random.key(0), (batch, features))
        check_carry("initial_carry", carry, (batch, self.cell.units))
        valid = None if lengths is None else _valid(lengths, time, batch)
        weights = self.cell.weights(xs)
        masks = resolve(dropout, keys, self.cell.sites(features), batch, time)

        carry, ys = scan(
            lambda carry, z, masks: self.cell.step(weights, carry, z, masks),
            carry,
            self.cell.project(weights, xs, masks),
            masks.replace(inputs=None, outputs=None),
            valid,
            self.reverse,
        )
        return carry, mask_units(ys, masks.outputs)


def _valid(lengths, time: int, batch: int) -> Bool[Array, "T B"]:
    """Which steps are not padding; checks lengths whose values are known."""
    if jnp.shape(lengths) != (batch,) or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(
            f"`lengths` must be integers of shape [B] = ({batch},), got "
            f"{lengths.dtype}{list(jnp.shape(lengths))}."
        )
    if not isinstance(lengths, jax.core.Tracer):
        values = np.asarray(lengths)
        if np.any((values < 0) | (values > time)):
            raise ValueError(f"`lengths` must lie in [0, T = {time}], got {values}.")
    return jnp.arange(time)[:, None] < jnp.asarray(lengths)[None]
