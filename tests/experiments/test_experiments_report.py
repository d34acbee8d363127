"""Reports say what the figures support, and open without a network."""

import math
import re
import shlex
from html.parser import HTMLParser

import numpy as np
import pytest
from folders import make_folder, make_lines, write_folder

from experiments import report
from experiments.config import ConfigError
from experiments.report import answers, outcomes, plots, tables
from experiments.report.figures import drawings
from experiments.report.outcomes import PLANE
from experiments.results import StorageError

INPUTS, RECURRENT = PLANE
RATES = {INPUTS: [0.0, 0.3, 0.5], RECURRENT: [0.0, 0.5]}
METHODS = {"dropout.method": ["gal_tied", "moon", "melis"], "dropout.rate": [0.0, 0.5]}
SEEDS = 4
NOISE = np.random.default_rng(0).normal(size=(9, 9, 9))


def bowl(setting, seed):
    """Lowest at (0.3, 0.5); the noise is small, and another in every cell."""
    x, h = setting[INPUTS], setting[RECURRENT]
    noise = 0.002 * NOISE[int(10 * x), int(10 * h), seed]
    return 0.1 + (x - 0.3) ** 2 + 0.4 * (h - 0.5) ** 2 + 0.01 * seed + noise


def by_method(setting, seed):
    gain = {"gal_tied": 0.2, "moon": 0.0, "melis": 0.2}[setting["dropout.method"]]
    noise = 0.003 * NOISE[0, 0, seed] * (setting["dropout.rate"] > 0)
    return 0.3 - gain * setting["dropout.rate"] + 0.01 * seed + noise


def by_table(figures):
    """Test figures [rate 0 or above, seed]; validation prefers the rate above 0."""
    return (
        lambda setting, seed: figures[int(setting["dropout.rate"] > 0), seed],
        lambda setting, seed: 0.3 - 0.1 * setting["dropout.rate"],
    )


def learn(setting, seed):
    return {"rate_inputs": [0.1, 0.2, 0.3], "rate_recurrent": [0.6, 0.5, 0.45]}


@pytest.fixture
def unrendered(monkeypatch):
    """Figures are laid out and not rendered, which takes longest: for tests of text."""
    with monkeypatch.context() as patch:
        patch.setattr(plots, "encode", lambda figure, kind: kind.encode())
        yield patch


@pytest.fixture
def plane(tmp_path):
    return make_folder(tmp_path / "plane", RATES, SEEDS, bowl)


@pytest.fixture
def learned(tmp_path):
    axes = {"dropout.inputs.rate": [0.1, 0.5]}
    folder = tmp_path / "learned"
    return make_folder(folder, axes, SEEDS, lambda s, seed: 0.3, learned=learn)


class Page(HTMLParser):
    """What a browser would load, the text that is shown, and open elements."""

    def __init__(self, html):
        super().__init__()
        self.loads, self.texts, self.open = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.loads += [v for k, v in attributes if k in ("src", "href", "srcset")]
        if tag not in ("meta", "img", "line", "path", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["style"], ["pre"]):
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def read_page(path):
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == []
    assert page.loads
    assert all(value.startswith("data:image/png;base64,") for value in page.loads)
    assert not re.search(r"url\((?!#)|@import|<script|<link", html)
    return html, page.text


def test_a_plane_is_answered_drawn_and_listed(plane):
    html, text = read_page(report.write([plane]))
    assert {path.name for path in plane.iterdir()} == {
        *("config.toml", "results.jsonl", "run.json", "report.html"),
        *("plane.png", "plane.svg", "learning_curves.png", "learning_curves.svg"),
    }
    assert "No dropout gives" in text
    assert "Both together, at (0.3, 0.5), give" in text
    assert ": use both (paired t-test" in text
    assert "An unrolled recurrent network" in html
    assert "one mask a sequence" in text
    assert html.count('<tr class="chosen">') == 1
    assert "lower than the baseline" in text
    assert "Data: spoken vowels." in text
    assert "jax 0.10.2" in text
    assert "40.5" in text
    assert "prefers-color-scheme: dark" in html
    assert "width=device-width" in html
    svg = (plane / "plane.svg").read_text()
    assert "rate on the vertical arrows ↑ dropout" in svg
    assert "rate on the horizontal arrows → recurrent_dropout" in svg


def test_under_every_figure_stands_the_command_that_makes_it(
    plane, learned, tmp_path, unrendered
):
    runs = [plane], [learned], [plane, learned]
    pages = [read_page(report.write(f, tmp_path / "report.html"))[0] for f in runs]
    unrendered.undo()
    for folders, html in zip(runs, pages, strict=True):
        commands = re.findall(r'<pre class="command">(.*)</pre>', html)
        names = drawings([outcomes.read(folder) for folder in folders])
        assert html.count("<img") == len(commands) == len(names)
        for command, name in zip(commands, names, strict=True):
            *start, flag, figure, out, file = shlex.split(command)
            assert start == [
                "python",
                "-m",
                "experiments",
                "report",
                *map(str, folders),
            ]
            assert (flag, figure, out, file) == (
                "--figure",
                name,
                "--out",
                f"{name}.png",
            )
            path = report.figure(folders, figure, tmp_path / file)
            assert path.read_bytes().startswith(b"\x89PNG")


def test_pictures_are_the_same_bytes_again(plane, tmp_path):
    """In the report and drawn alone."""
    report.write([plane])
    for name in ("plane.png", "plane.svg", "learning_curves.svg", "plane.pdf"):
        again = tmp_path / name
        report.figure([plane], again.stem, again)
        first = plane / name
        if not first.exists():
            report.figure([plane], again.stem, first)
        assert again.read_bytes() == first.read_bytes()


def test_the_page_is_the_same_bytes_again(plane, unrendered):
    first, second = (report.write([plane]).read_bytes() for _ in range(2))
    assert first == second


def test_what_is_missing_is_said(tmp_path):
    lines = make_lines(RATES, SEEDS, bowl)
    lines[6] |= {"status": "diverged", "diverged_at": 77}
    for line in lines:
        line["metrics"]["test_accuracy"][-1] = 0.5
    lines[9] |= {"status": "interrupted", "epochs": 4, "evaluated_at": [2, 4]}
    cut = {k: v[: 4 if k == "train_nll" else 2] for k, v in lines[9]["metrics"].items()}
    lines[9]["metrics"] = cut
    _, text = read_page(report.write([write_folder(tmp_path, RATES, lines)]))
    assert "1 of 24 lanes ended before epoch 6 or are missing" in text
    assert "1 of 24 lanes diverged; their settings are not chosen." in text
    assert (
        "dropout.inputs.rate 0, dropout.recurrent.rate 0.5, seed 2, at step 77" in text
    )
    assert "figures are missing" in text


def test_a_run_that_was_stopped_says_at_which_epoch(tmp_path, unrendered):
    lines = make_lines({}, 2, lambda setting, seed: 0.2 + 0.1 * seed)
    for line in lines:
        line |= {"status": "interrupted", "epochs": 6}
    folder = write_folder(tmp_path, {}, lines)
    run = (folder / "run.json").read_text().replace('"epochs": 6', '"epochs": 60')
    (folder / "run.json").write_text(run.replace('"lanes": 2', '"lanes": 8'))
    _, text = read_page(report.write([folder]))
    assert "Stopped after 6 of 60 epochs" in text
    assert "6 lanes of the sweep never started." in text
    assert "The one setting reaches a test NLL of 0.250 ±0.071 over 2 seeds" in text


def test_nothing_finite_is_still_a_report(tmp_path):
    folder = make_folder(tmp_path, RATES, 2, lambda setting, seed: math.inf)
    _, text = read_page(report.write([folder]))
    assert "No setting has a finite validation loss at every seed." in text


def test_one_seed_has_no_statistics(tmp_path, capsys, unrendered):
    axes = {"dropout.rate": [0.0, 0.5]}
    folder = make_folder(
        tmp_path, axes, 1, lambda s, seed: 0.3 - 0.2 * s["dropout.rate"]
    )
    _, text = read_page(report.write([folder]))
    assert "One seed: no statistics; another seed may order" in text
    assert "no evidence" not in text
    report.summary(folder)
    assert "One seed: no statistics" in capsys.readouterr().out


@pytest.mark.slow
def test_what_is_no_different_is_called_so_at_the_nominal_rate(tmp_path, rng):
    """Of figures without a difference, one comparison in twenty finds one."""
    axes, trials = {"dropout.rate": [0.0, 0.5]}, 300
    found = {"no evidence of a difference": 0}
    for _ in range(trials):
        figures = 0.2 + 0.02 * rng.normal(size=(2, SEEDS))
        make_folder(tmp_path, axes, SEEDS, *by_table(figures))
        run = outcomes.read(tmp_path)
        verdict = tables.of_settings(run).rows[1].compared[0]
        found[verdict] = found.get(verdict, 0) + 1
        assert verdict in answers.answer(run)
    wrong = trials - found["no evidence of a difference"]
    assert abs(wrong - 0.05 * trials) <= 4 * math.sqrt(trials * 0.05 * 0.95)


def test_a_difference_is_reported_with_its_figures(tmp_path, unrendered):
    axes = {"dropout.rate": [0.0, 0.5]}

    def test(setting, seed):
        return 0.3 + 0.01 * seed - setting["dropout.rate"] * (0.2 + 0.04 * seed)

    _, text = read_page(report.write([make_folder(tmp_path, axes, SEEDS, test)]))
    assert re.search(r"at the baseline \( ?dropout.rate 0\): lower than the", text)
    assert "(-0.130, 95 % CI -0.160 to -0.100, p = " in text
    assert re.search(r"p (= 0\.0|< 0)\d* by Holm over 1\)", text)


def test_methods_are_listed_by_their_best_rate(tmp_path):
    html, text = read_page(
        report.write([make_folder(tmp_path, METHODS, SEEDS, by_method)])
    )
    assert "melis (= gal_tied)" in text
    assert "What each method masks" in text
    assert "<code>hidden_state</code>" in html
    assert "by Holm over 2)" in text
    assert (tmp_path / "rate_curves.png").exists()


def test_other_axes_are_panels(tmp_path):
    axes = {"model.cell": ["lstm", "gru"], **RATES}
    folder = make_folder(tmp_path, axes, 2, bowl)
    read_page(report.write([folder]))
    svg = (folder / "plane.svg").read_text()
    assert ">lstm<" in svg
    assert ">gru<" in svg


def test_two_other_numbers_are_a_map_too(tmp_path):
    axes = {"train.learning_rate": [0.001, 0.01], "model.units": [32, 64]}
    folder = make_folder(tmp_path, axes, 2, lambda setting, seed: 0.1)
    _, text = read_page(report.write([folder]))
    assert "Which arrow" not in text
    assert "It is the baseline itself" in text
    assert "train.learning_rate" in (folder / "plane.svg").read_text()


def test_several_runs_are_compared(plane, learned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = report.write([plane, learned])
    assert path.as_posix() == "runs/report.html"
    _, text = read_page(path)
    assert "higher than plane (+0." in text
    assert "by Holm over 1)" in text
    assert "Learned rates on the plane" in text
    assert not list(plane.glob("*.png"))
    assert report.figure([plane], "plane").as_posix() == "plane.png"
    assert (tmp_path / "plane.png").exists()
    _, text = read_page(report.write([learned, learned]))
    assert "Learned rates on the plane" not in text


def test_text_of_a_config_is_no_markup(plane, unrendered):
    (plane / "config.toml").write_text('task = "<b>&"\n')
    html, _ = read_page(report.write([plane]))
    assert "task = &#34;&lt;b&gt;&amp;&#34;" in html


def test_what_cannot_be_made_is_named(plane, tmp_path, unchecked):
    with pytest.raises(ConfigError, match=r"'map'; there are plane, learning_curves\."):
        report.figure([plane], "map", tmp_path / "map.png")
    with pytest.raises(ConfigError, match=r"must end in \.svg, \.pdf, \.png"):
        report.figure([plane], "plane", tmp_path / "plane.gif")
    with pytest.raises(StorageError, match="cannot be written"):
        report.write([plane], plane / "run.json" / "report.html")
    with pytest.raises(ConfigError, match="no such folder"):
        report.write([tmp_path / "nowhere"])


def test_the_terminal_shows_a_plane_as_a_grid(plane, capsys):
    report.summary(plane)
    out = capsys.readouterr().out
    rows = [line.split()[0] for line in out.splitlines() if "±0." in line]
    assert rows == ["0.5", "0.3", "0"]
    out = " ".join(out.split())
    assert "Test NLL (nats an utterance)" in out
    assert "dropout.inputs.rate 0.3, dropout.recurrent.rate 0.5" in out
    assert "use both" in out
    assert "24 lanes in 1 program: 3.9 s compiling, 40.5 s training." in out


def test_the_terminal_shows_at_most_twenty_settings(tmp_path, capsys):
    axes = {"dropout.rate": [n / 30 for n in range(30)]}
    make_folder(tmp_path, axes, 2, lambda s, seed: 1 - s["dropout.rate"] + 0.1 * seed)
    report.summary(tmp_path)
    out = capsys.readouterr().out
    rows = [line.split()[0] for line in out.splitlines() if " ±0." in line]
    assert len([row for row in rows if row[0] == "0"]) == 20
    assert rows[0] == "0.966667"
    assert "0" in rows
