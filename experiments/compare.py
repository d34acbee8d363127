"""Compare: all methods of dropout on one task, from a config to a report."""

import time
from pathlib import Path

from rich import box
from rich.table import Table

from experiments import comparison, report, results, sweep, vowels
from experiments.comparison import Curve
from experiments.config import MethodsConfig, to_toml
from experiments.methods import METHODS
from experiments.running import Watch, console, make_folder, watch


def compare(config: MethodsConfig, folder: Path) -> bool:
    """Trains every method and writes config, results, figures and report.

    Each method is one compiled program for all its rates and seeds. Ctrl-C and SIGTERM
    end it after the current chunk of epochs; the methods finished by then are reported.

    Returns:
        Whether it ran to the end.

    Raises:
        ConfigError: the config does not suit the data, or the folder cannot be used.
    """
    data = vowels.load()
    sweep.check_sizes(config.train, data[0])
    make_folder(folder, to_toml(config))
    start = time.perf_counter()
    firsts = comparison.first_of_its_value(config)
    curves: dict[str, Curve] = {}
    with watch(config.train.epochs * len(set(firsts.values()))) as watcher:
        for method in dict.fromkeys(firsts.values()):
            if not watcher.stopped:
                _train(method, config, data, folder, watcher, curves, start)
    finished = [
        curves[first]._replace(method=method, same_as=first)
        for method, first in firsts.items()
        if first in curves
    ]
    if not finished:
        console.print("Stopped before the first method ended: nothing to report.")
        return False
    seconds = time.perf_counter() - start
    path = report.write_methods(folder, config, finished, seconds)
    console.print(_table(finished))
    console.print(f"{len(curves)} programs in {seconds:.1f} s.")
    console.print(f"Report: {path}", style="bold", soft_wrap=True)
    return not watcher.stopped


def _train(
    method: str,
    config: MethodsConfig,
    data: tuple[vowels.Utterances, vowels.Utterances],
    folder: Path,
    watcher: Watch,
    curves: dict[str, Curve],
    start: float,
) -> None:
    """Trains one method, stores its lines, and its curve if it came to the end."""
    path = folder / "results.jsonl"
    earlier = results.read(path)
    lanes = comparison.lanes(method, config, data[0])
    watcher.announce(method, "compiling ...")
    cell = METHODS[method].cell
    program = sweep.compile_sweep(lanes, config.model, config.train, *data, cell)

    def keep(chunks):
        lines = results.records(
            comparison.settings(method, config),
            results.stack(chunks),
            config.train,
            time.perf_counter() - start,
        )
        results.write(path, earlier + lines)

    history = results.stack(watcher.train(method, program, config.train, keep))
    if history.train_nll.shape[1] == config.train.epochs:
        curves[method] = comparison.lay_out(method, method, config, history)


def _table(curves: list[Curve]) -> Table:
    table = Table(
        title="Best rate of each method on validation; test NLL (nats), mean ± sd",
        box=box.SIMPLE_HEAD,
    )
    for heading in ("method", "rate", "test NLL", "accuracy", "p against 0"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for row in report.method_rows(curves):
        table.add_row(*row.values())
    return table
