"""The explorer is the generated page; in a browser, its numbers are rdrop's."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rdrop
from rdrop import presets

LARGEST = 300_000  # bytes
DRAWS = 100
SIZES = [(390, "light"), (390, "dark"), (1280, "light"), (1280, "dark")]
DRAW = """([name, options, rates, cell, place]) => {
    Object.assign(VIEW, { method: name, options, rates, cell });
    const { layers, rates: values } = chosen();
    return draw(layers, values, cell, place).map((masks) =>
        Object.entries(masks).map(([site, { noise, shape, values }]) =>
            [site, noise.per, shape, values.map((mask) => [...mask])]));
}"""
RUN = """([name, rates, cell, seed]) => {
    Object.assign(VIEW, { method: name, options: {}, rates, cell });
    const { layers, rates: values } = chosen();
    const masks = draw(layers, values, cell, { seed, batch: BATCH, time: TIME });
    return range(BATCH).map((n) => run(cell, masks[0], DATA.xs, DATA.start, n));
}"""
OUTSIDE = """() => [...document.querySelectorAll("body *")].filter((element) => {
    const { left, right, width } = element.getBoundingClientRect();
    const scrolls = element.closest("pre, select, svg, .unseen");
    return !scrolls && width && (left < 0 || right > innerWidth);
}).map((element) => element.outerHTML.slice(0, 80))"""
UNNAMED = """() => [...document.querySelectorAll("input, select, button")].filter(
    (element) => !element.labels?.length && !element.textContent.trim()
).map((element) => element.outerHTML)"""


@pytest.fixture
def explorer(monkeypatch, pytestconfig):
    monkeypatch.syspath_prepend(str(pytestconfig.rootpath / "docs"))
    import make_explorer

    return make_explorer


@pytest.fixture(scope="module")
def browser(check_site):
    with check_site.open_browser() as chromium:
        yield chromium


@pytest.fixture
def open_page(browser, explorer):
    """Opens the page in a window of a size; an error on it fails the test."""
    errors, contexts = [], []

    def opened(width=1280, scheme="light", place=""):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        page = context.new_page()
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda sent: errors.extend(_foreign(sent.url)))
        page.goto(explorer.PAGE.as_uri() + place)
        contexts.append(context)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert errors == []


def _foreign(url):
    return [] if url.startswith(("file:", "data:")) else [url]


def _method(explorer, name):
    return next(m for m in explorer.data()["methods"] if m["name"] == name)


def _drawn(dropouts, cell, place):
    """The masks of rdrop, as lists of (site, mask) per layer."""
    keys = rdrop.stream_keys(jax.random.key(place["seed"]))
    keys = keys.replace(step=place["step"], direction=place["direction"])
    return [
        rdrop.draw(
            dropout,
            keys.replace(layer=layer),
            cell.sites(cell.units),
            place["batch"],
            place["time"],
        ).sites()
        for layer, dropout in enumerate(dropouts)
    ]


def test_the_page_is_the_generated_one(explorer):
    assert explorer.PAGE.read_text() == explorer.make_page()


def test_it_is_small_and_needs_no_other_file(explorer):
    text = explorer.PAGE.read_text()
    assert len(text.encode()) < LARGEST
    assert re.findall(r"""\bsrc=|@import|url\((?!#)|fetch\(|\bimport\(""", text) == []


def test_it_has_every_preset(explorer):
    names = {name.split()[0] for name in presets.EXAMPLES}
    assert {m["name"] for m in explorer.data()["methods"]} == names


def test_a_form_is_what_the_code_makes(explorer):
    """With a recurrent_dropout of 0, the gates of Keras share the mask of x."""
    forms = _method(explorer, "keras")["forms"]
    of_inputs = {form["zero"]: form["layers"][0][0] for form in forms}
    assert of_inputs[None]["gates"] == "each"
    assert of_inputs["recurrent_dropout"]["gates"] == "shared"
    torch = _method(explorer, "torch")["forms"][0]["layers"]
    assert [[noise["site"] for noise in layer] for layer in torch] == [[], ["inputs"]]


@pytest.mark.slow
def test_its_masks_are_those_of_rdrop(explorer, open_page, rng):
    page = open_page()
    methods = explorer.data()["methods"]
    for draw in range(DRAWS):
        method = methods[draw % len(methods)]
        cell = rng.choice(method["cells"])
        options = {o: v[rng.integers(len(v))] for o, v in method["options"].items()}
        edges = rng.choice([0.0, 1.0, np.nan], len(method["rates"]), p=(0.1, 0.1, 0.8))
        rates = {
            name: float(rng.random()) if np.isnan(edge) else float(edge)
            for name, edge in zip(method["rates"], edges, strict=True)
        }
        place = {
            "seed": int(rng.integers(2**31)),
            "batch": int(rng.integers(1, 3)),
            "time": 5,
            "step": int(rng.choice([0, 3, 2**30])),
            "direction": str(rng.choice(["forward", "backward"])),
        }
        theirs = page.evaluate(DRAW, [method["name"], options, rates, cell, place])
        dropouts = explorer.dropouts(method, options, rates)
        ours = _drawn(dropouts, explorer.CELLS[cell][0], place)
        assert len(theirs) == len(ours)
        for layer, masks in zip(theirs, ours, strict=True):
            assert [site for site, *_ in layer] == [site for site, _ in masks]
            for (_, per, shape, values), (_, mask) in zip(layer, masks, strict=True):
                array = np.asarray(jax.tree.leaves(mask)[0])
                whole = (place["time"], *shape) if per == "step" else shape
                found = np.float32(values).reshape(whole)
                assert array.dtype == np.float32
                np.testing.assert_array_equal(array.view(np.uint32), found.view("u4"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("keras", "LSTM"),
        ("keras", "GRU"),
        ("keras3_0", "GRU"),
        ("keras3_0", "LSTM"),
        ("zoneout", "LSTM"),
        ("moon", "LSTM"),
        ("cheng", "LSTM"),
        ("cheng", "GRU"),
        ("semeniuta", "LSTM"),
        ("semeniuta", "GRU"),
        ("haste", "LSTM"),
        ("haste", "GRU"),
    ],
)
def test_its_states_are_those_of_rdrop(explorer, open_page, name, cell):
    method, data = _method(explorer, name), explorer.data()
    rates = dict.fromkeys(method["rates"], 0.5)
    theirs = np.array(open_page().evaluate(RUN, [name, rates, cell, 7]))
    batch, time = theirs.shape[:2]
    kind = {"LSTM": rdrop.LSTMCell, "GRU": rdrop.GRUCell}[cell]
    rnn = rdrop.RNN(kind(explorer.UNITS, dtype=jnp.float64, param_dtype=jnp.float64))
    place = {"seed": 7, "step": 0, "direction": "forward", "batch": batch, "time": time}
    options = {name: values[0] for name, values in method["options"].items()}
    (dropout,) = explorer.dropouts(method, options, rates)
    masks = rdrop.Masks(**dict(_drawn((dropout,), rnn.cell, place)[0]))
    params = {k: jnp.asarray(v) for k, v in data["cells"][cell]["params"].items()}
    if cell == "GRU":
        params["recurrent_bias"] = jnp.zeros(explorer.UNITS)
    xs = jnp.tile(jnp.asarray(data["xs"]), (batch, 1, 1))
    start = jnp.tile(jnp.asarray(data["start"]), (batch, 1))
    start = (start, start) if cell == "LSTM" else start
    carry, _ = rnn.apply({"params": params}, xs, masks, initial_carry=start)
    ours = carry[0] if cell == "LSTM" else carry
    np.testing.assert_allclose(theirs[:, -1], ours, rtol=1e-7, atol=1e-12)
    if (name, cell) == ("keras3_0", "GRU"):
        assert np.abs(theirs).max() > 1e9


@pytest.mark.slow
@pytest.mark.parametrize("name", ["keras", "gal", "zoneout", "awd", "keras3_0"])
def test_the_code_of_rdrop_draws_what_is_shown(explorer, open_page, name):
    page = open_page(place=f"#method={name}&seed=123")
    code = page.locator("#rdrop-code").inner_text()
    names: dict = {}
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        exec(code, names)
    masks = names["masks"]
    layers = masks if isinstance(masks, list) else [masks]
    shown = page.evaluate(
        "latest.masks.map((m) => Object.entries(m).map(([s, { values }]) => "
        "[s, values.map((v) => [...v])]))"
    )
    for ours, theirs in zip(layers, shown, strict=True):
        for (site, mask), (other, values) in zip(ours.sites(), theirs, strict=True):
            assert site == other
            array = np.asarray(jax.tree.leaves(mask)[0])
            np.testing.assert_array_equal(array.ravel(), np.float32(values).ravel())


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_every_method_fits_the_window(explorer, open_page, width, scheme):
    page = open_page(width, scheme)
    for method in explorer.data()["methods"]:
        page.select_option("#method", method["name"])
        for cell in method["cells"]:
            page.check(f'input[name="cell"][value="{cell}"]')
            assert page.evaluate(OUTSIDE) == []
            assert page.evaluate(UNNAMED) == []
            assert page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.slow
def test_it_is_used_by_the_keyboard(open_page):
    page = open_page()
    page.focus("#method")
    page.keyboard.press("ArrowDown")
    assert page.input_value("#method") == "keras3_0"
    page.focus('input[name="cell"]')
    page.keyboard.press("ArrowRight")
    assert "exploded" in page.inner_text("#verdict")
    page.focus("#rate-recurrent_dropout")
    page.keyboard.press("Home")
    assert page.inner_text("#verdict").startswith("After 40 steps, of 6 units: 6 kept")
    before = page.input_value("#seed")
    page.focus("#new-key")
    page.keyboard.press("Enter")
    assert page.input_value("#seed") != before
    page.focus("#picture")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    said = page.inner_text("#detail")
    assert said.startswith("Step 1, h carried over (hidden_state)")
    focused = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert focused == said
    page.wait_for_function("document.querySelector('#status').textContent")
    assert page.inner_text("#status").startswith("Keras 3.0 to 3.7, GRU, key")


@pytest.mark.slow
def test_a_link_opens_a_method_and_wrong_ones_open_the_first(open_page):
    page = open_page(place="#method=gal&tied=false&inputs=0.2&seed=5&cell=GRU")
    assert page.input_value("#seed") == "5"
    assert "inputs=0.2" in page.inner_text("#rdrop-code")
    assert "tied=False" in page.inner_text("#rdrop-code")
    assert "GRUCell" in page.inner_text("#rdrop-code")
    page = open_page(place="#method=gall&seed=<b>")
    assert page.input_value("#method") == "keras"


@pytest.mark.slow
def test_a_button_copies_the_code(open_page):
    page = open_page()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click('[data-copy="other-code"]')
    copied = page.evaluate("navigator.clipboard.readText()")
    call = "keras.layers.LSTM(6, dropout=0.5, recurrent_dropout=0.5,)"
    assert re.sub(r"\s+(?=\S)", "", copied) == re.sub(" ", "", f"importkeras{call}")
    assert page.inner_text('[data-copy="other-code"]') == "Copied"
