"""The study of linear recurrences is computed as its page says."""

import numpy as np
import pytest
import scipy.stats

SEEDS = 8


@pytest.fixture
def study(monkeypatch, pytestconfig):
    monkeypatch.syspath_prepend(str(pytestconfig.rootpath / "docs"))
    import make_linear

    return make_linear


def test_effects_are_paired_and_averaged_over_the_linear_cells(study, rng):
    """The rate with the lower validation loss counts; the LSTM does not."""
    baseline = {c: rng.uniform(1, 2, SEEDS).tolist() for c in ("lstm", "lru", "s5")}
    rows = [
        {"cell": cell, "method": method, "rate": rate, "valid": rate}
        | {"test": rng.uniform(1, 2, SEEDS).tolist()}
        for cell in baseline
        for method in study._methods()
        for rate in (0.5, 0.1)
    ]
    found = study.effects({"copy": {"baseline": baseline, "rows": rows}})
    tests = {
        (row["cell"], row["method"]): row["test"] for row in rows if row["rate"] == 0.1
    }
    ps = []
    for method in study._methods():
        logs = [
            np.log(np.divide(tests[cell, method], baseline[cell]))
            for cell in ("lru", "s5")
        ]
        effect = found["copy", method].linear
        assert effect.difference == pytest.approx(np.mean(logs))
        ps.append(scipy.stats.ttest_1samp(np.mean(logs, axis=0), 0).pvalue)
        assert effect.p == pytest.approx(ps[-1])
        assert effect.family == len(study._methods()) == 10
    lives = study.lifetimes({"copy": {"baseline": baseline, "rows": rows}})
    step, held = (found["copy", f"state_{word}"].linear for word in ("step", "held"))
    expected = step.difference - held.difference
    assert lives["copy", "state"].difference == pytest.approx(expected)
