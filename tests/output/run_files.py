"""A run directory as training leaves it, made by hand: every file that a page reads."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from cxrl.images.png import save_grid
from cxrl.metrics.names import KEYS, PSI

FINDINGS = ("No Finding", "Edema", "Lung Lesion")
REWARDS = ("posture", "diagnosis", "consistency")
LEVEL = {"anchor": 0.2, "policy": 0.5, "real": 0.8}


def side(level: float, **more: Any) -> dict[str, Any]:
    """Scores that all have the value ``level``, but for a Fréchet distance that falls with it."""
    values = dict.fromkeys(KEYS, level) | {"fid": 100 * (1 - level)}
    return {
        **values,
        "ci": {key: [value - 0.05, value + 0.05] for key, value in values.items()},
        "auroc_per_finding": dict.fromkeys(FINDINGS, level),
        "ci_per_finding": {name: [level - 0.1, level + 0.1] for name in FINDINGS},
        **more,
    }


def record(epoch: int, **more: Any) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "reward": dict.fromkeys(REWARDS, 0.1 * epoch),
        "reward_std": dict.fromkeys(REWARDS, 0.5),
        "win_rate": dict.fromkeys(REWARDS, 0.5 + 0.01 * epoch),
        "kl": 1e-4 * epoch,
        "clip_fraction": 0.3,
        "ratio_max_dev": 1e-7,
        "diversity": 0.2,
        "grad_norm": {"lora": 0.1, "ace": 0.2},
        "seconds": {"rollout": 1.0, "update": 2.0},
        **more,
    }


def evaluated(level: float) -> dict[str, Any]:
    scores = side(level)
    return {
        "eval": {key: scores[key] for key in KEYS},
        "eval_ci": scores["ci"],
        "eval_reward": dict.fromkeys(REWARDS, level),
    }


def write_scores(path: Path, texts: tuple[str, ...], findings: tuple[str, ...] = FINDINGS) -> None:
    header = ["side", "image", "prompt", "text", *REWARDS, *(f"reward_{name}" for name in REWARDS), *PSI]
    header += [f"p_{name}" for name in findings] + [f"label_{name}" for name in findings]
    with path.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(header)
        for name, level in LEVEL.items():
            for n, text in enumerate(texts):
                labels = [float(k == n % len(findings)) for k in range(len(findings))]
                scores = [level + 0.01 * n * (name == "policy")] * 3
                table.writerow(
                    [
                        name,
                        n,
                        n,
                        text,
                        *scores,
                        *[level] * 3,
                        *[0.1 * n] * 5,
                        *[level] * len(findings),
                        *labels,
                    ]
                )


def write_run(
    folder: Path,
    *,
    num_reports: int = 6,
    size: int = 16,
    finished: bool = True,
    texts: tuple[str, ...] | None = None,
    config: str = "preset: smoke\nseed: 4\n",
    judge: str = "phantom",
    real: bool = True,
) -> Path:
    """A run of two epochs, both judged."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config)
    rng = torch.Generator().manual_seed(0)
    texts = texts or tuple(f"Report number {n}." for n in range(num_reports))
    bounds = {
        "anchor": side(0.2, reward=dict.fromkeys(REWARDS, 0.2)),
        "real": side(0.8, reward=dict.fromkeys(REWARDS, 0.8)) if real else None,
        "real_films": "films of the test" if real else "no films here",
        "num_images": len(texts),
        "num_real": len(texts) if real else 0,
        "judges": {"name": judge},
    }
    (folder / "bounds.json").write_text(json.dumps(bounds))
    records = [record(0, **evaluated(0.3)), record(1, **evaluated(0.5))]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in records))
    session = {
        "started": "2026-01-02T03:04:05+00:00",
        "command": "cxrl train --preset smoke",
        "version": "0.1.0",
        "commit": "abc123",
        "machine": {"processor": "a fast one", "cores": 2, "devices": []},
        "packages": {"torch": "2.0", "xformers": ""},
    }
    (folder / "provenance.json").write_text(json.dumps({"sessions": [session]}))
    samples = folder / "samples"
    samples.mkdir(exist_ok=True)
    for epoch in (1, 2):
        rows = {name: torch.rand(2, 1, size, size, generator=rng) for name in ("anchor", "policy")}
        save_grid(samples / f"epoch-{epoch:06d}.png", rows, ["a report", "another"])
    if not finished:
        return folder
    summary = {
        "anchor": side(0.2),
        "policy": side(0.5),
        "real": side(0.8) if real else None,
        "change": side(0.3),
        "gap": (dict.fromkeys(KEYS, 0.5) | {"ci": {key: [0.4, 0.6] for key in KEYS}}) if real else None,
        "seed": 4,
        "wall_seconds": 60.0,
        "num_images": len(texts),
        "judges": {
            "name": judge,
            "feature_dim": 8,
            "findings": list(FINDINGS),
            "real_films": bounds["real_films"],
        },
        "epochs": 2,
        "kept_epoch": 2,
        "stopped_early": "",
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    write_scores(folder / "scores.csv", texts)
    pictures = {
        name: torch.randint(0, 256, (len(texts), size, size), dtype=torch.uint8, generator=rng)
        for name in LEVEL
    }
    save_file({**pictures, "image": torch.arange(len(texts))}, folder / "gallery.safetensors")
    return folder
