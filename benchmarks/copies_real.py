"""How well copies of real films are found, by kind of copy.

    python benchmarks/copies_real.py --films DIR     results/copies_real.json
    python benchmarks/copies_real.py --table         as Markdown, from the committed file

The first 80 of the films (by name) stand for what a generator was trained on, the others are held out. A copy
of each of the first 30 is made at 512 px; then all are brought to 64 px and 8 bit, as ``cxrl evaluate`` does.
Only numbers are written, no image.
"""

from __future__ import annotations

import argparse
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cxrl.images.read import SUFFIXES, read_image
from cxrl.metrics.classification import auroc
from cxrl.metrics.copies import nearest_copies

RESULT = Path(__file__).parent / "results" / "copies_real.json"
NUM_TRAINING, NUM_COPIES, SIZE, SHOWN = 80, 30, 512, 64


def small(films: Tensor) -> Tensor:
    """[N, 1, 64, 64] of 256 levels."""
    return F.interpolate(films, (SHOWN, SHOWN), mode="bilinear", antialias=True).mul(255).round() / 255


def kinds(generator: torch.Generator) -> dict[str, Callable[[Tensor], Tensor]]:
    """Name → what is done to films [N, 1, 512, 512]."""

    def cut(films: Tensor, share: float) -> Tensor:
        side, parts = int(share * SIZE), []
        for film in films:
            row, column = torch.randint(0, SIZE - side + 1, (2,), generator=generator).tolist()
            parts.append(film[None, :, row : row + side, column : column + side])
        return F.interpolate(torch.cat(parts), (SIZE, SIZE), mode="bilinear", antialias=True)

    def jpeg(films: Tensor, quality: int) -> Tensor:
        found = []
        for film in films:
            file = io.BytesIO()
            Image.fromarray(film[0].mul(255).round().byte().numpy()).save(file, "JPEG", quality=quality)
            found.append(torch.from_numpy(np.array(Image.open(file)) / 255.0).float()[None])
        return torch.stack(found)

    def turned(films: Tensor, degrees: float) -> Tensor:
        a = math.radians(degrees)
        theta = torch.tensor([[math.cos(a), -math.sin(a), 0.0], [math.sin(a), math.cos(a), 0.0]])
        grid = F.affine_grid(theta.expand(len(films), 2, 3), list(films.shape), align_corners=False)
        return F.grid_sample(films, grid, padding_mode="border", align_corners=False)

    def noisy(films: Tensor) -> Tensor:
        return (films + 0.1 * torch.randn(films.shape, generator=generator)).clamp(0, 1)

    return {
        "exact": lambda films: films,
        "mirrored": lambda films: films.flip(-1),
        "cropped to 80 %": lambda films: cut(films, 0.8),
        "cropped to 72 %": lambda films: cut(films, 0.72),
        "noise of 0.1": noisy,
        "JPEG, quality 30": lambda films: jpeg(films, 30),
        "gamma 0.6": lambda films: films**0.6,
        "gamma 1.6": lambda films: films**1.6,
        "blurred over 9 px": lambda films: F.avg_pool2d(films, 9, 1, 4, count_include_pad=False),
        "turned by 3°": lambda films: turned(films, 3.0),
        "turned by 8°": lambda films: turned(films, 8.0),
        "inverted": lambda films: 1 - films,
    }


def measure(folder: Path) -> dict[str, Any]:
    """The content of the result."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    films = torch.stack([read_image(path, SIZE) for path in paths])
    training, held_out = small(films[:NUM_TRAINING]), small(films[NUM_TRAINING:])

    def nearest(shown: Tensor) -> tuple[Tensor, Tensor]:
        return nearest_copies(shown, lambda rows: training[rows], len(training))

    others, _ = nearest(held_out)
    found: dict[str, Any] = {}
    for name, change in kinds(torch.Generator().manual_seed(0)).items():
        match, place = nearest(small(change(films[:NUM_COPIES])))
        is_copy = torch.cat([torch.ones(len(match)), torch.zeros(len(others))])
        found[name] = {
            "auroc": auroc(torch.cat([match, others]), is_copy),
            "right_film": float((place == torch.arange(NUM_COPIES)).float().mean()),
            "lowest_match": float(match.min()),
        }
    return {
        "command": "python benchmarks/copies_real.py --films DIR",
        "num_training": len(training),
        "num_held_out": len(held_out),
        "num_copies": NUM_COPIES,
        "highest_held_out": float(others.max()),
        "copies": found,
    }


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| copies | AUROC | right film | lowest match |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {told['auroc']:.3f} | {told['right_film']:.0%} | {told['lowest_match']:.3f} |"
        for name, told in result["copies"].items()
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--films", type=Path)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.films:
        RESULT.write_text(json.dumps(measure(args.films), indent=1) + "\n")
    print(table(json.loads(RESULT.read_text())))


if __name__ == "__main__":
    main()
