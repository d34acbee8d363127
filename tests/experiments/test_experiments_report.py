"""Reports say no more than the results support, and open without a network."""

import math
import re
import shlex
from html.parser import HTMLParser

import numpy as np
import pytest
from folders import make_folder, make_lines, write_folder

from experiments import report, runs
from experiments.config import ConfigError
from experiments.report import findings, page, sentences
from experiments.report.figures import drawings
from experiments.report.lanes import PLANE
from experiments.runs.files import StorageError
from experiments.statistics import UNSETTLED

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
    """Image files are not rendered, which takes longest: for tests of text."""
    with monkeypatch.context() as patch:
        patch.setattr(report, "encode_scene", lambda scene, kind: kind.encode())
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
    """Addresses that a browser would load, shown text, labels and open elements."""

    def __init__(self, html):
        super().__init__()
        self.loads, self.texts, self.open, self.labels = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.loads += [v for k, v in attributes if k in ("src", "href", "srcset")]
        self.labels += [v for k, v in attributes if k == "aria-label"]
        if tag not in ("meta", "line", "path", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["style"], ["script"], ["pre"]):
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def read_page(path):
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == []
    assert page.loads == []
    assert not re.search(
        r"url\((?!#)|@import|<link|<img|fetch\(|https?://(?!www.w3.org)", html
    )
    return html, page.text


def test_a_plane_is_answered_drawn_and_listed(plane):
    html, text = read_page(report.write_report([plane]))
    names = ("plane", "comparisons", "learning_curves")
    assert {path.name for path in plane.iterdir()} == {
        *("config.toml", "results.jsonl", "run.json", "report.html"),
        *(f"{name}.{kind}" for name in names for kind in ("png", "svg")),
    }
    assert "Use both. Each kind alone lowers the test NLL and both" in text
    assert "lower is better, mean ± sd over 4 seeds: no dropout 0.3" in text
    assert "both (0.3, 0.5) 0.1" in text
    assert "An unrolled recurrent network" in html
    assert "one mask per sequence" in text
    assert html.count('class="chosen"') == 1
    assert "lower than no dropout" in text
    assert "Data: spoken vowels." in text
    assert "jax 0.10.2" in text
    assert "40.5" in text
    assert "prefers-color-scheme: dark" in html
    assert "width=device-width" in html
    for label in (">↑ dropout<", ">→ recurrent_dropout<"):
        assert label in html
        assert label in (plane / "plane.svg").read_text()


def test_the_verdict_comes_first_and_the_plane_next(plane, unrendered):
    html = report.write_report([plane]).read_text()
    order = [
        'class="verdict"',
        "The plane<",
        "The planned comparisons",
        "Learning curves",
    ]
    order += ["Every setting (exploratory)", "How it was done", "How to reproduce it"]
    places = [html.index(text) for text in order]
    assert places == sorted(places)


def test_pictures_state_their_results_and_have_exact_numbers(plane, unrendered):
    page = Page(report.write_report([plane]).read_text())
    alts = " ".join(page.labels)
    assert (
        "Heat map of the test NLL at 3 by 2 settings; lower is better. Lowest 0.1"
        in alts
    )
    assert "Chosen on validation data: 0.1" in alts
    assert "Forest plot of 6 planned comparisons. both" not in alts
    assert "Forest plot of 6 planned comparisons." in alts
    assert "Test loss, noise off against epochs, lower is better." in alts
    seeds = runs.load(plane)["test_nll"].values[1, 1, :, -1]
    exact = f"test NLL by seed: {', '.join(f'{value:.4f}' for value in seeds)}"
    assert "dropout.inputs.rate 0.3, dropout.recurrent.rate 0.5. Test NLL 0.1" in alts
    assert exact in alts


def test_each_picture_is_one_stop_of_the_tab_key(plane, unrendered):
    html = report.write_report([plane]).read_text()
    pictures = re.findall(r"<svg.*?</svg>", html, re.S)
    charts = [picture for picture in pictures if 'class="mark"' in picture]
    assert len(charts) == 4
    assert [chart.count('tabindex="0"') for chart in charts] == [1] * 4
    assert charts[0].count('tabindex="-1"') == 5


def test_pictures_take_their_colours_from_the_theme(plane):
    html, _ = read_page(report.write_report([plane]))
    pictures = "".join(re.findall(r"<svg xmlns.*?</svg>", html, re.S))
    literal = set(re.findall(r"(?:fill|stroke):(#\w+)", pictures))
    text = re.findall(r"<text[^>]*fill:(#\w+)", pictures)
    assert set(text) <= {"#000000", "#ffffff"}  # on the cells of the plane
    assert "var(--ink)" in pictures
    assert "var(--recurrent)" in pictures
    assert len(literal) > 5  # the scale of the plane
    svg = (plane / "plane.svg").read_text()
    assert "prefers-color-scheme: dark" in svg


def test_the_planned_comparisons_and_the_rest_are_told_apart(plane, unrendered):
    html, text = read_page(report.write_report([plane]))
    planned, explored = text.split("Every setting (exploratory)")
    table = html.split("<table")[1]
    assert table.count("<span>lower</span>") == 6
    assert "tested together as one family" in planned
    assert "4 were enough" in planned
    assert "These comparisons were not planned" in explored
    for word in (UNSETTLED, "than no dropout", "than the baseline"):
        assert word not in explored


def test_every_setting_is_sorted_by_result(plane, unrendered):
    html = report.write_report([plane]).read_text()
    table = html.split("Every setting (exploratory)")[1].split("</table>")[0]
    found = re.findall(r'data-label="test NLL"><span>([\d.]+)', table)
    assert len(found) == 6
    assert found == sorted(found)


def test_a_long_table_says_that_it_is_cut(plane, unrendered):
    unrendered.setattr(page, "MOST_ROWS", 3)
    html, text = read_page(report.write_report([plane]))
    table = html.split("Every setting (exploratory)")[1].split("</table>")[0]
    assert table.count('data-label="test NLL"') == 3
    assert "the baseline" in table
    assert "The first 3 of 6 are shown." in text


@pytest.mark.slow
def test_rows_are_cards_on_a_phone(plane, unrendered):
    html = report.write_report([plane]).read_text()
    assert "@media (max-width: 700px)" in html
    cells = re.findall(r"<td [^>]*>", html)
    assert all('data-label="' in cell and 'role="cell"' in cell for cell in cells)
    assert 'class="number fold" data-label="validation NLL"' in html


def test_under_every_figure_stands_the_command_that_makes_it(
    plane, learned, tmp_path, unrendered
):
    several = [plane], [learned], [plane, learned]
    out = tmp_path / "report.html"
    pages = [read_page(report.write_report(f, out))[0] for f in several]
    unrendered.undo()
    for folders, html in zip(several, pages, strict=True):
        commands = re.findall(r'<pre class="command">(.*)</pre>', html)
        commands = [c for c in commands if "--figure" in c]
        names = drawings([runs.load(folder) for folder in folders])
        assert len(commands) == len(names)
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
            path = report.write_figure(folders, figure, tmp_path / file)
            assert path.read_bytes().startswith(b"\x89PNG")


def test_pictures_are_the_same_bytes_again(plane, tmp_path):
    """In the report and drawn alone."""
    report.write_report([plane])
    for name in ("plane.png", "plane.svg", "learning_curves.svg", "plane.pdf"):
        again = tmp_path / name
        report.write_figure([plane], again.stem, again)
        first = plane / name
        if not first.exists():
            report.write_figure([plane], again.stem, first)
        assert again.read_bytes() == first.read_bytes()


def test_the_page_is_the_same_bytes_again(plane, unrendered):
    first, second = (report.write_report([plane]).read_bytes() for _ in range(2))
    assert first == second


def test_what_is_missing_is_said(tmp_path):
    lines = make_lines(RATES, SEEDS, bowl)
    lines[6] |= {"status": "diverged", "diverged_at": 77}
    for line in lines:
        line["metrics"]["test_accuracy"][-1] = 0.5
    lines[9] |= {"status": "interrupted", "epochs": 4, "evaluated_at": [2, 4]}
    cut = {k: v[: 4 if k == "train_nll" else 2] for k, v in lines[9]["metrics"].items()}
    lines[9]["metrics"] = cut
    _, text = read_page(report.write_report([write_folder(tmp_path, RATES, lines)]))
    assert "1 of 24 lanes stopped before epoch 6." in text
    assert "1 of 24 lanes diverged. Their settings are never chosen." in text
    assert (
        "dropout.inputs.rate 0, dropout.recurrent.rate 0.5, seed 2, at step 77" in text
    )
    assert "results are missing" in text


def test_a_run_that_was_stopped_says_at_which_epoch(tmp_path, unrendered):
    lines = make_lines({}, 2, lambda setting, seed: 0.2 + 0.1 * seed)
    for line in lines:
        line |= {"status": "interrupted", "epochs": 6}
    folder = write_folder(tmp_path, {}, lines)
    path = folder / "run.json"
    facts = path.read_text().replace('"epochs": 6', '"epochs": 60')
    facts = facts.replace(
        '"seeds": [0, 1], "lanes": 2', '"seeds": [0, 1, 2], "lanes": 3'
    )
    path.write_text(facts)
    _, text = read_page(report.write_report([folder]))
    assert "Stopped after 6 of 60 epochs" in text
    assert "1 of 3 lanes have not started." in text
    assert "mean ± sd over 2 seeds: 0.250 ±0.071." in text


def test_nothing_finite_is_still_a_report(tmp_path):
    folder = make_folder(tmp_path, RATES, 2, lambda setting, seed: math.inf)
    _, text = read_page(report.write_report([folder]))
    assert "No setting has a finite validation loss at every seed." in text


def test_one_seed_has_no_statistics(tmp_path, capsys, unrendered):
    axes = {"dropout.rate": [0.0, 0.5]}
    folder = make_folder(
        tmp_path, axes, 1, lambda s, seed: 0.3 - 0.2 * s["dropout.rate"]
    )
    _, text = read_page(report.write_report([folder]))
    assert "One seed: no statistics. Another seed may order" in text
    assert UNSETTLED not in text
    report.print_summary(folder)
    assert "One seed: no statistics" in capsys.readouterr().out


@pytest.mark.slow
def test_equal_settings_are_called_different_at_the_nominal_rate(tmp_path, rng):
    """Without a true difference, one comparison in twenty finds one."""
    axes, trials, found = {"dropout.rate": [0.0, 0.5]}, 300, 0
    for _ in range(trials):
        values = 0.2 + 0.02 * rng.normal(size=(2, SEEDS))
        run = runs.load(make_folder(tmp_path, axes, SEEDS, *by_table(values)))
        (row,) = findings.planned(run).values()
        assert row.comparison.verdict() in sentences.answer(run)
        assert (UNSETTLED in sentences.answer(run)) != row.comparison.settled
        found += row.comparison.settled
    assert abs(found - 0.05 * trials) <= 4 * math.sqrt(trials * 0.05 * 0.95)


def test_a_difference_is_reported_with_its_numbers(tmp_path, unrendered):
    axes = {"dropout.rate": [0.0, 0.5]}

    def test(setting, seed):
        return 0.3 + 0.01 * seed - setting["dropout.rate"] * (0.2 + 0.04 * seed)

    _, text = read_page(report.write_report([make_folder(tmp_path, axes, SEEDS, test)]))
    assert re.search(r"at the baseline \( ?dropout.rate 0\): lower than the", text)
    assert "(\N{MINUS SIGN}0.130, interval \N{MINUS SIGN}0.1" in text
    assert re.search(r"p (= 0\.0|< 0)\d* after Holm's correction for 1 test\)", text)


def test_methods_are_listed_by_their_best_rate(tmp_path):
    html, text = read_page(
        report.write_report([make_folder(tmp_path, METHODS, SEEDS, by_method)])
    )
    assert "melis (= gal_tied)" in text
    assert "What each method masks" in text
    assert "<code>hidden_state</code>" in html
    assert "`" not in text
    assert "Settled as better than their baselines, of" in text
    assert html.index("each at its best rate") < html.index("Loss against rate")
    assert "In order, each with its chosen rate: gal_tied 0.5 0." in html
    assert (tmp_path / "methods.svg").exists()
    assert (tmp_path / "rate_curves.png").exists()


def test_other_axes_are_panels(tmp_path):
    axes = {"model.cell": ["lstm", "gru"], **RATES}
    folder = make_folder(tmp_path, axes, 2, bowl)
    read_page(report.write_report([folder]))
    svg = (folder / "plane.svg").read_text()
    assert ">lstm: test NLL (nats per utterance)<" in svg.replace("Lstm", "lstm")
    assert ": test NLL (nats per utterance)<" in svg


def test_two_other_numbers_are_a_map_too(tmp_path):
    axes = {"train.learning_rate": [0.001, 0.01], "model.units": [32, 64]}
    folder = make_folder(tmp_path, axes, 2, lambda setting, seed: 0.1)
    _, text = read_page(report.write_report([folder]))
    assert "Which arrow" not in text
    assert "The chosen setting is the baseline itself" in text
    assert "train.learning_rate" in (folder / "plane.svg").read_text()


def test_several_runs_are_compared(plane, learned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = report.write_report([plane, learned])
    assert path.as_posix() == "runs/report.html"
    _, text = read_page(path)
    assert "higher than plane (+0." in text
    assert "Test loss: learned higher than plane ." in text
    assert "after Holm's correction for 1 test)" in text
    assert "Learned rates on the plane" in text
    assert not list(plane.glob("*.png"))
    assert report.write_figure([plane], "plane").as_posix() == "plane.png"
    assert (tmp_path / "plane.png").exists()
    _, text = read_page(report.write_report([learned, learned]))
    assert "Learned rates on the plane" not in text


def test_text_of_a_config_is_no_markup(plane, unrendered):
    (plane / "config.toml").write_text('task = "<b>&"\n')
    html, _ = read_page(report.write_report([plane]))
    assert "task = &#34;&lt;b&gt;&amp;&#34;" in html


def test_what_cannot_be_made_is_named(plane, tmp_path, unchecked):
    with pytest.raises(ConfigError, match=r"must be one of plane, .*, got 'map'\."):
        report.write_figure([plane], "map", tmp_path / "map.png")
    with pytest.raises(ConfigError, match=r"must end in \.png, \.svg, \.pdf"):
        report.write_figure([plane], "plane", tmp_path / "plane.gif")
    with pytest.raises(StorageError, match="cannot be written"):
        report.write_report([plane], plane / "run.json" / "report.html")
    with pytest.raises(ConfigError, match="no such folder"):
        report.write_report([tmp_path / "nowhere"])


def test_the_terminal_shows_a_plane_as_a_grid(plane, capsys):
    report.print_summary(plane)
    out = capsys.readouterr().out
    grid = out.split("Chosen")[0].splitlines()
    rows = [line.split()[0] for line in grid if "±0." in line]
    assert rows == ["0.5", "0.3", "0"]
    out = " ".join(out.split())
    assert "Test NLL (nats per utterance), lower is better" in out
    assert "dropout.inputs.rate 0.3, dropout.recurrent.rate 0.5" in out
    assert "Use both." in out
    assert "24 lanes in 1 program: 3.9 s compiling, 40.5 s training." in out


def test_the_terminal_shows_at_most_twenty_settings(tmp_path, capsys):
    axes = {"dropout.rate": [n / 30 for n in range(30)]}
    make_folder(tmp_path, axes, 2, lambda s, seed: 1 - s["dropout.rate"] + 0.1 * seed)
    report.print_summary(tmp_path)
    out = capsys.readouterr().out
    rows = [line.split()[0] for line in out.splitlines() if " ±0." in line]
    assert len([row for row in rows if row[0] == "0"]) == 20
    assert rows[0] == "0.966667"
    assert "0" in rows
