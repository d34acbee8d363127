"""Uncertainty: Monte Carlo dropout and the deterministic pass, on Japanese Vowels.

An LSTM with dropout on x and h learns to tell nine speakers apart. On clean test frames
nearly all answers are right, so normal noise is added to them. The temperatures are
fitted on held-out utterances with the same noise.

    python -m examples.uncertainty
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.axes import make_sweep
from experiments.classify.program import make_lanes
from experiments.classify.splits import split
from experiments.classify.train import make_train, make_training, take
from experiments.task import Batch
from experiments.tasks import find
from rdrop import calibration, montecarlo, plot

CONFIG = {
    "dropout": {"inputs": {"rate": 0.15}, "recurrent": {"rate": 0.5}},
    "train": {"epochs": 60, "evaluate_every": 60},
}
POWERS = {
    "arithmetic mean": 1.0,
    "power mean, 1/2": 0.5,
    "geometric mean": 0.0,
    "harmonic mean": -1.0,
}
BLACK, PURPLE, GREEN, RED = "#222222", "#8e44ad", "#2a9d5c", "#c0392b"
SIZES, FEW, MANY = (1, 2, 4, 8, 16, 32, 64, 128), 1024, 2048


def learn(config=CONFIG):
    """Trains; returns (batch, keys) -> log-probabilities, held-out and test split."""
    config, task = make_sweep(config, "example").base, find("japanese_vowels")
    data = task.load(config.task)
    fit, valid = split(data, 0.2, (config.seed,))
    splits = (take(data.train, fit), data.test, take(data.train, valid))
    data = data.with_splits(jax.tree.map(jnp.asarray, splits))
    lane = jax.tree.map(lambda leaf: leaf[0], make_lanes([config], data))
    train = make_train(config, task, data)
    models, _ = jax.jit(lambda lane: train.advance(train.init(lane), lane))(lane)
    network = make_training(config, task, data).network

    def log_probs(batch, keys=None):
        params = models.full.params["network"]
        xs = task.inputs(batch)
        logits = network.apply(params, xs, batch.lengths, lane.dropout, keys)
        return jax.nn.log_softmax(logits)

    return log_probs, data.valid, data.test


def noisy(valid: Batch, test: Batch, sd: float) -> Batch:
    """Joins two splits, with normal noise on all frames but not on padding."""
    longest = test.inputs.shape[1]
    pad = ((0, 0), (0, longest - valid.inputs.shape[1]), (0, 0))
    valid = valid._replace(inputs=jnp.pad(valid.inputs, pad))
    batch = jax.tree.map(lambda *parts: jnp.concatenate(parts), valid, test)
    inside = jnp.arange(longest) < batch.lengths[:, None]
    noise = sd * jax.random.normal(jax.random.key(0), batch.inputs.shape)
    return batch._replace(inputs=batch.inputs + noise * inside[..., None])


def report(name, log_probs, labels, held_out) -> None:
    """Prints a row: as predicted, and at the temperature fitted on held-out data."""
    test = slice(held_out, None)
    fitted = calibration.fit_temperature(log_probs[:held_out], labels[:held_out])
    row = f"{name:<16}"
    for temperature in (1.0, fitted):
        tempered = calibration.temper(log_probs[test], temperature)
        nll = -jnp.take_along_axis(tempered, labels[test, None], axis=1).mean()
        error = calibration.calibration_error(tempered, labels[test])
        row += f"{nll:10.3f}{error:10.3f}"
    accuracy = (log_probs[test].argmax(axis=1) == labels[test]).mean()
    print(f"{row}{fitted:10.2f}{accuracy:10.3f}")


def errors(log_probs, batch, keys):
    """RMS distances to the arithmetic mean of many other passes, in the right class.

    Returns:
        The distance of K passes, for each K in `SIZES`; the distance of the pass
        without noise; the sd of one pass.
    """

    def right(found):
        return jnp.take_along_axis(found, batch.targets[:, None], axis=1)[:, 0]

    def one(keys):
        found = log_probs(batch, keys)
        return found, right(found)

    run = jax.jit(lambda keys: montecarlo.predict(one, keys, chunk=256, has_aux=True))
    few, many = np.split(np.exp(run(keys)[1]), [FEW])
    expectation = many.mean(axis=0)

    def rms(probs):
        return np.sqrt(((probs - expectation) ** 2).mean())

    distances = [rms(few.reshape(FEW // k, k, -1).mean(axis=1)) for k in SIZES]
    return distances, rms(np.exp(right(log_probs(batch)))), rms(many)


def draw(distances, without, sd, means, labels) -> Figure:
    """The figure: convergence, reliability, accuracy against coverage."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    first, second, third = figure.subplots(1, 3)
    root = r"sd of a pass / $\sqrt{K}$"
    first.loglog(SIZES, sd / np.sqrt(SIZES), color="#9a9a9a", ls="--", lw=1, label=root)
    first.loglog(SIZES, distances, "o", color=PURPLE, label="K passes")
    first.axhline(without, color=BLACK, label="deterministic pass")
    first.set(xlabel="passes K", ylabel="RMS distance of p(right class)")
    first.set_title(
        f"Distance to the mean of {MANY} passes", weight="bold", fontsize=10
    )
    first.set_xticks(SIZES, SIZES)
    ticks = [0.01, 0.02, 0.05, 0.1, 0.2]
    first.set_yticks(ticks, ticks)
    first.minorticks_off()
    colours = {
        "deterministic": BLACK,
        "arithmetic mean": PURPLE,
        "geometric mean": GREEN,
    }
    for name, colour in colours.items():
        measured = calibration.reliability(means[name].log_probs, labels, bins=10)
        plot.reliability(measured, name, colour, "Reliability", second)
    mean, alone = means["arithmetic mean"], means["deterministic"]
    for name, colour, uncertainty, judged in (
        ("mutual information", RED, mean.mutual_information, mean),
        ("entropy of the mean", PURPLE, mean.entropy, mean),
        ("entropy, deterministic", BLACK, alone.entropy, alone),
    ):
        correct = judged.log_probs.argmax(axis=1) == labels
        measured = calibration.coverage(uncertainty, correct)
        plot.coverage(measured, name, colour, "Accuracy by coverage", third)
    for axes in (first, second, third):
        axes.legend(frameon=False, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    """Trains, evaluates, prints a table and draws the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--passes", type=int, default=100, help="of each mean")
    parser.add_argument(
        "--noise", type=float, default=1.0, help="its sd, in frames' sd"
    )
    parser.add_argument("--out", type=Path, default=Path("montecarlo.png"))
    options = parser.parse_args()
    log_probs, *splits = learn()
    batch = noisy(*splits, options.noise)
    held_out, labels = len(splits[0].lengths), batch.targets
    keys = montecarlo.pass_keys(jax.random.key(1), options.passes)

    traces = []

    @jax.jit
    def average(keys, power):
        traces.append(power)  # runs once per compilation
        return montecarlo.predict(
            lambda k: log_probs(batch, k), keys, power=power, chunk=25
        )

    alone = log_probs(batch)
    means = {"deterministic": montecarlo.Prediction(alone, montecarlo.entropy(alone))}
    means |= {name: average(keys, power) for name, power in POWERS.items()}
    columns = ("NLL", "ECE", "NLL at T", "ECE at T", "T", "accuracy")
    print(" " * 16 + "".join(f"{column:>10}" for column in columns))
    for name, prediction in means.items():
        report(name, prediction.log_probs, labels, held_out)
    print(f"programs compiled for {len(POWERS)} means: {len(traces)}")
    means = jax.tree.map(lambda leaf: leaf[held_out:], means)
    sixth = take(batch, jnp.arange(held_out, len(labels), 6))
    many = montecarlo.pass_keys(jax.random.key(2), FEW + MANY)
    figure = draw(*errors(log_probs, sixth, many), means, labels[held_out:])
    figure.savefig(options.out, dpi=130)


if __name__ == "__main__":
    main()
