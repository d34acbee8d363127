"""Evaluation of trained networks of sequences on a split of their data.

A network is evaluated without noise, by Monte Carlo dropout, as an ensemble with the
networks of the other seeds, or both: the arithmetic mean of the distributions of all
passes of all networks [1]. They are distributions over classes, or normal distributions
of a task with the function `normal`. Two settings are compared by
their losses at each seed on each sequence.

References:
    [1] Lakshminarayanan, Pritzel, Blundell. Simple and scalable predictive uncertainty
        estimation using deep ensembles. NeurIPS 2017. arXiv:1612.01474. (Text
        unchecked.)
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rdrop
from experiments.bootstrap import crossed_interval
from experiments.classify.forecasts import mixture_scores
from experiments.classify.model import dropout_of
from experiments.classify.run import Sequences
from experiments.classify.splits import split
from experiments.classify.train import (
    EVALUATED_AT_ONCE,
    Training,
    make_training,
    means_of,
    take,
)
from experiments.classify.train import evaluate as scores_of
from experiments.config import ConfigError
from experiments.runs.evaluations import (
    Evaluation,
    TrainedLane,
    add_evaluations,
    open_lanes,
    other_seeds,
)
from experiments.runs.records import read_records
from experiments.statistics import t_interval
from experiments.task import Batch, Data, Normal
from rdrop import montecarlo

Part = Literal["valid", "test"]


class Member(NamedTuple):
    """A network of an ensemble."""

    training: Training
    params: Any
    dropout: Any

    def outputs(self, batch: Batch, key: Any) -> Any:
        """Returns the outputs for a batch; without a key, in expectation."""
        return self.training.outputs(self.params, self.dropout, batch, key)


class Passes(NamedTuple):
    """Monte Carlo passes of a network; none if the number is 0."""

    number: int
    seed: int
    chunk: int

    @property
    def keys(self) -> rdrop.StreamKeys:
        """The keys of the passes, the same for each network."""
        return montecarlo.pass_keys(jax.random.key(self.seed), self.number)


def evaluate_sequences(
    folder: Path,
    line: int = 1,
    part: Part = "test",
    passes: Sequence[int] = (),
    ensemble: bool = False,
    seed: int = 0,
    chunk: int = 8,
) -> list[Evaluation]:
    """Evaluates a lane, and adds its scores to the run.

    Args:
        folder: the run.
        line: of results.jsonl, from 1.
        part: of the data; without a validation split, "valid" are the sequences that
            the lane held out, which the kept model was trained on.
        passes: numbers of Monte Carlo passes of each network.
        ensemble: whether the lanes of the same setting at all seeds are evaluated
            together, too.
        seed: of the masks.
        chunk: passes at a time.

    Returns:
        The mean of each score: without noise, and for each number of passes; of the
        lane, and then of the ensemble. Normal distributions have the scores of
        `forecasts.mixture_scores`, with conformal intervals on the test split if the
        task has a validation split.

    Raises:
        ConfigError: the run kept no such lane; or a mean over networks or passes is
            asked for, and the task has neither classes nor normal distributions.
        StorageError: the data have changed since the training, or a file is damaged.
    """
    for name, value in {"chunk": chunk, "passes": min(passes, default=1)}.items():
        if value < 1:
            raise ConfigError(f"{name}: must be 1 or more, got {value}.")
    lines = [line, *(other_seeds(folder, line) if ensemble else ())]
    lanes = open_lanes(folder, lines, Sequences())
    task, data = lanes[0].loaded.data
    if ensemble:
        _check_shared(part, data, "for an ensemble")
    predicts_normal = _predicts_normal(task, data)
    if not predicts_normal:
        _check_averaged(task, data, passes, ensemble)
    data = data.with_splits(jax.tree.map(jnp.asarray, data.splits))
    batch = data.test if part == "test" else _validation(data, lanes[0].config)
    members = [_member(lane, task, data) for lane in lanes]
    if predicts_normal:
        held_out = data.valid if part == "test" else None
        judge = partial(_judge_normal, batch=batch, held_out=held_out)
    else:
        judge = partial(_judge_classes, batch=batch)
    sizes = [1, len(members)] if ensemble else [1]
    found: list[Evaluation] = []
    for count in (0, *passes):
        if count or ensemble or predicts_normal:
            scores = judge(members, sizes, Passes(count, seed, chunk))
        else:
            scores = [_alone(members[0], batch, data)]
        for networks, row in zip(sizes, scores, strict=True):
            which = {"lane": line, "split": part, "passes": count, "networks": networks}
            found.append(which | row)
    add_evaluations(folder, found)
    return found


def compare_settings(
    folder: Path, line: int, against: int, part: Part = "test"
) -> Evaluation:
    """Compares the settings of two lanes over their seeds and the sequences.

    The loss is evaluated without noise, and the difference of the settings is paired by
    seed and by sequence. It is added to the run.

    Args:
        folder: the run.
        line: of results.jsonl, from 1: a lane of the first setting.
        against: a lane of the other setting.
        part: of the data.

    Returns:
        The mean difference, the ends of two 95 % intervals, and the numbers of seeds
        and sequences. `seeds_low` and `seeds_high`: Student's t interval over the
        seeds, for this set of sequences; `low` and `high`: over seeds and sequences.

    Raises:
        ConfigError: the run kept no such lanes, they have one setting or fewer than two
            seeds in common, each seed holds out other sequences, or a loss is not
            finite.
        StorageError: the data have changed since the training, or a file is damaged.
    """
    rows = _lines_by_seed(folder, line), _lines_by_seed(folder, against)
    seeds = sorted(rows[0].keys() & rows[1].keys())
    if line in rows[1].values():
        raise ConfigError(f"against: lanes {line} and {against} have one setting.")
    if len(seeds) < 2:
        raise ConfigError(
            f"against: needs 2 seeds or more that both settings have, got {len(seeds)}."
        )
    lines = [some[seed] for some in rows for seed in seeds]
    lanes = open_lanes(folder, lines, Sequences())
    task, data = lanes[0].loaded.data
    _check_shared(part, data, "to compare settings")
    data = data.with_splits(jax.tree.map(jnp.asarray, data.splits))
    batch = data.test if part == "test" else _validation(data, lanes[0].config)
    losses, weights = zip(
        *(_losses(_member(lane, task, data), batch) for lane in lanes), strict=True
    )
    one, other = np.split(np.stack(losses), 2)
    differences = one - other
    if not np.isfinite(differences).all():
        raise ConfigError("against: a network has a loss that is not finite.")
    by_seed = np.average(differences, axis=1, weights=weights[0])
    narrow, wide = t_interval(by_seed), crossed_interval(differences, weights[0])
    ends = dict(
        zip(("seeds_low", "seeds_high", "low", "high"), narrow + wide, strict=True)
    )
    counts = {"seeds": len(seeds), "sequences": len(weights[0])}
    which = {"lane": line, "against": against, "split": part} | counts
    found = which | {"difference": float(by_seed.mean())} | ends
    add_evaluations(folder, [found])
    return found


def _lines_by_seed(folder: Path, line: int) -> dict[int, int]:
    """The lines of all lanes with the setting of a line, by their seeds."""
    records = read_records(folder)
    if not 1 <= line <= len(records):
        raise ConfigError(f"against: must be 1 to {len(records)}, got {line}.")
    return {records[n - 1]["seed"]: n for n in [line, *other_seeds(folder, line)]}


def _losses(member: Member, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Returns the loss of each sequence without noise, and the weights."""
    training, params, dropout = member

    @jax.jit
    def of_part(some):
        score = training.judge(params, dropout, some)
        return next(iter(score.values.values())), score.weight

    found = [of_part(some) for some in _parts(batch)]
    losses, weights = zip(*found, strict=True)
    return np.concatenate(losses).astype(float), np.concatenate(weights).astype(float)


def _parts(batch: Batch) -> list[Batch]:
    """Divides a batch into parts that fit into memory."""
    starts = range(0, len(batch.lengths), EVALUATED_AT_ONCE)
    return [
        jax.tree.map(lambda leaf, s=s: leaf[s : s + EVALUATED_AT_ONCE], batch)
        for s in starts
    ]


def _member(lane: TrainedLane, task, data: Data) -> Member:
    params = dict(lane.params)
    rates = params.pop("rates", {})
    dropout = jax.tree.map(lambda leaf: leaf[0], dropout_of([lane.config]))
    training = make_training(lane.config, task, data)
    return Member(training, {"network": params, "rates": rates}, dropout)


def _alone(member: Member, batch: Batch, data: Data) -> dict[str, float]:
    """The scores of one network without noise."""
    training, params, dropout = member
    scores = jax.jit(lambda p: scores_of(training, p, dropout, batch))(params)
    return {name: float(scores[name]) for name in data.units}


def _judge_classes(
    members: Sequence[Member], sizes: Sequence[int], passes: Passes, batch: Batch
) -> list[dict[str, float]]:
    """The scores of the mean of distributions over classes, of the first networks."""

    def of_part(member, some):
        def one(key):
            return jax.nn.log_softmax(member.outputs(some, key))

        if not passes.number:
            return one(None)
        return montecarlo.predict(one, passes.keys, chunk=passes.chunk).log_probs

    def score(predictions):
        mean = montecarlo.predict(lambda p: p, predictions).log_probs
        found = members[0].training.task.score(mean, batch)
        return dict(zip(found.values, map(float, means_of(found)), strict=True))

    predictions = _of_each(of_part, members, batch)
    stacked = jnp.stack([jnp.concatenate(parts) for parts in predictions])
    return [score(stacked[:size]) for size in sizes]


def _judge_normal(
    members: Sequence[Member],
    sizes: Sequence[int],
    passes: Passes,
    batch: Batch,
    held_out: Batch | None,
) -> list[dict[str, float]]:
    """The scores of mixtures of normal distributions, of the first networks."""

    def of_part(member, some):
        def one(key):
            return member.training.task.normal(member.outputs(some, key), some)

        if not passes.number:
            return jax.tree.map(lambda leaf: leaf[None], one(None))
        return jax.lax.map(one, passes.keys, batch_size=passes.chunk)

    def networks(split) -> list[Normal]:
        return [
            jax.tree.map(lambda *ps: jnp.concatenate(ps, axis=1), *parts)
            for parts in _of_each(of_part, members, split)
        ]

    def mixture(networks: Sequence[Normal]) -> Normal:
        return jax.tree.map(lambda *ns: jnp.concatenate(ns), *networks)

    judged, others = networks(batch), networks(held_out) if held_out else None
    return [
        mixture_scores(
            mixture(judged[:size]), mixture(others[:size]) if others else None
        )
        for size in sizes
    ]


def _of_each(
    function: Callable[[Member, Batch], Any], members: Sequence[Member], batch: Batch
) -> list[list[Any]]:
    """Returns results per network, for parts of a batch that fit into memory.

    All networks are of one setting, so that one compiled program serves them.
    """
    training = members[0].training

    @jax.jit
    def of_part(params, dropout, some):
        return function(Member(training, params, dropout), some)

    parts = _parts(batch)
    return [[of_part(m.params, m.dropout, some) for some in parts] for m in members]


def _predicts_normal(task, data: Data) -> bool:
    """Whether the task's distributions are normal ones."""
    if not hasattr(task, "normal"):
        return False
    one = jax.tree.map(lambda leaf: leaf[:1], data.test)
    shape = (1, data.outputs) if data.readout == "last" else (1, 1, data.outputs)
    return task.normal(jnp.zeros(shape), one) is not None


def _check_shared(part: str, data: Data, purpose: str) -> None:
    """Raises a ConfigError for a split that differs from seed to seed."""
    if part == "valid" and data.valid is None:
        raise ConfigError(
            f'split: must be "test" {purpose}: each seed holds out other sequences.'
        )


def _check_averaged(
    task: Any, data: Data, passes: Sequence[int], ensemble: bool
) -> None:
    """Raises a ConfigError for a mean of predictions that are not distributions."""
    rank = 1 if data.readout == "last" else 2
    targets = np.asarray(data.test.targets)
    if targets.dtype.kind in "iu" and targets.ndim == rank and data.outputs > 1:
        return
    mend = ', or train with task.head = "gaussian"' if hasattr(task, "normal") else ""
    reason = (
        "only distributions over classes and normal distributions are averaged, and "
        f"this run predicts neither (its loss is {next(iter(data.units))}); leave it "
        f"out{mend}."
    )
    if passes:
        raise ConfigError(f"passes: must be none, got {passes[0]}; {reason}")
    if ensemble:
        raise ConfigError(f"ensemble: must be none, got seeds; {reason}")


def _validation(data: Data, config) -> Batch:
    """Returns the validation split, or the sequences that a lane held out."""
    if data.valid is not None:
        return data.valid
    _, held_out = split(data, config.train.validation, (config.seed, config.seeds))
    return take(data.train, held_out)
