"""Program: the compiled functions of one structure, and the text that they read."""

import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from experiments.classify import consistency
from experiments.config import ConfigError
from experiments.devices import needed_bytes
from experiments.language.config import Config
from experiments.language.corpus import (
    Corpus,
    Windows,
    longest,
    shortest,
    training_rows,
    whole_rows,
    windows,
)
from experiments.language.model import noises, noisy_sites
from experiments.language.train import (
    Lane,
    Pace,
    State,
    make_evaluate,
    make_training,
)


class Progress(NamedTuple):
    """Progress of a training, which a checkpoint holds.

    Attributes:
        state: of the training.
        epoch: epochs done.
        first: the next window of the epoch.
        train: training loss of each epoch, with noise; NaN if not yet done.
        valid: validation loss of each epoch's own parameters.
        kept, test: validation and test loss of the parameters kept so far.
        hash: fingerprint of the parameters kept so far, as bytes; zeros if none.
    """

    state: State
    epoch: Int[Array, ""]
    first: Int[Array, ""]
    train: Float[Array, "epochs"]
    valid: Float[Array, "epochs"]
    kept: Float[Array, "epochs"]
    test: Float[Array, "epochs"]
    hash: UInt8[Array, "8"]


class Plan(NamedTuple):
    """The windows of an epoch.

    Attributes:
        windows: the windows, padded to the length of the program's arrays.
        used: the number of windows in the epoch.
    """

    windows: Windows
    used: int


class Program:
    """The compiled functions of one structure, and its lanes.

    Args:
        configs: one per lane.
        corpus: the text.

    Raises:
        ConfigError: the training text is too short for the config, or options of a
            site do not go together.
        ValueError: options of the noise that rdrop rejects.
    """

    def __init__(self, configs: Sequence[Config], corpus: Corpus):
        self.config = config = configs[0]
        self.lanes = make_lanes(configs)
        self.training = make_training(config, len(corpus.vocabulary))
        rows = training_rows(corpus.train, config.train.batch)
        self.steps = rows.inputs.shape[1]
        if self.steps < config.train.window:
            raise ConfigError(
                f"train.window: must be at most {self.steps}, the steps of a row of "
                f"the training text, got {config.train.window}."
            )
        behind = longest(config.train) * config.train.vary_window
        self.rows = jax.tree.map(lambda leaf: np.pad(leaf, [(0, 0), (0, behind)]), rows)
        self.valid, self.test = (
            whole_rows(text, config.evaluation.batch, config.train.window)
            for text in (corpus.valid, corpus.test)
        )

    def check(self) -> None:
        """Traces a window, to find mistakes before any work.

        Raises:
            ConfigError: the cell lacks a site, or two passes would be the same.
        """
        sites = noisy_sites(self.lanes[0].noise)
        consistency.check_noise(self.config.second_pass, bool(sites), sites)
        try:
            state = jax.eval_shape(self.training.start, self.lanes[0])
            jax.eval_shape(self.training.advance, state, *self._arguments())
        except (TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"The model cannot be built: {reason}") from error

    def plan(self, seed: int, epoch: int) -> Plan:
        """Returns the windows of an epoch."""
        train = self.config.train
        drawn = windows(train, self.steps, (self.config.seed, seed, epoch))
        used = len(drawn.starts)
        most = self.steps // shortest(train) + train.vary_window
        return Plan(Windows(*(np.resize(part, most) for part in drawn)), used)

    def start(self, lane: Lane) -> Progress:
        """Returns the progress before the first window."""
        blank = jnp.full(self.config.train.epochs, jnp.nan, jnp.float32)
        state = self._start(lane)
        zero = jnp.int32(0)
        no_hash = jnp.zeros(8, jnp.uint8)
        return Progress(state, zero, zero, blank, blank, blank, blank, no_hash)

    def compile(self) -> tuple[float, int]:
        """Compiles `advance`; returns its compile time in seconds, and its bytes."""
        begun = time.perf_counter()
        state = jax.eval_shape(self.training.start, self.lanes[0])
        jitted = jax.jit(self.training.advance, donate_argnums=0)
        self.rows = jax.tree.map(jnp.asarray, self.rows)
        self.advance = jitted.lower(state, *self._arguments()).compile()
        return time.perf_counter() - begun, needed_bytes(self.advance)

    @cached_property
    def _start(self) -> Any:
        return jax.jit(self.training.start)

    @cached_property
    def begin_epoch(self) -> Any:
        """State -> the state at the start of the text."""
        return jax.jit(self.training.begin_epoch)

    @cached_property
    def evaluate(self) -> Any:
        """(params, noise, rows) -> loss of a text."""
        training = self.training
        window = training.config.train.window
        return jax.jit(make_evaluate(training.config, training.model, window))

    def _arguments(self) -> tuple:
        """Returns arguments of `advance` after the state, for their shapes."""
        zero, plan = np.int32(0), self.plan(0, 0)
        speed = pace(0, 1.0, False)
        return self.lanes[0], self.rows, plan.windows, speed, zero, zero


def make_lanes(configs: Sequence[Config]) -> list[Lane]:
    """Returns the lanes of one structure as arrays.

    Raises:
        ConfigError: options of a site do not go together.
        ValueError: options of the noise that rdrop rejects.
    """
    return [
        Lane(
            jax.random.fold_in(jax.random.key(config.seed), config.seeds),
            noise,
            jnp.float32(config.train.learning_rate),
            jnp.float32(config.train.weight_decay),
            jnp.float32(config.second_pass.weight),
        )
        for config, noise in zip(configs, noises(configs), strict=True)
    ]


def pace(epoch: int, rate: float, averaging: bool) -> Pace:
    """Returns a pace as arrays."""
    return Pace(jnp.int32(epoch), jnp.float32(rate), jnp.bool(averaging))
