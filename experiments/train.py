"""Train: one lane of a sweep, as pure functions of its state.

A lane is one setting of the dropout at one seed. Its key, and so its initial
parameters, its order of the data and the numbers behind its masks, is that of the seed
alone: lanes of one seed differ in their dropout and in nothing else.

A lane trains two models from the same start: one on all training utterances, whose test
figures are reported, and one without those held out, by whose validation figures a
setting is chosen.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

import rdrop
from experiments.config import Model, Train
from experiments.vowels import SPEAKERS, Utterances

Figures: TypeAlias = Float[Array, "..."] | Float[np.ndarray, "..."]
Noise: TypeAlias = rdrop.Dropout | tuple[rdrop.Dropout, ...]


class Classifier(nn.Module):
    """A stack of recurrent layers and a linear readout of its last output."""

    cell: type[rdrop.Cell]
    units: int
    layers: int
    classes: int

    @nn.compact
    def __call__(
        self,
        frames: Float[Array, "B T D"],
        lengths: Int[Array, "B"],
        dropout: Noise | None = None,
        keys: rdrop.StreamKeys | None = None,
    ) -> Float[Array, "B classes"]:
        """Returns the logits of each sequence; without keys there is no noise."""
        layers = [rdrop.RNN(self.cell(self.units)) for _ in range(self.layers)]
        stack = rdrop.Stack(layers, name="stack")
        _, ys = stack(frames, dropout, keys, lengths=lengths)
        last = ys[jnp.arange(len(ys)), lengths - 1]
        return nn.Dense(self.classes, name="readout")(last)


class Lane(NamedTuple):
    """What tells one lane from another; in a sweep each leaf has an axis of lanes."""

    key: Key[Array, "..."]
    dropout: Noise
    fit: Int[Array, "..."]
    valid: Int[Array, "..."]


class State(NamedTuple):
    """What changes in training a model."""

    params: dict
    opt_state: optax.OptState
    epoch: Int[Array, "..."]


class Models(NamedTuple):
    """The two models of a lane: trained on everything, and on `Lane.fit`."""

    full: State
    held_out: State


class Metrics(NamedTuple):
    """What a chunk of epochs is judged by: NLL (nats an utterance) and accuracy.

    `train_nll` has an entry an epoch, the noise on; the others are evaluated after the
    last epoch, without noise. All are those of the full model, but `valid_*` of the one
    that has not seen the validation utterances.
    """

    train_nll: Figures
    valid_nll: Figures
    valid_accuracy: Figures
    test_nll: Figures
    test_accuracy: Figures


class Functions(NamedTuple):
    """The training of a lane: `init(lane)`, then `advance(models, lane)` repeatedly."""

    init: Callable[[Lane], Models]
    advance: Callable[[Models, Lane], tuple[Models, Metrics]]


def make_train(
    model: Model,
    config: Train,
    train: Utterances,
    test: Utterances,
    cell: type[rdrop.Cell] = rdrop.LSTMCell,
) -> Functions:
    """Builds the functions that train a lane.

    Args:
        model: its size.
        config: how it is trained; the dropout is that of the lane.
        train: utterances that a lane's `fit` and `valid` index.
        test: utterances that are reported and never chosen by.
        cell: the recurrence.

    Returns:
        Pure functions that jit and vmap; `advance` goes on by `evaluate_every` epochs.
    """
    classifier = Classifier(cell, model.units, model.layers, SPEAKERS)
    optimiser = optax.adam(config.learning_rate)
    train, test = jax.tree.map(jnp.asarray, (train, test))
    everything = jnp.arange(len(train.speakers))
    train_epochs = _make_epochs(config, classifier, optimiser, train)

    def init(lane):
        key = jax.random.fold_in(lane.key, 0)
        params = classifier.init(key, train.frames[:1], train.lengths[:1])
        start = State(params, optimiser.init(params), jnp.int32(0))
        return Models(full=start, held_out=start)

    def advance(models, lane):
        full, train_nll = train_epochs(models.full, lane, everything)
        held_out, _ = train_epochs(models.held_out, lane, lane.fit)
        valid = evaluate(held_out.params, classifier, _take(train, lane.valid))
        test_figures = evaluate(full.params, classifier, test)
        return Models(full, held_out), Metrics(train_nll, *valid, *test_figures)

    return Functions(init, advance)


def _make_epochs(config, model, optimiser, train):
    """Returns (state, lane, index) -> (state, NLL of each epoch), a chunk of epochs."""

    def update(carry, batch_index, step, lane):
        params, opt_state = carry
        noise_key = jax.random.fold_in(jax.random.fold_in(lane.key, 2), step)
        keys = rdrop.stream_keys(noise_key)
        loss, gradients = jax.value_and_grad(mean_nll)(
            params, model, _take(train, batch_index), _at(lane.dropout, step), keys
        )
        updates, opt_state = optimiser.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    def epoch(state, lane, index):
        order_key = jax.random.fold_in(jax.random.fold_in(lane.key, 1), state.epoch)
        batches = _batches(order_key, index, config.batch)
        steps = state.epoch * len(batches) + jnp.arange(len(batches), dtype=jnp.int32)
        (params, opt_state), losses = jax.lax.scan(
            lambda carry, xs: update(carry, *xs, lane),
            (state.params, state.opt_state),
            (batches, steps),
        )
        return State(params, opt_state, state.epoch + 1), losses.mean()

    def epochs(state, lane, index):
        return jax.lax.scan(
            lambda s, _: epoch(s, lane, index),
            state,
            length=config.evaluate_every,
        )

    return epochs


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


def _at(dropout: Noise, step) -> Noise:
    """Evaluates schedules at a training step, in every layer."""
    if isinstance(dropout, tuple):
        return tuple(layer.at(step) for layer in dropout)
    return dropout.at(step)


def _take(utterances, index):
    return jax.tree.map(lambda leaf: leaf[index], utterances)


def _batches(key, index, size) -> Int[Array, "batches size"]:
    """The indices in random order, cut into batches; an incomplete last one is left."""
    count = len(index) // size
    return jax.random.permutation(key, index)[: count * size].reshape(count, size)
