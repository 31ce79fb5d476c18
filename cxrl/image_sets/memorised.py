"""Whether generated films repeat films that their generator was trained on.

Every generated film has a nearest training film, and so has every held-out real film, which is no copy of
any: these say how near a film comes by chance. Two kinds of nearness: the match of the pixels
(:mod:`cxrl.metrics.copies`), which a mirrored, cut out or noisy copy keeps, and the distance of the features.
A film is *re-identified* when its match is above that of 99 % of the held-out films.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cxrl.errors import CxrlError
from cxrl.image_sets.scan import Scanned
from cxrl.metrics.classification import auroc
from cxrl.metrics.copies import nearest_copies
from cxrl.metrics.rows import Rows, opened

MOST = 10_000
"""Films of a side that are looked for: time is in their product with the training films."""
FEWEST_HELD_OUT = 100
"""Below which there is no 99th percentile of the held-out films."""
FALSE_ALARMS = 0.01
NUM_CLOSEST = 8
RESAMPLES = 1000
_ROWS = 512


def memorised(
    generated: Scanned,
    training: Scanned,
    real: Scanned,
    *,
    seed: int,
    done: Callable[[int], None] = lambda count: None,
) -> tuple[dict[str, Any], np.ndarray]:
    """What ``scores.json`` says of memorisation, and the places of the closest pairs, int64 [P, 2].

    Args:
        generated: The films that may be copies.
        training: What the generator was trained on.
        real: Held-out films, the baseline; those that are training films, pixel for pixel, are left out.
        seed: Of what is drawn of more than ``MOST`` films.
        done: Is told how many more films were looked for.

    Raises:
        CxrlError: Fewer than two real films are held out.
    """
    held_out = np.flatnonzero(~np.isin(real.digests, training.digests))
    if len(held_out) < 2:
        raise CxrlError(
            f"--train: {len(real) - len(held_out)} of {len(real)} films of --real are in "
            f"{training.source.name}; held-out films are needed to compare with"
        )
    generator = np.random.default_rng(seed)
    rows, others = (
        np.sort(generator.choice(side, min(MOST, len(side)), replace=False))
        for side in (np.arange(len(generated)), held_out)
    )
    match, place = _matches(generated, rows, training, done)
    baseline, _ = _matches(real, others, training, done)
    enough = len(others) >= FEWEST_HELD_OUT
    threshold = float(np.quantile(baseline, 1 - FALSE_ALARMS)) if enough else None
    above = None if threshold is None else match > threshold
    distances = {
        name: (_distances(generated, rows, training, name), _distances(real, others, training, name))
        for name in generated.features
    }
    closest = np.argsort(-match, kind="stable")[:NUM_CLOSEST]
    told = {
        "num_generated": len(rows),
        "num_training": len(training),
        "num_held_out": len(others),
        "num_real_in_training": len(real) - len(held_out),
        "threshold": threshold,
        "reidentified": None if above is None else float(above.mean()),
        "reidentified_ci": [None, None] if above is None else _interval(match, baseline, generator),
        "undefined": None if enough else f"{len(others)} held-out films, {FEWEST_HELD_OUT} are needed",
        "match": _compared(match, baseline, higher_is_nearer=True),
        "distance": {
            name: _compared(mine, theirs, higher_is_nearer=False)
            for name, (mine, theirs) in distances.items()
        },
        "closest": [
            {
                "generated": str(generated.paths[rows[n]]),
                "training": str(training.paths[place[n]]),
                "match": float(match[n]),
                "reidentified": None if above is None else bool(above[n]),
            }
            for n in closest
        ],
    }
    return told, np.stack([rows[closest], place[closest]], 1)


def closest_pairs(
    told: dict[str, Any], places: np.ndarray, generated: Scanned, training: Scanned
) -> tuple[dict[str, Tensor], list[str]]:
    """The closest pairs as rows of films float32 [P, 1, 64, 64], and a caption for each pair."""
    mine, theirs = torch.from_numpy(places).T
    pictures = {"generated": _pixels(generated, mine), "training": _pixels(training, theirs)}
    captions = [
        f"match {pair['match']:.4f}{' re-identified' if pair['reidentified'] else ''}"
        for pair in told["closest"]
    ]
    return pictures, captions


def _interval(match: np.ndarray, baseline: np.ndarray, generator: np.random.Generator) -> list[float]:
    """[low, high], 95 %, of the share above the threshold.

    A bootstrap over generated and held-out films, for few of these do not know the threshold well; at least
    as wide as Wilson's (1927) of a known threshold, for no resample of a share of 0 has another.
    """
    shares = []
    for _ in range(RESAMPLES):
        mine, theirs = (side[generator.integers(len(side), size=len(side))] for side in (match, baseline))
        shares.append((mine > np.quantile(theirs, 1 - FALSE_ALARMS)).mean())
    low, high = np.quantile(shares, (0.025, 0.975))
    least, most = wilson(float((match > np.quantile(baseline, 1 - FALSE_ALARMS)).mean()), len(match))
    return [float(min(low, least)), float(max(high, most))]


def wilson(share: float, number: int) -> tuple[float, float]:
    """The 95 % interval of a share of ``number`` independent films."""
    z = 1.959963984540054
    spread = z * z / number
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / number + spread / (4 * number)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def _pixels(films: Scanned, rows: Tensor) -> Tensor:
    """float32 [n, 1, 64, 64] in [0, 1]."""
    return torch.from_numpy(opened(films.thumbnails)[rows.numpy()].astype(np.float32) / 255.0)[:, None]


def _matches(
    films: Scanned, rows: np.ndarray, training: Scanned, done: Callable[[int], None]
) -> tuple[np.ndarray, np.ndarray]:
    """float32 [n] and int64 [n], the place among the training films."""
    found = nearest_copies(
        _pixels(films, torch.from_numpy(rows)), lambda of: _pixels(training, of), len(training), done=done
    )
    return found[0].numpy(), found[1].numpy()


def _distances(films: Scanned, rows: np.ndarray, training: Scanned, name: str) -> np.ndarray:
    """float64 [n]: to the nearest training film in the features of a model."""
    found, ours = [], Rows(films.features[name], rows)
    for start in range(0, len(rows), _ROWS):
        mine = ours.take(np.arange(start, min(start + _ROWS, len(rows))))
        best = torch.full((len(mine),), math.inf, dtype=torch.float64)
        for theirs in Rows(training.features[name]).blocks():
            best = torch.minimum(best, torch.cdist(mine, theirs).min(1).values)
        found.append(best)
    return torch.cat(found).numpy()


def _compared(mine: np.ndarray, theirs: np.ndarray, *, higher_is_nearer: bool) -> dict[str, Any]:
    """Quantiles of both, and the probability that a generated film is nearer than a held-out one."""
    nearest, sign = (0.99, 1.0) if higher_is_nearer else (0.01, -1.0)
    scores = torch.from_numpy(sign * np.concatenate([mine, theirs]).astype(np.float64))
    is_mine = torch.cat([torch.ones(len(mine)), torch.zeros(len(theirs))])
    return {
        "nearer": auroc(scores, is_mine),
        **{
            side: {
                "median": float(np.median(values)),
                "nearest_1_percent": float(np.quantile(values, nearest)),
            }
            for side, values in (("generated", mine), ("held_out", theirs))
        },
    }
