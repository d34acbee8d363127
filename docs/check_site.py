"""The site as readers see it: `python docs/check_site.py` builds, opens and checks it.

MkDocs builds the site into a temporary folder. A server on this machine has it below a
versioned path, as hosts have, and Chromium opens every page. The table that is printed
has one line per page; below it are the faults, and with any the exit status is 1:

    - a link or a `#fragment` within the site that leads nowhere, and a link to another
      host that is not a well-formed https address (no other host is asked);
    - an error on the console, a request that fails, a request to another host;
    - more bytes at the first visit than `BUDGET`, uncompressed;
    - a page without title, language, viewport or description, an image without a text;
    - a violation of the rules of axe-core, on all pages in one window and on the
      `KEY_PAGES` in all of `WINDOWS`, and a page that is wider than the window;
    - a search, without another host, that does not find a page.
"""

import contextlib
import http.server
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).parents[1]
PREFIX = "/rdrop/latest/"
HOME = "(home)"
BUDGET = 1_200_000  # bytes; the index of the search is 0.5 million of them
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WINDOWS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
KEY_PAGES = ("", "question/", "explorer/", "experiments/", "reference/presets/")
SEARCH = ("zoneout", "reference/presets/")
"""A word, and the page that is among the results of a search for it."""
AXE = {"resultTypes": ["violations"]}
FACTS = """() => ({
    title: document.title,
    lang: document.documentElement.lang,
    viewport: document.querySelector("meta[name=viewport]")?.content ?? "",
    description: document.querySelector("meta[name=description]")?.content ?? "",
    links: [...document.querySelectorAll("a[href], link[href]")].map((a) => a.href),
    anchors: [
        ...[...document.querySelectorAll("[id]")].map((element) => element.id),
        ...[...document.querySelectorAll("select[id] option")].map(
            (option) => `${option.closest("select").id}=${option.value}`),
    ],
    unnamed: [...document.images].filter((image) => !image.alt.trim())
        .map((image) => image.getAttribute("src")),
    width: document.documentElement.scrollWidth,
})"""
NEEDED = ("title", "lang", "viewport", "description")


class Visit(NamedTuple):
    """One page in one window."""

    facts: dict[str, Any]
    size: int  # bytes
    violations: list[str]
    faults: list[str]


class Site(NamedTuple):
    """A folder of pages, and the address at which it is served."""

    folder: Path
    url: str

    def pages(self) -> list[str]:
        """Returns the addresses of all pages, relative to the site's."""
        found = [p.relative_to(self.folder) for p in self.folder.rglob("*.html")]
        return sorted(re.sub(r"(^|/)index\.html$", r"\1", str(page)) for page in found)


def main() -> int:
    """Builds and checks the site; returns the exit status."""
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as site:
        build(site)
        faults = check(site)
    for fault in faults:
        print(fault)
    print(f"{len(faults)} faults")
    return 1 if faults else 0


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Site]:
    """Serves a folder below `PREFIX`; all other addresses are missing."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def translate_path(self, path: str) -> str:
            inside = path.startswith(PREFIX)
            path = path.removeprefix(PREFIX) if inside else "/outside-of-the-site"
            return super().translate_path(f"/{path}")

        def log_message(self, *_: Any) -> None:
            pass

    def handler(*arguments: Any) -> Handler:
        return Handler(*arguments, directory=str(folder))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Site(folder, f"http://127.0.0.1:{server.server_port}{PREFIX}")
        server.shutdown()


def build(site: Site) -> None:
    """Builds the documentation into the folder of a site, for its address."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    subprocess.run(
        [*command, "--site-dir", str(site.folder)],
        cwd=ROOT,
        env=os.environ | {"SITE_URL": site.url, "NO_MKDOCS_2_WARNING": "1"},
        check=True,
    )


def check(site: Site) -> list[str]:
    """Opens all pages, prints a line for each, and returns what is wrong with them."""
    with open_browser() as browser:
        visits = {page: visit(browser, site, page) for page in site.pages()}
        others = {
            (page, *window): visit(browser, site, page, *window)
            for page in KEY_PAGES
            if page in visits
            for window in WINDOWS[1:]
        }
        faults = search(browser, site)
    print_table(visits, len(others))
    anchors = {page: found.facts["anchors"] for page, found in visits.items()}
    for page, found in visits.items():
        links = [broken_link(site, link, anchors) for link in found.facts["links"]]
        wrong = [*filter(None, links), *page_faults(found)]
        faults += [f"{page or HOME}: {fault}" for fault in wrong]
    for (page, width, scheme), found in others.items():
        wrong = [*found.faults, *found.violations]
        faults += [f"{page or HOME}, {width} px, {scheme}: {each}" for each in wrong]
    return list(dict.fromkeys(faults))


def print_table(visits: dict[str, Visit], others: int) -> None:
    """Prints the size, the links and the violations of each page, and their sums."""
    print(f"{'page':32}{'kB':>6}{'links':>7}{'violations':>12}")
    for page, found in visits.items():
        links, violations = len(found.facts["links"]), len(found.violations)
        print(f"{page or HOME:32}{found.size / 1000:6.0f}{links:7}{violations:12}")
    links = sum(len(found.facts["links"]) for found in visits.values())
    heaviest = max(found.size for found in visits.values())
    print(
        f"{len(visits)} pages and {others} more windows, {links} links, "
        f"at most {heaviest / 1000:.0f} of {BUDGET / 1000:.0f} kB"
    )


def find_browser() -> str | None:
    """Returns the path of the Chromium of this machine, or None."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """Starts the Chromium of this machine.

    Raises:
        RuntimeError: there is none.
    """
    found = find_browser()
    if found is None:
        raise RuntimeError(f"no browser: none of {', '.join(BROWSERS)} is installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


def visit(
    browser: Browser, site: Site, page: str, width: int = 1280, scheme: Any = "light"
) -> Visit:
    """Opens a page with an empty cache, and returns what is found there."""
    with opened(browser, site, page, width, scheme) as (tab, requests, faults):
        facts = tab.evaluate(FACTS)
        if facts["width"] > width:
            faults.append(f"the page is {facts['width']} px wide")
        size = sum(request.sizes()["responseBodySize"] for request in requests)
        found = Axe().run(tab, options=AXE).response["violations"]
    violations = [
        f"axe: {rule['id']}: {rule['help']}: {node['html'][:120]}"
        for rule in found
        for node in rule["nodes"]
    ]
    return Visit(facts, size, violations, faults)


@contextlib.contextmanager
def opened(
    browser: Browser, site: Site, page: str, width: int, scheme: Any
) -> Iterator[tuple[Page, list, list[str]]]:
    """Opens a page; yields it, its requests and the faults that it reports."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme
    )
    tab, faults, requests = context.new_page(), [], []
    tab.on("console", lambda said: faults.extend(_errors(said)))
    tab.on("pageerror", lambda error: faults.append(f"error: {error}"))
    tab.on("requestfinished", lambda request: requests.append(request))
    tab.on("requestfailed", lambda sent: faults.append(f"request failed: {sent.url}"))
    tab.on("request", lambda sent: faults.extend(_foreign(site, sent.url)))
    tab.goto(site.url + page, wait_until="networkidle")
    yield tab, requests, faults
    context.close()


def _errors(said: Any) -> list[str]:
    return [f"console: {said.text}"] if said.type in ("error", "warning") else []


def _foreign(site: Site, url: str) -> list[str]:
    inside = url.startswith((site.url, "data:", "blob:"))
    return [] if inside else [f"request outside of the site: {url}"]


def page_faults(found: Visit) -> list[str]:
    """Returns what a page lacks, what is too large, and what was reported."""
    missing = [f"no {name}" for name in NEEDED if not found.facts[name].strip()]
    images = [f"image without a text: {source}" for source in found.facts["unnamed"]]
    heavy = (
        [f"{found.size:,} bytes, more than {BUDGET:,}"] if found.size > BUDGET else []
    )
    return [*missing, *images, *heavy, *found.faults, *found.violations]


def broken_link(site: Site, link: str, anchors: dict[str, list[str]]) -> str:
    """Returns what is wrong with a link, or nothing.

    Args:
        site: the site.
        link: the whole address.
        anchors: the fragments of each page; those of the explorer begin with a choice.
    """
    where = urlsplit(link)
    if where.scheme == "data" or (where.scheme == "mailto" and "@" in where.path):
        return ""
    if not link.startswith(site.url):
        named = re.fullmatch(r"[\w-]+(\.[\w-]+)+", where.hostname or "")
        well_formed = where.scheme == "https" and named and "%20" not in link
        return "" if well_formed else f"not a well-formed https address: {link}"
    path = unquote(where.path).removeprefix(PREFIX)
    page = re.sub(r"(^|/)index\.html$", r"\1", path)
    file = site.folder / path
    if not (file / "index.html" if file.is_dir() else file).is_file():
        return f"no such page or file: {path}"
    fragment = unquote(where.fragment).partition("&")[0]
    if fragment and fragment not in anchors.get(page, []):
        return f"no such anchor: {path}#{fragment}"
    return ""


def search(browser: Browser, site: Site) -> list[str]:
    """Searches the site for a word; returns what is wrong with the results."""
    word, page = SEARCH
    with opened(browser, site, "", 1280, "light") as (tab, _, faults):
        tab.click("[data-md-component=search-query]")
        tab.keyboard.type(word)
        tab.wait_for_selector(".md-search-result__link")
        links = tab.locator(".md-search-result__link")
        results = links.evaluate_all("links => links.map((link) => link.href)")
    if not any(result.startswith(site.url + page) for result in results):
        faults.append(f"does not find {page}, but {results}")
    return [f"search for {word}: {fault}" for fault in faults]


if __name__ == "__main__":
    sys.exit(main())
