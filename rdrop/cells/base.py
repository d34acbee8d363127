"""Base: what all cells share, and how a mask is applied.

A cell declares its gates, parameters and sites, and supplies one equation, `step`. Its
input projection needs no carry, so a layer does it for all time steps at once. A cell
that also supplies the derivative of its step by hand, `linearise` and `pull`, is run by
the fused scan.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import glorot_uniform, orthogonal, zeros_init
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from rdrop.cells.masking import (
    Weights,
    drop_weights,
    kernel_gradient,
    mask_units,
    masked_matmul,
    transposed_matmul,
)
from rdrop.cells.rngs import (
    check_collections_reach,
    check_lifetimes,
    collected_keys,
)
from rdrop.dropout import Dropout, Masks, resolve
from rdrop.keys import StreamKeys
from rdrop.noise import Site

Carry: TypeAlias = Any
Parameters: TypeAlias = dict[str, tuple[Callable[..., Array], tuple[int, ...]]]


class Linear(NamedTuple):
    """The derivative of a step at one point: each number multiplies a cotangent.

    Attributes:
        slopes: of the projected input z, whose place in memory they take.
        rest: whatever else `pull` needs, [B, H] each.
    """

    slopes: Float[Array, "*batch GH"]
    rest: tuple[Float[Array, "*batch H"], ...] = ()


class Cell(nn.RNNCellBase):
    """A recurrence with noise; use one of the cells.

    Attributes:
        units: H, the size of the output.
        dtype: compute dtype of the matrix products; by default that of inputs and
            parameters together.
        param_dtype: dtype of the parameters.
        dropout: the noise of calls that name none, as those of `flax.linen.RNN`.
    """

    units: int
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    dropout: Dropout | None = None

    GATES: ClassVar[int]

    @nn.nowrap
    def sites(self, features: int) -> dict[str, Site]:
        """Returns the size of each noise site for inputs of `features` units."""
        return {
            "inputs": Site(self.GATES, features),
            "outputs": Site(1, self.units),
            "input_weights": Site(self.GATES, self.units, rows=features),
            "recurrent": Site(self.GATES, self.units),
            "hidden_state": Site(1, self.units),
            "recurrent_weights": Site(self.GATES, self.units, rows=self.units),
        }

    @nn.nowrap
    def parameters(self, features: int) -> Parameters:
        """Returns initialiser and shape of each parameter."""
        gates = self.GATES * self.units
        return {
            "kernel": (glorot_uniform(), (features, gates)),
            "recurrent_kernel": (_orthogonal, (self.units, gates)),
            "bias": (zeros_init(), (gates,)),
        }

    @nn.compact
    def weights(self, x: Float[Array, "*batch D"], name: str = "x") -> Weights:
        """Returns the parameters for inputs like `x`, in the compute dtype.

        Raises:
            ValueError: the parameters were made for another number of features than
                those of `x`, which the caller knows by `name`.
        """
        features = x.shape[-1]
        if self.has_variable("params", "kernel"):
            check_features(name, features, self.get_variable("params", "kernel"))
        params = {
            name: self.param(name, initialiser, shape, self.param_dtype)
            for name, (initialiser, shape) in self.parameters(features).items()
        }
        return self.cast(params, x)

    @nn.nowrap
    def cast(self, params: Weights, x: Float[Array, "*batch D"]) -> Weights:
        """Returns the parameters in the compute dtype for inputs like `x`."""
        dtype = nn.dtypes.canonicalize_dtype(x, *params.values(), dtype=self.dtype)
        return {name: param.astype(dtype) for name, param in params.items()}

    @nn.nowrap
    def project(
        self, weights: Weights, x: Float[Array, "*batch D"], masks: Masks
    ) -> Float[Array, "*batch GH"]:
        """Returns (m_x * x) W + b, of one step or of all steps at once."""
        z = masked_matmul(
            x.astype(weights["kernel"].dtype), masks.inputs, weights["kernel"]
        )
        return z + weights["bias"].reshape((1,) * (z.ndim - 1) + (-1,))

    @nn.nowrap
    def step(
        self, weights: Weights, carry: Carry, z: Float[Array, "B GH"], masks: Masks
    ) -> tuple[Carry, Float[Array, "B H"]]:
        """Advances the carry by one projected input; returns it and y, unmasked."""
        raise NotImplementedError

    @nn.nowrap
    def linearise(
        self,
        weights: Weights,
        carry: Carry,
        z: Float[Array, "*batch GH"],
        masks: Masks,
    ) -> tuple[tuple[Carry, Float[Array, "*batch H"]], Linear]:
        """Returns what `step` does, and its derivative.

        With a time axis in front of all arguments it does each step by itself.
        """
        raise NotImplementedError

    @nn.nowrap
    def pull(
        self,
        transposed: Weights,
        linear: Linear,
        masks: Masks,
        d_carry: Carry,
        d_y: Float[Array, "B H"],
    ) -> tuple[Carry, Float[Array, "B GH"]]:
        """Takes cotangents back through a step, but for what `pull_recurrent` does.

        Args:
            transposed: the weights, matrices transposed.
            linear: the derivative, of `linearise`.
            masks: of this step.
            d_carry: cotangent of the carry handed on.
            d_y: cotangent of the output.

        Returns:
            The cotangents of the carry before the step, and of z.
        """
        raise NotImplementedError

    @nn.nowrap
    def pull_recurrent(
        self,
        transposed: Weights,
        linear: Linear,
        masks: Masks,
        d_z: Float[Array, "B GH"],
    ) -> Float[Array, "B H"]:
        """Takes the cotangent of z back to the h that step multiplies by the kernel.

        Args:
            transposed: the weights, matrices transposed.
            linear: the derivative; its `slopes` are gone.
            masks: of this step.
            d_z: of `pull`.
        """
        kernel = transposed["recurrent_kernel"]
        return transposed_matmul(d_z, masks.recurrent, kernel)

    @nn.nowrap
    def pull_weights(
        self,
        linear: Linear,
        masks: Masks,
        hs: Float[Array, "*batch H"],
        d_zs: Float[Array, "*batch GH"],
    ) -> Weights:
        """Returns the cotangents of the weights that `step` uses, of all steps at once.

        Args:
            linear: the derivative, of all steps; its `slopes` are gone.
            masks: of all steps.
            hs: the state before each step.
            d_zs: cotangent of z.
        """
        return {"recurrent_kernel": kernel_gradient(hs, masks.recurrent, d_zs)}

    @nn.nowrap
    def is_linearised(self) -> bool:
        """Returns whether the class that supplies the step supplies its derivative."""
        supplied = {"project", "step", "linearise"}
        owner = next(c for c in type(self).__mro__ if supplied & {*vars(c)})
        return "linearise" in vars(owner)

    def __call__(
        self,
        carry: Carry,
        x: Float[Array, "B D"],
        dropout: Dropout | Masks | None = None,
        keys: StreamKeys | None = None,
    ) -> tuple[Carry, Float[Array, "B H"]]:
        """Advances one step.

        Args:
            carry: the state of the previous step, as `initialize_carry` makes it.
            x: the input of this step.
            dropout: where noise enters; or `Masks` of one step, used as they are. By
                default that of the cell.
            keys: explicit keys whose `step` is this one's absolute index. By default
                keys of the rng collections `inputs` and `recurrent`, if the module has
                them: their masks live as long as flax holds the collections. No keys,
                no noise: the expectation is evaluated.

        Returns:
            The new carry, and the output y.

        Raises:
            TypeError: `keys` are not typed, or `dropout` is of another type.
            ValueError: wrong ranks or sizes, a site that the cell has not, or a rate
                that does not broadcast; one rng collection without the other, or noise
                that must know the step beside rng collections.
        """
        dropout, drawn = self.noise(dropout, keys)
        if drawn is not keys:
            check_lifetimes(dropout)
        return advance(self, self.weights, carry, x, dropout, drawn)

    @nn.nowrap
    def noise(
        self, dropout: Dropout | Masks | None, keys: StreamKeys | None
    ) -> tuple[Dropout | Masks | None, StreamKeys | None]:
        """Returns dropout and keys of a call, with what it leaves to the module."""
        dropout = self.dropout if dropout is None else dropout
        if keys is None and isinstance(dropout, Dropout):
            keys = collected_keys(self)
        return dropout, keys

    @nn.nowrap
    def initialize_carry(
        self, rng: Key[Array, ""], input_shape: tuple[int, ...]
    ) -> Carry:
        """Returns h of zeros for inputs of `input_shape`; `rng` is not used.

        Raises:
            ValueError: the module is in a `flax.linen.RNN` that keeps from it the rng
                collections of its noise.
        """
        check_collections_reach(self)
        shape = (*input_shape[:-1], self.units)
        return jnp.zeros(shape, self.dtype or self.param_dtype)

    @property
    def num_feature_axes(self) -> int:
        """Number of trailing axes of an input that are not batch."""
        return 1


def check_carry(name: str, carry, cell: Cell, input_shape: tuple[int, ...]) -> None:
    """Raises a ValueError where `carry` is not like the cell's own."""
    expected = jax.eval_shape(
        lambda: cell.initialize_carry(jax.random.key(0), input_shape)
    )
    shapes, got = (
        (jax.tree.structure(tree), [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)])
        for tree in (expected, carry)
    )
    if shapes != got:
        what = "a tuple (c, h), each" if isinstance(expected, tuple) else "h"
        raise ValueError(
            f"`{name}` must be {what} of shape [B, H] = {shapes[1][0]}, got "
            f"{type(carry).__name__} of {got[1]}."
        )


def check_features(name: str, features: int, kernel: Float[Array, "D GH"]) -> None:
    """Raises a ValueError where parameters were made for other inputs."""
    if kernel.shape[0] != features:
        raise ValueError(
            f"`{name}` must have {kernel.shape[0]} features, as the parameters do, "
            f"got {features}."
        )


def advance(
    cell: Cell,
    weights: Callable[[Float[Array, "B D"]], Weights],
    carry: Carry,
    x: Float[Array, "..."],
    dropout: Dropout | Masks | None,
    keys: StreamKeys | None,
) -> tuple[Carry, Float[Array, "B H"]]:
    """Checks the arguments of one step, draws its masks, and takes it.

    The cell gives the equations, `weights` the parameters for inputs like its argument;
    the rest are the arguments of a call of a cell.
    """
    if x.ndim != 2:
        raise ValueError(f"`x` must have the axes [B, D], got shape {x.shape}.")
    check_carry("carry", carry, cell, x.shape)
    masks = resolve(dropout, keys, cell.sites(x.shape[1]), x.shape[0])
    dropped = drop_weights(weights(x), masks)
    carry, y = cell.step(dropped, carry, cell.project(dropped, x, masks), masks)
    return carry, mask_units(y, masks.outputs)


def widen(dtype: DTypeLike) -> DTypeLike:
    """Returns float32 for a narrower float, and else the dtype itself."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def _orthogonal(key, shape, dtype):
    """In float32 or wider, as LAPACK has no narrower floats."""
    return orthogonal()(key, shape, widen(dtype)).astype(dtype)
