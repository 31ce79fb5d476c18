"""The documentation builds as a site without a warning, and asks no other server for anything."""

from __future__ import annotations

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from cxrl.config import sections
from cxrl.options import field_types

ROOT = Path(__file__).parents[1]
PAGES = {path.stem for path in (ROOT / "docs").glob("*.md")} | {"tour"}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LOADS = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "object": "data"}
"""What a browser fetches by itself: tag → attribute."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return out


class Page(HTMLParser):
    """What a page loads, links to, and has as anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.classes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors.add(given.get("id", ""))
        self.classes |= set(given.get("class", "").split())
        if tag in LOADS and given.get("rel") != "canonical" and given.get(LOADS[tag]):
            self.loads.append(given[LOADS[tag]])
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])


def read(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def test_every_page_is_there(site: Path) -> None:
    assert {path.stem for path in site.glob("*.html")} == PAGES | {"404"}
    navigation = Page((site / "index.html").read_text(encoding="utf-8")).links
    assert {f"{name}.html" for name in PAGES} <= {link.partition("#")[0] for link in navigation}
    assert not list(site.rglob("*.py"))


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for path, page in read(site).items():
        assert not [url for url in page.loads if urlsplit(url).netloc], path.name
        assert "mermaid" not in page.classes, f"{path.name}: the theme would fetch mermaid from a CDN"
    for path in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//|@import[^;]*//", path.read_text(encoding="utf-8")), (
            path
        )


def test_every_link_of_the_site_leads_somewhere(site: Path) -> None:
    pages = read(site)
    for path, page in pages.items():
        if path.stem == "404":  # its links start at the root of the server
            continue
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), (path.name, link)
            if parts.fragment and target in pages and parts.fragment != "__skip":
                assert unquote(parts.fragment) in pages[target].anchors, (path.name, link)


def test_the_configuration_has_every_option(site: Path) -> None:
    text = (site / "configuration.html").read_text(encoding="utf-8")
    for name, section in sections().items():
        for field in field_types(section):
            assert f"<code>{name}.{field}</code>" in text
    assert "train.num_epochs" in text
    assert "<code>24</code> in phantom" in text


def test_the_reference_shows_signatures_and_no_roles(site: Path) -> None:
    text = (site / "api.html").read_text(encoding="utf-8")
    anchors = Page(text).anchors
    for name in (
        "cxrl.api.train",
        "cxrl.api.Run.generate",
        "cxrl.rl.records.UpdateStats",
        "cxrl.ops.attention.attention",
    ):
        assert name in anchors, name
    assert not re.search(r":(func|class|mod|meth|data|attr):", text)


def test_the_tour_is_the_notebook(site: Path) -> None:
    assert (site / "tour.ipynb").is_file()
    text = re.sub(r"<[^>]+>", "", (site / "tour.html").read_text(encoding="utf-8"))
    assert "cxrl.load_run(folder" in text


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
@pytest.mark.xdist_group("chromium")
def test_a_browser_asks_nobody_else(site: Path) -> None:
    from playwright.sync_api import sync_playwright

    asked: list[str] = []
    with serve(site) as root, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        told: list[str] = []
        page.on("pageerror", lambda error: told.append(str(error)))
        for name in ("index", "api", "configuration", "method", "metrics"):
            page.goto(f"{root}/{name}.html", wait_until="networkidle")
        page.keyboard.press("/")
        page.keyboard.type("clip fraction")
        page.wait_for_selector(".md-search-result__item", timeout=20_000)
        browser.close()
    assert len(asked) > 5
    assert [url for url in asked if not url.startswith((root, "blob:", "data:"))] == []
    assert told == []


class serve:
    """A server of a folder, as a context."""

    def __init__(self, folder: Path) -> None:
        handler = functools.partial(_Quiet, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_: Any) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass
