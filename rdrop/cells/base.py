"""Base: what all cells share, and how a mask is applied.

A cell declares its gates, parameters and sites, and supplies one equation, `step`. Its
input projection needs no carry, so a layer does it for all time steps at once. A cell
that also supplies the derivative of its step by hand, `linearise` and `pull`, is run by
the fused scan.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.initializers import glorot_uniform, orthogonal, zeros_init
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from rdrop.dropout import Dropout, Mask, Masks, resolve
from rdrop.keys import StreamKeys
from rdrop.noise import Mix, Site

Carry: TypeAlias = Any
Weights: TypeAlias = dict[str, Float[Array, "..."]]
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
    """

    units: int
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

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
            "recurrent_kernel": (orthogonal(), (self.units, gates)),
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
            made_for: int = self.get_variable("params", "kernel").shape[0]
            if made_for != features:
                raise ValueError(
                    f"`{name}` must have {made_for} features, as the parameters do, "
                    f"got {features}."
                )
        params = {
            name: self.param(name, initialiser, shape, self.param_dtype)
            for name, (initialiser, shape) in self.parameters(features).items()
        }
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
            dropout: where noise enters; or `Masks` of one step, used as they are.
            keys: explicit keys whose `step` is this one's absolute index. No keys, no
                noise: the expectation is evaluated.

        Returns:
            The new carry, and the output y.

        Raises:
            TypeError: `keys` are not typed, or `dropout` is of another type.
            ValueError: wrong ranks or sizes, a site that the cell has not, or a rate
                that does not broadcast.
        """
        if x.ndim != 2:
            raise ValueError(f"`x` must have the axes [B, D], got shape {x.shape}.")
        check_carry("carry", carry, self, x.shape)
        masks = resolve(dropout, keys, self.sites(x.shape[1]), x.shape[0])
        weights = drop_weights(self.weights(x), masks)
        carry, y = self.step(weights, carry, self.project(weights, x, masks), masks)
        return carry, mask_units(y, masks.outputs)

    @nn.nowrap
    def initialize_carry(
        self, rng: Key[Array, ""], input_shape: tuple[int, ...]
    ) -> Carry:
        """Returns h of zeros for inputs of `input_shape`; `rng` is not used."""
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


def drop_weights(weights: Weights, masks: Masks) -> Weights:
    """Multiplies the kernels by their masks (R, G, U), once a forward pass."""
    dropped = dict(weights)
    for name, mask in (
        ("kernel", masks.input_weights),
        ("recurrent_kernel", masks.recurrent_weights),
    ):
        if mask is not None:
            kernel = weights[name]
            flat = mask.reshape(mask.shape[0], -1).astype(kernel.dtype)
            dropped[name] = kernel * flat
    return dropped


def masked_matmul(
    x: Float[Array, "*batch D"],
    mask: Float[Array, "..."] | None,
    kernel: Float[Array, "D GH"],
) -> Float[Array, "*batch GH"]:
    """Multiplies (m * x) by a fused kernel, with one mask for all gates or one a gate.

    Args:
        x: left operand; a leading time axis may precede the batch.
        mask: (B, 1, D) or (B, G, D), or either after a time axis; None is no mask.
        kernel: the gates' kernels side by side.
    """
    masks = split_gates(mask)
    kernels = jnp.split(kernel, len(masks), axis=-1)
    products = [mask_units(x, m) @ k for m, k in zip(masks, kernels, strict=True)]
    return jnp.concatenate(products, axis=-1)


def split_gates(
    mask: Float[Array, "..."] | None,
) -> Sequence[Float[Array, "..."] | None]:
    """Returns the mask of each gate that has its own, or the one that all share."""
    return [None] if mask is None else jnp.split(mask, mask.shape[-2], axis=-2)


def transposed_matmul(
    d_z: Float[Array, "*batch GH"],
    mask: Float[Array, "..."] | None,
    transposed: Float[Array, "GH D"],
) -> Float[Array, "*batch D"]:
    """Takes the cotangent of `masked_matmul` back to x."""
    masks = split_gates(mask)
    parts = (jnp.split(a, len(masks), axis) for a, axis in ((d_z, -1), (transposed, 0)))
    products = [mask_units(d @ u, m) for d, u, m in zip(*parts, masks, strict=True)]
    return functools.reduce(jnp.add, products)


def kernel_gradient(
    xs: Float[Array, "*batch D"],
    mask: Float[Array, "..."] | None,
    d_zs: Float[Array, "*batch GH"],
) -> Float[Array, "D GH"]:
    """Takes the cotangent of `masked_matmul` back to the kernel, of all steps at once.

    One large product costs a fraction of a small one after each step.
    """
    masks = split_gates(mask)
    gradients = [
        _flat(mask_units(xs, m)).T @ _flat(d)
        for m, d in zip(masks, jnp.split(d_zs, len(masks), axis=-1), strict=True)
    ]
    return jnp.concatenate(gradients, axis=-1)


def _flat(values):
    return values.reshape(-1, values.shape[-1])


def mask_units(
    value: Float[Array, "*batch H"], mask: Float[Array, "..."] | None
) -> Float[Array, "*batch H"]:
    """Multiplies by a mask (B, 1, H), or (T, B, 1, H) where `value` has a time axis."""
    if mask is None:
        return value
    mask = jnp.squeeze(mask, -2).astype(value.dtype)
    return value * mask.reshape((1,) * (value.ndim - mask.ndim) + mask.shape)


def mask_gates(
    gates: tuple[Float[Array, "*batch H"], ...], mask: Float[Array, "..."] | None
) -> tuple[Float[Array, "*batch H"], ...]:
    """Multiplies each gate by its own mask, or all by one: (B, G, H) or (B, 1, H)."""
    if mask is None:
        return gates
    parts = [*split_gates(mask)]
    parts = parts * (len(gates) // len(parts))
    return tuple(
        mask_units(gate, part) for gate, part in zip(gates, parts, strict=True)
    )


def hand_on(
    new: Float[Array, "*batch H"],
    old: Float[Array, "*batch H"],
    mask: Mask | Mix | None,
) -> Float[Array, "*batch H"]:
    """Returns the state that the next step sees: multiplied, or mixed with the old."""
    if not isinstance(mask, Mix):
        return mask_units(new, mask)
    share = mask.share.astype(new.dtype)
    return mask_units(old, share) + mask_units(new, 1 - share)


def put_out(
    new: Float[Array, "*batch H"],
    old: Float[Array, "*batch H"],
    mask: Mask | Mix | None,
) -> tuple[Float[Array, "*batch H"], Float[Array, "*batch H"]]:
    """Returns h as the next step sees it, and as the output: the mixed, or the new."""
    state = hand_on(new, old, mask)
    return state, state if isinstance(mask, Mix) else new


def hand_back(
    d_state: Float[Array, "*batch H"], mask: Mask | Mix | None
) -> tuple[Float[Array, "*batch H"], Float[Array, "*batch H"]]:
    """Takes the cotangent of `hand_on` back to the new state and to the old."""
    if not isinstance(mask, Mix):
        return mask_units(d_state, mask), jnp.zeros_like(d_state)
    share = mask.share.astype(d_state.dtype)
    return mask_units(d_state, 1 - share), mask_units(d_state, share)


def take_back(
    d_state: Float[Array, "*batch H"],
    d_y: Float[Array, "*batch H"],
    mask: Mask | Mix | None,
) -> tuple[Float[Array, "*batch H"], Float[Array, "*batch H"]]:
    """Takes the cotangents of `put_out` back to the new h and to the old."""
    if isinstance(mask, Mix):
        return hand_back(d_state + d_y, mask)
    d_new, d_old = hand_back(d_state, mask)
    return d_new + d_y, d_old
