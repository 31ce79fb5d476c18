"""What each number sees: generators with a known fault, made of phantom films, and the numbers that see it.

    python benchmarks/what_numbers_see.py            results/what_numbers_see.json, a row a generator
    python benchmarks/what_numbers_see.py --table    as Markdown, from the committed file

Every generator gives 4 films of each of 128 reports. Real films of the same reports are the row that a number
must leave to *catch* a fault: the judges' with the 95 % interval of a bootstrap over reports and beyond eight
draws of real films, those of sets beyond twice the range of these draws. Judges and features are those that
ship. *Re-identified* is the share of films that match one of 2,000 training films better than 99 % of 1,000
held-out films do; ``planted`` says how well copies of training films are told from 1,980 films that are none.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cxrl.data.phantom.films import Films, corpus, distinct_reports
from cxrl.data.prompts import PromptBatch, ReportPrompt
from cxrl.evaluation.judges import Judges, load_judges
from cxrl.evaluation.summary import evaluate_images
from cxrl.findings import PHANTOM_FINDINGS
from cxrl.metrics.classification import auroc
from cxrl.metrics.copies import nearest_copies
from cxrl.metrics.distribution import kernel_distance
from cxrl.metrics.names import KEYS
from cxrl.metrics.prdc import prdc

RESULT = Path(__file__).parent / "results" / "what_numbers_see.json"
NUM_REPORTS, EACH, SEED, NUM_DRAWS = 128, 4, 51_000, 8
NUM_TRAINING, NUM_HELD_OUT, NUM_OTHERS, NUM_PLANTED = 2000, 1000, 1980, 20
TRAINING = 900
"""Added to the seed for the films that copies are of."""
SETS = ("kid", "precision", "recall", "density", "coverage", "reidentified")


def reports(num: int) -> tuple[list[ReportPrompt], list[Any]]:
    """Reports and what each names."""
    prompts, findings = zip(*distinct_reports(num, SEED, "eval"), strict=True)
    return [ReportPrompt(p.prompt_id, p.text, p.labels, PHANTOM_FINDINGS) for p in prompts], list(findings)


def films_of(findings: Sequence[Any], seed: int, **how: Any) -> Films:
    """``EACH`` films of every report."""
    shown = [f for f in findings for _ in range(EACH)]
    return corpus(len(shown), seed=seed, findings=shown, **how)


def generators(findings: Sequence[Any]) -> dict[str, Callable[[], Tensor]]:
    """Name → films float32 [N, 1, 64, 64], side by side by report."""

    def fresh(seed: int = 1, **how: Any) -> Tensor:
        return films_of(findings, SEED + seed, **how).pixels()

    def noise(images: Tensor, sd: float, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return (images + sd * torch.randn(images.shape, generator=generator)).clamp(0, 1)

    def blurred() -> Tensor:
        small = torch.nn.functional.avg_pool2d(fresh(), 3, 1, 1, count_include_pad=False)
        return torch.nn.functional.avg_pool2d(small, 3, 1, 1, count_include_pad=False)

    def collapsed() -> Tensor:
        few = fresh()[torch.arange(16) * (len(findings) * EACH // 16)]
        return noise(few.repeat_interleave(len(findings) * EACH // 16, 0), 0.01)

    def alike() -> Tensor:
        return noise(fresh()[::EACH].repeat_interleave(EACH, 0), 0.01)

    def mislabelled() -> Tensor:
        order = torch.randperm(len(findings), generator=torch.Generator().manual_seed(0))
        return fresh().unflatten(0, (-1, EACH))[order].flatten(0, 1)

    return {
        "real films": fresh,
        "one pose in all": lambda: fresh(pose_scale=0.1),
        "wide poses": lambda: fresh(pose_scale=2.0),
        "a few films for all reports": collapsed,
        "one film a report": alike,
        "films of other reports": mislabelled,
        "blurred": blurred,
        "noisy": lambda: noise(fresh(), 0.15),
        "training films again": lambda: noise(fresh(TRAINING), 0.02),
        "half of them black": lambda: fresh() * (torch.arange(len(findings) * EACH) % 2)[:, None, None, None],
    }


class Copies:
    """Looks for copies of training films, which are of the same reports and others."""

    def __init__(self, findings: Sequence[Any], num_training: int, num_held_out: int) -> None:
        same = films_of(findings, SEED + TRAINING).pixels()
        other = corpus(max(0, num_training - len(same)), seed=SEED + TRAINING + 1).pixels()
        self.training = torch.cat([same, other])[:num_training]
        self.held_out = self.match(corpus(num_held_out, seed=SEED + TRAINING + 2).pixels())
        self.threshold = torch.quantile(self.held_out, 0.99)

    def match(self, films: Tensor) -> Tensor:
        """float32 [N]."""
        return nearest_copies(films, lambda rows: self.training[rows], len(self.training))[0]

    def reidentified(self, films: Tensor) -> float:
        """Share of films."""
        return float((self.match(films) > self.threshold).float().mean())


def planted(copies: Copies, num_others: int, num_planted: int) -> dict[str, Any]:
    """Kind of copy → AUROC against films that are none, and the shares that are re-identified."""
    generator = torch.Generator().manual_seed(0)
    some = torch.randperm(len(copies.training), generator=generator)[:num_planted]
    films = copies.training[some]

    def cut(films: Tensor) -> Tensor:
        parts = []
        for film in films:
            side = int(torch.randint(48, 62, (), generator=generator))
            row, column = torch.randint(0, 65 - side, (2,), generator=generator).tolist()
            part = film[None, :, row : row + side, column : column + side]
            parts.append(torch.nn.functional.interpolate(part, (64, 64), mode="bilinear", antialias=True))
        return torch.cat(parts)

    def noised(films: Tensor) -> Tensor:
        return (films + 0.1 * torch.randn(films.shape, generator=generator)).clamp(0, 1)

    kinds = {
        "exact": films,
        "flipped": films.flip(-1),
        "noised": noised(films),
        "cropped": cut(films),
        "cropped, flipped and noised": noised(cut(films.flip(-1))),
    }
    others = copies.match(corpus(num_others, seed=SEED + TRAINING + 3).pixels())
    found: dict[str, Any] = {"others_reidentified": float((others > copies.threshold).float().mean())}
    for name, shown in kinds.items():
        match = copies.match(shown)
        is_copy = torch.cat([torch.ones(len(match)), torch.zeros(len(others))])
        found[name] = {
            "auroc": auroc(torch.cat([match, others]), is_copy),
            "reidentified": float((match > copies.threshold).float().mean()),
        }
    return found


def shares(features: Tensor, reference: Tensor) -> dict[str, float]:
    """KID and PRDC."""
    kid, _ = kernel_distance(features, reference, subset_size=200, num_subsets=50)
    found = prdc(reference[: len(features)], features)
    return {"kid": kid, **{name: getattr(found, name) for name in SETS[1:-1]}}


def row(images: Tensor, batch: PromptBatch, judges: Judges, copies: Copies, bootstrap: int) -> dict[str, Any]:
    """All numbers of a generator."""
    assert judges.reference is not None
    found = evaluate_images(images, batch, judges, seed=0, bootstrap=bootstrap).to_dict()
    features = torch.cat([judges.features(part) for part in images.split(64)])
    return {
        **{key: found[key] for key in KEYS},
        "ci": found["ci"],
        **shares(features, judges.reference),
        "reidentified": copies.reidentified(images),
    }


def measure(
    num_reports: int = NUM_REPORTS,
    num_draws: int = NUM_DRAWS,
    bootstrap: int = 500,
    only: Sequence[str] = (),
    num_training: int = NUM_TRAINING,
    num_held_out: int = NUM_HELD_OUT,
    num_others: int = NUM_OTHERS,
    num_planted: int = NUM_PLANTED,
) -> dict[str, Any]:
    """The content of the result, of all generators or some."""
    judges = load_judges()
    prompts, findings = reports(num_reports)
    batch = PromptBatch(tuple(prompts), torch.arange(num_reports).repeat_interleave(EACH))
    made = {name: make for name, make in generators(findings).items() if not only or name in only}
    copies = Copies(findings, num_training, num_held_out)
    rows = {name: row(make(), batch, judges, copies, bootstrap) for name, make in made.items()}
    draws = [
        row(films_of(findings, SEED + 100 + n).pixels(), batch, judges, copies, 0) for n in range(num_draws)
    ]
    spread = {
        key: [min(draw[key] for draw in draws), max(draw[key] for draw in draws)] for key in (*KEYS, *SETS)
    }
    caught = {
        name: [key for key in (*KEYS, *SETS) if differs(key, numbers, rows["real films"], spread[key])]
        for name, numbers in rows.items()
    }
    return {
        "command": "python benchmarks/what_numbers_see.py",
        "num_images": len(batch),
        "rows": rows,
        "real_draws": spread,
        "caught_by": caught,
        "planted": planted(copies, num_others, num_planted),
    }


def differs(key: str, numbers: Any, real: Any, draws: Sequence[float]) -> bool:
    """Whether a number leaves what real films have: their interval, and all of several draws of them."""
    low, high = draws
    if not low <= numbers[key] <= high and key not in KEYS:
        margin = high - low
        return not low - margin <= numbers[key] <= high + margin
    if key not in KEYS:
        return False
    own, others = numbers["ci"][key], real["ci"][key]
    apart = own[0] > others[1] or own[1] < others[0]
    return bool(apart and not low <= numbers[key] <= high)


def table(result: dict[str, Any]) -> str:
    """Markdown; bold is what catches a fault."""
    columns = (*KEYS, *SETS)
    lines = [f"| generator | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, numbers in result["rows"].items():
        cells = []
        for key in columns:
            text = f"{numbers[key]:.3f}" if abs(numbers[key]) < 10 else f"{numbers[key]:.0f}"
            cells.append(f"**{text}**" if key in result["caught_by"][name] else text)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if not args.table:
        RESULT.write_text(json.dumps(measure(), indent=1) + "\n")
    print(table(json.loads(RESULT.read_text())))


if __name__ == "__main__":
    main()
