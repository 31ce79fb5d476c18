"""Real films of the reports that are judged: the ceiling, as the anchor is the floor.

The phantom renders as many films as there are generated images, of the findings that each report names, in
natural pose and with other anatomy than any model has seen. Other sources have one film a report, and so no
spread within a report; their Fréchet distance is that of as many other films (:mod:`reference`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from cxrl.config import Config
from cxrl.data.films import read_films
from cxrl.data.index import Tally, describe
from cxrl.data.prompts import PromptBatch
from cxrl.data.sources import load_index, split_name

LARGEST_PHANTOM = 256
"""Pixels a side; the phantom's cost is linear in pixels, and it has no detail beyond 64."""
_SEED = {"eval": 0xF11, "selection": 0xF115}
"""Split → what is added to the run's seed: films that neither reports nor models were made of."""


@dataclass(frozen=True)
class RealFilms:
    """Films and the reports that they belong to.

    Attributes:
        images: float32 [N, 1, H, W] in [0, 1]; N = 0 where there are none.
        batch: The report of each.
        told: What they are, or why there are none.
        is_phantom: No film of a patient: it may be shown beside generated images.
    """

    images: Tensor = field(repr=False)
    batch: PromptBatch
    told: str
    is_phantom: bool = False

    def __len__(self) -> int:
        return len(self.images)


def real_films(
    config: Config, batch: PromptBatch, image_size: tuple[int, int], split: str = "eval"
) -> RealFilms:
    """The real films of a batch of reports.

    Args:
        config: ``data`` and ``seed``: the reports are those that :func:`cxrl.data.sources.load_prompts` gave.
        batch: The reports, and how many images of each are judged.
        image_size: (height, width) of generated images.
        split: Of the reports, "eval" or "selection".

    Raises:
        CxrlError: The index cannot be read.
    """
    if config.data.source == "phantom":
        return _phantom(config, batch, image_size, split)
    if not config.data.has_films:
        return _none(batch, image_size, f"data.source {config.data.source} has no real films here")
    index = load_index(config.data)
    name = split_name(index, config.data, split)
    film_of = {film.study: film for film in reversed(index.split(name)) if film.image}
    place = {p.prompt_id: n for n, p in enumerate(batch.prompts)}
    wanted = [film_of[number] for number in place if number in film_of]
    tally = Tally()
    images, kept = read_films(wanted, index.root, image_size, tally=tally)
    if len(images) < 2:
        why = f": {describe(tally.counts())}" if tally.counts() else ""
        return _none(batch, image_size, f"fewer than two films of these reports can be read{why}")
    told = f"{len(images)} films of {len(batch.prompts)} reports of split {name}"
    return RealFilms(
        images, PromptBatch(batch.prompts, torch.tensor([place[film.study] for film in kept])), told
    )


def _phantom(config: Config, batch: PromptBatch, image_size: tuple[int, int], split: str) -> RealFilms:
    from cxrl.data.phantom.films import corpus, distinct_reports

    height, width = image_size
    if height != width or height > LARGEST_PHANTOM:
        reason = f"the phantom is not rendered at {height} × {width} (at most {LARGEST_PHANTOM}, square)"
        return _none(batch, image_size, reason)
    num = 1 + max(p.prompt_id for p in batch.prompts)
    shown = {p.prompt_id: f for p, f in distinct_reports(num, config.seed, split)}
    findings = [shown[batch.prompts[n].prompt_id] for n in batch.prompt_of.tolist()]
    films = corpus(len(batch), seed=config.seed + _SEED[split], size=height, findings=findings)
    told = f"{len(batch)} films of the phantom in natural pose, of the same reports"
    return RealFilms(films.pixels(), batch, told, is_phantom=True)


def _none(batch: PromptBatch, image_size: tuple[int, int], told: str) -> RealFilms:
    return RealFilms(torch.zeros(0, 1, *image_size), batch.slice(0, 0), told)
