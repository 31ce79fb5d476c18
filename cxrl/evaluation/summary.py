"""The numbers of ``summary.json``: anchor, policy and real films by judges that gave no reward, with 95 %
intervals.

Intervals are percentiles of a bootstrap over *prompts* (images of one prompt are not independent). Anchor,
policy and, where they are of the same prompts, real films use the same resamples, so ``change`` and ``gap``
are paired comparisons. A resample repeats images, which pushes the Fréchet distance up by more than its own
bias; its replicates are therefore shifted to have the estimate as their mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from cxrl.config import Config
from cxrl.data.prompts import PromptBatch, ReportPrompt
from cxrl.errors import CxrlError, named
from cxrl.metrics.alignment import alignment
from cxrl.metrics.classification import weighted_auroc
from cxrl.metrics.distribution import weighted_frechet
from cxrl.metrics.diversity import within_prompt
from cxrl.metrics.names import KEYS
from cxrl.metrics.posture import pose_sd, posture_score

JUDGE_BATCH = 64
NUM_JUDGEMENTS = 4
"""Passes of judges over the images: alignment, pose, findings, features."""


class JudgeModels(Protocol):
    """What the summary asks of the judges; images are float32 [N, 1, H, W] in [0, 1]."""

    @property
    def findings(self) -> tuple[str, ...]:
        """Names of the F findings that are judged; labels are looked up by them."""

    @property
    def reference(self) -> Tensor | None:
        """[R, D] features of real images; without them there is no Fréchet distance."""

    def posture(self, images: Tensor) -> Tensor:
        """[N, 5] pose psi."""

    def classify(self, images: Tensor) -> Tensor:
        """[N, F] probabilities."""

    def image_embeds(self, images: Tensor) -> Tensor:
        """[N, E]."""

    def text_embeds(self, texts: list[str]) -> Tensor:
        """[N, E]."""

    def features(self, images: Tensor) -> Tensor:
        """[N, D] for the Fréchet distance."""


@dataclass(frozen=True)
class ImageScores:
    """What the judges say of each of N images, on the CPU.

    Attributes:
        posture: float32 [N], minus the distance of the pose from the canonical one.
        diagnosis: float32 [N], mean over the known labels of the probability given to the truth; nan without.
        consistency: float32 [N], cosine of image and report.
        psi: float32 [N, 5] pose.
        probability: float32 [N, F] of the findings.
    """

    posture: Tensor
    diagnosis: Tensor
    consistency: Tensor
    psi: Tensor
    probability: Tensor


@dataclass(frozen=True)
class Evaluation:
    """The scores of one set of images.

    Attributes:
        values: Those of ``KEYS``; nan where undefined, as diversity with one image per prompt.
        replicates: Of every key, float64 [B] bootstrap values; B = 0 without intervals.
        auroc_per_finding: nan where a class is missing.
        num_images: N.
        auroc_replicates: Finding → float64 [B].
        images: Of every image.
    """

    values: dict[str, float]
    replicates: dict[str, Tensor] = field(repr=False)
    auroc_per_finding: dict[str, float]
    num_images: int
    auroc_replicates: dict[str, Tensor] = field(default_factory=dict, repr=False)
    images: ImageScores | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the values, ``ci``, ``auroc_per_finding`` and ``ci_per_finding``; None where
        undefined.
        """
        return {
            **{key: _json(self.values[key]) for key in KEYS},
            "ci": self.intervals(),
            "auroc_per_finding": {name: _json(value) for name, value in self.auroc_per_finding.items()},
            "ci_per_finding": {name: interval(r) for name, r in self.auroc_replicates.items()},
        }

    def intervals(self) -> dict[str, list[float | None]]:
        """Key → [low, high], 95 %; None without."""
        return {key: interval(self.replicates[key]) for key in KEYS}


@dataclass(frozen=True)
class Summary:
    """Anchor and policy on the same prompts, and real films of these where there are any."""

    anchor: Evaluation
    policy: Evaluation
    batch: PromptBatch
    images: Tensor = field(repr=False)
    seed: int
    judges: dict[str, Any]
    real: Evaluation | None = None

    def change(self) -> dict[str, Any]:
        """Policy minus anchor for every key, with the interval of the paired difference under ``ci``."""
        values = {key: self.policy.values[key] - self.anchor.values[key] for key in KEYS}
        paired = {key: self.policy.replicates[key] - self.anchor.replicates[key] for key in KEYS}
        return {
            **{key: _json(value) for key, value in values.items()},
            "ci": {key: interval(paired[key]) for key in KEYS},
        }

    def gap(self) -> dict[str, Any] | None:
        """Share of the way from the anchor to real films that the policy went, for every key: 1 is all of it,
        below 0 the wrong way. None without real films. The interval is wide, or undefined, where the way is
        short.
        """
        if self.real is None:
            return None
        values, ci = {}, {}
        for key in KEYS:
            sides = [(e.values[key], e.replicates[key]) for e in (self.anchor, self.policy, self.real)]
            (floor, low), (reached, mid), (ceiling, high) = sides
            values[key] = _json((reached - floor) / (ceiling - floor)) if ceiling != floor else None
            paired = len(low) == len(mid) == len(high)
            ci[key] = interval((mid - low) / (high - low) if paired else torch.empty(0))
        return {**values, "ci": ci}

    def to_dict(self, *, wall_seconds: float) -> dict[str, Any]:
        """The content of ``summary.json``."""
        return {
            "anchor": self.anchor.to_dict(),
            "policy": self.policy.to_dict(),
            "real": None if self.real is None else self.real.to_dict(),
            "change": self.change(),
            "gap": self.gap(),
            "seed": self.seed,
            "wall_seconds": wall_seconds,
            "num_images": self.policy.num_images,
            "num_reports": len(self.batch.prompts),
            "judges": self.judges,
        }


def num_judged(config: Config, split: str) -> int:
    """Images of a side: ``eval.num_images`` of the result's reports, ``eval.samples_per_prompt`` of each of
    the reports that choose, but no more than of the result's.
    """
    if split != "selection":
        return config.eval.num_images
    return min(config.eval.num_images, config.eval.samples_per_prompt * config.data.selection_num_prompts)


def evaluation_batch(
    prompts: Sequence[ReportPrompt], num_images: int, samples_per_prompt: int
) -> PromptBatch:
    """``num_images`` samples, about ``samples_per_prompt`` of each of the first prompts, side by side.

    Raises:
        CxrlError: There are no prompts.
    """
    if not prompts:
        raise CxrlError("no prompts to evaluate on; expected at least one report (see data.eval_num_prompts)")
    count = min(len(prompts), max(1, num_images // samples_per_prompt))
    return PromptBatch(tuple(prompts[:count]), torch.arange(num_images) * count // num_images)


def evaluate_images(
    images: Tensor,
    batch: PromptBatch,
    judges: JudgeModels,
    *,
    seed: int,
    bootstrap: int,
    judged: Callable[[int], None] = lambda count: None,
    comparable: bool = True,
    instead: Tensor | None = None,
) -> Evaluation:
    """Scores of images against their prompts.

    Args:
        images: float32 [N, 1, H, W] in [0, 1].
        batch: The prompt of every image.
        judges: Models that gave no reward.
        seed: Of the bootstrap; the same seed and prompts give the same resamples.
        bootstrap: Resamples, 0 for no intervals.
        judged: Is told how many more images one of the ``NUM_JUDGEMENTS`` has seen.
        comparable: Whether they are as many as the other sides'; without that there is no Fréchet distance,
            whose bias is in their number.
        instead: [M, D] features, as many as the other sides have images: the Fréchet distance is theirs, and
            its resamples draw from them one by one. For real films, of which a report has one.

    Raises:
        ValueError: Images of a wrong shape or range.
        CxrlError: A judge's output is not finite; the judge is named.
    """
    if images.ndim != 4 or images.shape[0] != len(batch):
        raise ValueError(f"expected {len(batch)} images [N, 1, H, W], got shape {tuple(images.shape)}")
    if not bool(((images >= 0) & (images <= 1)).flatten(1).all(1).all()):
        bad = int((~((images >= 0) & (images <= 1)).flatten(1).all(1)).nonzero()[0])
        raise ValueError(f"image {bad} has values outside [0, 1] or nan")
    num_prompts = len(batch.prompts)
    with named("the judge of consistency", judges):
        texts = judges.text_embeds([p.text for p in batch.prompts]).clone()
    texts = _finite(judges, "consistency", "report", texts)
    embeds = _judged(judges, "consistency", judges.image_embeds, images, judged)
    psi = _judged(judges, "posture", judges.posture, images, judged)
    posture = posture_score(psi)
    probability = _judged(judges, "diagnosis", judges.classify, images, judged)
    labels = batch.labels_of(judges.findings)
    features, reference = _judged(judges, "diagnosis", judges.features, images, judged), judges.reference
    reference = reference if comparable and instead is None else None
    aligned = alignment(embeds, texts[batch.prompt_of].cpu()).double()
    each_image = ImageScores(
        posture.float(), truth_probability(probability, labels), aligned.float(), psi, probability
    )
    distance, similar = within_prompt(images, batch.prompt_of, num_prompts)

    def scores(counts: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        weights = counts[:, batch.prompt_of]
        each = weighted_auroc(probability, labels, weights)
        total = weights.sum(1)
        values = {
            "posture": weights @ posture / total,
            "auroc": each.nanmean(1),
            "consistency": weights @ aligned / total,
            "fid": _frechet(features, reference, weights),
            "ms_ssim": _mean_of_known(counts, similar),
            "diversity": _mean_of_known(counts, distance),
            "pose_sd": pose_sd(psi, weights),
        }
        return values, each

    values, each = scores(torch.ones(1, num_prompts, dtype=torch.float64))
    replicates = {key: torch.empty(0, dtype=torch.float64) for key in KEYS}
    of_findings = torch.empty(0, len(judges.findings), dtype=torch.float64)
    if instead is not None and judges.reference is not None:
        values["fid"] = _frechet(instead, judges.reference, torch.ones(1, len(instead)))
    if bootstrap and num_prompts > 1:
        replicates, of_findings = scores(resamples(num_prompts, bootstrap, seed))
        if instead is not None and judges.reference is not None:
            counts = resamples(len(instead), bootstrap, seed)
            replicates["fid"] = _frechet(instead, judges.reference, counts)
        replicates["fid"] = (replicates["fid"] - replicates["fid"].mean() + values["fid"]).clamp_min(0.0)
    return Evaluation(
        values={key: float(value) for key, value in values.items()},
        replicates=replicates,
        auroc_per_finding=dict(zip(judges.findings, each[0].tolist(), strict=True)),
        num_images=len(batch),
        auroc_replicates=dict(zip(judges.findings, of_findings.unbind(1), strict=True)),
        images=each_image,
    )


def truth_probability(probability: Tensor, labels: Tensor) -> Tensor:
    """float32 [N]: mean over the known labels [N, F] of the probability [N, F] given to what is true; nan
    where no label is known.
    """
    known = ~labels.isnan()
    right = torch.where(labels == 1, probability, 1 - probability)
    return torch.where(known, right, torch.zeros_like(right)).sum(1) / known.sum(1)


def summarise(
    images: Tensor, batch: PromptBatch, judges: JudgeModels, *, seed: int, bootstrap: int
) -> dict[str, Any]:
    """:func:`evaluate_images` as plain values for JSON."""
    return evaluate_images(images, batch, judges, seed=seed, bootstrap=bootstrap).to_dict()


def describe_judges(judges: JudgeModels, name: str) -> dict[str, Any]:
    """What ``summary.json`` says of the judges."""
    return {
        "name": name,
        "feature_dim": None if judges.reference is None else judges.reference.shape[1],
        "findings": list(judges.findings),
        **getattr(judges, "description", {}),
    }


def _judged(
    judges: JudgeModels,
    task: str,
    score: Callable[[Tensor], Tensor],
    images: Tensor,
    judged: Callable[[int], None],
) -> Tensor:
    """What the judge of a task says of images, in batches, on the CPU. It gets copies that it may change."""
    parts = []
    with torch.no_grad():
        for part in images.split(JUDGE_BATCH):
            with named(f"the judge of {task}", judges):
                parts.append(score(part.clone()).to("cpu", copy=True))
            judged(len(part))
    return _finite(judges, task, "image", torch.cat(parts))


def _finite(judges: JudgeModels, task: str, of: str, scores: Tensor) -> Tensor:
    bad = (~scores.isfinite()).flatten(1).any(1).nonzero().flatten()
    if len(bad):
        name = getattr(judges, "description", {}).get(task)
        raise CxrlError(
            f"eval.{task}: the judge{f' {name}' if name else ''} gives values that are not finite for "
            f"{len(bad)} of {len(scores)} {of}s, first for {of} {int(bad[0])}; judge with another model, or "
            "with eval.dtype float32"
        )
    return scores


def _frechet(features: Tensor, reference: Tensor | None, weights: Tensor) -> Tensor:
    """float64 [B]; nan without a reference."""
    if reference is None:
        return torch.full((weights.shape[0],), torch.nan, dtype=torch.float64)
    return weighted_frechet(features, reference, weights)


def resamples(num_prompts: int, bootstrap: int, seed: int) -> Tensor:
    """float64 [B, P]: how often each prompt is drawn in each of B resamples of P prompts with replacement."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(num_prompts, (bootstrap, num_prompts), generator=generator)
    counts = torch.zeros(bootstrap, num_prompts, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))


def _mean_of_known(counts: Tensor, values: Tensor) -> Tensor:
    """[B] weighted means over the prompts whose value is not nan; nan when there is none."""
    known = ~values.isnan()
    return counts[:, known] @ values[known] / counts[:, known].sum(1)


def interval(replicates: Tensor) -> list[float | None]:
    """[low, high] of 95 % of bootstrap values; None twice where there are none."""
    if replicates.numel() == 0 or bool(replicates.isnan().all()):
        return [None, None]
    bounds = torch.nanquantile(replicates, torch.tensor([0.025, 0.975], dtype=torch.float64))
    return [_json(float(bound)) for bound in bounds]


def _json(value: float) -> float | None:
    return value if math.isfinite(value) else None
