"""Evaluation of a trained language model, deterministic or by Monte Carlo dropout.

Monte Carlo dropout reads the text K times with noise, each pass with its own masks and
carries, and averages the predicted distributions of every token.

References:
    [1] Gal, Ghahramani. A theoretically grounded application of dropout in recurrent
        neural networks. NeurIPS 2016. arXiv:1512.05287; run_MC_test of their code,
        which uses one mask per pass for the whole test set.
    [2] Melis et al. Pushing the bounds of dropout. 2018. arXiv:1805.09208; other means,
        rates and temperatures.
"""

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import rich.table
from scipy.optimize import minimize_scalar

import rdrop
from experiments.config import MOST, ConfigError
from experiments.language.config import Config
from experiments.language.corpus import Corpus, Rows, quoted, whole_rows
from experiments.language.model import (
    LanguageModel,
    Noise,
    make_model,
    noises,
    start_carry,
)
from experiments.language.run import LanguageModels
from experiments.language.softmax import token_losses
from experiments.language.train import in_windows, make_evaluate, mean_loss
from experiments.progress import Watch, console, watch
from experiments.runs.checkpoints import Checkpoints, conditions
from experiments.runs.evaluations import Evaluation, add_evaluations, open_lanes
from experiments.runs.files import fingerprint
from experiments.runs.folder import CHECKPOINTS

COLDEST, HOTTEST = 0.5, 2.0  # range of the search for a temperature
LEAST = {"lane": 1, "passes": 1, "chunk": 1, "window": 0, "seed": 0}  # of an option
MEANS = {0.0: "geometric", 1.0: "arithmetic"}
SECONDS_PER_CHECKPOINT = 60.0


@dataclass(frozen=True)
class Options:
    """Options of an evaluation."""

    lane: int = 1
    """Line of results.jsonl, from 1."""
    split: Literal["valid", "test"] = "test"
    """Part of the data."""
    ensemble: Literal["none", "seeds"] = "none"
    """Networks whose predictions are averaged, too: those of all seeds."""
    passes: tuple[int, ...] = ()
    """Numbers of Monte Carlo passes; without any, the evaluation is deterministic."""
    powers: tuple[float, ...] = (1.0,)
    """Means over the passes: 1 arithmetic, 0 geometric, others power means."""
    chunk: int = 8
    """Passes at a time; more need more memory."""
    masks: Literal["window", "text"] = "text"
    """Lifetime of the masks with per = "sequence" in a pass."""
    noise: float = 1.0
    """Factor of every rate."""
    temperature: float | Literal["tuned"] = 1.0
    """Divisor of logits; tuned finds the best one for the validation text."""
    window: int = 0
    """Steps at a time, and per mask with masks = "window"; 0: as in training."""
    seed: int = 0
    """Seed of the masks."""


def evaluate(folder: Path, options: Options) -> list[dict]:
    """Evaluates a model of a run, and adds the losses to the run.

    Ctrl-C and SIGTERM stop it after a window of Monte Carlo passes, or after a
    deterministic reading of the text; the same passes then continue there.

    Args:
        folder: the run.
        options: of the evaluation.

    Returns:
        A record of each evaluation, the deterministic one first.

    Raises:
        ConfigError: the run kept no such model, an option is impossible, or a loss is
            not finite.
        StorageError: the text has changed since the training, or a file of the run is
            damaged or cannot be written.
        KeyboardInterrupt: it was stopped.
    """
    _check(options)
    (lane,) = open_lanes(folder, [options.lane], LanguageModels())
    config, params, corpus = lane.config, lane.params, lane.loaded.data
    model = make_model(config, len(corpus.vocabulary))
    window = options.window or config.train.window
    texts = _texts(corpus, config, window)
    scaled = scale_rates(noises([config])[0], options.noise)
    wanted = [(0, 1.0)] + [(k, p) for k in options.passes for p in options.powers]
    deterministic = jax.jit(make_evaluate(config, model, window))
    held = options.masks == "text"
    sampled = MonteCarlo(config, model, window, options.chunk, held)
    root, most = jax.random.key(options.seed), max(options.passes, default=1)
    keys = jax.vmap(lambda k: jax.random.fold_in(root, k))(jnp.arange(most))
    which = asdict(options) | {"parameters": fingerprint(params)}
    found: list[Evaluation] = []
    with watch(0, 1) as watcher:
        for passes, power in wanted:
            line = which | {"passes": passes, "powers": power if passes else None}
            watcher.announce(f"{passes} passes" if passes else "deterministic", "")

            def judge(rows, temperature, passes=passes, power=power, line=line):
                if watcher.stopped():
                    raise KeyboardInterrupt
                if not passes:
                    return float(deterministic(params, scaled, rows, temperature))
                text = fingerprint(rows)
                told = line | {"temperature": temperature, "text": text}
                return sampled.loss(
                    params,
                    scaled,
                    rows,
                    keys[:passes],
                    power,
                    temperature,
                    saved=folder / CHECKPOINTS / f"evaluation-{_hash(told)}",
                    watcher=watcher,
                )

            temperature = _temperature(judge, texts["valid"], options.temperature)
            nll = judge(texts[options.split], temperature)
            figures = {"nll": nll} | quoted(config.task, nll)
            _check_finite(f"{folder}: line {options.lane}", figures)
            found.append(line | {"temperature": temperature} | figures)
            add_evaluations(folder, found[-1:])
        if watcher.stopped():
            raise KeyboardInterrupt
    return found


class MonteCarlo:
    """Monte Carlo passes over a text, all of them window by window.

    Args:
        config: how the loss is measured, and whether words are dropped.
        model: the model.
        window: steps at a time.
        chunk: passes at a time.
        held: whether masks with per="sequence" live for the text, not for a window.
    """

    def __init__(
        self, config: Config, model: LanguageModel, window: int, chunk: int, held: bool
    ):
        self._config, self._model, self._window = config, model, window
        self._chunk, self._held = chunk, held
        self._read = jax.jit(self._advance)

    def loss(
        self,
        params: Any,
        noise: Noise,
        rows: Rows,
        keys: Any,
        power: float = 1.0,
        temperature: float = 1.0,
        *,
        saved: Path | None = None,
        watcher: Watch | None = None,
    ) -> float:
        """Returns the loss of a text for the power mean over passes, one per key.

        Args:
            params: of the model.
            noise: of the passes.
            rows: the text.
            keys: PRNG keys.
            power: of the mean.
            temperature: divides the logits.
            saved: folder of a checkpoint, from which a stopped evaluation continues.
            watcher: shows the progress, and may ask to stop.

        Raises:
            KeyboardInterrupt: the watcher asked to stop; the windows so far are saved.
            StorageError: the checkpoint is damaged or cannot be written.
        """
        columns = in_windows(rows, self._window)
        count = len(columns.inputs)
        carry = start_carry(self._model, params, len(rows.inputs))
        carries = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (len(keys), *leaf.shape)), carry
        )
        state, first = (carries, jnp.zeros(count, jnp.float32)), 0
        now = conditions(keys)
        if saved and saved.exists():
            with Checkpoints(saved, now) as checkpoints:
                state, first = checkpoints.restore(state)
        if watcher:
            watcher.expect(count)
            watcher.advance(first)
        noise = noise if self._config.evaluation.words else noise._replace(words=None)
        since = time.monotonic()
        for number in range(first, count):
            stopped = watcher is not None and watcher.stopped()
            if saved and number > first and (stopped or _is_due(since)):
                with Checkpoints(saved, now) as checkpoints:
                    checkpoints.save(number, state)
                since = time.monotonic()
            if stopped:
                raise KeyboardInterrupt
            state = self._read(
                state,
                np.int32(number),
                params,
                noise,
                columns,
                keys,
                power,
                temperature,
            )
            jax.block_until_ready(state)
            if watcher:
                watcher.advance(1)
        if saved:
            Checkpoints(saved, now).remove()
        return float(mean_loss(state[1], columns.weights, self._config.evaluation.mean))

    def _advance(
        self, state, number, params, noise, columns: Rows, keys, power, temperature
    ):
        """Returns the state after a window: the carry of each pass, and the losses."""
        carries, sums = state
        columns = jax.tree.map(lambda leaf: leaf[number], columns)

        def one(key_and_carry):
            key, carry = key_and_carry
            step = number * self._window
            at = key if self._held else jax.random.fold_in(key, number)
            streams = rdrop.stream_keys(at).replace(step=step if self._held else 0)
            before = carry if self._config.train.carry else None
            reading = self._model.apply(params, columns.inputs, noise, streams, before)
            found = rdrop.calibration.temper(reading.logits, temperature)
            return found, reading.carry

        prediction, carries = rdrop.montecarlo.predict(
            one, (keys, carries), power=power, chunk=self._chunk, has_aux=True
        )
        offset = self._config.train.probability_offset
        losses = token_losses(prediction.log_probs, columns.targets, offset)
        return carries, sums.at[number].set((losses * columns.weights).sum())


def scale_rates(noise: Noise, factor: float) -> Noise:
    """Multiplies every rate by a factor, at most to 1."""

    def scale(node):
        return node.replace(rate=jnp.minimum(1.0, node.rate * factor))

    return jax.tree.map(scale, noise, is_leaf=lambda node: hasattr(node, "rate"))


def _check(options: Options) -> None:
    if options.ensemble != "none":
        raise ConfigError("ensemble: must be none for language models.")
    for name, least in LEAST.items():
        for value in np.ravel(getattr(options, name)).tolist():
            if not least <= value <= MOST:
                raise ConfigError(f"{name}: must be {least} to {MOST:,}, got {value}.")
    if options.passes and not options.powers:
        raise ConfigError("powers: must have at least one value.")
    for power in options.powers:
        if not math.isfinite(power):
            raise ConfigError(f"powers: must be finite, got {power}.")
    if not 0 <= options.noise < math.inf:
        raise ConfigError(f"noise: must be 0 or more, got {options.noise}.")
    if options.temperature != "tuned" and not 0 < options.temperature < math.inf:
        raise ConfigError(f"temperature: must be above 0, got {options.temperature}.")


def _texts(corpus: Corpus, config: Config, window: int) -> dict[str, Rows]:
    """Returns the rows of the validation and test texts by the names of the splits."""
    if window > (most := max(len(corpus.valid), len(corpus.test))):
        raise ConfigError(f"window: must be at most {most:,}, got {window:,}.")
    batch = config.evaluation.batch
    return {
        "valid": whole_rows(corpus.valid, batch, window),
        "test": whole_rows(corpus.test, config.evaluation.test_batch or batch, window),
    }


def _check_finite(where: str, figures: dict[str, float]) -> None:
    for name, figure in figures.items():
        if not math.isfinite(figure):
            raise ConfigError(f"{where} has no finite {name}, got {figure}.")


def _temperature(judge, valid: Rows, temperature) -> float:
    """Returns the temperature, or the best one for the validation text."""
    if temperature != "tuned":
        return temperature
    found = minimize_scalar(
        lambda log: judge(valid, math.exp(log)),
        bounds=(math.log(COLDEST), math.log(HOTTEST)),
        method="bounded",
        options={"xatol": 1e-3},
    )
    return math.exp(found.x)


def _is_due(since: float) -> bool:
    """Whether it is time for a checkpoint."""
    return time.monotonic() - since > SECONDS_PER_CHECKPOINT


def _hash(values: dict) -> str:
    """Returns a hash of plain values."""
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def show(found: Sequence[dict]) -> None:
    """Prints evaluations as a table."""
    name = "perplexity" if "perplexity" in found[0] else "bits"
    table = rich.table.Table("passes", "mean", "temperature", "nll", name)
    for line in found:
        power = line["powers"]
        mean = "" if power is None else MEANS.get(power, f"power {power:g}")
        figures = (f"{line[of]:.4f}" for of in ("temperature", "nll", name))
        table.add_row(str(line["passes"] or "deterministic"), mean, *figures)
    console.print(table)
