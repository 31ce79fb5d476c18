"""What the posture regressor learns from real films alone, on patients that it did not see.

    python benchmarks/posture_real.py --films DIR      results/posture_real.json
    python benchmarks/posture_real.py --table          the committed file as Markdown

DIR holds films and ``images.csv`` (columns image, patient, view: ``cxrl.pretraining.posture.load_films``),
or is a folder or table that ``python -m cxrl.pretrain --preset posture --data`` takes. Cross-validation by
patient: every patient is held out once. Each fold trains a file ``posture.safetensors`` with the command's
own settings, and the reward ``posture`` that loads it scores what was held out, at 256 pixels, resized by
other code than the training's. Only numbers are written, no image.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from scipy.stats import spearmanr
from torch import Tensor

from cxrl.data.prompts import PromptBatch, ReportPrompt
from cxrl.data.rows import read_rows
from cxrl.images.read import read_image
from cxrl.pretraining.posture import (
    COMPONENTS,
    NUM_STEPS,
    compose,
    fit_posture,
    load_films,
    r_squared,
    recover,
    split_by_patient,
    warp,
)
from cxrl.rewards.posture import PostureReward
from cxrl.scorers.phantom_network import save_scorer

RESULT = Path(__file__).parent / "results" / "posture_real.json"
SIZE = 256
NUM_WARPS = 16
NUM_OTHERS = 24
AXES: dict[str, tuple[list[float], Callable[[float], list[float]]]] = {
    "rotation": ([-16, -12, -8, -4, 0, 4, 8, 12, 16], lambda x: [0, 0, 0, 0, math.radians(x)]),
    "zoom": ([0.78, 0.84, 0.9, 0.95, 1.0, 1.05, 1.11, 1.19, 1.28], lambda x: [math.log(x)] * 2 + [0, 0, 0]),
    "shift_x": ([-0.24, -0.18, -0.12, -0.06, 0, 0.06, 0.12, 0.18, 0.24], lambda x: [0, 0, x, 0, 0]),
    "shift_y": ([-0.24, -0.18, -0.12, -0.06, 0, 0.06, 0.12, 0.18, 0.24], lambda x: [0, 0, 0, x, 0]),
}
"""Degrees, factor, half widths of the film; what the network sees lies inside the film in all of them."""


def held_out_scores(reward: PostureReward, images: Tensor) -> Tensor:
    """The reward's own score [N] of images [N, 1, h, w]."""
    batch = PromptBatch((ReportPrompt(0, "", ()),), torch.zeros(len(images), dtype=torch.long))
    with torch.no_grad():
        return torch.cat([reward.score(part, batch) for part in images.split(32)])


def curves(reward: PostureReward, images: Tensor) -> dict[str, Tensor]:
    """Scores [N, 9] along every axis."""
    result = {}
    for name, (values, psi_of) in AXES.items():
        psis = torch.tensor([psi_of(value) for value in values])
        columns = [held_out_scores(reward, warp(images, psi.expand(len(images), 5), SIZE)) for psi in psis]
        result[name] = torch.stack(columns, 1)
    return result


def describe_curve(values: list[float], scores: Tensor) -> dict[str, Any]:
    """The mean curve, and how many films follow it."""
    mean, middle = scores.mean(0), len(values) // 2
    distance = np.abs(np.log(values) if values[middle] == 1.0 else np.array(values))
    rises = scores.diff(dim=1) > 0
    peak_once = (rises.int().diff(dim=1) <= 0).all(1)
    rank = [float(spearmanr(distance, row).statistic) for row in scores.numpy()]
    return {
        "values": values,
        "mean_score": [round(float(v), 4) for v in mean],
        "mean_falls_at_every_step": bool(
            (mean[: middle + 1].diff() > 0).all() and (mean[middle:].diff() < 0).all()
        ),
        "share_lower_at_both_ends": round(
            float(((scores[:, 0] < scores[:, middle]) & (scores[:, -1] < scores[:, middle])).float().mean()),
            4,
        ),
        "share_with_one_peak": round(float(peak_once.float().mean()), 4),
        "mean_spearman_of_score_and_distance": round(float(np.mean(rank)), 4),
    }


def photographs() -> Tensor:
    """Photographs and scans that scikit-image installs, whole and by quarters, grey."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    paths = sorted(p for p in folder.iterdir() if p.suffix in (".png", ".jpg"))
    images = [read_image(p, SIZE) for p in paths if p.stem not in ("multipage", "phantom")]
    half = SIZE // 2
    quarters = [
        image[:, y : y + half, x : x + half] for image in images for y in (0, half) for x in (0, half)
    ]
    quarters = [q for q in quarters if float(q.std()) > 0.02]
    return torch.cat(
        [torch.stack(images), F.interpolate(torch.stack(quarters), (SIZE, SIZE), mode="bilinear")]
    )


def pages(rng: np.random.Generator) -> Tensor:
    """Pages of random words, dark on bright and bright on dark."""
    images = []
    for i in range(NUM_OTHERS):
        canvas = Image.new("L", (SIZE, SIZE), 255 if i % 2 else 0)
        draw, size = ImageDraw.Draw(canvas), int(rng.integers(8, 40))
        font = ImageFont.load_default(size)
        for y in range(0, SIZE, size + 4):
            words = ["".join(rng.choice(list("abcdefghij klmn"), 9)) for _ in range(12)]
            draw.text((0, y), " ".join(words), 0 if i % 2 else 255, font)
        images.append(torch.from_numpy(np.asarray(canvas, dtype=np.float32) / 255.0)[None])
    return torch.stack(images)


def checkerboards(rng: np.random.Generator) -> Tensor:
    """Two greys, 2 to 32 fields a side."""
    cell = torch.arange(SIZE)
    images = []
    for num in rng.integers(2, 33, NUM_OTHERS):
        field = cell * int(num) // SIZE
        low, high = sorted(rng.random(2).tolist())
        images.append(torch.where((field[:, None] + field) % 2 == 0, low, high + 0.1).clamp(0, 1)[None])
    return torch.stack(images)


def clouds(rng: np.random.Generator) -> Tensor:
    """Fractal noise as a sum of octaves."""
    images = []
    for decay in rng.uniform(0.3, 0.9, NUM_OTHERS):
        total = torch.zeros(1, 1, SIZE, SIZE)
        for octave in range(1, 8):
            coarse = torch.from_numpy(rng.standard_normal((1, 1, 2**octave, 2**octave), dtype=np.float32))
            total += decay**octave * F.interpolate(coarse, (SIZE, SIZE), mode="bicubic")
        images.append(((total - total.min()) / (total.max() - total.min()))[0])
    return torch.stack(images)


def gradients(rng: np.random.Generator) -> Tensor:
    """Linear and radial shadings."""
    axis = torch.linspace(-1, 1, SIZE)
    images = []
    for i in range(NUM_OTHERS):
        x, y, power = rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(0.5, 2)
        value = (
            ((axis - x).square() + (axis[:, None] - y).square()).sqrt()
            if i % 2
            else axis * x + axis[:, None] * y
        )
        value = (value - value.min()) / (value.max() - value.min())
        images.append(value[None] ** power)
    return torch.stack(images)


def others(films: Tensor) -> dict[str, tuple[Tensor, bool]]:
    """Kind of what is no film → images, and whether training shows decoys of that kind."""
    rng = np.random.default_rng(7)
    noise = torch.from_numpy(rng.standard_normal((NUM_OTHERS, 1, SIZE, SIZE), dtype=np.float32))
    coarse = F.interpolate(noise[:, :, :64, :64], (SIZE, SIZE), mode="bilinear")
    levels = torch.linspace(0, 1, NUM_OTHERS)[:, None, None, None].expand(-1, 1, SIZE, SIZE)
    return {
        "blank": (levels, True),
        "noise": ((0.5 + 0.25 * noise).clamp(0, 1), True),
        "coarse noise": ((0.4 + 0.2 * coarse).clamp(0, 1), True),
        "inverted": (1.0 - films, True),
        "upside down": (films.flip(-2), True),
        "half turn": (films.rot90(2, (-2, -1)), False),
        "quarter turn": (films.rot90(1, (-2, -1)), True),
        **{name: (images, False) for name, images in with_a_half_wrong(films).items()},
        "clouds": (clouds(rng), True),
        "checkerboards": (checkerboards(rng), False),
        "gradients": (gradients(rng), False),
        "pages": (pages(rng), False),
        "photographs": (photographs(), False),
    }


def with_a_half_wrong(films: Tensor) -> dict[str, Tensor]:
    """Films of which halves are swapped, there twice or black; and mirrored ones, which may be real."""
    half = SIZE // 2
    left, right = films[..., :half], films[..., half:]
    lower = torch.cat([films[..., :half, :], torch.zeros_like(films[..., half:, :])], -2)
    return {
        "left and right half swapped": films.roll(half, -1),
        "left half doubled": torch.cat([left, left.flip(-1)], -1),
        "right half doubled": torch.cat([right.flip(-1), right], -1),
        "left half black": torch.cat([torch.zeros_like(left), right], -1),
        "lower half black": lower,
        "mirrored (may be real)": films.flip(-1),
    }


def mask_pose(path: Path) -> list[float]:
    """Pose of a lung mask in the components' order and units, up to a constant each: log width and height of
    the lungs, their centre, the tilt of the line between the centres of the halves.
    """
    mask = (read_image(path, SIZE)[0] > 0.5).numpy()
    y, x = (2.0 * (axis + 0.5) / SIZE - 1.0 for axis in np.nonzero(mask))
    left, right = x < x.mean(), x >= x.mean()
    low_x, high_x = np.quantile(x, (0.02, 0.98))
    low_y, high_y = np.quantile(y, (0.02, 0.98))
    tilt = math.atan2(y[right].mean() - y[left].mean(), x[right].mean() - x[left].mean())
    width, height = math.log(high_x - low_x), math.log(high_y - low_y)
    return [width, height, (low_x + high_x) / 2, (low_y + high_y) / 2, tilt]


def agreement_with_masks(data: Path, names: tuple[str, ...], natural: Tensor) -> dict[str, Any]:
    """Pearson's r of the estimated pose and that of the lung mask, where the table names masks."""
    if data.is_dir():
        return {}
    masks = {
        row["image"].strip(): row.get("lung_mask", "").strip() for _, row in read_rows(data, ("image",), "")
    }
    rows = [i for i, name in enumerate(names) if masks[name]]
    if len(rows) < 3:
        return {}
    truth = np.array([mask_pose(data.parent / masks[names[i]]) for i in rows])
    estimate = natural[rows].numpy()
    r = [float(np.corrcoef(estimate[:, k], truth[:, k])[0, 1]) for k in range(5)]
    return {"num_films": len(rows), "pearson_r": dict(zip(COMPONENTS, (round(v, 4) for v in r), strict=True))}


def rounded(row: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in row.items()}


def measure(data: Path, num_folds: int, num_steps: int, work_dir: Path) -> dict[str, Any]:
    """The whole cross-validation."""
    small, large = load_films(data), load_films(data, SIZE)
    if small.names != large.names:
        raise SystemExit("a film can be read at one size and not at the other")
    natural, real = torch.zeros(len(small), 5), torch.zeros(len(small))
    change, true_change, direct, truth, r2_by_fold, seconds = [], [], [], [], [], []
    along: dict[str, list[Tensor]] = {name: [] for name in AXES}
    scored: dict[str, list[Tensor]] = {}
    for fold in range(num_folds):
        train, held_out = split_by_patient(small.patients, fold, num_folds)
        began = time.process_time()
        folder = work_dir / f"fold-{fold}"
        scorer = fit_posture(small, train, num_steps=num_steps, work_dir=folder, seed=fold)
        seconds.append(time.process_time() - began)
        save_scorer(scorer, folder / "posture.safetensors")
        reward = PostureReward(folder, torch.device("cpu"))
        images = large.pixels(held_out)
        psi, estimate, unwarped = recover(reward.model, images, NUM_WARPS, seed=100 + fold)
        truth.append(psi)
        direct.append(estimate)
        change.append(estimate - unwarped)
        true_change.append(compose(psi, unwarped) - unwarped)
        natural[held_out] = unwarped[::NUM_WARPS]
        real[held_out] = held_out_scores(reward, images)
        for name, scores in curves(reward, images).items():
            along[name].append(scores)
        kinds = others(images)
        for name, (bad, _) in kinds.items():
            scored.setdefault(name, []).append(held_out_scores(reward, bad))
        r2_by_fold.append(r_squared(change[-1], true_change[-1]))
        print(f"fold {fold}: {len(held_out)} films held out,", rounded(r2_by_fold[-1]), flush=True)
    floor = float(real.quantile(0.05))
    table: dict[str, Any] = {}
    for name, parts in scored.items():
        scores = torch.cat(parts)
        table[name] = {
            "seen_in_training": kinds[name][1],
            "num_images": len(scores),
            "mean": round(float(scores.mean()), 4),
            "max": round(float(scores.max()), 4),
            "margin_of_means": round(float(real.mean() - scores.mean()), 4),
            "share_above_5th_percentile_of_real": round(float((scores > floor).float().mean()), 4),
        }
    return {
        "command": f"python benchmarks/posture_real.py --films DIR --folds {num_folds} --steps {num_steps}",
        "num_films": len(small),
        "num_patients": len(set(small.patients)),
        "by_patient": small.by_patient,
        "num_folds": num_folds,
        "num_steps": num_steps,
        "torch_threads": torch.get_num_threads(),
        "cpu_seconds_of_training_a_fold": [round(s) for s in seconds],
        "r2_change": rounded(r_squared(torch.cat(change), torch.cat(true_change))),
        "r2_change_lowest_fold": {c: round(min(fold[c] for fold in r2_by_fold), 4) for c in COMPONENTS},
        "r2_change_by_fold": [rounded(fold) for fold in r2_by_fold],
        "r2": rounded(r_squared(torch.cat(direct), torch.cat(truth))),
        "warp_sd": rounded(dict(zip(COMPONENTS, torch.cat(truth).std(0).tolist(), strict=True))),
        "own_pose_sd": rounded(dict(zip(COMPONENTS, natural.std(0).tolist(), strict=True))),
        "own_pose_and_lung_masks": agreement_with_masks(data, small.names, natural),
        "score_of_real_films": {
            "mean": round(float(real.mean()), 4),
            "percentile_5": round(floor, 4),
            "min": round(float(real.min()), 4),
            "max": round(float(real.max()), 4),
        },
        "curves": {name: describe_curve(AXES[name][0], torch.cat(parts)) for name, parts in along.items()},
        "no_films": table,
    }


def markdown(result: dict[str, Any]) -> str:
    """The committed result as tables."""
    lines = ["| R² | " + " | ".join(COMPONENTS) + " |", "|---" * (len(COMPONENTS) + 1) + "|"]
    for key, title in (
        ("r2_change", "change of the estimate"),
        ("r2_change_lowest_fold", "the same, lowest fold"),
        ("r2", "estimate itself"),
    ):
        lines.append(f"| {title} | " + " | ".join(f"{result[key][c]:.3f}" for c in COMPONENTS) + " |")
    lines += ["", "| warp | mean score | lower at both ends | one peak | Spearman |", "|---" * 5 + "|"]
    for name, row in result["curves"].items():
        curve = ", ".join(f"{v:.2f}" for v in row["mean_score"])
        share, peak = row["share_lower_at_both_ends"], row["share_with_one_peak"]
        span = f"{row['values'][0]:g} to {row['values'][-1]:g}"
        rank = row["mean_spearman_of_score_and_distance"]
        lines.append(f"| {name} {span} | {curve} | {share:.0%} | {peak:.0%} | {rank:.2f} |")
    real = result["score_of_real_films"]
    lines += ["", "| images | mean score | highest | above the 5th percentile of real |", "|---" * 4 + "|"]
    lines.append(f"| real films | {real['mean']:.2f} | {real['max']:.2f} | ({real['percentile_5']:.2f}) |")
    for name, row in result["no_films"].items():
        star = "" if row["seen_in_training"] else " (kind not trained on)"
        above = row["share_above_5th_percentile_of_real"]
        lines.append(f"| {name}{star} | {row['mean']:.2f} | {row['max']:.2f} | {above:.1%} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--films", metavar="DIR", type=Path, help="frontal films, or a table of them")
    what.add_argument("--table", action="store_true", help="print the result that is there")
    parser.add_argument("--folds", metavar="N", type=int, default=5, help="default 5")
    parser.add_argument("--steps", metavar="N", type=int, default=NUM_STEPS, help=f"default {NUM_STEPS}")
    parser.add_argument(
        "--work-dir", metavar="DIR", type=Path, help="keep checkpoints here and go on from them"
    )
    parser.add_argument("--out", metavar="FILE", type=Path, default=RESULT)
    args = parser.parse_args()
    if args.films:
        table = args.films / "images.csv"
        with tempfile.TemporaryDirectory() as scratch:
            data = table if table.is_file() else args.films
            result = measure(data, args.folds, args.steps, args.work_dir or Path(scratch))
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(markdown(json.loads(args.out.read_text())))


if __name__ == "__main__":
    main()
