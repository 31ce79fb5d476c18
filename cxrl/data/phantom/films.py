"""The procedural chest phantom: films with known pose, findings and report.

Two corpora come from it (``corpus``). The *clean* one has the pose spread of real films and correct
reports: the reference of the Fréchet distance. The *flawed* one, from which the base model learns, has twice
that spread, and a share of its reports misses a finding or describes another film, as reports mined from
hospitals do. Models that score learn from correct reports at the wide spread (``pose_scale``).

A film is fixed by ``(seed, index)`` alone: neither batch size nor the number of films changes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cxrl.data.phantom.reports import Finding, labels_of, sample_findings, write_report
from cxrl.data.phantom.thorax import NUM_VESSELS, Array, Params, attenuation, canonical_grid, film
from cxrl.data.prompts import ReportPrompt
from cxrl.findings import PHANTOM_FINDINGS

IMAGE_SIZE = 64
POSE_SD = np.array([0.09, 0.09, 0.07, 0.12, np.deg2rad(4.5)], dtype=np.float32)
"""Natural spread of psi = (log s_x, log s_y, t_x, t_y, theta): rotation 4.5 degrees, as measured on real
films.
"""
FLAWED_POSE_SCALE = 2.0
OTHER_FILM_SHARE = 0.16
MISSED_FINDING_SHARE = 0.08
_HELD_OUT = {"selection": 0x5E1EC7, "eval": 0xE7A1}
"""Split → what is added to the seed: its reports name other findings than the training reports."""
_CHUNK = 16


@dataclass(frozen=True)
class Films:
    """Rendered films and their ground truth.

    Attributes:
        images: uint8 [N, 1, H, W].
        psi: float32 [N, 5], columns (log s_x, log s_y, t_x, t_y, theta in rad); zero is the canonical pose.
        labels: float32 [N, F] 0/1 in the order of ``PHANTOM_FINDINGS``: what the film shows.
        texts: N reports.
        report_labels: float32 [N, F]: what the report says; differs from ``labels`` where the report is
            wrong.
        contents: N strings, equal exactly where two films show the same findings, sides, sizes and zones.
    """

    images: Tensor
    psi: Tensor
    labels: Tensor
    texts: tuple[str, ...]
    report_labels: Tensor
    contents: tuple[str, ...]

    def __len__(self) -> int:
        return self.images.shape[0]

    def pixels(self, index: Tensor | slice = slice(None)) -> Tensor:
        """float32 [n, 1, H, W] in [0, 1]."""
        return self.images[index].float().div_(255.0)


def _anatomy(rng: np.random.Generator, findings: Sequence[Finding]) -> dict[str, float | np.ndarray]:
    """Body habitus, exposure and the geometry of the findings of one film."""

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    p: dict[str, float | np.ndarray] = {
        "lung_mid": between(0.22, 0.30),
        "apex": between(-0.76, -0.70),
        "lung_width": between(0.66, 0.72),
        "dome_r": between(0.38, 0.45),
        "dome_l": between(0.44, 0.51),
        "heart": between(0.90, 1.05),
        "heart_y": between(0.20, 0.26),
        "rib_gap": between(0.165, 0.185),
        "rib_phase": between(0.0, 1.0),
        "clavicle": between(-1.0, 1.0),
        "bubble": between(0.0, 1.0),
        "bubble_x": between(0.25, 0.45),
        "texture": between(0.0, 6.0),
        "edema": 0.0,
        "lesion_radius": between(0.125, 0.155),
        "exposure": between(0.95, 1.03),
        "contrast": between(1.45, 1.70),
        "vessel_angle": np.linspace(-1.9, 1.9, NUM_VESSELS) + rng.uniform(-0.16, 0.16, (2, NUM_VESSELS)),
        "vessel_bend": rng.uniform(-0.5, 0.5, (2, NUM_VESSELS)),
        "vessel_gain": rng.uniform(0.7, 1.2, (2, NUM_VESSELS)),
    }
    for tag in "rl":
        p |= {
            f"pneumothorax_{tag}": 0.0,
            f"consolidation_{tag}": 0.0,
            f"lesion_{tag}": 0.0,
            f"effusion_{tag}": 2.0,
        }
        p |= {f"consolidation_x_{tag}": 0.4, f"consolidation_y_{tag}": 0.0}
        p |= {f"lesion_x_{tag}": 0.4, f"lesion_y_{tag}": 0.0}
    for f in findings:
        large = f.size in ("large", "severe")
        tags = {"right": "r", "left": "l", "bilateral": "rl", "": ""}[f.side]
        upper = f.zone == "upper"
        if f.name == "Cardiomegaly":
            p["heart"] = between(1.52, 1.66) if large else between(1.27, 1.38)
        elif f.name == "Edema":
            p["edema"] = between(1.0, 1.25) if large else between(0.45, 0.6)
        for tag in tags:
            if f.name == "Pleural Effusion":
                p[f"effusion_{tag}"] = between(-0.12, 0.0) if large else between(0.22, 0.30)
            elif f.name == "Pneumothorax":
                p[f"pneumothorax_{tag}"] = between(0.28, 0.34) if large else between(0.17, 0.20)
            elif f.name == "Consolidation":
                p[f"consolidation_{tag}"] = between(0.85, 1.1)
                p[f"consolidation_x_{tag}"] = between(0.34, 0.42)
                p[f"consolidation_y_{tag}"] = between(-0.38, -0.30) if upper else between(0.10, 0.18)
            elif f.name == "Lung Lesion":
                p[f"lesion_{tag}"] = between(0.85, 1.1)
                p[f"lesion_x_{tag}"] = between(0.32, 0.48)
                p[f"lesion_y_{tag}"] = between(-0.42, -0.28) if upper else between(0.05, 0.20)
    return p


def _stack(drawn: Sequence[dict[str, float | np.ndarray]]) -> Params:
    stacked = {k: np.asarray([d[k] for d in drawn], dtype=np.float32) for k in drawn[0]}
    return {k: v[:, None, None] if v.ndim == 1 else v for k, v in stacked.items()}


def draw(params: Params, psi: Array, noise: Array) -> Array:
    """float32 [B, H, W] in [0, 1] from stacked anatomy, pose [B, 5] and unit noise [B, H, W]."""
    u, v = canonical_grid(psi, noise.shape[-1])
    return film(attenuation(u, v, params), params["exposure"], params["contrast"], noise)


def _film_rng(seed: int, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, index])


def corpus(
    num: int,
    *,
    seed: int,
    size: int = IMAGE_SIZE,
    flawed: bool = False,
    pose_scale: float | None = None,
    split: str = "train",
    findings: Sequence[tuple[Finding, ...]] | None = None,
    start: int = 0,
) -> Films:
    """Films ``start : start + num`` of the corpus ``seed``.

    Args:
        num: How many films.
        size: Pixels a side.
        flawed: Twice the natural pose spread, and noisy reports (module docstring).
        pose_scale: Pose spread in units of the natural one; by default 1, and ``FLAWED_POSE_SCALE`` when
            flawed. Models that score learn from correct reports at the wide spread, so that they stay valid
            on the anchor's images.
        split: Phrasings of the reports, "train", "eval" or "all".
        findings: What to draw, one tuple a film; drawn at random when absent.
    """
    if pose_scale is None:
        pose_scale = FLAWED_POSE_SCALE if flawed else 1.0
    images = np.empty((num, 1, size, size), dtype=np.uint8)
    psi = np.empty((num, 5), dtype=np.float32)
    texts: list[str] = []
    labels, report_labels, contents = [], [], []
    for begin in range(0, num, _CHUNK):
        end = min(begin + _CHUNK, num)
        drawn, noise = [], []
        for i in range(begin, end):
            rng = _film_rng(seed, start + i)
            shown = findings[i] if findings is not None else sample_findings(rng)
            told = _noisy(rng, shown) if flawed else shown
            psi[i] = rng.standard_normal(5) * POSE_SD * pose_scale
            drawn.append(_anatomy(rng, shown))
            texts.append(write_report(told, rng, split))
            labels.append(labels_of(shown))
            report_labels.append(labels_of(told))
            contents.append("; ".join(f"{f.name} {f.side} {f.size} {f.zone}" for f in shown))
            noise.append(rng.standard_normal((size, size), dtype=np.float32))
        image = draw(_stack(drawn), psi[begin:end], np.stack(noise))
        images[begin:end, 0] = np.round(image * 255.0)
    return Films(
        torch.from_numpy(images),
        torch.from_numpy(psi),
        torch.tensor(labels, dtype=torch.float32).reshape(num, len(PHANTOM_FINDINGS)),
        tuple(texts),
        torch.tensor(report_labels, dtype=torch.float32).reshape(num, len(PHANTOM_FINDINGS)),
        tuple(contents),
    )


def _noisy(rng: np.random.Generator, shown: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """The findings a careless report names: another film's, or one too few."""
    chance = rng.random()
    if chance < OTHER_FILM_SHARE:
        return sample_findings(rng)
    if chance < OTHER_FILM_SHARE + MISSED_FINDING_SHARE and shown:
        missed = int(rng.integers(len(shown)))
        return shown[:missed] + shown[missed + 1 :]
    return shown


def films_for(findings: Sequence[tuple[Finding, ...]], *, seed: int, size: int = IMAGE_SIZE) -> Films:
    """What the flawed corpus holds under reports that name these findings: a share of the films shows
    another case.
    """
    rng = np.random.default_rng(seed)
    shown = [sample_findings(rng) if rng.random() < OTHER_FILM_SHARE else f for f in findings]
    return corpus(len(shown), seed=seed, size=size, pose_scale=FLAWED_POSE_SCALE, findings=shown)


def phantom_prompts(num: int, *, seed: int, split: str = "train") -> list[ReportPrompt]:
    """``num`` prompts with distinct texts; deterministic by seed.

    Args:
        num: How many.
        seed: Of findings and words; every split has other findings.
        split: "train"; "selection" and "eval", in phrasings that neither generator nor rewards ever saw, and
            no text in both; "all" phrasings.
    """
    return [prompt for prompt, _ in distinct_reports(num, seed, split)]


def distinct_reports(num: int, seed: int, split: str) -> Iterator[tuple[ReportPrompt, tuple[Finding, ...]]]:
    """The prompts of :func:`phantom_prompts` with the findings that each names."""
    held_out = split in _HELD_OUT
    seen: set[str] = set()
    index = 0
    while len(seen) < num:
        rng = _film_rng(seed + _HELD_OUT.get(split, 0), index)
        index += 1
        if index > 100 * num + 1000:
            raise ValueError(f"only {len(seen)} distinct reports found for split {split!r}, {num} asked for")
        findings = sample_findings(rng)
        text = write_report(findings, rng, "eval" if held_out else split)
        if text in seen or (held_out and _side_of(text) != split):
            continue
        seen.add(text)
        yield ReportPrompt(len(seen) - 1, text, labels_of(findings)), findings


def _side_of(text: str) -> str:
    """Which of the held-out splits a text belongs to, whatever the seed: none is in both."""
    return "selection" if hashlib.blake2b(text.encode(), digest_size=1).digest()[0] % 3 == 0 else "eval"
