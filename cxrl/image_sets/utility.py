"""Whether generated films teach a classifier what real ones do: trained on them, tested on real films.

The test of downstream use in CheXGenBench and RoentGen: the same small network is trained from nothing on
real training films, on generated ones, on both, and on generated ones before real ones, with equal numbers of
optimizer steps, and every one is tested on held-out real films. It sees 64 pixels a side, so its values say
which films teach more, not how good a classifier can be.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cxrl.errors import CxrlError
from cxrl.evaluation.summary import interval, resamples
from cxrl.findings import CHEXPERT_FINDINGS
from cxrl.image_sets.scan import THUMBNAIL, Scanned
from cxrl.metrics.classification import ranked_auroc
from cxrl.metrics.rows import opened
from cxrl.pretraining.fit import FitOptions, fit
from cxrl.scorers.phantom_network import Scorer, ScorerConfig
from cxrl.storage.writing import write_tensors

ARMS = ("real", "generated", "mixed", "generated, then real")
NUM_SEEDS = 3
BATCH_SIZE = 64
FEWEST = 10
"""Films with label 1, and with label 0, that a finding needs in every set."""
_SHIFT, _SCALE, _TURN = 0.08, 0.08, 0.09
"""Standard deviations of the augmentation, shares of a film and radians. Never mirrored."""
_AT_ONCE = 256


@dataclass(frozen=True)
class _Labelled:
    """Films of a set with their labels float32 [N, F], 1, 0 or nan."""

    films: Scanned
    labels: np.ndarray

    def batch(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Augmented films [n, 1, 64, 64] in [0, 1] and their labels, drawn with replacement."""
        rows = torch.randint(len(self.labels), (number,), generator=generator).numpy()
        return _augmented(self.pixels(rows), generator), torch.from_numpy(self.labels[rows])

    def pixels(self, rows: np.ndarray) -> Tensor:
        """float32 [n, 1, 64, 64] in [0, 1]."""
        return torch.from_numpy(opened(self.films.thumbnails)[rows].astype(np.float32) / 255.0)[:, None]


def utility(
    generated: Scanned,
    training: Scanned,
    real: Scanned,
    *,
    num_steps: int,
    seed: int,
    bootstrap: int,
    cache: Path,
    trained: Callable[[int], None] = lambda steps: None,
) -> dict[str, Any]:
    """What ``scores.json`` says of downstream utility.

    Args:
        generated: Generated films with labels.
        training: Real films with labels to train on.
        real: Real films with labels to test on.
        num_steps: Optimizer steps of every classifier.
        seed: Of the first classifier of an arm, and of resamples.
        bootstrap: Resamples of test prompts for intervals.
        cache: Folder in which what is trained is kept, so that it can go on.
        trained: Is told how many more steps are done.

    Raises:
        CxrlError: A set has no labels, or no finding has enough films with label 1 and 0 in all three.
    """
    sets = {"--generated": generated, "--train": training, "--real": real}
    findings, left_out = learnable(sets)
    ours, theirs, test = (_Labelled(films, _labels(films, findings)) for films in sets.values())
    folder = cache / f"utility-{_key(sets, findings, num_steps)}"
    rows = np.arange(len(real))
    chances: dict[str, list[Tensor]] = {}
    for arm in ARMS:
        chances[arm] = []
        for n in range(NUM_SEEDS):
            path = folder / f"{ARMS.index(arm)}-{seed + n}.safetensors"
            known = _known(path, (len(rows), len(findings)))
            if known is None:
                known = _train(arm, ours, theirs, test, findings, num_steps, seed + n, folder, trained)
                write_tensors(path, {"probability": known}, private=True)
            else:
                trained(num_steps)
            chances[arm].append(known)
    told = _told(chances, test.labels, real.prompt_of, findings, seed, bootstrap)
    positive = (theirs.labels == 1).sum(0)
    order = np.argsort(positive, kind="stable")
    return {
        "classifier": f"a residual network from nothing at {THUMBNAIL} px",
        "num_steps": num_steps,
        "num_seeds": NUM_SEEDS,
        "num_train": len(training),
        "num_generated": len(generated),
        "num_test": len(real),
        "findings": [
            {
                "finding": findings[f],
                "num_train": int(positive[f]),
                "num_test": int((test.labels[:, f] == 1).sum()),
            }
            for f in order
        ],
        "left_out": left_out,
        "arms": told,
    }


def _labels(films: Scanned, findings: Sequence[str]) -> np.ndarray:
    """float32 [N, F]."""
    return np.stack([np.asarray(films.source.labels[name], np.float32)[films.rows] for name in findings], 1)


def learnable(sets: dict[str, Scanned]) -> tuple[tuple[str, ...], dict[str, str]]:
    """The findings that can be learnt and tested, and finding → why it cannot.

    Args:
        sets: By the option that named them: --generated, --train and --real.

    Raises:
        CxrlError: A set has no labels, or no finding can be learnt and tested.
    """
    for option, films in sets.items():
        if not films.source.labels:
            raise CxrlError(f"--utility: {option} {films.source.name} has no column of a finding")
    found, left_out = [], {}
    for name in CHEXPERT_FINDINGS:
        if not any(name in films.source.labels for films in sets.values()):
            continue
        problem = ""
        for option, films in sets.items():
            if name not in films.source.labels:
                problem = f"no column in {option}"
                break
            values = _labels(films, [name])
            fewest = min(int((values == 1).sum()), int((values == 0).sum()))
            if fewest < FEWEST:
                problem = f"{fewest} films with label 1 or 0 in {option}, {FEWEST} are needed"
                break
        if problem:
            left_out[name] = problem
        else:
            found.append(name)
    if not found:
        why = "; ".join(f"{name}: {problem}" for name, problem in left_out.items())
        raise CxrlError(f"--utility: no finding can be learnt and tested ({why})")
    return tuple(found), left_out


def _key(sets: dict[str, Scanned], findings: Sequence[str], num_steps: int) -> str:
    digest = hashlib.sha256(json.dumps([1, list(findings), num_steps]).encode())
    for films in sets.values():
        digest.update(films.digests.astype("<i8").tobytes() + _labels(films, findings).tobytes())
    return digest.hexdigest()[:32]


def _known(path: Path, shape: tuple[int, int]) -> Tensor | None:
    """What a classifier that is done said of the test films; None where there is none."""
    try:
        found = load_file(path)["probability"]
    except (SafetensorError, OSError, KeyError):
        return None
    return found if found.shape == shape else None


def _train(
    arm: str,
    ours: _Labelled,
    theirs: _Labelled,
    test: _Labelled,
    findings: tuple[str, ...],
    num_steps: int,
    seed: int,
    folder: Path,
    trained: Callable[[int], None],
) -> Tensor:
    """Probability [N, F] of every finding on the test films."""
    torch.manual_seed(seed)
    network = Scorer(ScorerConfig("diagnosis", "resnet", 16, THUMBNAIL, len(findings), findings=findings))
    network.to(memory_format=torch.channels_last)
    network.validity_head.requires_grad_(False)

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        trained(1)
        if arm == "mixed":
            halves = [side.batch(BATCH_SIZE // 2, generator) for side in (ours, theirs)]
            films, labels = (torch.cat(part) for part in zip(*halves, strict=True))
        else:
            on_real = arm == "real" or (arm != "generated" and 2 * step >= num_steps)
            films, labels = (theirs if on_real else ours).batch(BATCH_SIZE, generator)
        return masked_loss(network(films.to(memory_format=torch.channels_last))[0], labels)

    name = f"{ARMS.index(arm)}-{seed}"
    options = FitOptions(num_steps, learning_rate=2e-3, weight_decay=0.02, ema_decay=0.99)
    fit(name, network, loss_at, options, seed=seed, work_dir=folder, tell=lambda line: None)
    with torch.no_grad():
        parts = np.array_split(np.arange(len(test.labels)), -(-len(test.labels) // _AT_ONCE))
        found = torch.cat([network.diagnose(test.pixels(rows))[0] for rows in parts])
    (folder / f"{name}.checkpoint").unlink(missing_ok=True)
    return found


def masked_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the labels that are known.

    Args:
        logits: float32 [N, F].
        labels: [N, F], 1, 0 or nan, which counts for nothing.

    Returns:
        A scalar; 0 where nothing is known.
    """
    known = ~labels.isnan()
    loss = F.binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none")
    return (loss * known).sum() / known.sum().clamp_min(1)


def _augmented(films: Tensor, generator: torch.Generator) -> Tensor:
    """Films [N, 1, H, W] a little shifted, scaled, turned, and of another exposure."""
    n = len(films)
    shift, scale, turn, gain = (torch.randn(n, k, generator=generator) for k in (2, 1, 1, 1))
    scale, turn = (_SCALE * scale).exp()[:, 0], (_TURN * turn)[:, 0]
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale * turn.cos()
    theta[:, 1, 0] = scale * turn.sin()
    theta[:, 0, 1] = -theta[:, 1, 0]
    theta[:, :, 2] = _SHIFT * shift
    grid = F.affine_grid(theta, list(films.shape), align_corners=False)
    moved = F.grid_sample(films, grid, padding_mode="border", align_corners=False)
    return (moved * (1 + 0.1 * gain)[:, :, None, None]).clamp(0, 1)


def _told(
    chances: dict[str, list[Tensor]],
    labels: np.ndarray,
    prompt_of: np.ndarray,
    findings: Sequence[str],
    seed: int,
    bootstrap: int,
) -> list[dict[str, Any]]:
    """The arms' AUROC, means over seeds, with intervals of a bootstrap over test prompts."""
    prompts, of = np.unique(prompt_of, return_inverse=True)
    counts = torch.cat(
        [torch.ones(1, len(prompts), dtype=torch.float64), resamples(len(prompts), bootstrap, seed)]
    )
    weights = counts[:, torch.from_numpy(of)]
    each = {
        arm: torch.stack([_auroc(chance, torch.from_numpy(labels), weights) for chance in of_seeds])
        for arm, of_seeds in chances.items()
    }  # [seeds, B + 1, F]
    real = each["real"].nanmean(2).mean(0)
    arms = []
    for arm, values in each.items():
        macro = values.nanmean(2)
        mean = macro.mean(0)
        arms.append(
            {
                "arm": arm,
                "auroc": float(mean[0]),
                "ci": interval(mean[1:]),
                "sd_of_seeds": float(macro[:, 0].std()),
                "minus_real": float(mean[0] - real[0]),
                "minus_real_ci": interval((mean - real)[1:]),
                "auroc_per_finding": dict(zip(findings, values[:, 0].mean(0).tolist(), strict=True)),
            }
        )
    return arms


def _auroc(chance: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """float64 [B + 1, F]."""
    size = max(1, 2**23 // weights.shape[1])
    return torch.stack(
        [ranked_auroc(chance[:, f], labels[:, f], weights.split(size)) for f in range(chance.shape[1])], 1
    )
