"""Cells are chosen on validation figures, and what is written reads back."""

import json

import numpy as np
import pytest

from experiments import plane as planes
from experiments import plots, results
from experiments.config import Noise, Plane, PlaneConfig, Train
from experiments.train import Metrics

RATES = Noise(rate=(0.0, 0.5))


def make_plane(valid, test, seeds=5):
    """A plane of 2 x 2 cells whose seeds differ by a little."""
    config = PlaneConfig(
        seeds=seeds,
        dropout=Plane(inputs=RATES, recurrent=RATES),
        train=Train(epochs=2, evaluate_every=2),
    )
    jitter = np.linspace(0, 0.01, seeds)
    nlls = [
        (np.array(nll)[:, None] + jitter).ravel().astype(np.float32)
        for nll in (valid, test)
    ]
    chunk = Metrics(
        np.stack([nlls[1], nlls[1]], axis=1), nlls[0], 1 - nlls[0], nlls[1], 1 - nlls[1]
    )
    return config, planes.lay_out(config, results.stack([chunk]))


def test_the_choice_is_made_on_validation_not_on_test():
    _, plane = make_plane(valid=[0.4, 0.2, 0.3, 0.5], test=[0.1, 0.9, 0.8, 0.05])
    choice = planes.choose(plane)
    assert choice.none == (0, 0)
    assert choice.recurrent == (0, 1)
    assert choice.inputs == (1, 0)
    assert choice.both == (1, 1)
    assert choice.best == (0, 1)
    assert plane.rates(choice.best) == (0.0, 0.5)


def test_a_cell_that_is_not_finite_is_never_chosen():
    _, plane = make_plane(valid=[0.4, np.nan, np.inf, 0.3], test=[0.1] * 4)
    choice = planes.choose(plane)
    assert choice.inputs is None
    assert choice.recurrent is None
    assert choice.best == (1, 1)


@pytest.mark.parametrize(
    ("both", "seeds", "verdict"),
    [
        (0.1, 4, "use both"),
        (0.5, 4, "one kind is enough"),
        (0.1, 1, "do not settle"),
        (0.19, 4, "do not settle"),
    ],
)
def test_the_answer_follows_the_figures(both, seeds, verdict):
    test = [0.4, 0.2, 0.3, both]
    _, plane = make_plane(valid=test, test=test, seeds=seeds)
    plane.metrics.test_nll[1, 1, 0] += 0.02
    answer = planes.answer(plane, planes.choose(plane))
    assert verdict in answer
    assert "`dropout` alone (rate 0.5)" in answer
    assert f"of {seeds} seeds" in answer
    assert answer.count(". ") == 1


def test_records_read_back_as_the_same_float32(tmp_path):
    config, plane = make_plane(valid=[0.4, 0.2, np.nan, 0.5], test=[0.1, 0.9, 0.8, 0.3])
    path = tmp_path / "results.jsonl"
    flat = Metrics(*(leaf.reshape(-1, leaf.shape[-1]) for leaf in plane.metrics))
    settings = planes.settings(config)
    results.write(path, results.records(settings, flat, config.train, 1.5))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 4 * config.seeds
    assert [(li["inputs"], li["recurrent"], li["seed"]) for li in lines[5:7]] == [
        (0.0, 0.5, 0),
        (0.0, 0.5, 1),
    ]
    stored = [np.float32(line["metrics"]["test_nll"][-1]) for line in lines]
    np.testing.assert_array_equal(stored, plane.final("test_nll").ravel())
    assert lines[10]["metrics"]["valid_nll"] == [None]
    assert lines[0]["status"] == "finished"
    assert {"jax", "flax", "rdrop", "python"} <= set(lines[0]["versions"])
    assert lines[0]["platform"]["prng"] == "threefry2x32"
    assert [p.name for p in tmp_path.iterdir()] == ["results.jsonl"]


def test_figures_are_the_same_bytes_for_the_same_data(tmp_path):
    _, plane = make_plane(valid=[0.4, 0.2, 0.3, 0.5], test=[0.1, 0.9, 0.8, 0.05])
    choice = planes.choose(plane)
    written = []
    for name in ("a", "b"):
        plots.save(plots.plane_map(plane, choice), tmp_path / name)
        written.append((tmp_path / f"{name}.svg").read_bytes())
    assert written[0] == written[1]
    assert b"recurrent_dropout" in written[0]
