"""Tapes: operations of a step whose results the backward pass uses again.

The step of a cell is written once, with the operations of a `Tape`. The plain loop
gives it a tape that only computes. A fused loop records the results on the way forward,
and on the way back runs the step with a tape that returns the recorded results, so that
differentiating the step repeats neither a matrix product nor a hyperbolic tangent.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rdrop.cells.masking import masked_matmul, masked_operands

Activation: TypeAlias = Callable[[Array], Array]
TANH: tuple[Any, ...] = (jnp.tanh, jax.nn.tanh, jax.lax.tanh)
SIGMOID: tuple[Any, ...] = (jax.nn.sigmoid, jax.lax.logistic)


class Tape:
    """Computes the operations and records nothing."""

    def matmul(
        self,
        x: Float[Array, "*batch K"],
        kernel: Float[Array, "K N"],
        mask: Float[Array, "..."] | None = None,
    ) -> Float[Array, "*batch N"]:
        """Multiplies the masked x by a kernel, in the dtype of the kernel.

        The gradient of a kernel that is multiplied here is one large product after the
        loop over time, instead of a small one in every step.

        Args:
            x: left operand.
            kernel: a weight, or a part of one; the kernels of all gates side by side.
            mask: (B, 1, K) for all gates, (B, G, K) for one mask per gate, or None.
        """
        return masked_matmul(x.astype(kernel.dtype), mask, kernel)

    def tanh(self, x: Float[Array, "*batch N"]) -> Float[Array, "*batch N"]:
        """Computes tanh of x; the backward pass reads the result, not x."""
        return jnp.tanh(x)

    def sigmoid(self, x: Float[Array, "*batch N"]) -> Float[Array, "*batch N"]:
        """Returns 1 / (1 + exp(-x)), computed as (1 + tanh(x / 2)) / 2."""
        return 0.5 * self.tanh(0.5 * x) + 0.5

    def save(self, x: Float[Array, "*batch N"]) -> Float[Array, "*batch N"]:
        """Returns x, and keeps it for the backward pass instead of recomputing it."""
        return x

    def activate(
        self, function: Activation, x: Float[Array, "*batch N"]
    ) -> Float[Array, "*batch N"]:
        """Returns function(x); the backward pass computes other functions again."""
        if function in TANH:
            return self.tanh(x)
        if function in SIGMOID:
            return self.sigmoid(x)
        return function(self.save(x))


class Recorder(Tape):
    """Computes the operations and records their results, in order.

    Attributes:
        kernels: right operands of the matrix products.
        products: the matrix products.
        values: results of the other operations.
    """

    def __init__(self):
        self.kernels = []
        self.products = []
        self.values = []

    def matmul(self, x, kernel, mask=None):  # noqa: D102
        self.kernels.append(kernel)
        self.products.append(super().matmul(x, kernel, mask))
        return self.products[-1]

    def tanh(self, x):  # noqa: D102
        self.values.append(super().tanh(x))
        return self.values[-1]

    def save(self, x):  # noqa: D102
        self.values.append(x)
        return x


class Replay(Tape):
    """Returns recorded results, with the derivatives of the operations.

    The cotangent of a matrix product is added to its tap, and is not taken to the
    kernel.

    Args:
        products, values: as recorded.
        transposed: the transposed kernels.
        taps: zeros of the shape of each product.
    """

    def __init__(self, products, values, transposed, taps):
        self._values = iter(values)
        self._products = zip(products, transposed, taps, strict=True)

    def matmul(self, x, kernel, mask=None):  # noqa: D102
        result, transposed, tap = next(self._products)
        operands = masked_operands(x.astype(kernel.dtype), mask)
        gates = len(operands)
        kernels = jnp.split(kernel, gates, axis=-1), jnp.split(transposed, gates)
        parts = zip(operands, *kernels, strict=True)
        product = jnp.concatenate([_matmul(*part) for part in parts], axis=-1)
        return _replace(product + tap, result, None)

    def tanh(self, x):  # noqa: D102
        result = next(self._values)
        return _replace(x, result, 1 - result * result)

    def save(self, x):  # noqa: D102
        return _replace(x, next(self._values), None)


class OperandTape(Tape):
    """Returns recorded results, and collects the left operands of the matrix products.

    Args:
        products, values: as recorded.

    Attributes:
        operands: for each product, its left operands with their masks applied: one
        array
            for all gates, or one per gate.
    """

    def __init__(self, products, values):
        self.operands = []
        self._values, self._products = iter(values), iter(products)

    def matmul(self, x, kernel, mask=None):  # noqa: D102
        self.operands.append(masked_operands(x.astype(kernel.dtype), mask))
        return next(self._products)

    def tanh(self, x):  # noqa: D102
        return next(self._values)

    def save(self, x):  # noqa: D102
        return next(self._values)


@jax.custom_vjp
def _replace(x, result, slope):
    """Returns `result`, with the derivative `slope` in x; None stands for 1."""
    return result


_replace.defvjp(
    lambda x, result, slope: (result, slope),
    lambda slope, d: (d if slope is None else d * slope, None, None),
)


@jax.custom_vjp
def _matmul(x, kernel, transposed):
    """Returns x @ kernel; its derivative in x uses the transposed kernel."""
    return x @ kernel


_matmul.defvjp(
    lambda x, kernel, transposed: (x @ kernel, transposed),
    lambda transposed, d: (d @ transposed, None, None),
)
