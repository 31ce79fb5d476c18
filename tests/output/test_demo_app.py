"""The demo, driven as a person drives it: in headless Chromium, offline."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cxrl.output.demo_app import pictures
from cxrl.output.playground import Playground

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="Gradio is not installed"),
]


def process(run: Path, *words: str) -> subprocess.Popen[str]:
    """In a process of its own: Gradio leaves threads, loops and sockets behind."""
    return subprocess.Popen(
        [sys.executable, "-m", "cxrl", "demo", "--run", str(run), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def served(smoke_run: Path) -> Iterator[str]:
    server = process(smoke_run, "--port", "0")
    assert server.stdout is not None
    line = server.stdout.readline()
    assert line.endswith("(Ctrl-C ends it)\n"), (line, server.communicate())
    yield line.split()[0]
    server.send_signal(signal.SIGINT)
    out, err = server.communicate(timeout=30)
    assert (out, err, server.returncode) == ("", "interrupted\n", 130)


def test_its_page_fetches_nothing_from_elsewhere(served: str) -> None:
    assert served.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(served) as answer:
        page = answer.read().decode()
    for tag in ("<script", "<link"):
        for part in page.split(tag)[1:]:
            assert "https://" not in part.split(">")[0], part[:200]
    assert page.count("<script") > 1


def test_a_taken_port_is_told(served: str, smoke_run: Path) -> None:
    port = served.rstrip("/").rpartition(":")[2]
    out, err = (other := process(smoke_run, "--port", port)).communicate(timeout=120)
    assert (out, other.returncode) == ("", 2)
    assert err.startswith(f"error: --port: {port} is taken, or not for you; choose another")
    assert err.count("\n") == 1


def test_scores_that_are_not_known_are_explained(smoke_run: Path) -> None:
    playground = Playground(smoke_run)
    wish = playground.default()
    known = pictures(playground.draw(wish), "<b>")
    assert known.count("<img") == 3
    assert "&lt;b&gt;" in known
    assert "No labels" not in known


def is_outside(url: str) -> bool:
    return url.startswith(("http:", "https:", "ws")) and "://127.0.0.1" not in url


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_a_person_draws(served: str, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page, told = browser.new_page(viewport={"width": 390, "height": 900}), list[str]()
        page.on("console", lambda message: told.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: told.append(request.url) if is_outside(request.url) else None)
        page.goto(served)
        page.wait_for_selector("#draw")
        started = time.monotonic()
        page.click("#draw")
        page.wait_for_selector(".cxrl img")
        assert time.monotonic() - started < 10, "five seconds on two cores of its own"
        sources = "[...document.querySelectorAll('.cxrl img')].map(i => i.src)"
        first = page.evaluate(sources)
        assert len(first) == 3
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.locator("#files").inner_text().count(".png") == 3
        with page.expect_download() as download:
            page.locator("#files a").first.click()
        download.value.save_as(tmp_path / "anchor.png")
        assert b"Synthetic image" in (tmp_path / "anchor.png").read_bytes()

        page.fill("#seed input", "7")
        page.click("#draw")
        page.wait_for_selector("text=policy, seed 7")
        assert page.evaluate(sources) != first

        page.fill("#report textarea", "word " * 300)
        page.click("#draw")
        page.wait_for_selector("text=the text encoder reads")
        page.fill("#report textarea", "Small left pleural effusion, in my words.")
        page.click("#draw")
        page.wait_for_selector("text=No labels")
        assert page.locator(".cxrl img").count() == 2
        assert [line for line in told if "Failed to load resource" not in line] == []
        browser.close()
