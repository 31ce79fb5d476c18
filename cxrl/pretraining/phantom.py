"""Everything that ships, trained in order: autoencoder, base model, reward models, judges; then measured
and described.

Stages keep checkpoints in a working folder: a killed run goes on where it was. The result is one assets
folder::

    pipeline/    a StableDiffusionPipeline            rewards/*.safetensors    judges/*.safetensors
    MODEL_CARD.md
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cxrl.data.phantom.films import Films, corpus
from cxrl.evaluation.judges import load_judges
from cxrl.models.pipeline import save_pipeline
from cxrl.pretraining import autoencoder, base, quality, scorers, text_encoder
from cxrl.pretraining.fit import FitOptions
from cxrl.scorers.phantom_network import load_scorer, save_scorer
from cxrl.storage.writing import write_tensors, write_text

TASKS = ("diagnosis", "posture", "consistency")
SCORER_POSE_SCALE = 2.0


@dataclass(frozen=True)
class PhantomPlan:
    """Sizes of the stages; the defaults made what ships.

    Attributes:
        seed: Of weights and batches; the corpora have their own.
        num_base_films, num_scorer_films, num_reference_films: Films rendered.
        autoencoder_steps, decoder_steps, text_encoder_steps, base_steps, scorer_steps: Optimizer
            steps.
        num_reports: Training reports of the text encoder.
        base_batch_size, base_learning_rate: Of the UNet and text encoder.
        num_quality_images: Images generated for the quality table.
    """

    seed: int = 0
    num_base_films: int = 12000
    num_scorer_films: int = 10000
    num_reference_films: int = 2000
    autoencoder_steps: int = 1600
    decoder_steps: int = 1500
    num_reports: int = 4000
    text_encoder_steps: int = 500
    base_steps: int = 4500
    base_batch_size: int = 32
    base_learning_rate: float = 1e-3
    scorer_steps: int = 2200
    num_quality_images: int = 512


SMOKE = PhantomPlan(
    num_base_films=96,
    num_scorer_films=192,
    num_reference_films=160,
    autoencoder_steps=3,
    decoder_steps=3,
    num_reports=64,
    text_encoder_steps=3,
    base_steps=3,
    base_batch_size=8,
    scorer_steps=3,
    num_quality_images=16,
)
"""Every stage once, for tests: proves that the parts fit, nothing about quality."""

FLAWED_SEED, REFERENCE_SEED = 100, 400
SCORER_SEEDS = {"judges": 300, "rewards": 200}


def pretrain_phantom(
    plan: PhantomPlan, out: Path, work_dir: Path, *, tell: Callable[[str], None] = print
) -> dict[str, Any]:
    """Trains, saves to ``out`` and returns the quality table (also in ``out/MODEL_CARD.md`` and
    ``out/quality.json``).
    """
    start = time.monotonic()
    work_dir.mkdir(parents=True, exist_ok=True)
    tell(f"rendering {plan.num_base_films} films with wide poses and noisy reports")
    flawed = corpus(plan.num_base_films, seed=FLAWED_SEED, flawed=True)
    vae = make_autoencoder(plan, flawed, work_dir, tell)
    make_base(plan, flawed, vae, out / "pipeline", work_dir, tell)
    del flawed
    for role in SCORER_SEEDS:
        make_scorers(plan, role, out / role, work_dir, tell)
    tell("features of the clean reference films")
    save_reference(plan, out / "judges")
    tell(f"quality: {plan.num_quality_images} generated images")
    table = quality.measure(out, num_images=plan.num_quality_images, seed=plan.seed)
    write_text(out / "quality.json", json.dumps(table, indent=1) + "\n")
    minutes = (time.monotonic() - start) / 60.0
    write_text(out / "MODEL_CARD.md", quality.model_card(asdict(plan), table))
    tell(f"{out}: done in {minutes:.0f} minutes")
    return table


def make_autoencoder(plan: PhantomPlan, films: Films, work_dir: Path, tell: Callable[[str], None]) -> Any:
    """The trained autoencoder, with its scaling factor: both halves together, then the decoder alone."""
    options: dict[str, Any] = {"seed": plan.seed, "work_dir": work_dir, "tell": tell}
    vae = autoencoder.fit_autoencoder(films, num_steps=plan.autoencoder_steps, **options)
    autoencoder.fit_decoder(vae, films, num_steps=plan.decoder_steps, **options)
    return vae


def make_base(
    plan: PhantomPlan,
    films: Films,
    vae: Any,
    folder: Path,
    work_dir: Path,
    tell: Callable[[str], None],
) -> None:
    """Text encoder and UNet on the films' latents; writes the pipeline folder in half precision."""
    latents = autoencoder.encode(vae, films.images) * vae.config.scaling_factor
    tokenizer = text_encoder.build_tokenizer(films.texts, work_dir / "tokenizer")
    torch.manual_seed(plan.seed)
    encoder = text_encoder.build_text_encoder(tokenizer)
    text_encoder.fit_text_encoder(
        encoder,
        tokenizer,
        num_reports=plan.num_reports,
        num_steps=plan.text_encoder_steps,
        seed=plan.seed,
        work_dir=work_dir,
        tell=tell,
    )
    unet = base.build_unet(latents.shape[1], latents.shape[-1])
    scheduler = base.build_scheduler()
    base.fit_base(
        latents,
        films.texts,
        tokenizer=tokenizer,
        text_encoder=encoder,
        unet=unet,
        scheduler=scheduler,
        options=FitOptions(plan.base_steps, learning_rate=plan.base_learning_rate, ema_decay=0.998),
        batch_size=plan.base_batch_size,
        seed=plan.seed,
        work_dir=work_dir,
        tell=tell,
    )
    save_pipeline(
        folder,
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        dtype=torch.float16,
    )


def make_scorers(
    plan: PhantomPlan, role: str, folder: Path, work_dir: Path, tell: Callable[[str], None]
) -> None:
    """The three scorers of a role, on clean films that the other role never sees."""
    seed = SCORER_SEEDS[role]
    split = "all" if role == "judges" else "train"
    tell(f"rendering {plan.num_scorer_films} clean films for the {role}")
    films = corpus(plan.num_scorer_films, seed=seed, pose_scale=SCORER_POSE_SCALE, split=split)
    for k, task in enumerate(TASKS):
        scorer = scorers.fit_scorer(
            task,
            role,
            films,
            num_steps=plan.scorer_steps,
            seed=seed + k + plan.seed,
            work_dir=work_dir,
            tell=tell,
        )
        save_scorer(scorer, folder / f"{task}.safetensors")


def save_reference(plan: PhantomPlan, folder: Path) -> None:
    """Judge features of clean films with natural pose, for the Fréchet distance."""
    films = corpus(plan.num_reference_films, seed=REFERENCE_SEED, split="all")
    parts = [load_scorer(folder / f"{task}.safetensors") for task in ("diagnosis", "posture")]
    with torch.no_grad():
        rows = [
            torch.cat([part.features(chunk.float() / 255.0) for part in parts], dim=1)
            for chunk in films.images.split(256)
        ]
    features = torch.cat(rows)
    halves = features.unflatten(1, (2, -1))
    scale = halves.var(0).mean(1).sqrt().repeat_interleave(halves.shape[2])
    reference = {"features": (features / scale).half(), "scale": scale}
    write_tensors(folder / "reference.safetensors", reference)
    load_judges(str(folder))
