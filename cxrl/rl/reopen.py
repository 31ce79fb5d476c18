"""Runs opened again, finished or not: draw from them, judge them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cxrl.config import Config
from cxrl.data.prompts import PromptBatch, ReportPrompt
from cxrl.data.sources import load_prompts
from cxrl.errors import CxrlError
from cxrl.evaluation.judges import build_judges
from cxrl.images.dicom import Series, save_dicom
from cxrl.images.png import save_png
from cxrl.models.policy import Policy, load_policy
from cxrl.presets import load_yaml
from cxrl.rl.engine import Engine
from cxrl.rl.evaluation import Evaluator
from cxrl.rl.rollout import Sampler, image_noise
from cxrl.rl.seeding import generator
from cxrl.storage.privacy import owner_only
from cxrl.storage.run_dir import CONFIG

FORMATS = {"png": ".png", "dicom": ".dcm"}


def open_run(run_dir: Path, engine: Engine) -> tuple[Config, Policy]:
    """The configuration of a run and its policy with averaged weights, on the engine's device.

    Raises:
        CxrlError: There is no run there, or a file of it is missing or damaged.
    """
    if not (run_dir / CONFIG).is_file():
        raise CxrlError(f"{run_dir} is not a run of cxrl.train: it has no {CONFIG}; see --run")
    config = load_yaml(run_dir / CONFIG)
    model = config.model
    policy = load_policy(
        run_dir, device=engine.device, allow_pickle=model.allow_pickle, offload=model.offload
    )
    return config, policy


@dataclass(frozen=True)
class Drawing:
    """Images of one report by one side of a run.

    Attributes:
        images: float32 [N, 1, H, W] in [0, 1].
        seeds: One per image.
        source: "policy" or "anchor".
        prompt: The report.
        restricted: The run's data set may not be passed on.
    """

    images: Tensor
    seeds: Sequence[int]
    source: str
    prompt: str
    restricted: bool


def draw_images(run_dir: Path, prompt: str, *, seeds: Sequence[int], anchor: bool) -> Drawing:
    """Images of one report. An image depends on its seed alone, policy and anchor start from the same x_T.

    Args:
        run_dir: A run of ``cxrl.train``.
        prompt: The report.
        seeds: One per image.
        anchor: Draw with the anchor.

    Raises:
        CxrlError: The prompt is empty or longer than the text encoder reads; there is no run.
    """
    if not prompt.strip():
        raise CxrlError("the prompt is empty; expected a report such as 'Small left pleural effusion.'")
    config, policy = open_run(run_dir, Engine(run_dir))
    batch = PromptBatch.repeat([ReportPrompt(0, prompt, ())], len(seeds))
    rngs = [generator(seed, "generate", device=policy.device) for seed in seeds]
    noise = image_noise(rngs, policy.base.latent_shape)
    images = Sampler(policy, config.sampler).images(batch, noise, anchor=anchor)
    return Drawing(images, seeds, "anchor" if anchor else "policy", prompt, config.data.is_restricted)


def save_images(out: Path, drawing: Drawing, file_format: str = "png") -> list[Path]:
    """Write ``out/SOURCE-SEED.png`` or ``.dcm`` for every image, each saying that it is synthetic.

    With restricted data the files are their owner's alone and do not hold the prompt, which may quote it.

    Raises:
        CxrlError: A file cannot be written, or the format is "dicom" and pydicom is not installed.
    """
    suffix = FORMATS[file_format]
    paths = [out / f"{drawing.source}-{seed:06d}{suffix}" for seed in drawing.seeds]
    source, prompt = drawing.source, "" if drawing.restricted else drawing.prompt
    series = Series() if file_format == "dicom" else None
    with owner_only(drawing.restricted):
        out.mkdir(parents=True, exist_ok=True)
        for number, (path, image, seed) in enumerate(
            zip(paths, drawing.images, drawing.seeds, strict=True), 1
        ):
            if series is None:
                save_png(path, image, seed=seed, prompt=prompt, extra={"Source": source})
            else:
                save_dicom(path, image, series, number=number, seed=seed, source=source, prompt=prompt)
    return paths


def evaluate_run(run_dir: Path, *, num_images: int | None = None) -> dict[str, Any]:
    """Judge a run again, as the end of its training does: the content of ``summary.json``.

    Args:
        run_dir: A run of ``cxrl.train``.
        num_images: Of each side; by default the run's own number, which gives the run's own scores.

    Raises:
        CxrlError: There is no run there, or a file of it or of the judges is missing or damaged.
    """
    started = time.perf_counter()
    engine = Engine(run_dir)
    config, policy = open_run(run_dir, engine)
    if num_images is not None:
        config = Config.from_dict({"eval": {"num_images": num_images}}, config)
    judges = build_judges(config, policy.base.image_size, engine.device)
    prompts = load_prompts(config, policy.base, "eval").prompts
    evaluator = Evaluator(Sampler(policy, config.sampler), prompts, judges, config, engine)
    return evaluator.summary().to_dict(wall_seconds=time.perf_counter() - started)
