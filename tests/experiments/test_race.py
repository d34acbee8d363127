"""A race: its statistics hold whenever one looks, and its rounds follow its results."""

import itertools
import json
import math
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from folders import make_lines, no_reports, write_folder

from experiments import runs, sequential, statistics
from experiments.__main__ import main
from experiments.axes import make_sweep
from experiments.config import ConfigError
from experiments.race import Race, next_round
from experiments.report import findings, lanes, sentences, several, write_report
from experiments.runs.records import read_records
from experiments.wording import MINUS

PLANES, SETTINGS, SEEDS = 2000, 8, 60
SETTLED = {"until": "settled", "margin": 0.0}


def t_statistic(differences):
    seeds = len(differences)
    return differences.mean() / differences.std(ddof=1) * math.sqrt(seeds)


def test_evidence_is_the_bayes_factor_of_a_normal_effect(rng):
    """The t-statistics of effects e ~ Normal(0, 1), by integration, against e = 0."""
    differences = rng.normal(0.5, 2, size=12)
    found = sequential.evidence(differences, mean=0.3)
    for seeds in (2, 3, 7, 12):
        t = t_statistic(differences[:seeds] - 0.3)

        def density(effect, t=t, seeds=seeds):
            shifted = scipy.stats.nct.pdf(t, seeds - 1, effect * math.sqrt(seeds))
            return shifted * scipy.stats.norm.pdf(effect)

        factor = scipy.integrate.quad(density, -8, 8)[0]
        factor /= scipy.stats.t.pdf(t, seeds - 1)
        assert found[seeds - 1] == pytest.approx(math.log(factor), rel=1e-6)


def test_intervals_hold_the_means_that_are_not_rejected(rng):
    differences = rng.normal(1, 1, size=15)
    low, high = sequential.intervals(differences, 0.05)
    assert (np.diff(low[6:]) >= 0).all()
    assert (np.diff(high[6:]) <= 0).all()
    assert np.isinf(low[: sequential.fewest_seeds(0.05) - 1]).all()
    for end in (low[-1], high[-1]):
        inside, outside = end + np.array([1, -1]) * 1e-6 * np.sign(low[-1] + high[-1])
        if end == high[-1]:
            inside, outside = outside, inside
        assert sequential.p_value(differences, inside) > 0.05
        assert sequential.p_value(differences, outside) < 0.05


def test_the_fewest_seeds_can_settle_a_difference():
    for level in (0.05, 0.05 / 8, 0.05 / 100):
        seeds = sequential.fewest_seeds(level)
        clear = 1 + 1e-9 * np.arange(seeds)
        assert sequential.p_value(clear) < level
        assert sequential.p_value(clear[:-1]) >= level


def test_null_planes_are_called_settled_in_one_of_twenty_however_often_one_looks(rng):
    """A t-test that is looked at after every seed is wrong in most planes."""
    planes = rng.normal(size=(PLANES, SETTINGS, SEEDS))
    ps = np.array([[sequential.p_value(d) for d in plane] for plane in planes])
    wrong = (ps.min(axis=1) * SETTINGS < statistics.LEVEL).sum()
    assert wrong <= scipy.stats.binom.ppf(0.999, PLANES, 0.05)
    assert wrong >= 10  # a test that never finds anything would pass the line above
    few = planes[:100, 0]
    looks = range(5, SEEDS + 1)
    peeked = [min(statistics.paired_p(d[:n]) for n in looks) < 0.05 for d in few]
    assert sum(peeked) > 15


def test_equivalence_is_wrong_in_one_of_twenty_at_the_margin(rng):
    at_the_margin = rng.normal(0.5, 1, size=(PLANES, SEEDS))
    ps = [sequential.equivalence_p(d, 0.5) for d in at_the_margin]
    wrong = sum(p < 0.05 for p in ps)
    assert wrong <= scipy.stats.binom.ppf(0.999, PLANES, 0.05)
    inside = rng.normal(0, 1, size=(50, 200))
    found = [sequential.equivalence_p(d, 0.5) < 0.05 for d in inside]
    assert sum(found) > 45


def test_tost_is_that_of_scipy(rng):
    differences = rng.normal(0.1, 1, size=20)
    sides = (("greater", -0.7), ("less", 0.7))
    expected = max(
        scipy.stats.ttest_1samp(differences, mean, alternative=side).pvalue
        for side, mean in sides
    )
    assert statistics.tost_p(differences, 0.7) == pytest.approx(expected, rel=1e-12)
    assert statistics.tost_p(np.zeros(3), 0.1) == 0
    assert statistics.tost_p(np.full(3, 0.25), 0.25) == 1


def test_differences_without_spread():
    same = np.zeros(20)
    assert sequential.p_value(same) == 1
    assert sequential.equivalence_p(same, 0.1) < 0.05
    assert sequential.p_value(np.full(20, 0.1)) < 0.05


def sweep_of(settings, seeds):
    values = [n / 10 for n in range(settings)]
    return make_sweep({"seeds": seeds, "dropout": {"rate": values}}, "test")


NO_END = Race()


def raced(sweep, loss_of, race=NO_END):
    """Trains until the race is over; returns its rounds."""
    records, rounds = {}, []
    all_lanes = sweep.lanes()
    while (found := next_round(all_lanes, records, "nll", race)).places:
        rounds.append(found)
        assert not records.keys() & set(found.places)
        for place in found.places:
            lane = all_lanes[place]
            value = loss_of(lane.traced["dropout.rate"], lane.config.seeds)
            records[place] = {
                "status": "finished" if value is not None else "diverged",
                "metrics": {"test_nll": [value], "valid_nll": [value]},
            }
        some = dict(itertools.islice(records.items(), len(records) - 1))
        assert next_round(all_lanes, some, "nll", race).places == found.places
    return rounds, records


def noise(rate, seed):
    return random.Random(f"{rate} {seed}").gauss(0, 1)


def test_settled_settings_leave_and_their_lanes_go_to_the_others():
    """0.1 is far better at once, 0.2 has no effect; the baseline races to the end."""

    def loss(rate, seed):
        return noise(rate, seed) - 30 * (rate == 0.1)

    rounds, records = raced(sweep_of(3, 40), loss)
    assert rounds[0].seeds == sequential.fewest_seeds(0.05 / 2)
    assert [r.undecided for r in rounds][:2] == [2, 1]
    seeds = [sum(p // 40 == setting for p in records) for setting in range(3)]
    assert seeds == [40, rounds[0].seeds, 40]
    growth = [b.seeds / a.seeds for a, b in itertools.pairwise(rounds)]
    assert max(growth) <= 1.25


def test_equivalent_settings_leave():
    _, records = raced(sweep_of(2, 300), noise, Race(margin=1.0))
    assert len(records) < 200
    assert not raced(sweep_of(2, 20), noise)[0][-1].seeds < 20


def test_settings_that_cannot_be_compared_leave():
    def loss(rate, seed):
        if rate == 0.1:
            return None if seed == 1 else 0.0
        return noise(0, seed)

    rounds, _ = raced(sweep_of(3, 40), loss)
    assert len(rounds) == 1  # one diverges, the other is the same training


def test_a_race_ends_with_its_lanes():
    _, records = raced(sweep_of(2, 100), noise, Race(lanes=30))
    assert 20 < len(records) <= 30


@pytest.mark.parametrize(
    ("settings", "seeds", "race", "message"),
    [
        (1, 64, Race(), "must have an axis with several values to be raced"),
        (9, 4, Race(), "seeds: must be at least 7, the fewest that can settle 8"),
        (2, 64, Race(margin=-1.0), "must be finite and at least 0, got -1"),
        (
            2,
            64,
            Race(margin=math.nan),
            "must be finite and at least 0, got nan",
        ),
        (
            2,
            64,
            Race(margin=math.inf),
            "must be finite and at least 0, got inf",
        ),
        (2, 64, Race(lanes=9), "lanes: must be at least 10, 5 seeds of each setting, "),
        (2, 64, Race(minutes=-1.0), "minutes: must be above 0, got -1"),
    ],
)
def test_impossible_races_are_refused(settings, seeds, race, message):
    with pytest.raises(ConfigError, match=message):
        race.check(sweep_of(settings, seeds))


BEST = Race("best")


def test_a_race_until_the_best_ends_with_it():
    """0.2 is the best; 0.0 and 0.4 are far from it, 0.1 and 0.3 near."""

    def loss(rate, seed):
        return noise(rate, seed) + 400 * abs(rate - 0.2) ** 2

    rounds, records = raced(sweep_of(5, 200), loss, BEST)
    assert rounds[0].seeds == sequential.fewest_seeds(0.05 / 4)
    seeds = [sum(p // 200 == setting for p in records) for setting in range(5)]
    assert seeds[2] == max(seeds) < 200
    assert seeds[0] == seeds[4] == rounds[0].seeds
    assert sorted(seeds)[-2] == seeds[2]  # the last one to leave
    assert rounds[-1].undecided == 1


def test_the_best_leaves_in_at_most_one_of_twenty_races():
    """Four settings; the best is better by half of a standard deviation."""
    wrong = 0
    for repetition in range(30):

        def loss(rate, seed, repetition=repetition):
            return noise(f"{repetition} {rate}", seed) - 0.5 * (rate == 0.1)

        _, records = raced(sweep_of(4, 60), loss, BEST)
        seeds = [sum(p // 60 == setting for p in records) for setting in range(4)]
        wrong += seeds[1] < max(seeds)
    assert wrong <= scipy.stats.binom.ppf(0.999, 30, 0.05)


def test_equivalent_settings_end_a_race_until_the_best():
    race = Race("best", margin=1.5)
    rounds, records = raced(sweep_of(2, 300), noise, race)
    assert len(records) < 200
    assert rounds[-1].undecided == 1


def test_a_diverged_setting_is_not_the_best():
    def loss(rate, seed):
        return None if rate == 0.1 and seed == 1 else noise(rate, seed) + 30 * rate

    _, records = raced(sweep_of(3, 100), loss, BEST)
    seeds = [sum(p // 100 == setting for p in records) for setting in range(3)]
    assert seeds[1] == sequential.fewest_seeds(0.05 / 2)


def test_the_report_of_a_race_until_the_best(tmp_path):
    axes = {"dropout.rate": [0.0, 0.1, 0.2]}

    def loss(rate, seed):
        return 40 + noise(rate, seed) - 30 * (rate == 0.1) - 20 * (rate == 0.2)

    _, records = raced(sweep_of(3, 40), loss, BEST)
    lines = make_lines(axes, 40, lambda s, seed: loss(s["dropout.rate"], seed))
    folder = write_folder(tmp_path, axes, [lines[place] for place in sorted(records)])
    facts = json.loads((folder / "run.json").read_text())
    race = {"until": "best", "margin": 0.0}
    (folder / "run.json").write_text(json.dumps(facts | {"race": race}))
    data = lanes.started(runs.load(folder))
    rows = list(findings.planned(data).values())
    assert [row.base["dropout.rate"] for row in rows] == [0.1, 0.1]
    assert all(row.comparison.higher and row.comparison.family == 2 for row in rows)
    assert [row.comparison.level for row in rows] == [0.025, 0.025]
    seeds = [row.comparison.seeds for row in rows]
    assert seeds[0] == sequential.fewest_seeds(0.025)
    assert sentences.verdict(data) == (
        "The lowest on validation data: `dropout.rate` 0.1. Settled as higher: 2 of 2 "
        f"other settings, with {len(records)} lanes."
    )
    page = write_report([folder]).read_text()
    names = [f"<code>dropout.rate</code> {rate}" for rate in (0.2, 0.1)]
    assert f" {MINUS} ".join(names) in page
    assert "Differences in the validation loss, paired by seed" in page
    assert "difference in validation NLL" in page
    assert "after Bonferroni&#39;s correction" in page
    assert "in brackets, which was the lowest" not in page
    for wrong in ("Holm", "t-tests", "Student", "Differences in the test loss"):
        assert wrong not in page


@pytest.mark.parametrize("until", ["settled", "best"])
def test_the_report_of_two_races(tmp_path, until):
    """The second one has more seeds, and a lower loss."""
    axes = {"dropout.rate": [0.0, 0.1]}
    folders = []
    for name, seeds, lower in (("one", 9, 0), ("two", 12, 5)):

        def loss(setting, seed, lower=lower):
            return (
                40 - lower + noise(setting["dropout.rate"], seed) + noise(lower, seed)
            )

        folder = write_folder(tmp_path / name, axes, make_lines(axes, seeds, loss))
        (folder / "config.toml").write_text("seeds = 64\n")
        facts = json.loads((folder / "run.json").read_text())
        race = {"until": until, "margin": 0.0}
        (folder / "run.json").write_text(json.dumps(facts | {"race": race}))
        folders.append(folder)
    page = write_report(folders, tmp_path / "report.html").read_text()
    for wrong in ("t-tests", "Student", "about 2", "were enough", "not compared"):
        assert wrong not in page
    assert "Test loss: <code>two</code> lower than <code>one</code>." in page
    assert "Tests and intervals (in brackets) hold whatever rule ends a race" in page
    assert "9; fixed " in page
    rows = several.compare_runs([lanes.started(runs.load(f)) for f in folders])
    assert rows[1].comparison.sequential
    assert rows[1].comparison.seeds == 9


def test_the_report_of_a_race(tmp_path):
    axes = {"dropout.rate": [0.0, 0.1, 0.2]}

    def loss(setting, seed):
        rate = setting["dropout.rate"]
        return 40 + noise(rate, seed) - 30 * (rate == 0.1)

    lines = make_lines(axes, 40, loss)
    kept = [x for x in lines if x["setting"] != {"dropout.rate": 0.1} or x["seed"] < 8]
    folder = write_folder(tmp_path, axes, kept)
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(
        json.dumps(facts | {"race": SETTLED | {"margin": 0.9}})
    )
    data = lanes.started(runs.load(folder))
    tests = [row.comparison for row in findings.planned(data).values()]
    assert [t.seeds for t in tests] == [8, 40]
    assert [t.lower for t in tests] == [True, False]
    assert [t.equivalent for t in tests] == [False, True]
    assert all(t.sequential and t.family == 2 for t in tests)
    assert findings.warnings(data) == []
    assert sentences.verdict(data) == (
        "Settled: 2 of 2 settings: 1 lower than the baseline, 1 equivalent to the "
        "baseline within 0.9, with 88 lanes."
    )
    assert lanes.mean_loss(data).values == pytest.approx(
        [lanes.losses_at(data, s).mean() for s in lanes.settings(data)]
    )
    page = write_report([folder]).read_text()
    assert "The race" in page
    assert "8; fixed 2" in page


@pytest.mark.parametrize("until", ["settled", "best"])
def test_a_race_without_any_loss_has_a_report(tmp_path, until):
    axes = {"dropout.rate": [0.0, 0.1]}
    lines = make_lines(axes, 6, lambda setting, seed: math.nan)
    folder = write_folder(tmp_path, axes, lines)
    facts = json.loads((folder / "run.json").read_text())
    race = SETTLED | {"until": until}
    (folder / "run.json").write_text(json.dumps(facts | {"race": race}))
    page = write_report([folder]).read_text()
    assert "The race</h2>" not in page
    assert "until it left the race" in page


TINY = [
    *("--seeds", "9", "--model.units", "4", "--model.cell", "simple"),
    *("--train.epochs", "2", "--train.evaluate-every", "1", "--until", "settled"),
    *("--dropout.inputs.rate", "0", "--dropout.recurrent.rate", "0", "0.3", "0.9"),
]


def arguments_of(pytestconfig, out):
    config = str(pytestconfig.rootpath / "configs/vowels_plane.toml")
    return ["ablate", config, *TINY, "--out", str(out)]


def test_a_race_compiles_once_and_is_told_from_a_sweep(pytestconfig, tmp_path, capsys):
    arguments = arguments_of(pytestconfig, tmp_path)
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        assert main(arguments) == 0
        before = (tmp_path / "results.jsonl").read_bytes()
        assert "Each setting against its baseline" in capsys.readouterr().out
        with no_reports():
            assert main(arguments) == 0
        assert (tmp_path / "results.jsonl").read_bytes() == before
        programs = json.loads((tmp_path / "run.json").read_text())["programs"]
        assert len(programs) > 1
        assert [p["compiles"] for p in programs] == [1] + [0] * (len(programs) - 1)
        capsys.readouterr()
        assert main([*arguments, "--margin", "0.1"]) == 2
        assert (
            "was started with --until settled --margin 0, not with --until settled"
            in (capsys.readouterr().err)
        )
        assert main([*arguments, "--until", "trained"]) == 2
        assert "not without --until" in capsys.readouterr().err
        assert main([*arguments, "--until", "trained", "--lanes", "3"]) == 2
        assert "until: must be settled or best for --margin" in capsys.readouterr().err
        assert main([*arguments, "--keep", "all"]) == 2
        assert "keep: must be none in a race, got all" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_race_ends_as_if_it_had_not_been(pytestconfig, tmp_path):
    def start(out):
        command = [
            sys.executable,
            "-m",
            "experiments",
            *arguments_of(pytestconfig, out),
        ]
        return subprocess.Popen(command, cwd=pytestconfig.rootpath)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait() == 0
    for _ in range(3):
        process = start(killed)
        while process.poll() is None and not (killed / "results.jsonl").exists():
            time.sleep(0.1)
        time.sleep(random.uniform(0, 2))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(killed).wait() == 0
    assert len(read_records(whole)) > 20
    assert (killed / "results.jsonl").read_bytes() == (
        whole / "results.jsonl"
    ).read_bytes()


def test_a_fixed_number_of_seeds_can_be_tested_for_equivalence(tmp_path):
    axes = {"dropout.rate": [0.0, 0.1]}
    lines = make_lines(axes, 20, lambda s, seed: 40 + noise(s["dropout.rate"], seed))
    folder = write_folder(tmp_path, axes, lines)
    page = write_report([folder], margin=2.0).read_text()
    assert "equivalent to the baseline within 2" in page
    assert "equivalent" not in write_report([folder]).read_text()
    with pytest.raises(ConfigError, match="margin: must be at least 0, got -1"):
        write_report([folder], margin=-1.0)
    facts = json.loads((folder / "run.json").read_text()) | {"race": SETTLED}
    (folder / "run.json").write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match="is a race, which has its own"):
        write_report([folder], margin=2.0)
