"""Training of one language model, as pure functions of its state.

An epoch reads the rows of the training text window by window, in one compiled loop, by
truncated BPTT: each window starts with the carry of the last one, and gradients end at
its start.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

import rdrop
from experiments.classify import consistency
from experiments.classify.train import NEVER, diverged
from experiments.language.config import Config
from experiments.language.corpus import Rows, Windows, longest
from experiments.language.model import (
    LanguageModel,
    Noise,
    Reading,
    init,
    make_model,
    start_carry,
)
from experiments.language.optimisers import make_optimiser
from experiments.language.softmax import summed_loss, token_losses
from experiments.task import Arrays


class Lane(NamedTuple):
    """The arrays that differ among the lanes of a program.

    Attributes:
        key: PRNG key of the seed.
        noise: noise at each site.
        learning_rate: learning rate at the start.
        weight_decay: L2 penalty of all parameters.
        penalty: weight of the difference between two passes.
    """

    key: Key[Array, ""]
    noise: Noise
    learning_rate: Float[Array, ""]
    weight_decay: Float[Array, ""]
    penalty: Float[Array, ""]


class State(NamedTuple):
    """State of a training.

    Attributes:
        params: parameters of the model.
        opt_state: state of the optimiser.
        carry: carry of each layer after the last window.
        window: windows read since the start of the training.
        nll: loss with noise, summed over the tokens read in this epoch.
        tokens: number of tokens read in this epoch.
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
    """Learning rate and averaging of an epoch.

    Attributes:
        epoch: number of the epoch, from 0.
        rate: factor of the learning rate.
        averaging: whether parameters are averaged.
    """

    epoch: Int[Array, ""]
    rate: Float[Array, ""]
    averaging: Array


class Training(NamedTuple):
    """The values that all lanes of a program share."""

    config: Config
    model: LanguageModel

    def start(self, lane: Lane) -> State:
        """Returns the state before the first window."""
        params = init(self.model, jax.random.fold_in(lane.key, 0))
        opt_state = self._optimiser(lane, 1.0).init(params)
        carry = start_carry(self.model, params, self.config.train.batch)
        zero = jnp.float32(0)
        return State(
            params, opt_state, carry, jnp.int32(0), zero, zero, jnp.int32(NEVER)
        )

    def begin_epoch(self, state: State) -> State:
        """Returns the state at the start of the text."""
        carry = start_carry(self.model, state.params, self.config.train.batch)
        zero = jnp.float32(0)
        return state._replace(carry=carry, nll=zero, tokens=zero)

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
        """Trains on the windows of an epoch from `first` to before `last`."""

        def read(number, state):
            start, length = windows.starts[number], windows.lengths[number]
            return self._update(state, lane, rows, pace, start, length)

        return jax.lax.fori_loop(first, last, read, state)

    def _update(self, state, lane, rows, pace, start, length):
        """Returns the state after a step on one window."""
        train = self.config.train
        passes = self._passes(lane, state.window, pace.epoch, start)
        inputs, targets = (
            jax.lax.dynamic_slice_in_dim(ids, start, longest(train), 1)
            for ids in (rows.inputs, rows.targets)
        )
        length = length if train.vary_window else train.window
        before = state.carry if train.carry else None
        (priced, (nll, carry)), gradients = jax.value_and_grad(
            self._loss, has_aux=True
        )(state.params, lane, inputs, targets, length, before, passes)
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
        """Returns the minimised loss, the summed loss of the tokens, and the carry."""
        train, (batch, time) = self.config.train, inputs.shape
        lengths = jnp.full(batch, length, jnp.int32)
        inside = jnp.arange(time, dtype=jnp.int32)[None] < lengths[:, None]
        lengths = lengths if train.vary_window else None

        def read(keys):
            reading = self.model.apply(params, inputs, lane.noise, keys, carry, lengths)
            weights = inside.astype(jnp.float32)
            offset = train.probability_offset
            return reading, summed_loss(reading.softmax, targets, weights, offset)

        first, nll = read(passes[0])
        total, penalty = nll, self._penalties(first, lengths)
        if self.config.second_pass.penalty != "none":
            second, other = read(passes[1])
            if passes[1] is not None:
                total = (nll + other) / 2
            differ = consistency.PENALTIES[self.config.second_pass.penalty]
            penalty += lane.penalty * differ(first.logits, second.logits, inside)
        loss = total / (batch if train.per == "row" else batch * jnp.float32(length))
        return loss + penalty, (nll, first.carry)

    def _penalties(self, reading: Reading, lengths) -> Float[Array, ""]:
        """Returns AR and TAR."""
        train, total = self.config.train, jnp.float32(0)
        if train.activation:
            ar = rdrop.activation_regulariser(reading.dropped, lengths)
            total += train.activation * ar
        if train.temporal_activation:
            tar = rdrop.temporal_activation_regulariser(reading.raw, lengths)
            total += train.temporal_activation * tar
        return total

    def _passes(self, lane, window, epoch, start):
        """Returns the keys of both passes; with held masks, keys of the epoch."""
        held = self.config.dropout.held == "epoch"
        noise = jax.random.fold_in(lane.key, 2)
        key = jax.random.fold_in(noise, epoch if held else window)
        first = rdrop.stream_keys(key)
        second = consistency.keys(self.config.second_pass, key, first)
        step = start if held else 0
        return tuple(keys and keys.replace(step=step) for keys in (first, second))

    def _optimiser(self, lane, rate):
        return make_optimiser(self.config, rate, lane.weight_decay)


def make_training(config: Config, vocabulary: int) -> Training:
    """Builds the functions that train the lanes of a config's structure."""
    return Training(config, make_model(config, vocabulary))


def make_evaluate(
    config: Config, model: LanguageModel, window: int
) -> Callable[..., Array]:
    """Returns a function of (params, noise, rows, temperature).

    It returns the loss of a text, in expectation over the noise; the temperature
    divides the logits.
    """

    def evaluate(params, noise: Noise, rows: Rows, temperature=1.0):
        def read(carry, columns):
            before = carry if config.train.carry else None
            reading = model.apply(params, columns.inputs, noise, None, before)
            losses = token_losses(
                reading.logits / temperature,
                columns.targets,
                config.train.probability_offset,
            )
            return reading.carry, (losses * columns.weights).sum()

        carry = start_carry(model, params, len(rows.inputs))
        columns = in_windows(rows, window)
        _, sums = jax.lax.scan(read, carry, columns)
        return mean_loss(sums, columns.weights, config.evaluation.mean)

    return evaluate


def mean_loss(
    sums: Float[Array, "W"],
    weights: Float[Arrays, "W B T"],
    mean: Literal["tokens", "windows"],
) -> Float[Array, ""]:
    """Returns the loss of a text.

    Args:
        sums: the summed losses of each window.
        weights: 1 for a token, 0 for padding.
        mean: over all tokens; or the logarithm of the mean perplexity of the windows,
            weighted by their tokens, as Semeniuta et al. 2016 (get_test_costs in
            sgd_optimizer.py of their code), whose windows all have as many.
    """
    if mean == "tokens":
        return sums.sum() / weights.sum()
    counts = weights.sum((1, 2))
    return jax.nn.logsumexp(sums / counts, b=counts / counts.sum())


def in_windows(rows: Rows, window: int) -> Rows:
    """Returns rows with a leading axis of windows."""
    return jax.tree.map(
        lambda leaf: leaf.reshape(len(leaf), -1, window).swapaxes(0, 1), rows
    )
