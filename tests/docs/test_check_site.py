"""The check of the site finds each fault of a page, and none on a page without."""

import pytest

pytestmark = pytest.mark.slow

PAGE = """<!doctype html>
<html lang="en"><head><title>A page</title><link rel="icon" href="data:,">
<meta name="viewport" content="width=device-width">
<meta name="description" content="A page."></head>
<body><main><h1 id="top">A page</h1>{body}</main></body></html>"""
SEARCH = """<input aria-label="Search" data-md-component="search-query" oninput="
    document.querySelector('ol').innerHTML = '<li><a class=&quot;md-search-result__link'
    + '&quot; href=&quot;{found}&quot;>found</a></li>'"><ol></ol>"""
FOUND = SEARCH.format(found="reference/presets/")
FAULTS = {  # what is on the page, and what is said of it
    '<a href="nowhere/">a</a>': "no such page or file: nowhere/",
    '<a href="/outside/">a</a>': "not a well-formed https address: http://127.0.0.1:",
    '<a href="#nowhere">a</a>': "no such anchor: #nowhere",
    '<a href="reference/presets/#here">a</a>': "no such anchor: reference/presets/#h",
    '<a href="https://an address/">a</a>': "not a well-formed https address: https://an",
    '<a href="http://example.org">a</a>': "not a well-formed https address: http://ex",
    '<img src="data:," alt="">': "image without a text: data:,",
    '<img src="a.png" alt="a">': "console: Failed to load resource",
    '<script src="https://rdrop.invalid/a.js"></script>': "request outside of the site",
    "<script>no_such_function()</script>": "error: no_such_function is not defined",
    "<script>console.warn('deprecated')</script>": "console: deprecated",
    '<p style="color: #ccc">pale words</p>': "axe: color-contrast",
    '<p style="width: 2000px">a</p>': "the page is 2",
}


@pytest.fixture
def faults_of(check_site, tmp_path, monkeypatch):
    monkeypatch.setattr(check_site, "KEY_PAGES", ())

    def checked(body, page=PAGE):
        for name, content in {
            "": body,
            "reference/presets/": "<p id=there>b</p>",
        }.items():
            (tmp_path / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / name / "index.html").write_text(page.format(body=content))
        with check_site.served(tmp_path) as site:
            return check_site.check(site)

    return checked


def test_pages_without_faults_have_none(faults_of, capsys):
    links = """<p><a href="#top">a</a> <a href="reference/presets/#there">b</a>
        <a href="reference/presets/index.html">c</a> <a href="https://example.org">d</a>
        <img src="data:,%3Csvg/%3E" alt="a picture"></p>"""
    assert faults_of(FOUND + links) == []
    assert "2 pages and 0 more windows, 6 links" in capsys.readouterr().out  # and icons


def test_each_fault_is_found(faults_of):
    faults = faults_of(FOUND + "".join(FAULTS))
    for said in FAULTS.values():
        assert any(fault.startswith(f"(home): {said}") for fault in faults), said
    assert not any(fault.startswith("reference/") for fault in faults)


def test_what_a_page_lacks_is_found(faults_of):
    bare = PAGE.replace("<title>A page</title>", "").replace(' lang="en"', "")
    faults = faults_of(FOUND, bare.replace('name="', 'class="'))
    for name in ("title", "lang", "viewport", "description"):
        assert f"(home): no {name}" in faults


def test_a_page_above_the_budget_is_found(faults_of, check_site, monkeypatch):
    monkeypatch.setattr(check_site, "BUDGET", 1000)
    (fault,) = faults_of(FOUND + "<p>" + "a " * 1000 + "</p>")
    assert fault.endswith("bytes, more than 1,000")


def test_a_search_that_finds_another_page_is_found(faults_of):
    (fault,) = faults_of(SEARCH.format(found="#top"))
    assert fault.startswith("search for zoneout: does not find reference/presets/, but")


def test_key_pages_are_opened_in_all_windows(faults_of, check_site, monkeypatch):
    monkeypatch.setattr(check_site, "KEY_PAGES", ("",))
    dark = "<style>@media (prefers-color-scheme: dark) { p { color: #eee; } }</style>"
    said = [
        fault.split(": axe")[0]
        for fault in faults_of(f"{FOUND}{dark}<p>pale words</p>")
    ]
    assert said == ["(home), 1280 px, dark", "(home), 390 px, dark"]
