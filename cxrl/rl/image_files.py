"""What a run keeps of its judged images: scores.csv, a line each, and gallery.safetensors, one a report."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from cxrl.images.png import SYNTHETIC
from cxrl.metrics.names import PSI
from cxrl.rl.evaluation import Evaluator, Judged
from cxrl.storage.layout import GALLERY, SCORES
from cxrl.storage.writing import write_tensors, write_text

LARGEST = 128
"""Pixels a side of a picture in the gallery."""
_HINT = "make room and use --resume"


def save_judged(run_dir: Path, evaluator: Evaluator, policy: Judged) -> None:
    """Write both files for anchor, policy and real films.

    Raises:
        CxrlError: One cannot be written.
    """
    sides = {"anchor": evaluator.anchor, "policy": policy}
    if evaluator.real is not None:
        sides["real"] = evaluator.real
    write_text(run_dir / SCORES, scores_text(sides, evaluator.judges.findings), hint=_HINT)
    first = evaluator.first_images()
    tensors = {side: thumbnails(sides[side].images[first]) for side in ("anchor", "policy")}
    if evaluator.real is not None and evaluator.films.is_phantom:  # never a patient's film
        tensors["real"] = thumbnails(evaluator.real.images[first])
    note = {"Synthetic": SYNTHETIC}
    write_tensors(run_dir / GALLERY, {**tensors, "image": first}, hint=_HINT, metadata=note)


def thumbnails(images: Tensor) -> Tensor:
    """uint8 [N, h, w], at most ``LARGEST`` a side, of float32 [N, 1, H, W] in [0, 1]."""
    images = images.float().cpu()
    factor = LARGEST / max(images.shape[-2:])
    if factor < 1:
        size = [max(1, round(side * factor)) for side in images.shape[-2:]]
        images = interpolate(images, size, mode="bilinear", antialias=True)
    return images[:, 0].clamp(0, 1).mul(255).round().to(torch.uint8).contiguous()


def scores_text(sides: Mapping[str, Judged], findings: Sequence[str]) -> str:
    """The content of scores.csv: side → judged images. Numbers that are not known are empty."""
    names = next(iter(sides.values())).rewards
    rewards = () if names is None else names.names
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(
        [
            *("side", "image", "prompt", "text", "posture", "diagnosis", "consistency"),
            *(f"reward_{name}" for name in rewards),
            *PSI,
            *(f"p_{name}" for name in findings),
            *(f"label_{name}" for name in findings),
        ]
    )
    for side, judged in sides.items():
        for row in _rows(judged, findings):
            table.writerow([side, *(_cell(value) for value in row)])
    return buffer.getvalue()


def _rows(judged: Judged, findings: Sequence[str]) -> Iterator[list[Any]]:
    scores, batch = judged.evaluation.images, judged.batch
    assert scores is not None
    columns = [scores.posture, scores.diagnosis, scores.consistency]
    if judged.rewards is not None:
        columns += judged.rewards.values.cpu().unbind(1)
    columns += [*scores.psi.unbind(1), *scores.probability.unbind(1), *batch.labels_of(findings).unbind(1)]
    numbers = torch.stack([column.double() for column in columns], 1).tolist()
    for image, (of, values) in enumerate(zip(batch.prompt_of.tolist(), numbers, strict=True)):
        yield [image, batch.prompts[of].prompt_id, batch.prompts[of].text, *values]


def _cell(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return f"{value:.6g}" if math.isfinite(value) else ""
