"""Recurrences: the equations of a cell, as frozen values.

A recurrence knows its sizes and dtypes, declares its noise sites and parameters, and
supplies one equation, `step`. It holds no arrays: the linen and nnx modules own the
parameters, and the loops run the equations. The loops project the inputs, which needs
no carry, for all time steps at once.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

import jax.numpy as jnp
from jax.nn.initializers import glorot_uniform, orthogonal, zeros
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from rdrop.advice import describe
from rdrop.arguments import check_count
from rdrop.cells.masking import Weights, drop_weights, project, with_bias
from rdrop.cells.tape import Tape
from rdrop.dropout import Masks
from rdrop.sites import Site

# One array, or a tuple of arrays whose last is h.
Carry: TypeAlias = Any
Initialiser: TypeAlias = Callable[..., Array]
Parameters: TypeAlias = dict[str, tuple[Callable[..., Array], tuple[int, ...]]]


@dataclasses.dataclass(frozen=True)
class Recurrence:
    """A recurrence with noise. Subclass it with a `step` to define a cell.

    A cell that is affine in its state is an `rdrop.cells.Affine`.

    Attributes:
        units: H, the size of the state.
        dtype: compute dtype of the matrix products; by default the common dtype of
            inputs and parameters.
        param_dtype: dtype of the parameters.
        kernel_init, recurrent_init, bias_init: initialisers of the kernels and of the
            bias, functions of (key, shape, dtype); None are the usual ones of the cell.
        use_bias: whether there is a bias.
        GATES: number of blocks of H columns in the kernels.
        INITS: the initialisers that a cell takes.
        WIDE: parameters that are computed with in float32 or wider.
        CARRY: names of the arrays of the carry.

    Raises:
        ValueError: `units` is not an integer of 1 or more, or the cell lacks the
            parameter of an initialiser.
        TypeError: an initialiser is not a function.
    """

    units: int
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: Initialiser | None = None
    recurrent_init: Initialiser | None = None
    bias_init: Initialiser | None = None
    use_bias: bool = True

    GATES: ClassVar[int] = 1
    INITS: ClassVar[tuple[str, ...]] = ("kernel_init", "recurrent_init", "bias_init")
    WIDE: ClassVar[tuple[str, ...]] = ()
    CARRY: ClassVar[tuple[str, ...]] = ("h",)

    def __post_init__(self):
        check_count("units", self.units)
        for name in Recurrence.INITS:
            if (value := getattr(self, name)) is None:
                continue
            check_function(name, value)
            if name not in self.INITS:
                cell = type(self).__name__
                raise ValueError(
                    f"`{name}` must be None in {cell}, which has no such parameter."
                )
        if self.bias_init is not None and not self.use_bias:
            raise ValueError("`bias_init` must be None if `use_bias` is False.")

    @property
    def width(self) -> int:
        """The size of h and of the output."""
        return self.units

    def sites(self, features: int) -> dict[str, Site]:
        """Returns the size of each noise site for inputs of `features` units.

        The loops apply the masks of `inputs`, `outputs` and of the kernels; `step`
        applies the masks of all other sites.
        """
        return {
            "inputs": Site(self.GATES, features),
            "outputs": Site(1, self.width),
            "input_weights": Site(self.GATES, self.units, rows=features),
            "recurrent": Site(self.GATES, self.width),
            "hidden_state": Site(1, self.width),
            "recurrent_weights": Site(self.GATES, self.units, rows=self.width),
        }

    def parameters(self, features: int) -> Parameters:
        """Returns initialiser and shape of each parameter.

        The loops multiply the inputs by `kernel`, and add `bias` if there is one.
        """
        columns = self.GATES * self.units
        params: Parameters = {
            "kernel": (self.kernel_init or glorot_uniform(), (features, columns)),
            "recurrent_kernel": (
                self.recurrent_init or _orthogonal,
                (self.width, columns),
            ),
        }
        if self.use_bias:
            params["bias"] = (self.bias_init or zeros, (columns,))
        return params

    def initial_carry(self, *batch: int) -> Carry:
        """Returns the carry before the first step: h of zeros, [*batch, H]."""
        return jnp.zeros((*batch, self.width), self.dtype or self.param_dtype)

    def drop(self, weights: Weights, masks: Masks) -> Weights:
        """Returns the parameters with the masks of kernels applied."""
        return drop_weights(weights, masks)

    def project(
        self,
        weights: Weights,
        x: Float[Array, "*batch D"],
        mask: Float[Array, "..."] | None,
    ) -> Any:
        """Returns (m_x * x) W + b, of one step or of all.

        A cell may return a tree of other arrays, which is then the `z` of its `step`.
        """
        return with_bias(weights, project(weights, x, mask))

    def step(
        self,
        weights: Weights,
        carry: Carry,
        z: Float[Array, "B GH"],
        masks: Masks,
        tape: Tape,
    ) -> tuple[Carry, Float[Array, "B H"]]:
        """Advances the carry by one step.

        Args:
            weights: parameters in the compute dtype, masks of weights applied.
            carry: as `initial_carry` makes it.
            z: the projected input of the step, (m_x * x) W + b.
            masks: of the step, (B, G, U); None at a site without noise.
            tape: computes the products with recurrent kernels, and functions whose
                results the backward pass uses again.

        Returns:
            The new carry, and the output y before the mask of `outputs`.
        """
        raise NotImplementedError

    def cast(self, params: Weights, x: Float[Array, "*batch D"]) -> Weights:
        """Returns the parameters in the compute dtype for inputs like `x`."""
        dtype = self.dtype
        if dtype is None:
            dtype = jnp.result_type(x, *params.values())
            if not jnp.issubdtype(dtype, jnp.inexact):
                dtype = jnp.promote_types(jnp.float32, dtype)
        return {
            name: param.astype(widened(dtype) if name in self.WIDE else dtype)
            for name, param in params.items()
        }


def check_function(name: str, value: Any) -> None:
    """Raises a TypeError unless an argument is a function."""
    if not callable(value):
        raise TypeError(f"`{name}` must be a function, got {describe(value)}.")


def widened(dtype: DTypeLike) -> DTypeLike:
    """Returns float32 for a narrower float, and otherwise the dtype itself."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def _orthogonal(key, shape, dtype):
    """Computes in float32 or wider, because LAPACK has no narrower floats."""
    return orthogonal()(key, shape, widened(dtype)).astype(dtype)
