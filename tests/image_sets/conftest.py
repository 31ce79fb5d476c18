"""Two small sets of phantoms with their tables, and a judge that needs no weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from cxrl.data.phantom.films import corpus
from cxrl.findings import PHANTOM_FINDINGS
from cxrl.image_sets.judge import Panel
from cxrl.images.png import to_uint8


class Pixels:
    """A judge whose every answer is some pixels of the film."""

    findings = PHANTOM_FINDINGS
    reference = None
    seen = 0

    def posture(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return images[:, 0, 20, 20:25]

    def classify(self, images: Tensor) -> Tensor:
        return images[:, 0, 30, 30:37]

    def features(self, images: Tensor) -> Tensor:
        return images[:, 0, 30, 10:14]

    def image_embeds(self, images: Tensor) -> Tensor:
        return images[:, 0, 30, 10:14]

    def text_embeds(self, texts: list[str]) -> Tensor:
        return torch.ones(len(texts), 4)


@pytest.fixture
def pixels() -> Pixels:
    return Pixels()


class Corner:
    """A feature model that sees the corners of the film as it was read, before any resizing."""

    name, description, num_features, batch_size = "corner", "corners of the film, 4 wide", 4, 5

    def __init__(self, digest: str = "corner") -> None:
        self.digest, self.seen, self.shapes = digest, 0, set[tuple[int, ...]]()

    def prepare(self, film: Tensor) -> Tensor:
        self.shapes.add(tuple(film.shape))
        return film[0, -2:, -2:]

    def features(self, prepared: Tensor) -> Tensor:
        self.seen += len(prepared)
        return prepared.flatten(1)


@pytest.fixture
def corner() -> Corner:
    return Corner()


@pytest.fixture
def panel(pixels: Pixels) -> Panel:
    return Panel(pixels, "pixels", "pixels", {})  # type: ignore[arg-type]


def write_set(folder: Path, number: int, seed: int) -> Path:
    folder.mkdir(parents=True)
    films = corpus(number, seed=seed)
    lines = ["image,text,sex," + ",".join(PHANTOM_FINDINGS)]
    for i, image in enumerate(films.pixels()):
        Image.fromarray(to_uint8(image)).save(folder / f"{i:02}.png")
        labels = ",".join(str(int(value)) for value in films.labels[i].tolist())
        lines.append(f'{i:02}.png,"{films.texts[i // 2 * 2]}",{"FM"[i % 2]},{labels}')
    (folder / "films.csv").write_text("\n".join(lines) + "\n")
    return folder / "films.csv"


@pytest.fixture
def tables(tmp_path: Path) -> tuple[Path, Path]:
    """Generated and real, 24 and 32 films."""
    return write_set(tmp_path / "generated", 24, 3), write_set(tmp_path / "real", 32, 4)
