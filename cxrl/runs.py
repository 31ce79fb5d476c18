"""Runs opened again, finished or not: draw from them, judge them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from cxrl.config import Config, load_yaml
from cxrl.data.images import save_png
from cxrl.data.prompts import PromptBatch, ReportPrompt
from cxrl.data.sources import load_prompts
from cxrl.errors import CxrlError
from cxrl.metrics.judges import build_judges
from cxrl.models.policy import Policy, load_policy
from cxrl.rl.engine import Engine
from cxrl.rl.evaluation import Evaluator
from cxrl.rl.rollout import Sampler, image_noise
from cxrl.rl.run_dir import CONFIG
from cxrl.rl.seeding import generator


def open_run(run_dir: Path, engine: Engine) -> tuple[Config, Policy]:
    """The configuration of a run and its policy with averaged weights, on the engine's device.

    Raises:
        CxrlError: There is no run there, or a file of it is missing or damaged.
    """
    if not (run_dir / CONFIG).is_file():
        raise CxrlError(f"{run_dir} is not a run of cxrl.train: it has no {CONFIG}; see --run")
    return load_yaml(run_dir / CONFIG), load_policy(run_dir, device=engine.device)


def draw_images(run_dir: Path, prompt: str, *, seeds: Sequence[int], anchor: bool) -> Tensor:
    """Images of one report. An image depends on its seed alone, policy and anchor start from the same x_T.

    Args:
        run_dir: A run of ``cxrl.train``.
        prompt: The report.
        seeds: One per image.
        anchor: Draw with the anchor.

    Returns:
        float32 [N, 1, H, W] in [0, 1].

    Raises:
        CxrlError: The prompt is empty or longer than the text encoder reads; there is no run.
    """
    if not prompt.strip():
        raise CxrlError("the prompt is empty; expected a report such as 'Small left pleural effusion.'")
    config, policy = open_run(run_dir, Engine(run_dir))
    batch = PromptBatch.repeat([ReportPrompt(0, prompt, ())], len(seeds))
    rngs = [generator(seed, "generate", device=policy.device) for seed in seeds]
    noise = image_noise(rngs, policy.base.latent_shape)
    return Sampler(policy, config.sampler).images(batch, noise, anchor=anchor)


def save_images(out: Path, images: Tensor, *, prompt: str, seeds: Sequence[int], source: str) -> list[Path]:
    """Write ``out/SOURCE-SEED.png`` for every image [N, 1, H, W], each saying that it is synthetic."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{source}-{seed:06d}.png" for seed in seeds]
    for path, image, seed in zip(paths, images, seeds, strict=True):
        save_png(path, image, prompt=prompt, seed=seed, extra={"Source": source})
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
