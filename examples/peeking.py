"""How often is a verdict wrong if one looks after every seed, and what does it cost?

Simulated planes of 8 settings without any effect, and settings with one: the tests of a
race (`experiments.sequential`) beside t-tests, at 5 % after Holm's correction.

    python -m examples.peeking

It takes about a minute.
"""

import math

import numpy as np

from experiments import sequential, statistics

PLANES, SETTINGS, SEEDS = 2000, 8, 64
FIRST = sequential.fewest_seeds(statistics.LEVEL / SETTINGS)
EFFECTS = (0.5, 0.75, 1.0, 1.5, 2.0)


def main() -> None:
    """Prints both tables."""
    rng = np.random.default_rng(0)
    planes = rng.normal(size=(PLANES, SETTINGS, SEEDS))
    race = np.mean([_any(plane, sequential.p_value) for plane in planes])
    peeked = np.mean([_any(plane, _peeked_p) for plane in planes])
    print(f"{PLANES:,} null planes of {SETTINGS} settings, looked at after each of the")
    print(f"seeds {FIRST} to {SEEDS}: planes with a false verdict")
    print(f"  race                        {race:6.1%}")
    print(f"  t-tests, stop at the first  {peeked:6.1%}\n")
    print("effect (sd)  seeds: race, median   fixed, 80 %   80 % of races by")
    for effect in EFFECTS:
        found = [_settled_at(rng.normal(effect, 1, 400)) for _ in range(1000)]
        fixed = statistics.seeds_needed(_exactly(effect))
        most = np.quantile(found, 0.8, method="higher")
        print(f"{effect:8.2f} {np.median(found):20.0f} {fixed:15} {most:16.0f}")


def _any(plane, p_value) -> bool:
    """Whether any difference of a plane is called settled at any time."""
    return min(map(p_value, plane)) * SETTINGS < statistics.LEVEL


def _peeked_p(differences) -> float:
    """The lowest p-value of t-tests after each seed."""
    return min(statistics.paired_p(differences[:n]) for n in range(FIRST, SEEDS + 1))


def _settled_at(differences) -> int:
    """The seed at which a race of one difference settles it."""
    bound = -math.log(statistics.LEVEL)
    return 1 + int(np.argmax(sequential.evidence(differences) > bound))


def _exactly(effect: float):
    """Two differences of that mean and standard deviation 1."""
    return effect + np.array([-1, 1]) / math.sqrt(2)


if __name__ == "__main__":
    main()
