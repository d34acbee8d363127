"""Training of one lane of a sweep, as pure functions of its state.

A lane is one setting with one seed. Its key depends on the seed alone, and determines
the initial parameters, the order of the data and the random numbers of the masks: lanes
of one seed differ in their setting and in nothing else.

If the task has no validation split, a lane trains two models from the same start. One
trains on all training sequences, and its test metrics are reported; the other trains
without the held-out sequences, and its validation metrics choose a setting.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

import rdrop
from experiments.classify import consistency
from experiments.classify.model import Dropout, Network, cell_of, learned
from experiments.config import Config
from experiments.task import Arrays, Batch, Data, Score, Task

Metrics: TypeAlias = dict[str, Any]
Losses: TypeAlias = tuple[Float[Array, ""], Float[Array, ""]]
EVALUATED_AT_ONCE = 512  # sequences
LEAST_SHARE = 0.1  # of the batches, for which a program of fewer steps is worth while
NEVER = -1


class Lane(NamedTuple):
    """The arrays that differ among lanes; in a sweep each leaf has an axis of lanes.

    Attributes:
        key: PRNG key of the seed.
        dropout: noise.
        depth: rate of stochastic depth; None if there is none.
        learning_rate: learning rate of AdamW.
        weight_decay: weight decay of AdamW.
        penalty: weight of the difference between two passes.
        fit: indices of the training sequences to fit; None if the task has a validation
            split.
        valid: indices of the training sequences to validate on; None like `fit`.
    """

    key: Key[Array, "..."]
    dropout: Dropout
    depth: Float[Arrays, "..."] | None
    learning_rate: Float[Arrays, "..."]
    weight_decay: Float[Arrays, "..."]
    penalty: Float[Arrays, "..."]
    fit: Int[Arrays, "..."] | None
    valid: Int[Arrays, "..."] | None


class State(NamedTuple):
    """State of a model in training.

    Attributes:
        params: parameters of the network, and logits of learned rates.
        opt_state: state of the optimiser.
        epoch: epochs done.
        diverged_at: the first step at which the loss, or the norm of the gradients or
            of the parameters, was not finite; or `NEVER`.
    """

    params: Any
    opt_state: optax.OptState
    epoch: Int[Array, "..."]
    diverged_at: Int[Array, "..."]


class Models(NamedTuple):
    """The models of a lane; `held_out` is None if the task has a validation split."""

    full: State
    held_out: State | None


class Functions(NamedTuple):
    """The training of a lane.

    Attributes:
        init: lane -> models.
        advance: (models, lane) -> (models, metrics) at the next evaluation.
        probe: lane -> the losses of one sequence, for a trace.
    """

    init: Callable[[Lane], Models]
    advance: Callable[[Models, Lane], tuple[Models, Metrics]]
    probe: Callable[[Lane], Losses]


class Training(NamedTuple):
    """The values that all lanes of a program share."""

    config: Config
    task: Task
    network: Network
    train: Batch
    sites: tuple[str, ...]
    steps: tuple[int, ...] = ()

    def optimiser(self, lane: Lane) -> optax.GradientTransformation:
        """Returns AdamW on clipped gradients; learned rates do not decay."""
        clip, decayed = self.config.train.clip, {"network": True, "rates": False}
        adamw = optax.adamw(
            lane.learning_rate, weight_decay=lane.weight_decay, mask=decayed
        )
        return optax.chain(optax.clip_by_global_norm(clip), adamw) if clip else adamw

    def outputs(
        self, params, dropout: Dropout, batch: Batch, keys=None, depth=None
    ) -> Any:
        """Returns the outputs for a batch; without keys, in expectation over noise."""
        dropout = with_rates(dropout, params["rates"])
        xs = self.task.inputs(batch)
        arguments = xs, batch.lengths, dropout, keys, depth
        return self.network.apply(params["network"], *arguments)

    def judge(self, params, dropout: Dropout, batch: Batch) -> Score:
        """Returns the score of a batch, in expectation over the noise."""
        return self.task.score(self.outputs(params, dropout, batch), batch)

    def gradients(self, params, lane: Lane, batch: Batch, key) -> tuple[Losses, Any]:
        """Returns the losses of a batch and the gradients of the minimised one.

        The batch is cut to the fewest of `steps` that hold its longest sequence.
        """
        differentiate = jax.value_and_grad(self.loss, has_aux=True)
        if len(self.steps) < 2:
            return differentiate(params, lane, batch, key)

        def of(steps):
            return lambda: differentiate(params, lane, self._cut(batch, steps), key)

        longest = batch.lengths.max().astype(jnp.int32)
        place = jnp.searchsorted(jnp.array(self.steps, jnp.int32), longest)
        return jax.lax.switch(place, [of(steps) for steps in self.steps])

    def _cut(self, batch: Batch, steps: int) -> Batch:
        """Returns the first steps of a batch."""
        each = self.network.readout == "each"
        targets = batch.targets[:, :steps] if each else batch.targets
        return Batch(batch.inputs[:, :steps], batch.lengths, targets)

    def loss(self, params, lane: Lane, batch: Batch, key) -> Losses:
        """Returns the minimised loss of a batch, and its mean loss, both with noise.

        The minimised loss adds regularisers of learned rates and the penalty of a
        second pass.
        """
        config, keys = self.config.second_pass, rdrop.stream_keys(key)
        outputs = self.outputs(params, lane.dropout, batch, keys, lane.depth)
        score = self.task.score(outputs, batch)
        loss = means_of(score)[0]
        if config.penalty == "none":
            return loss * self._size(score) + self.price(params), loss
        others = consistency.keys(config, key, keys)
        other = self.outputs(params, lane.dropout, batch, others, lane.depth)
        if others is not None:
            loss = (loss + means_of(self.task.score(other, batch))[0]) / 2
        weights = consistency.weights(outputs, score, batch)
        penalty = consistency.PENALTIES[config.penalty](outputs, other, weights)
        total = loss * self._size(score) + lane.penalty * penalty
        return total + self.price(params), loss

    def _size(self, score: Score) -> Float[Array, ""]:
        """Returns the factor of a mean loss: 1, or the mean weight of a sequence."""
        if self.config.train.per == "weight":
            return jnp.float32(1)
        return score.weight.mean()

    def price(self, params) -> Float[Array, ""]:
        """Returns the regularisers of learned rates, summed over layers."""
        total = jnp.float32(0)
        count = len(self.train.lengths)
        for site, logit in params["rates"].items():
            scale = getattr(self.config.dropout, site).length_scale
            for kernel in _kernels(params["network"]["params"], site):
                total += rdrop.concrete_regulariser(
                    jax.nn.sigmoid(logit),
                    kernel,
                    weight=scale**2 / (2 * count),
                    dropout=1 / count,
                )
        return total


def step_counts(lengths: Int[np.ndarray, "N"], time: int, size: int) -> tuple[int, ...]:
    """Returns the numbers of steps to which batches are cut, `time` the last one.

    Each number is half of the next one, as long as a tenth of the batches fit into it.

    Args:
        lengths: of the training sequences.
        time: steps of the padded sequences.
        size: sequences per batch.
    """
    steps = [time]
    while steps[0] > 1:
        half = -(-steps[0] // 2)
        if np.mean(lengths <= half) ** size < LEAST_SHARE:
            break
        steps.insert(0, half)
    return tuple(steps)


def make_train(
    config: Config,
    task: Task,
    data: Data,
    shard: Callable[[Any], Any] = lambda x: x,
    steps: tuple[int, ...] = (),
) -> Functions:
    """Builds the functions that train a lane.

    Args:
        config: config of any lane; all have the same structure.
        task: the task.
        data: its data, as device arrays or tracers.
        shard: places a batch on devices.
        steps: numbers of steps to which a batch may be cut, see `step_counts`; by
            default it is not cut.

    Returns:
        Pure functions for `jit` and `vmap`; `advance` trains `evaluate_every` epochs.
    """
    training = make_training(config, task, data)._replace(steps=steps)
    network, sites = training.network, training.sites
    epochs = _make_epochs(training, shard)
    everything = jnp.arange(len(data.train.lengths))

    def init(lane):
        key = jax.random.fold_in(lane.key, 0)
        one = take(data.train, jnp.arange(1))
        weights = network.init(key, task.inputs(one), one.lengths)
        params = {
            "network": with_forget_bias(weights, config.model.forget_bias),
            "rates": {
                site: jax.scipy.special.logit(getattr(lane.dropout, site).rate)
                for site in sites
            },
        }
        start = training.optimiser(lane).init(params)
        state = State(params, start, jnp.int32(0), jnp.int32(NEVER))
        return Models(full=state, held_out=None if data.valid else state)

    def advance(models, lane):
        full, losses = epochs(models.full, lane, everything)
        held_out = models.held_out and epochs(models.held_out, lane, lane.fit)[0]
        valid = data.valid or take(data.train, lane.valid)
        scores = {
            "valid": evaluate(training, (held_out or full).params, lane.dropout, valid),
            "test": evaluate(training, full.params, lane.dropout, data.test),
        }
        loss = next(iter(data.units))
        metrics = {f"train_{loss}": losses} | {
            f"{split}_{name}": value
            for split, values in scores.items()
            for name, value in values.items()
        }
        rates = full.params["rates"].items()
        metrics |= {f"rate_{site}": jax.nn.sigmoid(logit) for site, logit in rates}
        return Models(full, held_out), metrics

    def probe(lane):
        params = init(lane).full.params
        one = take(data.train, jnp.arange(1))
        return training.loss(params, lane, one, lane.key)

    return Functions(init, advance, probe)


def make_training(config: Config, task: Task, data: Data) -> Training:
    """Builds the values that all lanes share; see `make_train` for the arguments."""
    network = Network(
        cell_of(config),
        config.model.units,
        config.model.layers,
        data.outputs,
        data.readout,
        config.model.block,
    )
    return Training(config, task, network, data.train, tuple(learned(config)))


def metric_shapes(data: Data, config: Config) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each metric of `advance`, in the order of a record."""
    loss = next(iter(data.units))
    judged = [f"{split}_{name}" for split in ("valid", "test") for name in data.units]
    rates = [f"rate_{site}" for site in learned(config)]
    losses = {f"train_{loss}": (config.train.evaluate_every,)}
    return losses | dict.fromkeys([*judged, *rates], ())


def evaluate(training: Training, params, dropout: Dropout, batch: Batch) -> Metrics:
    """Returns the mean of each value of the score, in expectation over the noise."""
    count = len(batch.lengths)
    if count <= EVALUATED_AT_ONCE:
        score = training.judge(params, dropout, batch)
        return dict(zip(score.values, means_of(score), strict=True))
    # The last sequence is repeated, with weight 0, to fill the last batch.
    rows = -(-count // EVALUATED_AT_ONCE)
    place = jnp.arange(rows * EVALUATED_AT_ONCE).reshape(rows, EVALUATED_AT_ONCE)

    def sums(index):
        part = take(batch, jnp.minimum(index, count - 1))
        score = training.judge(params, dropout, part)
        weight = score.weight * (index < count)
        return {n: (v * weight).sum() for n, v in score.values.items()}, weight.sum()

    totals, weights = jax.lax.map(sums, place)
    return {name: total.sum() / weights.sum() for name, total in totals.items()}


def diverged(before, step, loss, gradients: Any, params: Any) -> Int[Array, ""]:
    """Returns the first step that was not finite, `NEVER` if none was.

    Args:
        before: the result for the previous step.
        step: number of this step.
        loss: minimised loss of this step.
        gradients: gradients of this step.
        params: parameters after this step.
    """
    size = loss + optax.tree.norm((gradients, params))
    first = (before == NEVER) & ~jnp.isfinite(size)
    return jnp.where(first, step, before)


def with_rates(dropout: Dropout, logits: dict[str, Any]) -> Dropout:
    """Returns the noise with its learned rates."""
    if not logits:
        return dropout
    assert isinstance(dropout, rdrop.Dropout)
    changes = {
        site: getattr(dropout, site).replace(rate=jax.nn.sigmoid(logit))
        for site, logit in logits.items()
    }
    return dropout.replace(**changes)


def with_forget_bias(weights: Any, bias: float) -> Any:
    """Returns the parameters of LSTMs with a bias of the forget gates; 1 is theirs."""
    if bias == 1:
        return weights

    def set_bias(path, leaf):
        if path[-1].key != "bias" or not _is_cell(path[-2].key):
            return leaf
        units = len(leaf) // 4
        return leaf.at[units : 2 * units].set(bias)

    return jax.tree_util.tree_map_with_path(set_bias, weights)


def take(batch: Batch, index) -> Batch:
    """Returns some sequences of a batch."""
    return jax.tree.map(lambda leaf: leaf[index], batch)


def _make_epochs(training, shard):
    """Returns (state, lane, index) -> (state at an evaluation, loss per epoch)."""
    config = training.config.train

    def update(carry, index, step, lane):
        params, opt_state, diverged_at = carry
        noise_key = jax.random.fold_in(jax.random.fold_in(lane.key, 2), step)
        batch = shard(take(training.train, index))
        losses, gradients = training.gradients(params, lane, batch, noise_key)
        priced, loss = losses
        updates, opt_state = training.optimiser(lane).update(
            gradients, opt_state, params
        )
        params = optax.apply_updates(params, updates)
        diverged_at = diverged(diverged_at, step, priced, gradients, params)
        return (params, opt_state, diverged_at), loss

    def epoch(state, lane, index):
        order_key = jax.random.fold_in(jax.random.fold_in(lane.key, 1), state.epoch)
        batches = _batches(order_key, index, config.batch)
        steps = state.epoch * len(batches) + jnp.arange(len(batches), dtype=jnp.int32)
        (params, opt_state, diverged_at), losses = jax.lax.scan(
            lambda carry, xs: update(carry, *xs, lane),
            (state.params, state.opt_state, state.diverged_at),
            (batches, steps),
        )
        return State(params, opt_state, state.epoch + 1, diverged_at), losses.mean()

    def epochs(state, lane, index):
        return jax.lax.scan(
            lambda s, _: epoch(s, lane, index), state, length=config.evaluate_every
        )

    return epochs


def means_of(score: Score) -> list[Float[Array, ""]]:
    """Returns the weighted mean of each value of a score."""
    weight = score.weight / score.weight.sum()
    return [(value * weight).sum() for value in score.values.values()]


def _is_cell(name: str) -> bool:
    """Whether the parameters of that name are of a recurrence."""
    return "Cell_" in name


def _kernels(params, site) -> list[Float[Array, "K N"]]:
    """Returns the kernels that read the values of a site, one per layer.

    If no kernel reads them, the weights have no prior, which zeros stand for.
    """
    names = filter(_is_cell, params)
    cells = [params[n] for n in sorted(names, key=lambda n: int(n.rsplit("_")[-1]))]
    if site == "outputs":
        blocks = [params.get(f"block_{n}") for n in range(len(cells))]
        above = [*cells[1:], params["readout"]]
        readers = [
            block["mix"] if block else reader
            for block, reader in zip(blocks, above, strict=True)
        ]
        return [reader["kernel"] for reader in readers]
    reader = {"inputs": "kernel", "recurrent": "recurrent_kernel"}.get(site)
    if reader:
        return [cell[reader] for cell in cells]
    return [jnp.zeros((len(params["readout"]["kernel"]), 1)) for _ in cells]


def _batches(key, index, size) -> Int[Array, "batches size"]:
    """Returns batches of shuffled indices; an incomplete last batch is dropped."""
    count = len(index) // size
    return jax.random.permutation(key, index)[: count * size].reshape(count, size)
