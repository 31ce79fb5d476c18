"""Images of reports by a run that is opened again, one at a time to the disk."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor

from cxrl.config import SamplerConfig
from cxrl.data.prompts import PromptBatch, ReportPrompt
from cxrl.errors import CxrlError
from cxrl.findings import CHEXPERT_FINDINGS
from cxrl.images.dicom import Series, save_dicom
from cxrl.images.png import save_grid, save_png
from cxrl.models.policy import Policy
from cxrl.rl.engine import Engine
from cxrl.rl.given import check_text
from cxrl.rl.reopen import open_run
from cxrl.rl.rollout import Sampler, image_noise
from cxrl.rl.seeding import generator
from cxrl.storage.privacy import owner_only
from cxrl.storage.writing import cannot_write

FORMATS = {"png": ".png", "dicom": ".dcm"}
GRID, GRID_REPORTS, GRID_SEEDS = "grid.png", 8, 6
"""The picture of all, SOURCE-grid.png, and what it holds at most."""


@dataclass(frozen=True)
class Drawing:
    """One image.

    Attributes:
        image: float32 [1, H, W] in [0, 1].
        seed: Of its x_T and step noise.
        number: Of its report, from 1 on; 0 where reports have none.
        prompt: The report.
        source: "policy" or "anchor".
        restricted: The run's data set may not be passed on.
        columns: What else is known of the report, for the list.
    """

    image: Tensor = field(repr=False)
    seed: int
    number: int
    prompt: str
    source: str
    restricted: bool
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of its file, without suffix."""
        return file_name(self.source, self.number, self.seed)


def file_name(source: str, number: int, seed: int) -> str:
    """Of an image's file, without suffix; ``number`` is the report's, 0 where reports have none."""
    return "-".join((source, *([f"{number:04d}"] if number else []), f"{seed:06d}"))


def check_unused(
    out: Path,
    num_prompts: int,
    *,
    seeds: Sequence[int],
    anchor: bool,
    numbered: bool,
    file_format: str,
    grid: bool,
) -> None:
    """Raise CxrlError where a file that :func:`save_images` would write is there: it may be of another report
    or run, and would be lost. Arguments as :func:`draw_images` and :func:`save_images`.
    """
    source, suffix = "anchor" if anchor else "policy", FORMATS[file_format]
    numbers = range(1, num_prompts + 1) if numbered else (0,)
    names = [f"{file_name(source, number, seed)}{suffix}" for number in numbers for seed in seeds]
    names += [f"{source}.csv"] * numbered + [f"{source}-{GRID}"] * grid
    there = set(os.listdir(out)) if out.is_dir() else set()
    taken = [name for name in names if name in there]
    if taken:
        more = f" and {len(taken) - 1} more of these names" if len(taken) > 1 else ""
        raise CxrlError(
            f"--out: {out} holds {taken[0]}{more} already, which would be lost; choose another folder, or "
            "move them" + ("" if numbered or grid else ", or take another --seed")
        )


LISTED = ("image", "source", "seed", "prompt_id", "text")
"""Columns of the list; those of the reports' table follow."""


def draw_images(
    run_dir: Path,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    anchor: bool,
    numbered: bool = False,
    columns: Sequence[Mapping[str, str]] = (),
) -> Iterator[Drawing]:
    """Images of reports, report after report, drawn as many at a time as the run's sampler takes.

    Args:
        run_dir: A run of ``cxrl train``.
        prompts: The reports.
        seeds: One per image of a report.
        anchor: Draw with the anchor.
        numbered: Name files by the report too.
        columns: What else is known of every report; of restricted data the findings alone are kept.

    Raises:
        CxrlError: A report is empty or longer than the text encoder reads; there is no run.
    """
    config, policy = open_run(run_dir, Engine(run_dir))
    check_prompts(policy, prompts)
    source, restricted = "anchor" if anchor else "policy", config.data.is_restricted
    kept = [{n: v for n, v in of.items() if not restricted or n in CHEXPERT_FINDINGS} for of in columns]
    each = [(number, seed) for number in range(len(prompts)) for seed in seeds]
    images = draw(policy, config.sampler, prompts, seeds=seeds, anchor=anchor)
    for (number, seed), image in zip(each, images, strict=True):
        yield Drawing(
            image,
            seed,
            number + 1 if numbered else 0,
            prompts[number],
            source,
            restricted,
            kept[number] if kept else {},
        )


def check_prompts(policy: Policy, prompts: Sequence[str]) -> None:
    """Raises CxrlError where a report is no text, empty or longer than the text encoder reads, before any is
    drawn.
    """
    if not prompts:
        raise CxrlError("there is no prompt; expected at least one report")
    base = policy.base
    for number, text in enumerate(prompts, 1):
        which = f"prompt {number}" if len(prompts) > 1 else "the prompt"
        check_text(text, which)
        if not text.strip():
            raise CxrlError(f"{which} is empty; expected a report such as 'Small left pleural effusion.'")
        if (count := base.num_tokens(text)) > base.max_tokens:
            raise CxrlError(
                f"{which} has {count} tokens, the text encoder reads {base.max_tokens}; shorten it"
            )


def draw(
    policy: Policy, config: SamplerConfig, prompts: Sequence[str], *, seeds: Sequence[int], anchor: bool
) -> Iterator[Tensor]:
    """float32 [1, H, W] of every report and seed, report after report. An image depends on its report and
    seed alone; policy and anchor start from the same x_T.
    """
    sampler = Sampler(policy, config)
    reports = [ReportPrompt(number, text, ()) for number, text in enumerate(prompts)]
    each = [(number, seed) for number in range(len(reports)) for seed in seeds]
    for start in range(0, len(each), config.batch_size):
        some = each[start : start + config.batch_size]
        first = some[0][0]
        batch = PromptBatch(
            tuple(reports[first : some[-1][0] + 1]), torch.tensor([number - first for number, _ in some])
        )
        rngs = [generator(seed, "generate", device=policy.device) for _, seed in some]
        yield from sampler.images(batch, image_noise(rngs, policy.base.latent_shape), anchor=anchor)


def save_images(
    out: Path, drawings: Iterable[Drawing], file_format: str = "png", *, grid: bool = False
) -> Iterator[Path]:
    """Write every image as it comes, of numbered reports a line of ``SOURCE.csv`` for each, and at the end
    ``SOURCE-grid.png``; each picture says that it is synthetic.

    With restricted data the files are their owner's alone and do not hold the prompt, which may quote it.

    Raises:
        CxrlError: A file cannot be written, or the format is "dicom" and pydicom is not installed.
    """
    series, kept = Series() if file_format == "dicom" else None, _Grid()
    lines: TextIO | None = None
    try:
        for number, drawing in enumerate(drawings, 1):
            prompt = "" if drawing.restricted else drawing.prompt
            path = out / f"{drawing.name}{FORMATS[file_format]}"
            with owner_only(drawing.restricted):
                out.mkdir(parents=True, exist_ok=True)
                if lines is None and drawing.number:
                    lines = _open_list(out / f"{drawing.source}.csv", [*LISTED, *drawing.columns])
                if series is None:
                    extra = {"Source": drawing.source}
                    save_png(path, drawing.image, seed=drawing.seed, prompt=prompt, extra=extra)
                else:
                    save_dicom(
                        path,
                        drawing.image,
                        series,
                        number=number,
                        seed=drawing.seed,
                        source=drawing.source,
                        prompt=prompt,
                    )
                if lines is not None:
                    about = [path.name, drawing.source, drawing.seed, drawing.number, prompt]
                    _add_line(lines, [*about, *drawing.columns.values()])
            if grid:
                kept.add(drawing)
            yield path
        if grid and kept.images:
            yield kept.save(out / f"{drawing.source}-{GRID}")
    finally:
        if lines is not None:
            lines.close()


def _open_list(path: Path, header: Sequence[str]) -> TextIO:
    try:
        file = path.open("w", encoding="utf-8", newline="")
    except OSError as error:
        raise cannot_write(path, error, "choose another --out") from error
    _add_line(file, header)
    return file


def _add_line(file: TextIO, cells: Sequence[object]) -> None:
    """A line that is on the disk before the next image is drawn."""
    try:
        csv.writer(file, lineterminator="\n").writerow(cells)
        file.flush()
    except OSError as error:
        raise cannot_write(Path(file.name), error, "make room; run it into another --out") from error


class _Grid:
    """The first images of the first reports."""

    def __init__(self) -> None:
        self.images: dict[int, dict[int, Drawing]] = {}

    def add(self, drawing: Drawing) -> None:
        of_seed = self.images.setdefault(drawing.seed, {})
        if len(of_seed) < GRID_REPORTS and len(self.images) <= GRID_SEEDS:
            of_seed[drawing.number] = drawing

    def save(self, path: Path) -> Path:
        some = {seed: row for seed, row in self.images.items() if row}
        first = next(iter(some.values()))
        restricted = any(drawing.restricted for drawing in first.values())
        rows = {
            f"seed {seed}": torch.stack([drawing.image for drawing in row.values()])
            for seed, row in some.items()
        }
        captions = [f"report {d.number}" if d.restricted else d.prompt for d in first.values()]
        with owner_only(restricted):
            save_grid(path, rows, captions)
        return path
