"""Train: one language model, as pure functions of its state.

An epoch reads the rows of the training text window by window, in one compiled loop; the
carry is handed on, and no gradient goes back beyond the window.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

import rdrop
from experiments import second_pass
from experiments.language.config import Config
from experiments.language.corpus import Rows, Windows, longest
from experiments.language.model import LanguageModel, Noise, Reading, init, make_model
from experiments.language.optimisers import make_optimiser
from experiments.task import Arrays
from experiments.train import NEVER, diverged


class Lane(NamedTuple):
    """What tells one lane of a program from another, as arrays.

    Attributes:
        key: of its seed.
        noise: where, and at which rates.
        learning_rate: at the start.
        weight_decay: of all parameters.
        penalty: weight of the difference between two passes.
    """

    key: Key[Array, ""]
    noise: Noise
    learning_rate: Float[Array, ""]
    weight_decay: Float[Array, ""]
    penalty: Float[Array, ""]


class State(NamedTuple):
    """Where a training stands.

    Attributes:
        params: those of the model.
        opt_state: that of the optimiser.
        carry: of each layer, at the end of the last window.
        window: windows read since the start of the training.
        nll: sum over the tokens read in this epoch, with the noise on.
        tokens: how many those are.
        diverged_at: the first window at which the loss, or the norm of the gradients or
            of the parameters, was not finite; or `NEVER`.
    """

    params: Any
    opt_state: optax.OptState
    carry: Any
    window: Int[Array, ""]
    nll: Float[Array, ""]
    tokens: Float[Array, ""]
    diverged_at: Int[Array, ""]


class Pace(NamedTuple):
    """What an epoch is trained at.

    Attributes:
        epoch: epochs done before it.
        rate: factor of the learning rate.
        averaging: whether parameters are averaged.
    """

    epoch: Int[Array, ""]
    rate: Float[Array, ""]
    averaging: Array


class Training(NamedTuple):
    """What all lanes of a program have in common."""

    config: Config
    model: LanguageModel

    def start(self, lane: Lane) -> State:
        """Returns the state before the first window."""
        params = init(self.model, jax.random.fold_in(lane.key, 0))
        opt_state = self._optimiser(lane, 1.0).init(params)
        carry = blank_carry(self.model, params, self.config.train.batch)
        zero = jnp.float32(0)
        return State(
            params, opt_state, carry, jnp.int32(0), zero, zero, jnp.int32(NEVER)
        )

    def begin_epoch(self, state: State) -> State:
        """Returns the state at the start of the text."""
        blank = jax.tree.map(jnp.zeros_like, state.carry)
        zero = jnp.float32(0)
        return state._replace(carry=blank, nll=zero, tokens=zero)

    def advance(
        self,
        state: State,
        lane: Lane,
        rows: Rows,
        windows: Windows,
        pace: Pace,
        first: Int[Array, ""],
        last: Int[Array, ""],
    ) -> State:
        """Reads the windows of an epoch from `first` to before `last`."""

        def read(number, state):
            start, length = windows.starts[number], windows.lengths[number]
            return self._update(state, lane, rows, pace, start, length)

        return jax.lax.fori_loop(first, last, read, state)

    def _update(self, state, lane, rows, pace, start, length):
        """Reads one window, and descends."""
        train = self.config.train
        passes = self._passes(lane, state.window, pace.epoch, start)
        inputs, targets = (
            jax.lax.dynamic_slice_in_dim(ids, start, longest(train), 1)
            for ids in (rows.inputs, rows.targets)
        )
        length = length if train.vary_window else train.window
        (priced, (nll, carry)), gradients = jax.value_and_grad(
            self._loss, has_aux=True
        )(state.params, lane, inputs, targets, length, state.carry, passes)
        rate, steps = lane.learning_rate * pace.rate, jnp.float32(length)
        if train.vary_window:
            rate = rate * steps / train.window
        optimiser = self._optimiser(lane, rate)
        updates, opt_state = optimiser.update(
            gradients, state.opt_state, state.params, triggered=pace.averaging
        )
        params = optax.apply_updates(state.params, updates)
        return State(
            params,
            opt_state,
            carry,
            state.window + 1,
            state.nll + nll,
            state.tokens + train.batch * steps,
            diverged(state.diverged_at, state.window, priced, gradients, params),
        )

    def _loss(self, params, lane, inputs, targets, length, carry, passes):
        """The loss of a window; its sum over the tokens, and the carry, beside it."""
        train, (batch, time) = self.config.train, inputs.shape
        lengths = jnp.full(batch, length, jnp.int32)
        inside = jnp.arange(time, dtype=jnp.int32)[None] < lengths[:, None]
        lengths = lengths if train.vary_window else None

        def read(keys):
            reading = self.model.apply(params, inputs, lane.noise, keys, carry, lengths)
            losses = token_losses(reading.logits, targets)
            nll = jnp.where(inside, losses, 0).sum()
            return reading, nll

        first, nll = read(passes[0])
        total, penalty = nll, self._penalties(first, lengths)
        if self.config.second_pass.penalty != "none":
            second, other = read(passes[1])
            if passes[1] is not None:
                total = (nll + other) / 2
            differ = second_pass.PENALTIES[self.config.second_pass.penalty]
            penalty += lane.penalty * differ(first.logits, second.logits, inside)
        loss = total / (batch if train.per == "row" else batch * jnp.float32(length))
        return loss + penalty, (nll, first.carry)

    def _penalties(self, reading: Reading, lengths) -> Float[Array, ""]:
        """AR and TAR."""
        train, total = self.config.train, jnp.float32(0)
        if train.activation:
            ar = rdrop.activation_regulariser(reading.dropped, lengths)
            total += train.activation * ar
        if train.temporal_activation:
            tar = rdrop.temporal_activation_regulariser(reading.raw, lengths)
            total += train.temporal_activation * tar
        return total

    def _passes(self, lane, window, epoch, start):
        """The keys of both passes over a window; held masks have those of an epoch."""
        held = self.config.dropout.held == "epoch"
        noise = jax.random.fold_in(lane.key, 2)
        key = jax.random.fold_in(noise, epoch if held else window)
        first = rdrop.stream_keys(key)
        second = second_pass.keys(self.config.second_pass, key, first)
        step = start if held else 0
        return tuple(keys and keys.replace(step=step) for keys in (first, second))

    def _optimiser(self, lane, rate):
        return make_optimiser(self.config.train, rate, lane.weight_decay)


def make_training(config: Config, vocabulary: int) -> Training:
    """Builds the functions that train the lanes of a config's structure."""
    return Training(config, make_model(config, vocabulary))


def make_evaluate(model: LanguageModel, window: int) -> Callable[..., Array]:
    """Returns a function of (params, noise, rows, temperature).

    It is the mean nll a token, in expectation over the noise, of logits that are
    divided by a temperature.
    """

    def evaluate(params, noise: Noise, rows: Rows, temperature=1.0):
        def read(carry, columns):
            reading = model.apply(params, columns.inputs, noise, None, carry)
            losses = token_losses(reading.logits / temperature, columns.targets)
            return reading.carry, (losses * columns.weights).sum()

        carry = blank_carry(model, params, len(rows.inputs))
        _, sums = jax.lax.scan(read, carry, in_windows(rows, window))
        return sums.sum() / rows.weights.sum()

    return evaluate


def in_windows(rows: Rows, window: int) -> Rows:
    """Returns rows of whole windows with an axis of windows in front."""
    return jax.tree.map(
        lambda leaf: leaf.reshape(len(leaf), -1, window).swapaxes(0, 1), rows
    )


def token_losses(
    logits: Float[Array, "B T V"], targets: Int[Arrays, "B T"]
) -> Float[Array, "B T"]:
    """Returns the negative log-likelihood of each token, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets)


def blank_carry(model: LanguageModel, params: Any, batch: int) -> Any:
    """Returns the zeros that a text begins with; memories are always float32."""
    tokens = jax.ShapeDtypeStruct((batch, 1), jnp.int32)
    carries = jax.eval_shape(model.apply, params, tokens).carry

    def blank(carry):
        *memory, h = jax.tree.leaves(carry)
        zeros = [jnp.zeros(leaf.shape, jnp.float32) for leaf in memory]
        filled = [*zeros, jnp.zeros(h.shape, h.dtype)]
        return jax.tree.unflatten(jax.tree.structure(carry), filled)

    return tuple(blank(carry) for carry in carries)
