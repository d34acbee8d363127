"""Report: the tables of NOTES.md, generated from a run's results."""

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cases import (
    CAN,
    GROWERS,
    GROWTH,
    PEERS,
    RESETTERS,
    SCANS,
    SHAPES,
    WITH_NATIVE,
    Case,
    linear,
    native,
    who_runs,
)

ROOT = Path(__file__).parent.parent
NOTES = ROOT / "benchmarks/NOTES.md"
RESULTS = ROOT / "benchmarks/results/cpu.json"


def read(path: Path = RESULTS) -> dict:
    """Returns the results of a run, with cases for what is plain data in the file."""
    results = json.loads(path.read_text())
    for measured in results["measured"]:
        measured["case"] = Case(**measured["case"])
    return results


def write(results: dict) -> None:
    """Replaces the tables of NOTES.md between their markers."""
    text = NOTES.read_text()
    for name, table in tables(results).items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        head, rest = text.split(start)
        text = head + start + table + end + rest.split(end)[1]
    NOTES.write_text(text)


def _bench(results):
    rows = []
    for name, shape in SHAPES.items():
        at = Lookup(results, "train", shape)
        ours, torch, keras = at("rdrop"), at("torch"), at("keras-jax")
        rows.append(
            [
                f"{name} ({_shape(shape)})",
                _ms(ours),
                _ms(at("rdrop-plain")),
                _ms(torch),
                _ms(keras),
                _ms(at("keras-torch")),
                _times(torch, ours),
                _times(keras, ours),
            ]
        )
    heads = ["shape (B, T, D, H)", "rdrop", "plain scan", "torch, no noise"]
    heads += ["Keras on JAX", "Keras on torch", "against torch", "against Keras"]
    return _table(heads, rows)


def tables(results: dict) -> dict[str, str]:
    """Returns the tables, by name."""
    return {
        "bench": _bench(results),
        "environment": _environment(results),
        "floor": _floor(results),
        "gates": _gates(results),
        "price": _price(results),
        "episodes": _episodes(results),
        "pages": _by_contender(results, "pages", PEERS),
        "gru": _by_contender(results, "gru", PEERS),
        "forward": _by_contender(results, "forward", ("rdrop", "torch", "keras-jax")),
        "compile": _compile(results),
        "memory": _memory(results),
        "growth": _growth(results),
        "native": _native(results),
        "native-costs": _native_costs(results),
        "linear": _linear(results),
        "sweep": _sweep(results),
    }


class Lookup:
    """Milliseconds, or another figure, of who ran a shape, for one table.

    Args:
        results: of a run.
        table: which of its tables.
        shape: a case of the batch, time, features and units that are meant.
    """

    def __init__(self, results: dict, table: str, shape: Case):
        size = _size(shape)
        self.measured = [
            m
            for m in results["measured"]
            if m["table"] == table and _size(m["case"]) == size
        ]

    def __call__(self, contender: str, figure: str = "milliseconds", **options):
        """Returns the figure, or None where it was not measured."""
        options = {"gates": "shared"} | options
        for measured in self.measured:
            case = vars(measured["case"])
            if measured["contender"] == contender and options.items() <= case.items():
                return measured[figure]
        return None


def _environment(results):
    environment = results["environment"]
    versions = ", ".join(f"{n} {v}" for n, v in environment["versions"].items())
    return (
        f"{environment['machine']}, {environment['cores']} cores; {versions}. A matrix "
        f"product of 2048 rows reaches {results['peak_gflops']:.0f} GFLOP/s.\n"
    )


def _floor(results):
    rows = []
    for name, shape in SHAPES.items():
        floor = 1e3 * shape.flops / (1e9 * results["peak_gflops"])
        at = Lookup(results, "train", shape)
        whos = ("rdrop", "rdrop-plain", "torch", "keras-jax", "flax")
        rows.append([name, f"{floor:.1f}", *(_times(at(who), floor) for who in whos)])
    heads = ["shape", "floor, ms", "rdrop", "plain scan", "torch", "Keras", "flax"]
    return _table(heads, rows)


def _gates(results):
    rows = []
    for name, shape in SHAPES.items():
        at = Lookup(results, "train", shape)
        ours, keras = at("rdrop", gates="each"), at("keras-jax")
        rows.append([name, _ms(ours), _ms(keras), _times(keras, ours)])
    return _table(["shape", "rdrop", "Keras on JAX", "ratio"], rows)


def _price(results):
    rows = []
    for name, shape in SHAPES.items():
        at = Lookup(results, "price", shape)
        none, held, step = (
            at("rdrop", noise=noise) for noise in ("none", "sequence", "step")
        )
        rows.append([name, _ms(none), _percent(held, none), _percent(step, none)])
    return _table(["shape", "no noise, ms", "per sequence", "per step"], rows)


def _episodes(results):
    rows = []
    for name, shape in SHAPES.items():
        at = Lookup(results, "episodes", shape)
        prices = [
            _percent(
                at(who, noise=noise, resets=True), at(who, noise=noise, resets=False)
            )
            for who in RESETTERS
            for noise in ("none", "sequence")
        ]
        rows.append([name, *prices])
    heads = [f"{who}{more}" for who in RESETTERS for more in ("", ", held noise")]
    return _table(["shape", *heads], rows)


def _by_contender(results, table, whos: Sequence[str]):
    rows = []
    for name, shape in SHAPES.items():
        at = Lookup(results, table, shape)
        ours, *others = (at(who) for who in whos)
        ratios = [_times(other, ours) for other in others]
        rows.append([name, _ms(ours), *map(_ms, others), *ratios])
    return _table(["shape", *whos, *(f"{w} / rdrop" for w in whos[1:])], rows)


def _compile(results):
    whos = ("rdrop", "rdrop-plain", "keras-jax", "flax")
    rows = [
        [name, *(f"{at(who, 'first_seconds'):.2f}" for who in whos)]
        for name, at in _train(results)
    ]
    return _table(["shape", *whos], rows)


def _memory(results):
    whos = ("rdrop", "rdrop-recompute", "rdrop-plain", "torch", "keras-jax", "flax")
    rows = [
        [name, *(f"{at(who, 'peak_mb'):.0f}" for who in whos)]
        for name, at in _train(results)
    ]
    return _table(["shape", *whos], rows)


def _growth(results):
    rows = []
    for shape in GROWTH:
        at = Lookup(results, "growth", shape)
        times = [at(who) for who in GROWERS]
        ours, compiled, plain, torch = times
        ratios = _times(plain, ours), _times(torch, ours), _times(torch, compiled)
        rows.append([_shape(shape), *map(_ms, times), *ratios])
    heads = ["B, T, D, H", "rdrop", "rdrop with rdrop-cpu", "plain scan"]
    ratios = ("plain / rdrop", "torch / rdrop", "torch / rdrop with rdrop-cpu")
    return _table([*heads, "torch, no noise", *ratios], rows)


def _native(results):
    rows = []
    for name, case in native().items():
        at = Lookup(results, "native", case)
        options = {"cell": case.cell, "train": case.train}
        without, ours, *peers = (
            at(who, noise=case.noise if case.noise in CAN[who] else "none", **options)
            if who in who_runs(case)
            else None
            for who in WITH_NATIVE
        )
        ratios = [_times(other, ours) for other in (without, *peers)]
        rows.append([name, _ms(without), _ms(ours), *map(_ms, peers), *ratios])
    whos = ("rdrop", "rdrop with rdrop-cpu", "torch, no noise", "Keras on JAX")
    ratios = ("against rdrop", "against torch", "against Keras")
    return _table(["case", *whos, *ratios], rows)


def _native_costs(results):
    whos = WITH_NATIVE[:2]
    rows = []
    for name, shape in SHAPES.items():
        at = Lookup(results, "native", shape)
        step = {"cell": shape.cell, "train": shape.train, "noise": shape.noise}
        first = [f"{at(who, 'first_seconds', **step):.2f}" for who in whos]
        rises = [f"{at(who, 'peak_mb', **step):.0f}" for who in whos]
        rows.append([name, *first, *rises])
    units = ("first call, s", "memory, MB")
    heads = [f"{unit}, {how}" for unit in units for how in ("without", "with")]
    return _table(["shape", *heads], rows)


def _linear(results):
    rows = []
    for case in linear():
        at = Lookup(results, "linear", case)
        times = [at(who, cell=case.cell) for who in SCANS]
        peaks = [at(who, "peak_mb", cell=case.cell) for who in SCANS]
        rows.append([str(case.time), case.cell, *map(_ms, times), *map(_ms, peaks)])
    heads = [f"{who}, {unit}" for unit in ("ms", "MB") for who in SCANS]
    return _table(["T", "cell", *heads], rows)


def _sweep(results):
    ours, *_ = (sweep := results["sweep"]).values()
    rows = [["rdrop, one program", f"{ours['seconds']:.0f} s", "", ""]]
    for name in ("keras-jax", "torch"):
        total = sweep[name]["extrapolated_seconds"]
        rows.append(
            [
                f"{name}, one after the other",
                f"{total:.0f} s (extrapolated)",
                f"{sweep[name]['one_training']:.2f} s",
                _times(total, ours["seconds"]),
            ]
        )
    heads = [f"{ours['lanes']} lanes of the vowels plane", "in all", "one training"]
    return _table([*heads, "ratio"], rows)


def _train(results):
    return [(name, Lookup(results, "train", shape)) for name, shape in SHAPES.items()]


def _size(case):
    return case.batch, case.time, case.features, case.units


def _shape(case):
    return ", ".join(map(str, _size(case)))


def _ms(value):
    return "-" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _times(value, base):
    return "-" if value is None or base is None else f"{value / base:.2f}"


def _percent(value, base):
    return f"{100 * (value / base - 1):+.0f} %"


def _table(heads, rows):
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
