"""The page of a report in a real browser: nothing overflows, its controls work, and it passes axe.

Needs Debian's chromium and the packages playwright and axe-playwright-python.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import seeded

from time_tuner import NoiseScheduleVP, evaluate, exact, make_plan

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("chromium is not installed", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

SIZES = [(1440, "light"), (390, "dark")]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    schedule = NoiseScheduleVP("linear")
    mixture = exact.ConditionalMixture(seeded(6, 3, 6, 6).clamp(-1, 1), torch.arange(6) % 2, 0.2)
    model = mixture.guided(schedule, [0, 1], 2.0)
    plans = {f"a-plan-of-a-rather-long-name-{n}": make_plan("ddim", schedule, n, "quadratic").with_corrections(
        0.1 * seeded(n, n).tril(-1)).with_guidance(2 * n // 3) for n in (3, 12)}  # fmt: skip
    report = evaluate(model, plans, ("ddim", "unipc"), (3, 12), samples=16, budget="2s", command="time-tuner evaluate")
    folder = tmp_path_factory.mktemp("report")
    report.write(folder)
    return folder / "index.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=SIZES, ids=lambda size: f"{size[0]}-{size[1]}")
def page(request: pytest.FixtureRequest, browser: Any, file: Path) -> Iterator[Any]:
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    page, errors = context.new_page(), []
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(file.as_uri())
    yield page
    assert not errors
    context.close()


def overflowing(page: Any) -> Any:
    """What is wider than the window, but for what scrolls by itself."""
    return page.evaluate(
        """() => [...document.querySelectorAll("body *")].filter((node) =>
            !node.closest(".scroll, .sr, svg") && node.getBoundingClientRect().right > innerWidth + 1)
            .map((node) => node.tagName + "#" + node.id)"""
    )


def test_nothing_overflows(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") == page.viewport_size["width"]
    assert overflowing(page) == []
    page.emulate_media(media="print")
    assert overflowing(page) == []


def test_the_metric_and_the_curves_are_chosen(page: Any) -> None:
    page.select_option("#metric", "frechet")
    assert "Frechet distance" in page.text_content("#metric-text")
    assert "Frechet distance" in page.get_attribute("#chart svg", "aria-label")
    points = page.locator("#chart circle").count()
    page.locator("#series input").last.focus()
    page.keyboard.press("Space")
    assert 0 < page.locator("#chart circle").count() < points
    while page.locator("#series input:checked").count():
        page.locator("#series input:checked").first.click()
    assert "No curve" in page.text_content("#chart")


def test_quality_is_shown_against_evaluations_or_calls(page: Any) -> None:
    def last() -> str:
        return str(page.locator("#chart svg text", has_text="network").text_content())

    assert last() == "network evaluations", "guidance is left out of some calls"
    page.locator("#size").focus()
    page.keyboard.press("ArrowUp")
    assert last() == "network calls" and "network calls" in page.get_attribute("#chart svg", "aria-label")


def test_samples_flip_by_keyboard_and_by_mouse(page: Any) -> None:
    def shown() -> str:
        (name,) = page.evaluate(
            "[...document.querySelectorAll('#samples img:not([hidden])')].map((i) => i.dataset.run)"
        )
        assert name in page.text_content("#sample-text")
        return str(name)

    assert shown() == "a-plan-of-a-rather-long-name-3"
    page.locator("#shown input").first.focus()
    page.keyboard.press("ArrowDown")
    other = shown()
    assert other != "a-plan-of-a-rather-long-name-3"
    page.click("#flip")
    assert shown() == "reference" and page.get_attribute("#flip", "aria-pressed") == "true"
    page.locator("#flip").press("Enter")
    assert shown() == other
    page.select_option("#calls", "12")
    assert shown() == "a-plan-of-a-rather-long-name-12"


def test_plans_are_chosen(page: Any) -> None:
    assert page.locator("#heat tbody tr").count() == 3
    page.select_option("#plan", "1")
    assert page.locator("#heat tbody tr").count() == 12
    assert page.locator("#grid circle").count() == 24  # t and tau


def test_axe_finds_nothing(page: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    found = axe.Axe().run(page).response["violations"]
    assert not found, [(one["id"], [node["target"] for node in one["nodes"]]) for one in found]
