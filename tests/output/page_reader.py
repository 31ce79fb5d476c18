"""A page as it is read: its parts, tags and words. Every tag must be closed."""

from __future__ import annotations

import re
from html.parser import HTMLParser

ORDER = (
    *("By judges that gave no reward", "Judges, from the anchor on", "Reward against judge", "Findings"),
    *("Gallery", "Epoch by epoch", "Pose ψ, before, after and real", "Training", "Configuration"),
    *("Made with", "Tables"),
)
"""The headings of a run."""


class Reader(HTMLParser):
    """Tags, attributes and text of a page; a tag that is never closed is an error."""

    VOID = ("meta", "img", "input", "path", "circle", "polyline", "polygon", "rect", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        assert self.open == [], self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID and tag != "option":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID and tag != "option":
            assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def parts(page: str) -> dict[str, str]:
    """Heading → text of the part of a page below it."""
    texts = [
        Reader(f"<section>{part}").text for part in re.findall(r"<section[^>]*>(.*?</section>)", page, re.S)
    ]
    return {heading: text for heading in ORDER for text in texts if f"{heading} " in f"{text} "}
