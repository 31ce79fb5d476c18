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
        judged: Task → score as text.
        rewarded: Reward → score as text.
    """

    side: str
    source: str
    judged: dict[str, str]
    rewarded: dict[str, str]

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

    @property
    def size(self) -> int:
        """Bytes of the pictures."""
        return sum(len(picture.source) for picture in self.pictures)


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
    """One a report, in the order of the file; none where scores and gallery do not fit each other."""
    if not run.gallery or not run.scores:
        return
    for row, number in enumerate(run.gallery["image"].tolist()):
        pictures = []
        for side in SIDE_NAMES:
            of_side = run.scores.get(side, ())
            if side in run.gallery and number < len(of_side):
                pictures.append(_picture(side, run.gallery[side][row].numpy(), of_side[number]))
        before, after = (_image(run, side, number) for side in ("anchor", "policy"))
        if before is None or after is None:
            continue
        change = {}
        for task in TASKS:
            a, b = before.scores[task], after.scores[task]
            if a is not None and b is not None:
                change[task] = b - a
        yield Card(row, after.text, tuple(after.findings()), tuple(pictures), change)


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


def _image(run: RunData, side: str, number: int) -> Image | None:
    images = run.scores.get(side, [])
    return images[number] if number < len(images) else None


def _picture(side: str, pixels: Any, image: Image) -> Picture:
    judged = {task: _score(image.scores[task]) for task in TASKS}
    rewarded = {
        name.removeprefix("reward_"): _score(value)
        for name, value in image.scores.items()
        if name.startswith("reward_")
    }
    return Picture(side, png_source(pixels), judged, rewarded)


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}".replace("-", "−")
