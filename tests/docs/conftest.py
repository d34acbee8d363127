"""The script that opens pages in a browser, for the tests that need one."""

import pytest


@pytest.fixture(scope="session")
def check_site(pytestconfig):
    pytest.importorskip("playwright.sync_api")
    pytest.importorskip("axe_playwright_python")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(pytestconfig.rootpath / "docs"))
        import check_site
    if check_site.find_browser() is None:
        pytest.skip("Chromium is not installed")
    return check_site
