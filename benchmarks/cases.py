"""Cases: what is timed, and by whom."""

import dataclasses
import itertools
from typing import Any, Literal

Noise = Literal["none", "sequence", "step"]
Cell = Literal["lstm", "gru", "mingru", "rg_lru", "lru", "s5"]
Table = Literal[
    "train",
    "price",
    "episodes",
    "gru",
    "forward",
    "growth",
    "native",
    "linear",
    "pages",
    "sweep",
]
RATE = 0.5

AT_ONCE = "rdrop-at-once"  # linear cells alone
NATIVE = "rdrop-native"  # with the compiled code of rdrop-cpu; "rdrop" is without it
# rdrop's three loops; then its peers, and what noise each of them can do.
RDROP = ("rdrop", "rdrop-recompute", "rdrop-plain")
CAN: dict[str, tuple[Noise, ...]] = {
    **dict.fromkeys((*RDROP, AT_ONCE, NATIVE), ("none", "sequence", "step")),
    "keras-jax": ("none", "sequence"),
    "keras-torch": ("none", "sequence"),
    "torch": ("none",),
    "flax": ("none",),
}
# Packages that contenders need in addition to rdrop and its requirements.
NEEDS = {
    NATIVE: ("rdrop_cpu",),
    "keras-jax": ("keras",),
    "keras-torch": ("keras", "torch"),
    "torch": ("torch",),
}
# Those that the smaller tables compare, in their order.
PEERS = ("rdrop", "rdrop-plain", "torch", "keras-jax")
RESETTERS = ("rdrop", "rdrop-plain")
GROWERS = ("rdrop", NATIVE, "rdrop-plain", "torch")
WITH_NATIVE = ("rdrop", NATIVE, "torch", "keras-jax")
LINEAR: tuple[Cell, ...] = ("mingru", "rg_lru", "lru", "s5")
SCANS = ("rdrop", "rdrop-plain", AT_ONCE)
LONG = (100, 1000, 10_000)  # steps


@dataclasses.dataclass(frozen=True)
class Case:
    """One layer, and what it is asked to do.

    Attributes:
        batch, time, features, units: B, T, D and H, float32, batch first.
        cell: the recurrence.
        noise: masks on x_t and h_{t-1}, or on the update of a linear cell, at rate 0.5,
            held over the sequence or drawn at each step.
        gates: "each" gate has masks of its own, as in Keras, or all "shared" one.
        train: forward and backward pass, with respect to parameters and inputs; or
            forward alone.
        resets: an episode begins at one step in 25, at random.
    """

    batch: int
    time: int
    features: int
    units: int
    cell: Cell = "lstm"
    noise: Noise = "sequence"
    gates: Literal["shared", "each"] = "shared"
    train: bool = True
    resets: bool = False

    @property
    def flops(self) -> int:
        """Of the matrix products, two for a multiplication and an addition."""
        gates = 4 if self.cell == "lstm" else 3
        products = self.features + self.units
        once = 2 * self.batch * self.time * products * gates * self.units
        return 3 * once if self.train else once


SHAPES = {
    "PTB medium": Case(20, 35, 650, 650),
    "IMDB-like": Case(64, 100, 128, 128),
    "sequential MNIST": Case(32, 784, 1, 128),
    "small": Case(32, 50, 32, 64),
}
BASE = SHAPES["IMDB-like"]
GROWTH = [
    *(dataclasses.replace(BASE, time=time) for time in (25, 50, 200, 400)),
    *(dataclasses.replace(BASE, batch=batch) for batch in (16, 32, 128, 256)),
    *(
        dataclasses.replace(BASE, features=units, units=units)
        for units in (32, 64, 256, 512)
    ),
]


def plan() -> list[tuple[str, str, Case]]:
    """Returns every measurement: the table that it is for, who, and what."""
    entries = []
    for case in SHAPES.values():
        for who in CAN:
            slow = (who, case.time) == ("keras-torch", 784)  # seconds a step
            if who not in (AT_ONCE, NATIVE) and not slow:
                entries.append(("train", who, _as_can(who, case)))
        each = dataclasses.replace(case, gates="each")
        entries.append(("train", "rdrop", each))
        for noise in CAN["rdrop"]:
            entries.append(("price", "rdrop", dataclasses.replace(case, noise=noise)))
        for held, resets in itertools.product((False, True), (False, True)):
            noise = "sequence" if held else "none"
            here = dataclasses.replace(case, noise=noise, resets=resets)
            entries += [("episodes", who, here) for who in RESETTERS]
        gru = dataclasses.replace(case, cell="gru")
        for who in PEERS:
            entries.append(("gru", who, _as_can(who, gru)))
        forward = dataclasses.replace(case, train=False, noise="none")
        for who in ("rdrop", "keras-jax", "torch"):
            entries.append(("forward", who, forward))
    for case in GROWTH:
        for who in GROWERS:
            entries.append(("growth", who, _as_can(who, case)))
    for case in native().values():
        entries += [("native", who, _as_can(who, case)) for who in who_runs(case)]
    for case in linear():
        whos = SCANS if case.cell in LINEAR else SCANS[:1]
        entries += [("linear", who, case) for who in whos]
    return entries


def native() -> dict[str, Case]:
    """Returns the cases with and without compiled code, by name."""
    changes: dict[str, dict[str, Any]] = {
        "LSTM": {},
        "LSTM, no noise": {"noise": "none"},
        "LSTM, noise per step": {"noise": "step"},
        "LSTM, forward, no noise": {"train": False, "noise": "none"},
        "GRU": {"cell": "gru"},
    }
    return {
        f"{name}: {shape}": dataclasses.replace(case, **change)
        for name, change in changes.items()
        for shape, case in SHAPES.items()
    }


def who_runs(case: Case) -> tuple[str, ...]:
    """Returns who runs a case of `native`: peers train once, with what they can do."""
    once = case.noise == "sequence" or not case.train
    return WITH_NATIVE if once else WITH_NATIVE[:2]


def linear() -> list[Case]:
    """Returns the cases of linear cells, and of an LSTM to compare them with."""
    cells: tuple[Cell, ...] = (*LINEAR, "lstm")
    return [Case(16, time, 64, 64, cell=cell) for time in LONG for cell in cells]


def _as_can(who: str, case: Case) -> Case:
    """A case without the noise that a contender cannot do."""
    return case if case.noise in CAN[who] else dataclasses.replace(case, noise="none")
