"""The page as a browser shows it: no error, no request, nothing wider than a telephone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cxrl.output.page import runs_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here"),
    pytest.mark.xdist_group("chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory, write_run: Any) -> Path:
    folder = tmp_path_factory.mktemp("page")
    runs = [write_run(folder / name, num_reports=9, size=64) for name in ("first", "second")]
    (folder / "one.html").write_text(runs_page(runs[:1]))
    (folder / "two.html").write_text(runs_page(runs))
    return folder / "one.html"


def opened(
    browser: Any, path: Path, width: int, scheme: str = "light", script: bool = True
) -> tuple[Any, list[str]]:
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=script
    )
    page, told = context.new_page(), list[str]()
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    own = ("data:", path.as_uri())
    page.on("request", lambda request: None if request.url.startswith(own) else told.append(request.url))
    page.goto(path.as_uri())
    return page, told


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["one.html", "two.html"])
def test_it_fits_and_says_nothing_in_the_console(
    browser: Any, page_file: Path, width: int, name: str
) -> None:
    page, told = opened(browser, page_file.with_name(name), width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert told == []


def test_dark_and_light(browser: Any, page_file: Path) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    light, _ = opened(browser, page_file, 1280)
    dark, told = opened(browser, page_file, 1280, "dark")
    assert light.evaluate(colour) != dark.evaluate(colour)
    before = dark.evaluate(colour)
    dark.click("#theme")
    assert dark.evaluate(colour) == light.evaluate(colour) != before
    assert told == []


def test_the_gallery_is_filtered_and_the_epochs_slide(browser: Any, page_file: Path) -> None:
    page, told = opened(browser, page_file, 1280)
    cards = page.locator("#gallery-0 > .card:visible")
    page.click("details.all > summary")
    assert cards.count() == 9
    page.select_option("select[data-gallery]", "Edema")
    assert cards.count() == 3
    assert {cards.nth(n).get_attribute("data-findings") for n in range(3)} == {"Edema"}
    page.select_option("select[data-gallery]", "")
    assert cards.count() == 9
    sheets = page.locator("#slides-0 figure:visible")
    assert sheets.count() == 1
    assert sheets.get_attribute("data-name") == "epoch 2"
    page.locator("input[data-slides]").fill("0")
    assert sheets.get_attribute("data-name") == "epoch 1"
    assert page.locator(".slider output").inner_text() == "epoch 1"
    assert told == []


def test_no_other_script_or_style_runs(browser: Any, page_file: Path, tmp_path: Path) -> None:
    """Even where a text became a tag, which the template does not let happen."""
    html = page_file.read_text()
    evil = "<script>document.title='x'</script><img src='data:,' onerror=\"document.title='x'\">"
    evil += (
        "<style>body{color:#f00}</style><p id='p' style='color:#f00'>p</p><img src='http://127.0.0.1:9/x'>"
    )
    changed = tmp_path / "evil.html"
    changed.write_text(html.replace("<main>", f"<main>{evil}"))
    page, told = opened(browser, changed, 1280)
    assert page.title() == "cxrl: first"
    assert page.evaluate("getComputedStyle(document.getElementById('p')).color") != "rgb(255, 0, 0)"
    assert sum("Content Security Policy" in line for line in told) >= 4, told
    page.click("#theme")  # its own does
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_it_prints_on_white_paper(browser: Any, page_file: Path) -> None:
    page, _ = opened(browser, page_file, 1280, "dark")
    panel = "getComputedStyle(document.querySelector('.fig')).backgroundColor"
    assert page.evaluate(panel) != "rgb(255, 255, 255)"
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(panel) == "rgb(255, 255, 255)"
    assert page.locator("select:visible, input:visible, #theme:visible").count() == 0
    assert page.locator("#slides-0 figure:visible").count() == 2, "every epoch"


def test_without_scripts_everything_is_there(browser: Any, page_file: Path) -> None:
    page, _ = opened(browser, page_file, 390, script=False)
    page.click("details.all > summary")
    assert page.locator("#gallery-0 > .card:visible").count() == 9
    assert page.locator("#slides-0 figure:visible").count() == 2
    assert page.locator("select:visible, input:visible, button:visible").count() == 0
