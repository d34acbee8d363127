"""Wrapping: noise around a cell of another library, which stays as it is.

A cell of flax.linen, flax.nnx or equinox, or any function, is a box: noise can enter
what goes in, what comes out, what is carried over, and the kernels. These sites are
drawn as for the cells of rdrop, with the same masks. `update`, `gates` and `recurrent`
lie inside the box; only the cells of rdrop have them.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rdrop.cells import Carry, Recurrence, Tape, mask_units
from rdrop.cells.masking import drop_kernel, is_output, next_state
from rdrop.dropout import Dropout, Masks
from rdrop.keys import StreamKeys
from rdrop.libraries import KNOWN, Known, Library, library_of, split_params
from rdrop.loops import Call, Noise, Options, Xs, run_sequences, run_step
from rdrop.noise import Mix, Zoneout
from rdrop.sites import SITES, Site

STATES = ("cell_state", "hidden_state")
KERNELS = ("input_weights", "recurrent_weights")
INSIDE = (
    "lies inside the cell, which `wrap` does not change. Use the cell of rdrop, or "
    "write the equations as an rdrop.cells.Recurrence. From outside, `hidden_state` "
    "multiplies the h that the whole next step sees"
)


def wrap(
    cell: Any,
    *,
    carry: Callable[[Any, tuple[int, ...]], Any] | None = None,
    states: Sequence[str | None] | None = None,
    output: str | None = None,
    kernels: Mapping[str, str | Sequence[str]] | None = None,
    transposed: bool | None = None,
    time_major: bool = False,
    reverse: bool = False,
) -> "Wrapped":
    """Returns a cell of another library as a layer with noise around it.

    Of the recurrent cells of flax.linen, flax.nnx and equinox, `wrap` knows carry and
    kernels. Of other cells it does not, and has no sites there unless it is told.

    Args:
        cell: a recurrent cell of flax.linen or flax.nnx, yours among them; an
            `equinox.nn.LSTMCell` or `GRUCell`; or a function of (params, carry, x) that
            returns (carry, y), for a batch.
        carry: a function of (params, shape of x) that returns the carry before the
            first step; for a batch, x has the shape (B, ...). By default a flax cell's
            `initialize_carry`, and zeros of `hidden_size` for the cells of equinox.
        states: for each leaf of the carry its site: "cell_state", "hidden_state" or
            None.
        output: the state that is also the output y, so that zoneout mixes both;
            by default "hidden_state" for a known cell, and None for others.
        kernels: for "input_weights" and "recurrent_weights", the path of the kernel in
            the parameters, as in "params/hh/kernel", or the paths of the kernels of
            each gate.
        transposed: whether kernels are [out, in]; by default those of equinox are.
        time_major: as in `RNN`.
        reverse: as in `RNN`.

    Returns:
        `Wrapped`, a layer that takes parameters as an argument.

    Raises:
        TypeError: `cell` is none of these, or is a layer or a cell of rdrop.
        ValueError: a site that is not around the cell, or no `carry` where it is
            needed.

    Example:
        >>> from flax import linen as nn
        >>> import rdrop
        >>> rnn, xs = rdrop.wrap(nn.GRUCell(8)), jnp.ones((2, 5, 3))
        >>> params = rnn.init(jax.random.key(0), xs)
        >>> dropout = rdrop.Dropout(hidden_state=rdrop.Zoneout(0.1))
        >>> h, ys = rnn.apply(params, xs, dropout, rdrop.stream_keys(jax.random.key(1)))
        >>> ys.shape
        (2, 5, 8)
    """
    library = library_of(cell)
    theirs = type(cell).__module__.startswith(("flax.", "equinox."))
    table = KNOWN.get(library.name, {}) if theirs else {}
    known = table.get(type(cell).__name__, Known((), ((), ())))
    if states is None and known.states:
        output = output or "hidden_state"
    paths = dict(zip(KERNELS, known.kernels, strict=True)) | dict(kernels or {})
    if unknown := paths.keys() - set(KERNELS):
        raise ValueError(f"`kernels` must be for {KERNELS}, got {sorted(unknown)}.")
    names = known.states if states is None else tuple(states)
    for site in (*names, output):
        if site not in (*STATES, None):
            raise ValueError(
                f"`states` and `output` must name {STATES} or None, got {site!r}."
            )
    if output is not None and output not in names:
        raise ValueError(f"`output` must be one of `states` {names}, got {output!r}.")
    return Wrapped(
        cell=cell,
        library=library._replace(
            carry=carry or library.carry,
            transposed=library.transposed if transposed is None else transposed,
        ),
        states=names,
        output=output,
        kernels={
            site: (where,) if isinstance(where, str) else tuple(where)
            for site, where in paths.items()
            if where
        },
        options=Options(time_major, reverse, loop="plain"),
    )


@dataclasses.dataclass(frozen=True)
class Wrapped:
    """A cell of another library over sequences, with noise around it; see `wrap`.

    A feature map, such as the image that a ConvLSTM carries, has one unit per value:
    masks have the axes (B, 1, U) with U the number of values of an example.

    Attributes:
        cell: the cell.
        library: how it is run.
        states: the site of each leaf of its carry.
        output: the state that is also the output.
        kernels: paths of kernels, by site.
        options: how sequences are run.
    """

    cell: Any
    library: Library
    states: tuple[str | None, ...]
    output: str | None
    kernels: Mapping[str, tuple[str, ...]]
    options: Options

    def init(self, key: Any, xs: Xs) -> Any:
        """Returns parameters for sequences like `xs`, of a cell of flax.linen.

        Raises:
            TypeError: the cell holds its own parameters, or is a function.
        """
        if self.library.name != "linen":
            raise TypeError(
                "`init` is for cells of flax.linen. A cell of flax.nnx or equinox is "
                "its own `params`; those of a function are yours."
            )
        x = self._first(jnp.asarray(xs))
        return self.cell.init(key, self.library.carry(None, x.shape), x)

    def apply(
        self,
        params: Any,
        xs: Xs,
        dropout: Noise = None,
        keys: StreamKeys | None = None,
        *,
        initial_carry: Carry | None = None,
        lengths: Any = None,
        resets: Any = None,
    ) -> tuple[Carry, Xs]:
        """Runs over the sequences of a batch, as `RNN` does.

        Args:
            params: variables of a linen cell; the nnx or equinox cell itself, of which
                nothing but the parameters is used; or those of the function.
            xs: the inputs, [B, T, ...], or [T, B, ...] if `time_major`.
            dropout: where noise enters.
            keys: explicit keys; without them, the expectation is evaluated.
            initial_carry: the carry before the first step.
            lengths: as in `RNN`.
            resets: as in `RNN`.

        Returns:
            The final carry, and the outputs, with the axes of `xs` in front.

        Raises:
            TypeError, ValueError: as `RNN`; a site that is not around the cell.
        """
        xs = jnp.asarray(xs)
        if xs.ndim < 3:
            axes = "[T, B, ...]" if self.options.time_major else "[B, T, ...]"
            raise ValueError(f"`xs` must have the axes {axes}, got shape {xs.shape}.")
        box, weights = self._box(params, self._first(xs), dropout)
        carry = None if initial_carry is None else box.flat(initial_carry)
        call = Call(_rows(xs, 2), dropout, keys, carry, lengths, resets)
        carry, ys = run_sequences(box, lambda _: weights, call, self.options)
        return box.whole(carry), ys.reshape(*xs.shape[:2], *box.y.shape[1:])

    def step(
        self,
        params: Any,
        carry: Carry,
        x: Float[Array, "B ..."],
        dropout: Noise = None,
        keys: StreamKeys | None = None,
    ) -> tuple[Carry, Float[Array, "B ..."]]:
        """Advances one step, as the cells of rdrop do.

        Args:
            params: as in `apply`.
            carry: the state of the previous step.
            x: the input of this step.
            dropout: where noise enters, or `Masks` of one step.
            keys: explicit keys whose `step` is the absolute index of this step.

        Raises:
            TypeError, ValueError: as `apply`.
        """
        x = jnp.asarray(x)
        box, weights = self._box(params, x, dropout)
        flat = _rows(x, 1)
        carry, y = run_step(
            box, lambda _: weights, box.flat(carry), flat, dropout, keys
        )
        return box.whole(carry), y.reshape(box.y.shape)

    def sites(self, params: Any, features: int | tuple[int, ...]) -> dict[str, Site]:
        """Returns the size of each noise site for inputs of `features` units.

        Args:
            params: as in `apply`.
            features: the number of units of an input, or the axes behind its batch.
        """
        axes = features if isinstance(features, tuple) else (features,)
        x = jnp.zeros((1, *axes))
        return self._box(params, x, None)[0].sites(math.prod(axes))

    def _first(self, xs):
        return xs[0] if self.options.time_major else xs[:, 0]

    def _box(self, params, x, dropout) -> tuple["_Box", dict[str, Any]]:
        """Returns the cell as the loops see it, and its parameters by path."""
        arrays, rebuild = split_params(params)
        batch, *features = x.shape
        carry = partial(self.library.carry, params)
        start = jax.eval_shape(lambda: carry((batch, *features)))
        named = jax.tree.leaves(start)
        treedef: Any = jax.tree.structure(start)
        if len(self.states) not in (0, len(named)):
            raise ValueError(
                f"`states` must name each of the {len(named)} leaves of the carry, got "
                f"{self.states}."
            )
        run = self.library.step

        def advance(weights, leaves, x):
            return run(rebuild(weights), jax.tree.unflatten(treedef, leaves), x)

        # A step may compute in a wider dtype than that of the cell's own zeros.
        after, y = jax.eval_shape(advance, arrays, named, x)
        if jax.tree.structure(after) != treedef:
            raise ValueError(
                f"`cell` must return a carry of the structure {treedef}, got "
                f"{jax.tree.structure(after)}."
            )
        named = jax.tree.leaves(after)
        for site, where in self.kernels.items():
            if missing := set(where) - arrays.keys():
                raise ValueError(
                    f"`kernels` of `{site}` must be paths in the parameters, which are "
                    f"{', '.join(arrays)}; got {', '.join(sorted(missing))}."
                )
        box = _Box(
            units=_size(y),
            wrapped=self,
            advance=advance,
            carry=carry,
            treedef=treedef,
            leaves=named,
            features=tuple(features),
            y=y,
            arrays=arrays,
        )
        box.check(dropout)
        return box, arrays


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Box(Recurrence):
    """A cell with flat carry, inputs and outputs: a recurrence for the plain loop."""

    wrapped: Wrapped
    advance: Callable[..., Any]
    carry: Callable[[tuple[int, ...]], Any]
    treedef: Any
    leaves: list[Any]
    features: tuple[int, ...]
    y: Any
    arrays: Mapping[str, Any]

    def check(self, dropout) -> None:
        """Raises if noise is at a site that cannot be reached."""
        if not isinstance(dropout, Dropout | Masks):
            return
        reachable = self.sites(1)
        for name, noise in dropout.sites():
            if name not in (*reachable, *STATES, *KERNELS):
                raise ValueError(f"Site `{name}` {INSIDE}.")
            if name not in reachable:
                argument = "kernels" if SITES[name].on_weights else "states"
                raise ValueError(
                    f"Site `{name}`: `wrap` must be told where it is in this cell, by "
                    f"`{argument}`."
                )
            if name == "cell_state" and not isinstance(noise, Zoneout | Mix):
                raise ValueError(
                    "Site `cell_state` of a wrapped cell takes Zoneout(rate): a mask "
                    "that multiplies c acts on h as well, inside the cell. Use the "
                    "cell of rdrop."
                )

    def sites(self, features: int) -> dict[str, Site]:
        """Returns the size of each site, for flat inputs."""
        sites = {"inputs": Site(1, features), "outputs": Site(1, _size(self.y))}
        for name, leaf in zip(self.wrapped.states, self.leaves, strict=False):
            if name is not None:
                sites[name] = Site(1, _size(leaf))
        for name, where in self.wrapped.kernels.items():
            shape = self._turned(self.arrays[where[0]]).shape
            sites[name] = Site(len(where), shape[-1], rows=math.prod(shape[:-1]))
        return sites

    def initial_carry(self, *batch: int) -> tuple[Float[Array, "*batch n"], ...]:
        """Returns the flat carry before the first step."""
        flat = self.flat(self.carry(((*batch, 1)[0], *self.features)))
        return flat if batch else tuple(leaf[0] for leaf in flat)

    def drop(self, weights: Mapping[str, Any], masks: Masks) -> dict[str, Any]:
        """Multiplies each kernel by its part (R, 1, U) of a mask (R, G, U)."""
        dropped = dict(weights)
        for name, where in self.wrapped.kernels.items():
            if (mask := getattr(masks, name)) is None:
                continue
            for gate, path in enumerate(where):
                kernel = self._turned(weights[path])
                of_gate = _gate(mask, gate)
                flat = drop_kernel(kernel.reshape(-1, kernel.shape[-1]), of_gate)
                dropped[path] = self._turned(flat.reshape(kernel.shape))
        return dropped

    def project(self, weights: Any, x: Any, mask: Any) -> Any:
        """Returns the inputs with their mask; the cell itself projects them."""
        return mask_units(x, mask)

    def step(
        self, weights: Any, carry: tuple[Any, ...], z: Any, masks: Masks, tape: Tape
    ) -> tuple[tuple[Any, ...], Any]:
        """Advances the cell, then multiplies or mixes what it carries over."""
        x = z.reshape(len(z), *self.features)
        new, y = self.advance(weights, self._shaped(carry), x)
        after, y = list(self.flat(new)), _rows(y, 1)
        for place, name in enumerate(self.wrapped.states):
            if name is None or (mask := getattr(masks, name)) is None:
                continue
            after[place] = next_state(after[place], carry[place], mask)
            if is_output(mask) and name == self.wrapped.output:
                y = after[place]
        return tuple(after), y

    def flat(self, carry: Any) -> tuple[Float[Array, "B n"], ...]:
        """Returns the leaves of a carry, each as one vector per example."""
        if jax.tree.structure(carry) != self.treedef:
            raise ValueError(
                f"The carry must have the structure {self.treedef}, got "
                f"{jax.tree.structure(carry)}."
            )
        leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(carry)]
        for leaf, like in zip(leaves, self.leaves, strict=True):
            if leaf.ndim < 1 or leaf.shape[1:] != like.shape[1:]:
                raise ValueError(
                    f"The carry must have leaves of shape {like.shape}, got "
                    f"{leaf.shape}."
                )
        return tuple(
            _rows(leaf, 1).astype(like.dtype)
            for leaf, like in zip(leaves, self.leaves, strict=True)
        )

    def whole(self, carry: Sequence[Any]) -> Any:
        """Returns a flat carry in the shapes of the cell."""
        return jax.tree.unflatten(self.treedef, self._shaped(carry))

    def _shaped(self, carry):
        """The leaves of a flat carry, in the shapes of the cell."""
        return [
            leaf.reshape(len(leaf), *like.shape[1:])
            for leaf, like in zip(carry, self.leaves, strict=True)
        ]

    def _turned(self, kernel):
        return kernel.T if self.wrapped.library.transposed else kernel


def _rows(value: Any, axes: int) -> Any:
    """Returns an array with all axes behind the first few in one."""
    return value.reshape(*value.shape[:axes], -1)


def _gate(mask: Any, gate: int) -> Any:
    """The part (R, 1, U) of a mask on the kernels of all gates."""
    return jax.tree.map(lambda values: values[:, gate : gate + 1], mask)


def _size(value: Any) -> int:
    return math.prod(value.shape[1:])
