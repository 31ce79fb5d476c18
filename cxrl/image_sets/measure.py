"""The numbers of a set of films against a set of real ones, from what a scan has kept of both."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cxrl.evaluation.summary import interval, resamples
from cxrl.image_sets.scan import Scanned
from cxrl.metrics.classification import ranked_auroc
from cxrl.metrics.distribution import kernel_distance, moments, moments_distance, weighted_frechet
from cxrl.metrics.diversity import ms_ssim
from cxrl.metrics.posture import pose_sd, posture_score
from cxrl.metrics.prdc import NEAREST_K, prdc
from cxrl.metrics.rows import Rows, opened

DISTANCES = ("fid", "kid", "precision", "recall", "density", "coverage")
"""What is measured in the features of a model."""
KEYS = (
    *DISTANCES,
    "auroc",
    "consistency",
    "posture",
    "pose_sd",
    "ms_ssim",
    "diversity",
)
"""In the order of every table."""
MOST_PAIRS = 10
"""Of a prompt: with more images, the pairs are drawn, by the seed."""
MOST_NEIGHBOURS = 10_000
"""Images of a side for precision, recall, density, coverage, whose time is in the product of the sides'."""
MOST_RESAMPLED = 20_000
"""Images with which the Fréchet distance still has an interval."""
MOST_WIDE = 1024
"""Numbers of a feature, or images if these are fewer, likewise: a resample takes the eigenvalues of a matrix
with that side, which take seconds beyond.
"""
KID_SUBSET = 1000
_AT_ONCE = 2**23
"""Numbers of a [B, N] matrix of weights at once."""


def measure(
    films: Scanned,
    rows: np.ndarray,
    real: Scanned | None,
    real_rows: np.ndarray,
    *,
    seed: int,
    bootstrap: int,
) -> dict[str, Any]:
    """All numbers of some films of a set.

    Args:
        films: Whose numbers they are.
        rows: int64 [n], which of them.
        real: What they are compared with; None for no distances.
        real_rows: int64 [r], which of those.
        seed: Of resamples, subsets and pairs.
        bootstrap: Resamples of prompts; 0 for no intervals.

    Returns:
        ``num_images``, ``num_prompts``; ``values`` and ``ci``, by key; ``undefined``, key → why;
        ``auroc_per_finding``; ``kid_sd``, ``kid_subset`` and ``prdc_images`` with what they were computed.
        The distances are those of the first model of features; ``other_features`` is of the others, by name,
        each with the keys that distances have.
    """
    prompts, prompt_of = np.unique(films.prompt_of[rows], return_inverse=True)
    told = _Told()
    told.result |= {"num_images": len(rows), "num_prompts": len(prompts)}
    told.result |= {"auroc_per_finding": {}, "other_features": {}}
    counts = resamples(len(prompts), bootstrap, seed) if len(prompts) > 1 else torch.zeros(0, len(prompts))
    counts = torch.cat([torch.ones(1, len(prompts), dtype=torch.float64), counts.double()])
    of = torch.from_numpy(prompt_of)
    if len(rows) < 2:
        told.nothing(f"{len(rows)} of the films, at least two are needed")
        return told.result
    weights = _Weights(counts, of)
    psi = torch.from_numpy(films.psi[rows].copy())
    told.add("posture", weights.mean(posture_score(psi)))
    told.add("pose_sd", torch.cat([pose_sd(psi, w) for w in weights.pieces()]))
    _agreement(told, weights, films, rows)
    _diversity(told, counts, films, rows, prompt_of, seed)
    if real is None:
        return told.result
    if len(real_rows) < 2:
        for key in DISTANCES:
            told.undefined(key, f"{len(real_rows)} real films, at least two are needed")
        return told.result
    for name in films.features:
        x, y = Rows(films.features[name], rows), Rows(real.features[name], real_rows)
        is_first = name == next(iter(films.features))
        of_model = told if is_first else _Told()
        _distances(of_model, weights, x, y, seed)
        _neighbours(of_model, counts, of, x, y, seed)
        if not is_first:
            told.result["other_features"][name] = of_model.result
    return told.result


class _Told:
    """The numbers so far; the first of the B + 1 values of a key is the estimate, the others resamples."""

    def __init__(self) -> None:
        self.result: dict[str, Any] = {"values": {}, "ci": {}, "undefined": {}}

    def add(self, key: str, values: Tensor, *, centred: bool = False) -> None:
        """``centred``: the resamples' mean is shifted to the estimate."""
        value, replicates = float(values[0]), values[1:]
        if not math.isfinite(value):
            return self.undefined(key, "nothing to compute it from")
        if centred and len(replicates):
            replicates = (replicates - replicates.mean() + value).clamp_min(0.0)
        self.result["values"][key] = value
        self.result["ci"][key] = interval(replicates)
        return None

    def undefined(self, key: str, reason: str) -> None:
        self.result["values"][key], self.result["ci"][key] = None, [None, None]
        self.result["undefined"][key] = reason

    def nothing(self, reason: str) -> None:
        for key in KEYS:
            self.undefined(key, reason)


class _Weights:
    """Multiplicities of the images under resamples of their prompts, in pieces."""

    def __init__(self, counts: Tensor, prompt_of: Tensor) -> None:
        self._counts, self._of = counts, prompt_of

    def pieces(self) -> Iterator[Tensor]:
        """[b, N], made when they are asked for."""
        size = max(1, _AT_ONCE // len(self._of))
        return (part[:, self._of] for part in self._counts.split(size))

    def mean(self, values: Tensor) -> Tensor:
        """[B + 1] means over the values that are known."""
        known = ~values.isnan()
        v = values[known].double()
        return torch.cat([w[:, known] @ v / w[:, known].sum(1) for w in self.pieces()])


def _agreement(told: _Told, weights: _Weights, films: Scanned, rows: np.ndarray) -> None:
    consistency = torch.from_numpy(films.consistency[rows].copy())
    if bool(consistency.isnan().all()):
        told.undefined("consistency", "no film has a text")
    else:
        told.add("consistency", weights.mean(consistency))
    if not films.source.labels:
        told.undefined("auroc", "the set has no column of labels")
        return
    labels, probability = films.labels[rows], films.probability[rows]
    each = []
    for place, finding in enumerate(films.findings):
        values = ranked_auroc(
            torch.from_numpy(probability[:, place].copy()),
            torch.from_numpy(labels[:, place]),
            weights.pieces(),
        )
        each.append(values)
        value = float(values[0])
        told.result["auroc_per_finding"][finding] = {
            "value": value if math.isfinite(value) else None,
            "ci": interval(values[1:]),
            "positive": int((labels[:, place] == 1).sum()),
            "negative": int((labels[:, place] == 0).sum()),
        }
    stacked = torch.stack(each, 1)
    if bool(stacked[0].isnan().all()):
        told.undefined("auroc", "no finding has films with label 1 and with label 0")
    else:
        told.add("auroc", stacked.nanmean(1))


def _diversity(
    told: _Told, counts: Tensor, films: Scanned, rows: np.ndarray, prompt_of: np.ndarray, seed: int
) -> None:
    members: dict[int, list[int]] = {}
    for row, prompt in zip(rows.tolist(), prompt_of.tolist(), strict=True):
        members.setdefault(prompt, []).append(row)
    generator = np.random.default_rng(seed)
    pairs: list[tuple[int, int, int]] = []
    for prompt, of in members.items():
        every = [(prompt, a, b) for i, a in enumerate(of[:256]) for b in of[i + 1 : 256]]
        if len(every) > MOST_PAIRS:
            every = [every[n] for n in sorted(generator.choice(len(every), MOST_PAIRS, replace=False))]
        pairs += every
    if not pairs:
        for key in ("ms_ssim", "diversity"):
            told.undefined(key, "no prompt has two films")
        return
    similar, distance, number = (np.zeros(len(members)) for _ in range(3))
    for start in range(0, len(pairs), 16):
        of, a, b = np.array(pairs[start : start + 16]).T
        # As floats first: differences of bytes wrap.
        thumbnails = opened(films.thumbnails)
        x, y = (torch.from_numpy(thumbnails[side].astype(np.float32) / 255.0)[:, None] for side in (a, b))
        np.add.at(similar, of, ms_ssim(x, y).numpy())
        np.add.at(distance, of, (x - y).square().mean((1, 2, 3)).sqrt().numpy())
        np.add.at(number, of, 1)
    known = torch.from_numpy(number > 0)
    total = counts[:, known].sum(1)
    for key, sums in (("ms_ssim", similar), ("diversity", distance)):
        values = torch.from_numpy(sums)[known] / torch.from_numpy(number)[known]
        told.add(key, counts[:, known] @ values / total)


def _distances(told: _Told, weights: _Weights, x: Rows, y: Rows, seed: int) -> None:
    of_real = moments(y)
    if len(x) <= MOST_RESAMPLED and min(x.shape) <= MOST_WIDE:
        whole = x.take(np.arange(len(x)))
        values = torch.cat([weighted_frechet(whole, of_real, w) for w in weights.pieces()])
    else:
        values = torch.tensor([moments_distance(moments(x), of_real)])
    told.add("fid", values, centred=True)
    subset = min(KID_SUBSET, min(len(x), len(y)) // 2)
    if subset < 2:
        told.undefined("kid", "fewer than four films of a side, and a subset is half of them at most")
        return
    mean, spread = kernel_distance(x, y, subset_size=subset, seed=seed)
    told.result["values"]["kid"], told.result["ci"]["kid"] = mean, [None, None]
    told.result |= {"kid_sd": spread, "kid_subset": subset}


def _neighbours(told: _Told, counts: Tensor, of: Tensor, x: Rows, y: Rows, seed: int) -> None:
    number = min(len(x), len(y), MOST_NEIGHBOURS)
    if number <= NEAREST_K:
        for key in ("precision", "recall", "density", "coverage"):
            told.undefined(key, f"{number} films of a side, more than k = {NEAREST_K} are needed")
        return
    generator = np.random.default_rng(seed)
    mine, theirs = (np.sort(generator.choice(len(side), number, replace=False)) for side in (x, y))
    found = prdc(y.take(theirs), x.take(mine))
    told.result |= {"prdc_images": number, "prdc_k": NEAREST_K}
    drawn = _Weights(counts, of[torch.from_numpy(mine)])
    told.add("precision", drawn.mean((found.num_balls > 0).double()))
    told.add("density", drawn.mean(found.num_balls.double() / found.nearest_k))
    # Recall and coverage are shares of the real films, so those are what is resampled.
    of_real = resamples(number, len(counts) - 1, seed)
    of_real = torch.cat([torch.ones(1, number, dtype=torch.float64), of_real])
    each = _Weights(of_real, torch.arange(number))
    told.add("recall", each.mean(found.is_recalled.double()))
    told.add("coverage", each.mean(found.is_covered.double()))
