"""Lifetime: the time steps at which the random numbers of a mask are drawn.

A mask held over a sequence is drawn from the key of its site alone, the mask of time
step t from `fold_in(key, t)`: padding or cutting a sequence changes none of its masks.

References:
    [1] Melis, Dyer, Blunsom. On the state of the art of evaluation in neural language
        models. ICLR 2018. arXiv:1707.05589; `DriftingDropout` in its code.
    [2] Kaldi, issue 2244 and `GeneralDropoutComponent` (time-period): unchecked.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from rdrop.arguments import check_count
from rdrop.noise.node import Node
from rdrop.noise.rates import (
    Rate,
    Shape,
    as_probability,
    check_probability,
    one_or_nan,
)
from rdrop.noise.threefry import Keys, fold_in, uniform


@runtime_checkable
class Lifetime(Protocol):
    """Interface of a lifetime: it draws the mask of one step, or the masks of many.

    Both ways draw bitwise identical masks. A mask (B, G, U) may be an array or a `Mix`.
    """

    def draw_step(
        self, noise: Any, key: Key[Array, ""], shape: Shape, step: Int[Array, ""]
    ) -> Any:
        """Draws the mask (B, G, U) of one absolute time step.

        Args:
            noise: the noise, with `variate` and `mask`.
            key: the key of its site.
            shape: (B, G, U).
            step: the absolute time step, 0 or later.
        """

    def draw_steps(
        self,
        noise: Any,
        key: Key[Array, ""],
        shape: Shape,
        step: Int[Array, ""],
        time: int,
    ) -> Any:
        """Draws the masks of `time` steps from `step` on, as `draw_step`.

        Returns:
            One mask (B, G, U) if it is held over the sequence, else (T, B, G, U).
        """

    def draw_rows(self, noise: Any, keys: Keys, shape: Shape, rows: Any) -> Any:
        """Draws the masks of rows that are in different episodes, as `draw_step`.

        Args:
            noise: the noise.
            keys: of the site in the episode of each row, [B] or [T, B].
            shape: (B, G, U).
            rows: `rdrop.keys.Rows` of the same shape as the keys.

        Returns:
            Masks (B, G, U) or (T, B, G, U).
        """


class PerSequence:
    """One mask for all time steps."""

    def draw_step(self, noise, key, shape, step) -> Any:
        """Draws the mask of the sequence; see `Lifetime`."""
        return noise.draw(key, shape)

    def draw_steps(self, noise, key, shape, step, time) -> Any:
        """Draws the mask of the sequence; see `Lifetime`."""
        return noise.draw(key, shape)

    def draw_rows(self, noise, keys, shape, rows) -> Any:
        """Draws the mask of each row's episode; see `Lifetime`."""
        return _draw_rows(noise, keys, shape)


class PerStep:
    """A new mask at each time step."""

    def draw_step(self, noise, key, shape, step) -> Any:
        """Draws a mask from `fold_in(key, step)`; see `Lifetime`."""
        return noise.draw(fold_in(key, step), shape)

    def draw_steps(self, noise, key, shape, step, time) -> Any:
        """Draws one mask per step; see `Lifetime`."""
        draw = jax.vmap(lambda t: noise.draw(fold_in(key, t), shape))
        return draw(_steps(step, time))

    def draw_rows(self, noise, keys, shape, rows) -> Any:
        """Draws a mask from each row's episode and step; see `Lifetime`."""
        return _draw_rows(noise, fold_in(keys, rows.step), shape)


@dataclasses.dataclass(frozen=True)
class Drift(Node):
    """Redraws each number of a mask with some probability at each time step [1].

    It lies between the two other lifetimes. Before step 0, the numbers are the same as
    in a held mask. At probability 0 they stay, bitwise as with per="sequence"; at 1 all
    are redrawn at each step.

    The numbers of a step are found by a search backwards for their last redraw. It
    visits about log(units) / probability steps, however late the step, and none at
    probability 0.

    Attributes:
        probability: in [0, 1]: a number, an array that broadcasts to the mask's axes
            (B, G, U), a tracer or a schedule. A leaf. A traced probability that is NaN
            or outside [0, 1] makes the mask NaN.

    Raises:
        ValueError: a known probability lies outside [0, 1].
        TypeError: `probability` is text or a list.

    Example:
        >>> from rdrop import Bernoulli
        >>> jax.tree.leaves(Bernoulli(0.5, per=Drift(0.1)))
        [0.5, 0.1]
    """

    probability: Rate

    def __post_init__(self):
        super().__post_init__()
        check_probability("probability", self.probability)

    def draw_step(self, noise, key, shape, step) -> Any:
        """Draws the mask from the last redraws up to `step`; see `Lifetime`."""
        return self._mask(noise, self._numbers(noise, key, shape, step))

    def draw_steps(self, noise, key, shape, step, time) -> Any:
        """Draws one mask per step, each from the numbers before it; see `Lifetime`."""

        def advance(numbers, t):
            redrawn, fresh = self._redraw(noise, key, shape, t)
            numbers = jnp.where(redrawn, fresh, numbers)
            return numbers, self._mask(noise, numbers)

        numbers = self._numbers(noise, key, shape, step - 1)
        return jax.lax.scan(advance, numbers, _steps(step, time))[1]

    def draw_rows(self, noise, keys, shape, rows) -> Any:
        """Draws the masks of rows in their episodes; see `Lifetime`."""
        if keys.ndim == 1:
            return self._mask(noise, self._numbers(noise, keys, shape, rows.step))

        def advance(numbers, at_step):
            key, row = at_step
            fresh = self._held(noise, key, shape)
            numbers = jnp.where(row.begins[:, None, None], fresh, numbers)
            redrawn, fresh = self._redraw(noise, key, shape, row.step)
            numbers = jnp.where(redrawn, fresh, numbers)
            return numbers, self._mask(noise, numbers)

        numbers = self._numbers(noise, keys[0], shape, rows.step[0] - 1)
        return jax.lax.scan(advance, numbers, (keys, rows))[1]

    def _numbers(self, noise, key, shape, last) -> Float[Array, "B G U"]:
        """The numbers at step `last`: each from its last redraw, if there was one.

        Key and last step are single ones, or there is one for each row.
        """

        def search(state):
            t, numbers, waiting = state
            redrawn, fresh = self._redraw(noise, key, shape, t)
            redrawn = redrawn & reached(t)
            numbers = jnp.where(waiting & redrawn, fresh, numbers)
            return t - 1, numbers, waiting & ~redrawn

        def reached(t):
            return (t >= 0).reshape(-1, 1, 1)

        held = self._held(noise, key, shape)
        waiting = jnp.isfinite(held) & (self._chance() > 0)
        return jax.lax.while_loop(
            lambda state: (reached(state[0]) & state[2]).any(),
            search,
            (last, held, waiting),
        )[1]

    def _held(self, noise, key, shape) -> Float[Array, "B G U"]:
        """The numbers before step 0.

        They depend on key and probability, so that a loop keeps their sharding.
        """
        return noise.variate(key, shape) * one_or_nan(self._chance())

    def _redraw(
        self, noise, key, shape, step
    ) -> tuple[Bool[Array, "B G U"], Float[Array, "B G U"]]:
        """Whether each number is redrawn at a step, and its new value if so."""
        key = fold_in(key, step)
        redrawn = uniform(fold_in(key, 0), shape) < self._chance()
        return redrawn, noise.variate(key, shape)

    def _chance(self) -> Float[Array, "#B #G #U"]:
        chance = as_probability("probability", self.probability)
        return jax.lax.stop_gradient(chance)

    def _mask(self, noise, numbers) -> Any:
        """The mask of some numbers, NaN if the probability is."""
        one = one_or_nan(self._chance())
        return jax.tree.map(lambda mask: mask * one, noise.mask(numbers))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Block:
    """One mask for each block of some steps, as Kaldi has them [2].

    The blocks begin at step 0. Blocks of one step are per="step".

    Attributes:
        steps: of a block, static.

    Raises:
        ValueError: `steps` is not an integer of 1 or more.

    Example:
        >>> from rdrop import Bernoulli
        >>> Bernoulli(0.5, per=Block(10)).per.steps
        10
    """

    steps: int

    def __post_init__(self):
        object.__setattr__(self, "steps", check_count("steps", self.steps))

    def draw_step(self, noise, key, shape, step) -> Any:
        """Draws a mask from the number of the step's block; see `Lifetime`."""
        return noise.draw(fold_in(key, step // self.steps), shape)

    def draw_steps(self, noise, key, shape, step, time) -> Any:
        """Draws one mask per block, and takes the one of each step; see `Lifetime`."""
        first, most = step // self.steps, -(-time // self.steps) + 1
        draw = jax.vmap(lambda block: noise.draw(fold_in(key, block), shape))
        masks = draw(_steps(first, most))
        places = _steps(step, time) // self.steps - first
        return jax.tree.map(lambda mask: mask[places], masks)

    def draw_rows(self, noise, keys, shape, rows) -> Any:
        """Draws a mask from each row's episode and block; see `Lifetime`."""
        return _draw_rows(noise, fold_in(keys, rows.step // self.steps), shape)


LIFETIMES: dict[str, Lifetime] = {"sequence": PerSequence(), "step": PerStep()}


def lifetime_of(noise: Any) -> Lifetime:
    """Returns the lifetime that `noise.per` is, or names."""
    return LIFETIMES[noise.per] if isinstance(noise.per, str) else noise.per


def _draw_rows(noise, keys, shape) -> Any:
    """Draws each row with its own key, at one step or at all steps."""
    if keys.ndim == 1:
        return noise.draw(keys, shape)
    return jax.vmap(lambda of_step: noise.draw(of_step, shape))(keys)


def _steps(step, time) -> Int[Array, "T"]:
    return step[None] + jnp.arange(time, dtype=jnp.int32)
