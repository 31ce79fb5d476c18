"""The pictures of a page: reports with anchor, policy and real film; the largest wins and losses."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cxrl.output.run_data import TASKS, Image, RunData

SIDE_NAMES = {"anchor": "anchor", "policy": "policy", "real": "real film"}
NUM_EXTREMES = 3
VISIBLE = 0.005
"""A smaller change is none in the digits that are shown."""


@dataclass(frozen=True)
class Picture:
    """One image of a card.

    Attributes:
        side: "anchor", "policy" or "real".
        source: A data URI of a PNG that says that it is synthetic.
        scores: (task or reward, the judge's score, the reward model's), as texts; "" where there is none.
    """

    side: str
    source: str
    scores: tuple[tuple[str, str, str], ...]

    @property
    def name(self) -> str:
        return SIDE_NAMES[self.side]


@dataclass(frozen=True)
class Card:
    """A report and its pictures.

    Attributes:
        number: Of the report, in the order of the gallery.
        text: The report.
        findings: What it names.
        pictures: Anchor first.
        change: Task → policy minus anchor of the judge's score.
    """

    number: int
    text: str
    findings: tuple[str, ...]
    pictures: tuple[Picture, ...]
    change: dict[str, float]


@dataclass(frozen=True)
class Extreme:
    """A report whose policy image is judged much better, or much worse, than its anchor image."""

    task: str
    card: Card
    change: float


def png_source(pixels: Any) -> str:
    """A data URI of uint8 [h, w]."""
    from PIL import Image as Pictures

    from cxrl.images.png import picture_info

    buffer = io.BytesIO()
    Pictures.fromarray(pixels).save(buffer, format="PNG", optimize=True, pnginfo=picture_info({}))
    return data_uri(buffer.getvalue())


def data_uri(data: bytes) -> str:
    """Of a PNG file."""
    return f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"


def cards(run: RunData) -> Iterator[Card]:
    """One a report, in the order of the file; none without scores, which have the texts."""
    if not run.gallery or not run.scores:
        return
    for row, number in enumerate(run.gallery["image"].tolist()):
        before, after = (run.scores[side][number] for side in ("anchor", "policy"))
        images = {"anchor": before, "policy": after}
        films = run.scores.get("real", [])
        if number < len(films) and films[number].prompt == after.prompt:  # there may be fewer
            images["real"] = films[number]
        pictures = tuple(
            _picture(side, run.gallery[side][row].numpy(), image)
            for side, image in images.items()
            if side in run.gallery
        )
        change = {}
        for task in TASKS:
            a, b = before.scores[task], after.scores[task]
            if a is not None and b is not None:
                change[task] = b - a
        yield Card(row, after.text, tuple(after.findings()), pictures, change)


def extremes(found: Sequence[Card], *, best: bool) -> list[Extreme]:
    """The ``NUM_EXTREMES`` reports a task whose judged score rose most, or fell most."""
    result = []
    for task in TASKS:
        known = [card for card in found if task in card.change]
        known.sort(key=lambda card: card.change[task], reverse=best)
        for card in known[:NUM_EXTREMES]:
            if (card.change[task] > 0) == best and abs(card.change[task]) >= VISIBLE:
                result.append(Extreme(task, card, card.change[task]))
    return result


def _picture(side: str, pixels: Any, image: Image) -> Picture:
    rewards = [name.removeprefix("reward_") for name in image.scores if name.startswith("reward_")]
    scores = tuple(
        (
            name,
            _score(image.scores[name]) if name in TASKS else "",
            _score(image.scores[f"reward_{name}"]) if name in rewards else "",
        )
        for name in dict.fromkeys((*TASKS, *rewards))
    )
    return Picture(side, png_source(pixels), scores)


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}".replace("-", "−")
