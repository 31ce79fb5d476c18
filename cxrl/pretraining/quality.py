"""How good the embedded default is: measured on fresh phantoms and on freshly generated images, and
written down.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cxrl.data.phantom.films import POSE_SD, Films, corpus, distinct_reports, films_for
from cxrl.data.prompts import PromptBatch
from cxrl.evaluation.judges import Judges, load_judges
from cxrl.findings import PHANTOM_FINDINGS
from cxrl.metrics.alignment import retrieval_top1
from cxrl.metrics.classification import macro_auroc
from cxrl.metrics.distribution import frechet_distance
from cxrl.metrics.diversity import within_prompt
from cxrl.models.base import BaseModel, load_base
from cxrl.models.policy import Policy
from cxrl.presets import load_preset
from cxrl.pretraining.scorers import non_films
from cxrl.rl.rollout import sample_images
from cxrl.scorers.phantom_network import Scorer, load_scorer

FRESH_SEED = 7000
SAMPLES_PER_PROMPT = 4
POSE_NAMES = ("log s_x", "log s_y", "t_x", "t_y", "theta")


def measure(assets: Path, *, num_images: int, seed: int) -> dict[str, Any]:
    """The quality table of an assets folder: autoencoder, reward models and judges on fresh phantoms,
    base by judges.
    """
    wide = corpus(1024, seed=FRESH_SEED, pose_scale=2.0, split="train")
    natural = corpus(1024, seed=FRESH_SEED + 5, split="eval")
    return {
        "rewards": _scorers(assets / "rewards", wide),
        "rewards, natural pose, held-out phrasings": _scorers(assets / "rewards", natural),
        "judges": _scorers(assets / "judges", wide),
        "judges, natural pose, held-out phrasings": _scorers(assets / "judges", natural),
        "base": _base(assets, num_images, seed),
    }


@torch.no_grad()
def _scorers(folder: Path, fresh: Films) -> dict[str, Any]:
    images, generator = fresh.pixels(), torch.Generator().manual_seed(FRESH_SEED)
    bad = non_films(images, generator)
    posture, diagnosis, pair = (
        load_scorer(folder / f"{task}.safetensors") for task in ("posture", "diagnosis", "consistency")
    )
    psi, logits = _batched(posture, images), _batched(diagnosis, images)
    macro, each = macro_auroc(logits, fresh.labels)
    r2 = 1.0 - (psi - fresh.psi).square().mean(0) / fresh.psi.var(0)
    first: dict[str, int] = {}
    for i, content in enumerate(fresh.contents):
        first.setdefault(content, i)
    rows = list(first.values())
    image_embeds = torch.cat([pair.image_embeds(part) for part in images[rows].split(256)])
    text_embeds = pair.text_embeds([fresh.texts[i] for i in rows])
    top1 = [
        retrieval_top1(image_embeds[i : i + 32], text_embeds[i : i + 32])
        for i in range(0, len(rows) - 31, 32)
    ]
    return {
        "auroc": round(macro, 4),
        "auroc_per_finding": {f: round(float(a), 4) for f, a in zip(PHANTOM_FINDINGS, each, strict=True)},
        "posture_r2": {n: round(float(v), 4) for n, v in zip(POSE_NAMES, r2, strict=True)},
        "retrieval_top1_of_32": round(sum(top1) / len(top1), 4),
        "validity_on_films": round(float(posture(images[:256])[1].sigmoid().mean()), 4),
        "validity_on_non_films": round(float(posture(bad[:256])[1].sigmoid().mean()), 4),
    }


def _batched(scorer: Scorer, images: Tensor) -> Tensor:
    return torch.cat([scorer(part)[0] for part in images.split(256)])


def _base(assets: Path, num_images: int, seed: int) -> dict[str, Any]:
    judges = load_judges(str(assets / "judges"))
    base = load_base(assets / "pipeline")
    config = load_preset("phantom")
    reports = list(distinct_reports(num_images // SAMPLES_PER_PROMPT, FRESH_SEED + 1, "train"))
    prompts = [prompt for prompt, _ in reports]
    batch = PromptBatch.repeat(prompts, SAMPLES_PER_PROMPT)
    images = sample_images(Policy(base, config.policy), config.sampler, batch, seed=seed, anchor=True)
    films = films_for([reports[i][1] for i in batch.prompt_of.tolist()], seed=FRESH_SEED + 2)
    shown = films.pixels()
    macro, each = macro_auroc(judges.classify(images), batch.labels)
    spread = judges.posture(images).std(0) / torch.from_numpy(POSE_SD)
    diversity = [float(within_prompt(x, batch.prompt_of, len(prompts))[0].mean()) for x in (images, shown)]
    clean = corpus(num_images, seed=FRESH_SEED + 3, split="all").pixels()
    assert judges.reference is not None  # the phantom's judges bring it
    return {
        "num_images": len(batch),
        "num_steps": config.sampler.num_steps,
        "guidance_scale": config.sampler.guidance_scale,
        "autoencoder_psnr_db": round(_psnr(base, shown), 2),
        "auroc_against_prompt": round(macro, 4),
        "auroc_per_finding": {f: round(float(a), 4) for f, a in zip(PHANTOM_FINDINGS, each, strict=True)},
        "posture_spread_of_natural": {n: round(float(v), 3) for n, v in zip(POSE_NAMES, spread, strict=True)},
        "posture_spread_mean": round(float(spread.mean()), 3),
        "within_prompt_diversity_of_corpus": round(diversity[0] / diversity[1], 3),
        "sharpness_of_corpus": round(_edge_energy(images) / _edge_energy(shown), 3),
        "fid": round(frechet_distance(judges.features(images), judges.reference), 3),
        "fid_of_flawed_corpus": round(frechet_distance(judges.features(shown), judges.reference), 3),
        "fid_of_clean_films": round(frechet_distance(judges.features(clean), judges.reference), 3),
        "consistency": round(_consistency(judges, images, batch), 4),
        "consistency_of_clean_films": round(_consistency_of_films(judges), 4),
    }


def _edge_energy(images: Tensor) -> float:
    """Mean absolute second difference: drops with blur, rises with blocks and noise."""
    second = images.diff(n=2, dim=-1).abs().mean() + images.diff(n=2, dim=-2).abs().mean()
    return float(second)


def _psnr(base: BaseModel, images: Tensor) -> float:
    with torch.no_grad():
        latents = torch.cat(
            [base.vae.encode(part * 2.0 - 1.0).latent_dist.mean for part in images.split(128)]
        )
    output = base.decode(latents * base.vae.config.scaling_factor)
    return float(-10.0 * torch.log10((output - images).square().mean()))


def _consistency(judges: Judges, images: Tensor, batch: PromptBatch) -> float:
    return float((judges.image_embeds(images) * judges.text_embeds(batch.texts)).sum(1).mean())


def _consistency_of_films(judges: Judges) -> float:
    films = corpus(256, seed=FRESH_SEED + 4, split="all")
    return float((judges.image_embeds(films.pixels()) * judges.text_embeds(list(films.texts))).sum(1).mean())


def model_card(plan: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    """MODEL_CARD.md of the assets folder."""
    rows = []
    for part in sorted(table):
        for key, value in table[part].items():
            shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
            rows.append(f"| {part} | {key} | {shown} |")
    settings = ", ".join(f"{k} {v}" for k, v in plan.items())
    return _CARD.format(settings=settings, rows="\n".join(rows))


_CARD = """# The embedded phantom models

Synthetic through and through: trained on a procedural phantom (`cxrl/data/phantom`), never on a patient's
image. **Not for diagnosis.**

- `pipeline/`: a `StableDiffusionPipeline` (AutoencoderKL with one grey channel, CLIPTextModel,
  UNet2DConditionModel, v-prediction, zero terminal SNR), 64 x 64 pixels, stored in float16. Trained on
  purpose on a *flawed* corpus: twice the natural pose spread, 16 % of the reports describe another film,
  8 % miss a finding.
- `rewards/`: posture regressor, classifier and image-text pair that give the reward (residual trunk,
  recurrent reader).
- `judges/`: the same tasks for evaluation only (ConvNeXt trunk, convolutional reader, other seed, other
  films), and the features of clean films with natural pose for the Frechet distance.

Made by `cxrl pretrain --preset phantom --out DIR` with: {settings}.
Where what ships differs from one run of that command, `PROVENANCE.md` says how.

Rewards and judges learned from correct reports, at twice the natural pose spread, so that they stay valid on
the base's images; they are measured there and, apart, at the natural spread.

Quality, on phantoms rendered for the purpose and on generated images at the default sampler:

| part | measure | value |
|---|---|---|
{rows}

Limits: a phantom has no pathology but its labels; numbers here say nothing about real radiographs.
"""
