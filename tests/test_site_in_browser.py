"""The site, built and looked at in a real browser: nothing overflows, search works, and nothing comes from the network.

Needs Debian's chromium and the package playwright.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("chromium is not installed", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

ROOT = Path(__file__).parents[1]
PAGES = [
    "index",
    "results",
    "explanation/guard",
    "how-to/measure",
    "reference/api/plans",
    "reference/command-line",
    "reference/plan-file",
    "reference/samplers",
    "repository/examples/tutorial.py",
]
"""Those with the widest pictures, tables, signatures and code."""

SIZES = [(1440, "light"), (390, "dark")]


class Handler(SimpleHTTPRequestHandler):
    """A server without a log."""

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(site)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module", params=SIZES, ids=lambda size: f"{size[0]}-{size[1]}")
def page(request: pytest.FixtureRequest, address: str) -> Iterator[Any]:
    width, scheme = request.param
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, base_url=address)
        page, others = context.new_page(), []
        page.set_default_timeout(120_000)  # a busy machine is slow
        page.on("request", lambda sent: None if sent.url.startswith(address) else others.append(sent.url))
        yield page
        browser.close()
    assert not others, "requests that leave the site"


@pytest.mark.parametrize("name", PAGES)
def test_no_page_overflows(name: str, page: Any) -> None:
    page.goto(f"{name}.html")
    assert page.evaluate("document.scrollingElement.scrollWidth") == page.viewport_size["width"]


def test_pictures_are_shown_and_described(page: Any) -> None:
    for name in ("index.html", "explanation/two-times.html", "reference/spacings.html"):
        page.goto(name)
        found = page.evaluate("[...document.querySelectorAll('article img')].map(i => [i.naturalWidth, i.alt.length])")
        assert found and all(width > 0 and alt > 40 for width, alt in found)


def test_a_public_name_is_found_by_search(page: Any) -> None:
    page.goto("index.html#__search")
    page.locator("input.md-search__input").fill("make_plan")
    page.wait_for_selector(".md-search-result__item a")
    assert "plans.html" in page.locator(".md-search-result__item a").first.get_attribute("href")
