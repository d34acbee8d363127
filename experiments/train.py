"""Train: one lane of the plane, as pure functions of its state.

A lane is one pair of dropout rates at one seed. Its key, and so its initial parameters,
its order of the data and the uniforms behind its masks, is that of the seed alone:
lanes of one seed differ in their rates and in nothing else.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

import rdrop
from experiments.config import Config
from experiments.vowels import SPEAKERS, Utterances


class Classifier(nn.Module):
    """An LSTM and a linear readout of its last output."""

    units: int
    classes: int

    @nn.compact
    def __call__(
        self,
        frames: Float[Array, "B T D"],
        lengths: Int[Array, "B"],
        dropout: rdrop.Dropout | None = None,
        keys: rdrop.StreamKeys | None = None,
    ) -> Float[Array, "B classes"]:
        """Returns the logits of each sequence; without keys there is no noise."""
        rnn = rdrop.RNN(rdrop.LSTMCell(self.units), name="lstm")
        (_, h), _ = rnn(frames, dropout, keys, lengths=lengths)
        return nn.Dense(self.classes, name="readout")(h)


class Lane(NamedTuple):
    """What tells one lane from another; in a sweep each leaf has an axis of lanes."""

    key: Key[Array, "..."]
    dropout: rdrop.Dropout
    fit: Int[Array, "..."]
    valid: Int[Array, "..."]


class State(NamedTuple):
    """What changes in training."""

    params: dict
    opt_state: optax.OptState
    epoch: Int[Array, "..."]


class Metrics(NamedTuple):
    """What a chunk of epochs is judged by: NLL in nats an utterance, accuracy in [0, 1].

    `train_nll` has an entry an epoch, the noise on; the others are evaluated after the
    last epoch, without noise.
    """

    train_nll: Float[Array, "..."]
    valid_nll: Float[Array, "..."]
    valid_accuracy: Float[Array, "..."]
    test_nll: Float[Array, "..."]
    test_accuracy: Float[Array, "..."]


class Functions(NamedTuple):
    """The training of a lane: `init(lane)`, then `advance(state, lane)` repeatedly."""

    init: Callable[[Lane], State]
    advance: Callable[[State, Lane], tuple[State, Metrics]]


def make_train(config: Config, train: Utterances, test: Utterances) -> Functions:
    """Builds the functions that train a lane.

    Args:
        config: model and training; the rates are those of the lane.
        train: utterances that a lane's `fit` and `valid` index.
        test: utterances that are reported and never chosen by.

    Returns:
        Pure functions that jit and vmap; `advance` goes on by `evaluate_every` epochs.
    """
    model = Classifier(config.model.units, SPEAKERS)
    optimiser = optax.adam(config.train.learning_rate)
    train, test = jax.tree.map(jnp.asarray, (train, test))

    def init(lane):
        key = jax.random.fold_in(lane.key, 0)
        params = model.init(key, train.frames[:1], train.lengths[:1])
        return State(params, optimiser.init(params), jnp.int32(0))

    def update(carry, batch_index, lane, step):
        params, opt_state = carry
        batch = _take(train, batch_index)
        noise_key = jax.random.fold_in(jax.random.fold_in(lane.key, 2), step)
        keys = rdrop.stream_keys(noise_key)
        loss, gradients = jax.value_and_grad(mean_nll)(
            params, model, batch, lane.dropout.at(step), keys
        )
        updates, opt_state = optimiser.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    def epoch(state, _, lane):
        order_key = jax.random.fold_in(jax.random.fold_in(lane.key, 1), state.epoch)
        batches = _batches(order_key, lane.fit, config.train.batch)
        steps = state.epoch * len(batches) + jnp.arange(len(batches), dtype=jnp.int32)
        (params, opt_state), losses = jax.lax.scan(
            lambda carry, xs: update(carry, xs[0], lane, xs[1]),
            (state.params, state.opt_state),
            (batches, steps),
        )
        return State(params, opt_state, state.epoch + 1), losses.mean()

    def advance(state, lane):
        state, train_nll = jax.lax.scan(
            lambda s, x: epoch(s, x, lane), state, length=config.train.evaluate_every
        )
        valid = evaluate(state.params, model, _take(train, lane.valid))
        return state, Metrics(train_nll, *valid, *evaluate(state.params, model, test))

    return Functions(init, advance)


def mean_nll(params, model, batch, dropout=None, keys=None) -> Float[Array, ""]:
    """Mean negative log-likelihood of the speakers, nats an utterance."""
    logits = model.apply(params, batch.frames, batch.lengths, dropout, keys)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.speakers)
    return losses.mean()


def evaluate(params, model, batch) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the mean NLL and the accuracy, without noise."""
    logits = model.apply(params, batch.frames, batch.lengths)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.speakers)
    return losses.mean(), (logits.argmax(-1) == batch.speakers).mean()


def _take(utterances, index):
    return jax.tree.map(lambda leaf: leaf[index], utterances)


def _batches(key, index, size) -> Int[Array, "batches size"]:
    """The indices in random order, cut into batches; an incomplete last one is left."""
    count = len(index) // size
    return jax.random.permutation(key, index)[: count * size].reshape(count, size)
