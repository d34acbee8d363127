"""Designs of passes: do antithetic and balanced masks need fewer passes?

Three models learn Japanese Vowels. The mean of K passes is compared with the mean of
very many, by the squared difference of their probabilities, over classes and test
utterances. K independent passes have 1 / K of the variance of one pass: the measured
errors of 16 and of 100 of them check the measurement.

    python -m examples.designs
"""

import argparse
import time
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np

from examples.uncertainty import CONFIG, learn
from rdrop import montecarlo
from rdrop.noise.plan import Design

MODELS = {
    "LSTM, x 0.15 and h 0.5, held": CONFIG,
    "GRU, y 0.5, per step": CONFIG
    | {
        "model": {"cell": "gru"},
        "dropout": {"outputs": {"rate": 0.5, "per": "step"}},
    },
    "LSTM, U 0.5": CONFIG | {"dropout": {"recurrent_weights": {"rate": 0.5}}},
}
AT_ONCE = 64  # passes


def measure(log_probs, batch, plans, repeats: int, reference: int):
    """Returns mean squared errors [plans, repeats], and of one pass.

    A plan is a design and a number of passes.
    """

    @jax.jit
    def add(total, key):
        keys = montecarlo.pass_keys(key, AT_ONCE)
        probs = jax.vmap(lambda k: jnp.exp(log_probs(batch, k)))(keys)
        return total[0] + probs.sum(axis=0), total[1] + (probs**2).sum(axis=0)

    zeros = jnp.zeros_like(log_probs(batch))
    total = (zeros, zeros)
    for n in range(reference // AT_ONCE):
        total = add(total, jax.random.fold_in(jax.random.key(1), n))
    exact, square = (part / reference for part in total)
    errors = []
    for design, passes in plans:

        @jax.jit
        def error(key, design=design, passes=passes):
            keys = montecarlo.pass_keys(key, passes, design)
            mean = montecarlo.predict(lambda k: log_probs(batch, k), keys)
            return ((jnp.exp(mean.log_probs) - exact) ** 2).mean()

        keys = jax.random.split(jax.random.key(2), repeats)
        errors.append([float(error(key)) for key in keys])
    return np.array(errors), float((square - exact**2).mean())


def main() -> None:
    """Prints a table: the error of each design, and the passes that it is worth."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passes", type=int, default=16)
    parser.add_argument("--more", type=int, default=100, help="independent passes")
    parser.add_argument("--repeats", type=int, default=64)
    parser.add_argument("--reference", type=int, default=65_536, help="passes")
    options = parser.parse_args()
    plans = [(design, options.passes) for design in get_args(Design)]
    plans.append(("independent", options.more))
    print(f"{'':<30}{'error x 1e6':>24}{'of 1 / K':>12}{'worth':>12}")
    for name, config in MODELS.items():
        begun = time.perf_counter()
        log_probs, _, test = learn(config)
        errors, one = measure(
            log_probs, test, plans, options.repeats, options.reference
        )
        for number, ((design, passes), values) in enumerate(
            zip(plans, errors, strict=True)
        ):
            mean, error = values.mean(), values.std(ddof=1) / len(values) ** 0.5
            share = mean * passes / one
            print(
                f"{'' if number else name:<30}{design:<12}{passes:>4}"
                f"{1e6 * mean:8.2f} ± {1e6 * error:.2f}{share:10.2f}"
                f"{one / mean:10.1f} passes"
            )
        print(f"{'':<30}{time.perf_counter() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
