"""The native loop: a recurrence on CPU by compiled code, with its own backward pass.

It gives the same values and gradients as the plain loop, to rounding. The optional
package `rdrop_cpu`, in the folder `native`, holds the code. Rows of the batch are
divided between threads for the whole sequence. A thread projects the inputs of a few
steps, multiplies h by the packed recurrent kernel, and applies masks and activations
while the values are in its cache. The gradients of the kernels are divided between
threads by column. No sum depends on the number of threads.

Residuals, in floats per step, example and unit, in addition to inputs and outputs:

    LSTM  6: 4 gates, c, h      GRU  5: z, r, n, product, h      simple  2: result, h

The fused loop runs instead on other platforms, in cases that `supports` excludes, and
if a derivative with respect to a mask is taken.
"""

import dataclasses
import importlib.util
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.custom_derivatives import SymbolicZero
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from rdrop.cells import GRU, LSTM, Carry, Recurrence, Simple, Weights
from rdrop.cells.tape import SIGMOID, TANH
from rdrop.loops.buffer import alike
from rdrop.loops.fused import Fused, fused, reverse_mode_only
from rdrop.loops.sequences import Order, Sequences
from rdrop.noise import Add, Mix

INTERFACE = 1  # of rdrop_cpu
SITES = ("inputs", "recurrent", "update", "gates", "cell_state", "hidden_state")
WEIGHTS = ("kernel", "recurrent_kernel", "bias", "recurrent_bias")
SHARED = 11  # arguments that both compiled functions have first; residuals follow


def is_installed() -> bool:
    """Returns whether the compiled code is there, and registers it with XLA."""
    return _interface() == INTERFACE


@cache
def _interface() -> int | None:
    """Returns the number of the interface of the compiled code; None without it."""
    if importlib.util.find_spec("rdrop_cpu") is None:
        return None
    import rdrop_cpu

    return rdrop_cpu.INTERFACE


def check_installed() -> None:
    """Raises a ModuleNotFoundError unless the compiled code is there."""
    if not is_installed():
        raise ModuleNotFoundError(
            '`loop="native"` needs the package rdrop-cpu in its version for this '
            "rdrop: run `make native` in a checkout, or `pip install ./native`."
        )


def supports(
    cell: Recurrence, weights: Weights, carry: Carry, sequences: Sequences
) -> bool:
    """Returns whether the compiled code runs a case.

    It runs an LSTM without a projection, a GRU with the reset after the product and a
    simple cell, with their usual activations, in float32. Nothing may be sharded over
    an explicit mesh.
    """
    if type(cell) is LSTM:
        usual = cell.activation in TANH and cell.recurrent_activation in SIGMOID
        usual = usual and cell.projection is None
    elif type(cell) is GRU:
        usual = cell.activation in TANH and cell.recurrent_activation in SIGMOID
        usual = usual and cell.reset_after
    else:
        usual = type(cell) is Simple and cell.activation in TANH
    leaves = jax.tree.leaves((weights, carry, sequences.xs))
    fits = all(
        leaf.dtype == jnp.float32
        and leaf.size
        and not any(jax.typeof(leaf).sharding.spec)
        for leaf in leaves
    )
    return usual and fits


def native(
    cell: Recurrence,
    weights: Weights,
    carry: Carry,
    sequences: Sequences,
    order: Order,
) -> tuple[Carry, Float[Array, "..."]]:
    """Projects the inputs of a cell, and runs it over them.

    Second derivatives exist, by the fused loop. Forward-mode derivatives do not, and
    raise.

    Args:
        cell: the recurrence.
        weights: as the cell uses them, masks of weights applied.
        carry: the first; in reverse, the carry after the last step.
        sequences: inputs, masks and padding.
        order: how time lies in them.

    Returns:
        The final carry, and the outputs, with time where the inputs have it.

    Raises:
        TypeError: it is differentiated in forward mode.
    """
    on_cpu = jax.default_backend() == "cpu"
    if not on_cpu or not supports(cell, weights, carry, sequences):
        return fused(cell, weights, carry, sequences, order)
    loop = _Native(cell, order)
    function = jax.custom_vjp(loop.run)
    function.defvjp(loop.forward, loop.backward, symbolic_zeros=True)
    with reverse_mode_only():
        return function(weights, carry, sequences)


@dataclasses.dataclass(frozen=True)
class _Native:
    """The loop forwards and backwards; attributes as in `native`."""

    cell: Recurrence
    order: Order

    @property
    def fused(self) -> Fused:
        """The fused loop, whose derivatives are the ones of this loop."""
        return Fused(self.cell, self.order, recompute=False)

    def run(self, weights, carry, sequences):
        """Returns the result, if no derivative is taken."""

        def compiled(*arguments):
            return self._advance(*arguments, keep=False)[0]

        arguments = weights, carry, sequences
        return _on_cpu(compiled, self._reference)(*arguments)

    def forward(self, weights, carry, sequences):
        """Returns the result, and what `backward` needs."""
        arguments = jax.tree.map(lambda leaf: leaf.value, (weights, carry, sequences))
        if any(leaf.perturbed for leaf in jax.tree.leaves(sequences.masks)):
            result, saved = self.fused.forward(*arguments)
            return result, (saved, None)

        compiled = partial(self._advance, keep=True)

        def reference(*arguments):
            _, kept = jax.eval_shape(compiled, *arguments)
            zeros = jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), kept)
            return self._reference(*arguments), alike(zeros, arguments)[0]

        result, kept = _on_cpu(compiled, reference)(*arguments)
        # Static: () if the cotangent of the inputs is wanted, else None.
        wanted = () if sequences.xs.perturbed else None
        return result, (None, (arguments, kept, wanted))

    def backward(self, saved, cotangents):
        """Returns the cotangents of the arguments of `run`."""
        cotangents = jax.tree.map(_without_symbols, cotangents, is_leaf=_is_symbol)
        of_fused, of_native = saved
        if of_fused is not None:
            return self.fused.backward(of_fused, cotangents)

        arguments, kept, wanted = of_native
        cotangents = alike(cotangents, arguments)[0]

        def reference(arguments, kept, cotangents):
            pull = jax.vjp(self._reference, *arguments)[1]
            d_weights, d_carry, d_sequences = pull(cotangents)
            return d_weights, d_carry, d_sequences.xs

        compiled = partial(self._pull, wanted is not None)
        *d_others, d_xs = _on_cpu(compiled, reference)(arguments, kept, cotangents)
        return *d_others, Sequences(d_xs, None)  # None: masks have no cotangents

    def _reference(self, weights, carry, sequences):
        return fused(self.cell, weights, carry, sequences, self.order)

    def _advance(self, weights, carry, sequences, keep):
        """Returns the result, and the residuals."""
        xs, units = sequences.xs, len(weights["recurrent_kernel"])
        c, h = carry if isinstance(carry, tuple) else (_NONE, carry)
        biases = zip(WEIGHTS[2:], (weights["kernel"].shape[-1], units), strict=True)
        arguments = (
            *_shared(weights, sequences),
            *(weights.get(name, jnp.zeros(size, xs.dtype)) for name, size in biases),
            c,
            h,
        )
        of_steps = (*xs.shape[:2], units)
        shapes = [of_steps, c.shape, h.shape]
        if keep:
            slots = 1 if isinstance(self.cell, Simple) else 4
            memory = of_steps if c.size else c.shape
            shapes += [(*xs.shape[:2], slots * units), memory, of_steps]
        else:
            shapes += [_NONE.shape] * 3
        call = self._call("rdrop_cpu_forward", sequences.masks)
        ys, c, h, *kept = call(arguments, shapes)
        return ((c, h) if isinstance(carry, tuple) else h, ys), kept

    def _pull(self, wants_xs, arguments, kept, cotangents):
        """Returns the cotangents of weights, carry and inputs, zeros if not wanted."""
        weights, _, sequences = arguments
        d_carry, d_ys = cotangents
        d_c, d_h = d_carry if isinstance(d_carry, tuple) else (_NONE, d_carry)
        call = self._call("rdrop_cpu_backward", sequences.masks)
        kernels = [weights[name].shape for name in WEIGHTS[:2]]
        (_, columns), (units, _) = kernels
        xs = sequences.xs if wants_xs else _NONE
        shapes = [array.shape for array in (kept[0], xs, d_c, d_h)]
        shapes += [*kernels, (columns,), (units,)]
        shared = _shared(weights, sequences)
        results = call((*shared, *kept, d_ys, d_c, d_h), shapes)
        _, d_xs, d_c, d_h, *d_weights = results
        d_weights = dict(zip(WEIGHTS, d_weights, strict=True))
        d_carry = (d_c, d_h) if isinstance(d_carry, tuple) else d_h
        if not wants_xs:
            d_xs = jnp.zeros_like(sequences.xs)
        return {name: d_weights[name] for name in weights}, d_carry, d_xs

    def _call(self, target, masks):
        options = {
            "cell": np.int64([LSTM, GRU, Simple].index(type(self.cell))),
            "cell_noise": _kind_of(masks.cell_state),
            "hidden_noise": _kind_of(masks.hidden_state),
            "time_major": self.order.axis == 0,
            "reverse": self.order.reverse,
        }
        return partial(_call, target, options, 0)


_NONE = np.zeros(0, np.float32)  # stands for an array that a case does not have


def _shared(weights, sequences) -> tuple[Any, ...]:
    """Returns the arguments that both compiled functions have first."""
    xs, masks, valid, resets = sequences
    kernels = weights["kernel"], weights["recurrent_kernel"]

    def mask_of(site):
        leaves = jax.tree.leaves(getattr(masks, site))
        if not leaves:
            return _NONE
        units = len(kernels[0] if site == "inputs" else kernels[1])
        mask = leaves[0].astype(xs.dtype)
        return jnp.broadcast_to(mask, (*mask.shape[:-1], units))

    marks = (np.zeros(0, bool) if mark is None else mark for mark in (valid, resets))
    return xs, *kernels, *map(mask_of, SITES), *marks


def _call(
    target: str,
    options: dict[str, Any],
    axes: int,
    arguments: Sequence[Any],
    shapes: Sequence[tuple[int, ...]],
) -> tuple[Array, ...]:
    """Calls a compiled function, whose results are float32.

    Under `jax.vmap` it is called once, for all lanes. Arrays that lanes share are not
    copied, except the inputs and the residuals, which are overwritten.

    Args:
        target: name of the function.
        options: its attributes.
        axes: number of axes of lanes that all arrays have in front.
        arguments: arrays.
        shapes: of the results.
    """
    is_backward = target == "rdrop_cpu_backward"
    arguments = alike(*arguments)
    like = jax.typeof(arguments[0])
    of_result = {
        "sharding": NamedSharding(like.sharding.mesh, PartitionSpec()),
        "manual_axis_type": like.manual_axis_type,
    }
    results = [jax.ShapeDtypeStruct(s, jnp.float32, **of_result) for s in shapes]
    aliases = {SHARED: 0} if is_backward else None
    call = jax.ffi.ffi_call(target, results, input_output_aliases=aliases)

    @custom_vmap
    def function(*arguments):
        return tuple(call(*arguments, axes=np.int64(axes), **options))

    @function.def_vmap
    def rule(lanes, is_batched, *arguments):
        arguments = [
            argument if batched else jnp.expand_dims(argument, 0)
            for argument, batched in zip(arguments, is_batched, strict=True)
        ]
        for n in (0, SHARED) if is_backward else (0,):
            shape = (lanes, *arguments[n].shape[1:])
            arguments[n] = jnp.broadcast_to(arguments[n], shape)
        more = [(lanes, *shape) for shape in shapes]
        results = _call(target, options, axes + 1, arguments, more)
        return results, (True,) * len(results)

    return function(*arguments)


def _on_cpu(compiled, reference):
    """Returns a function that is compiled on CPU, and elsewhere its reference.

    Its derivative is the one of the reference.
    """

    def function(*arguments):
        return jax.lax.platform_dependent(*arguments, cpu=compiled, default=reference)

    def forward(*arguments):
        return function(*arguments), arguments

    def backward(arguments, cotangents):
        return jax.vjp(reference, *arguments)[1](cotangents)

    differentiable = jax.custom_vjp(function)
    differentiable.defvjp(forward, backward)
    return differentiable


def _kind_of(mask) -> np.int64:
    """Returns how a mask of a state enters: multiplied, mixed or added."""
    return np.int64(isinstance(mask, Mix) + 2 * isinstance(mask, Add))


def _is_symbol(cotangent) -> bool:
    return isinstance(cotangent, SymbolicZero)


def _without_symbols(cotangent):
    if not _is_symbol(cotangent):
        return cotangent
    return jnp.zeros(cotangent.shape, cotangent.dtype)
