"""Diagonal recurrences of complex state: LRU and S5.

References:
    [1] Orvieto et al. Resurrecting recurrent neural networks for long sequences. ICML
        2023. arXiv:2303.06349.
    [2] NicolasZucchet/minimal-LRU, lru/model.py: the code that [1] is known by; not of
        its authors.
    [3] Smith, Warrington, Linderman. Simplified state space layers for sequence
        modeling. ICLR 2023. arXiv:2208.04933; their code, lindermanlab/S5, s5/ssm.py
        and s5/ssm_init.py.
"""

import dataclasses
from functools import partial
from typing import ClassVar, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from rdrop.arguments import check_count
from rdrop.cells.affine import Affine, Pair
from rdrop.cells.masking import (
    Mask,
    Weights,
    broadcastable,
    drop_kernel,
    mask_units,
    next_memory,
    project,
)
from rdrop.cells.recurrence import Initialiser, Parameters, widened
from rdrop.cells.tape import Tape
from rdrop.dropout import Masks
from rdrop.noise import Add, Mix
from rdrop.sites import Site

# (m_x * x) B, real and imaginary parts side by side, M = 2 N; and d * (m_x * x).
Projected: TypeAlias = tuple[Float[Array, "*batch M"], Float[Array, "*batch H"] | None]


@dataclasses.dataclass(frozen=True)
class Diagonal(Affine):
    """A recurrence with a diagonal complex matrix. Its carry is its memory c, complex.

        c_new = decay * c + m_g * scale * ((m_x * x) B)
        y = Re(c_new C) + d * (m_x * x)

    Decay and scale are constants [N] of a subclass. The next step sees c_new multiplied
    by the mask of `cell_state`, or mixed with c. y is made from the multiplied c, but
    from the c before mixing, as h of an LSTM is. A unit of a mask is one complex
    number. d exists if inputs and outputs have the same size.

    Parameters:
        kernel [D, 2N]: B, real and then imaginary part; output_kernel [2N, H]: C, its
        real part and its imaginary part times -1; diagonal [3, N], of which decay and
        scale are made; skip [H]: d, normal, if D = H.

    Attributes:
        units: H, the size of the output.
        dtype, param_dtype: as in `Recurrence`. c is complex64, or complex128.
        kernel_init: of B and C, in place of the usual one of the cell.
        state: N, the size of the memory; None for H.
        COPIES: how often C counts in y.

    Raises:
        ValueError: as `Recurrence`; a `state` that is not an integer of 1 or more; or
            `use_bias` or `bias_init`: it has no bias.
        TypeError: as `Recurrence`.
    """

    use_bias: bool = False
    state: int | None = None

    INITS: ClassVar[tuple[str, ...]] = ("kernel_init",)
    WIDE: ClassVar[tuple[str, ...]] = ("diagonal",)
    CARRY: ClassVar[tuple[str, ...]] = ("c",)
    COPIES: ClassVar[int] = 1

    def __post_init__(self):
        super().__post_init__()
        if self.state is not None:
            check_count("state", self.state)
        if self.use_bias:
            cell = type(self).__name__
            raise ValueError(f"`use_bias` must be False in {cell}, which has no bias.")

    @property
    def size(self) -> int:
        """N, the number of complex units of the memory."""
        return self.state or self.units

    def sites(self, features: int) -> dict[str, Site]:
        """Returns the size of each noise site for inputs of `features` units."""
        sites = super().sites(features)
        del sites["hidden_state"]
        return sites | {
            "input_weights": Site(1, self.size, rows=features),
            "update": Site(1, self.size),
            "cell_state": Site(1, self.size, is_complex=True),
        }

    def parameters(self, features: int) -> Parameters:
        """Returns initialiser and shape of each parameter."""
        into, out, diagonal = self.initialisers(features)
        params: Parameters = {
            "kernel": (self.kernel_init or into, (features, 2 * self.size)),
            "output_kernel": (self.kernel_init or out, (2 * self.size, self.units)),
            "diagonal": (diagonal, (3, self.size)),
        }
        if features == self.units:
            params["skip"] = (jax.nn.initializers.normal(1.0), (self.units,))
        return params

    def initialisers(
        self, features: int
    ) -> tuple[Initialiser, Initialiser, Initialiser]:
        """Returns the usual initialisers of B, of C and of the diagonal."""
        raise NotImplementedError

    def decay(
        self, diagonal: Float[Array, "3 N"]
    ) -> tuple[Complex[Array, "N"], Complex[Array, "N"]]:
        """Returns decay and scale."""
        raise NotImplementedError

    def initial_carry(self, *batch: int) -> Complex[Array, "*batch N"]:
        """Returns c of zeros, [*batch, N]."""
        dtype = widened(self.dtype or self.param_dtype)
        zeros = jnp.zeros((*batch, self.size), dtype)
        return jax.lax.complex(zeros, zeros)

    def drop(self, weights: Weights, masks: Masks) -> Weights:
        """Returns the parameters with a mask of B applied to both of its parts."""
        if masks.input_weights is None:
            return weights
        both = jax.tree.map(lambda mask: jnp.tile(mask, (1, 1, 2)), masks.input_weights)
        return weights | {"kernel": drop_kernel(weights["kernel"], both)}

    def project(
        self,
        weights: Weights,
        x: Float[Array, "*batch D"],
        mask: Float[Array, "..."] | None,
    ) -> Projected:
        """Returns (m_x * x) B, and d * (m_x * x) or None, of one step or of all."""
        z = project(weights, x, mask)
        if "skip" not in weights:
            return z, None
        skip = broadcastable(weights["skip"], x)
        return z, mask_units(x.astype(z.dtype), mask) * skip

    def coefficients(self, weights: Weights, z: Projected, masks: Masks) -> Pair:
        """Returns decay and scaled input; see `Affine.coefficients`."""
        parts = jnp.split(z[0], 2, axis=-1)
        rows = self.decay(weights["diagonal"].astype(z[0].dtype))
        decay, scale = (broadcastable(row, z[0]) for row in rows)
        return decay, mask_units(scale * jax.lax.complex(*parts), masks.update)

    def emit(
        self,
        weights: Weights,
        new: Complex[Array, "*batch N"],
        old: Complex[Array, "*batch N"],
        z: Projected,
        masks: Masks,
        tape: Tape,
    ) -> tuple[Complex[Array, "*batch N"], Float[Array, "*batch H"]]:
        """Returns the c that the next step sees, and y; see `Affine.emit`."""
        c, seen = next_memory(new, old, masks.cell_state)
        parts = jnp.concatenate([seen.real, seen.imag], axis=-1)
        y = self.COPIES * tape.matmul(parts, weights["output_kernel"])
        return c, y if z[1] is None else y + z[1].astype(y.dtype)

    def mask_of_state(self, masks: Masks) -> Mask | Mix | Add | None:
        """Returns the mask of c."""
        return masks.cell_state


@dataclasses.dataclass(frozen=True)
class LRU(Diagonal):
    """Linear recurrent unit [1, 2]; see `Diagonal` for its equations.

        decay = exp(-exp(nu) + i exp(theta)),   scale = exp(gamma)

    The rows of `diagonal` are nu, theta and gamma. At the beginning, |decay| is spread
    over a ring of radii `radii`, its phase over [0, `largest_phase`], and scale is
    sqrt(1 - |decay|^2). B and C are normal, with variances 1 / (2 D) and 1 / N of each
    part [2].

    Attributes:
        units, dtype, param_dtype, kernel_init, state: as in `Diagonal`.
        radii: least and largest |decay| at initialisation, 0 <= least < largest <= 1.
        largest_phase: in radians, above 0.

    Raises:
        ValueError: as `Diagonal`; or radii or a phase out of range.
        TypeError: as `Recurrence`.
    """

    radii: tuple[float, float] = (0.0, 1.0)
    largest_phase: float = 6.28

    def __post_init__(self):
        super().__post_init__()
        least, largest = self.radii
        if not 0 <= least < largest <= 1:
            raise ValueError(
                f"`radii` must be 0 <= least < largest <= 1, got {self.radii}."
            )
        if not self.largest_phase > 0:
            raise ValueError(
                f"`largest_phase` must be above 0, got {self.largest_phase}."
            )

    def initialisers(
        self, features: int
    ) -> tuple[Initialiser, Initialiser, Initialiser]:
        """Returns the initialisers of [2]."""
        normal = jax.nn.initializers.normal
        into, out = (2 * features) ** -0.5, self.size**-0.5
        return normal(into), normal(out), partial(_ring, self.radii, self.largest_phase)

    def decay(
        self, diagonal: Float[Array, "3 N"]
    ) -> tuple[Complex[Array, "N"], Complex[Array, "N"]]:
        """Returns decay and scale."""
        nu, theta, gamma = diagonal
        decay = jnp.exp(jax.lax.complex(-jnp.exp(nu), jnp.exp(theta)))
        return decay, jax.lax.complex(jnp.exp(gamma), jnp.zeros_like(gamma))


@dataclasses.dataclass(frozen=True)
class S5(Diagonal):
    """S5's state space model [3], discretised by zero-order hold.

        decay = exp(lambda * exp(s)),   scale = (decay - 1) / lambda

    See `Diagonal` for its equations; C counts twice, for the conjugate half of the
    memory, which is not kept. The rows of `diagonal` are the real and the imaginary
    part of lambda, and s. At the beginning lambda are eigenvalues of the normal part of
    HiPPO-LegS, in `blocks` equal blocks, B and C are random in the basis of its
    eigenvectors, and exp(s) is log-uniform over `steps`.

    Attributes:
        units, dtype, param_dtype, kernel_init, state: as in `Diagonal`; N is half of
            the state size of [3].
        blocks: of the matrix at initialisation; divides N. 8 in the code of [3].
        steps: least and largest time step at initialisation, above 0.

    Raises:
        ValueError: as `Diagonal`; blocks that do not divide N, or steps out of range.
        TypeError: as `Recurrence`.
    """

    COPIES: ClassVar[int] = 2

    blocks: int = 1
    steps: tuple[float, float] = (0.001, 0.1)

    def __post_init__(self):
        super().__post_init__()
        check_count("blocks", self.blocks)
        if self.size % self.blocks:
            raise ValueError(
                f"`blocks` must divide the state size {self.size}, got {self.blocks}."
            )
        if not 0 < self.steps[0] <= self.steps[1]:
            raise ValueError(f"`steps` must be 0 < least <= largest, got {self.steps}.")

    def initialisers(
        self, features: int
    ) -> tuple[Initialiser, Initialiser, Initialiser]:
        """Returns the initialisers of [3]."""
        eigenvalues, vectors = hippo(self.size // self.blocks)
        eigenvalues = np.tile(eigenvalues, self.blocks)
        basis = np.kron(np.eye(self.blocks), vectors)
        return (
            partial(_into_basis, basis),
            partial(_out_of_basis, basis),
            partial(_with_steps, eigenvalues, self.steps),
        )

    def decay(
        self, diagonal: Float[Array, "3 N"]
    ) -> tuple[Complex[Array, "N"], Complex[Array, "N"]]:
        """Returns decay and scale."""
        real, imaginary, log_step = diagonal
        step = jnp.exp(log_step)
        change = _expm1(real * step, imaginary * step)
        return change + 1, change / jax.lax.complex(real, imaginary)


def hippo(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and eigenvectors of the normal part of HiPPO-LegS [3].

    Args:
        size: N; the matrix has 2 N rows.

    Returns:
        The N eigenvalues of positive imaginary part, and their vectors [2N, N].
    """
    order = np.arange(2 * size)
    root = np.sqrt(order + 0.5)
    # The normal part is this and -1/2 on the diagonal.
    skew = np.outer(root, root) * np.sign(order[None, :] - order[:, None])
    imaginary, vectors = np.linalg.eigh(-1j * skew)
    vectors = vectors[:, size:]
    # An eigenvector has no phase of its own; its first number is made positive.
    vectors = vectors * (abs(vectors[0]) / vectors[0])
    return -0.5 + 1j * imaginary[size:], vectors


def _expm1(real, imaginary):
    """Returns exp(z) - 1 of complex z, accurate if z is small."""
    grown = jnp.expm1(real)
    turned = -2 * jnp.sin(imaginary / 2) ** 2
    return jax.lax.complex(
        grown + turned + grown * turned, (grown + 1) * jnp.sin(imaginary)
    )


def _ring(radii, largest_phase, key, shape, dtype):
    """Draws nu and theta uniformly by area, and gamma of them."""
    to_radius, to_phase = jax.random.split(key)
    least, largest = radii
    area = jax.random.uniform(to_radius, shape[1:], jnp.float32, minval=2.0**-24)
    speed = -0.5 * jnp.log(area * (largest**2 - least**2) + least**2)
    speed = jnp.maximum(speed, 2.0**-24)
    phase = largest_phase * jax.random.uniform(
        to_phase, shape[1:], jnp.float32, minval=2.0**-24
    )
    gamma = 0.5 * jnp.log(-jnp.expm1(-2 * speed))
    return jnp.stack([jnp.log(speed), jnp.log(phase), gamma]).astype(dtype)


def _into_basis(basis, key, shape, dtype):
    """Draws a real input matrix, and expresses it in the basis of the memory."""
    draw = jax.nn.initializers.lecun_normal()
    real = draw(key, (len(basis), shape[0]), jnp.float32)
    turned = jnp.asarray(basis.conj().T, jnp.complex64) @ real.astype(jnp.complex64)
    return jnp.concatenate([turned.real, turned.imag]).T.astype(dtype)


def _out_of_basis(basis, key, shape, dtype):
    """Draws a complex output matrix, and lets it read the basis of the memory."""
    draw = jax.nn.initializers.lecun_normal(in_axis=-1, out_axis=-2, batch_axis=0)
    rows = draw(key, (2, shape[1], len(basis)), jnp.float32)
    drawn = jax.lax.complex(*rows)
    turned = drawn @ jnp.asarray(basis, jnp.complex64)
    return jnp.concatenate([turned.real, -turned.imag], axis=1).T.astype(dtype)


def _with_steps(eigenvalues, steps, key, shape, dtype):
    """Stacks the eigenvalues and the logarithms of random time steps."""
    least, largest = np.log(steps)
    drawn = jax.random.uniform(
        key, shape[1:], jnp.float32, minval=least, maxval=largest
    )
    parts = np.float32([eigenvalues.real, eigenvalues.imag])
    return jnp.concatenate([parts, drawn[None]]).astype(dtype)
