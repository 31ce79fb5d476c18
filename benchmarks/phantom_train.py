"""What the main job shows: the default preset for several seeds, and the study that its defaults come from.

    python benchmarks/phantom_train.py --seeds 0 1 2      results/phantom_train.json, a list of summary.json
    python benchmarks/phantom_train.py --seeds 10 11 --out benchmarks/results/phantom_train_fresh.json
    python benchmarks/phantom_train.py --study            results/phantom_study.json, one row a variant
    python benchmarks/phantom_train.py --table            as Markdown, from the committed files

Each run is ``python -m cxrl.train`` in a process of its own, one after the other.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
TRAIN, STUDY = RESULTS / "phantom_train.json", RESULTS / "phantom_study.json"
FRESH, EARLIER = RESULTS / "phantom_train_fresh.json", RESULTS / "phantom_study_earlier_base.json"
METRICS = ("posture", "auroc", "consistency", "fid", "ms_ssim", "diversity", "pose_sd")
SHORT = ["--train.num-epochs", "12", "--train.eval-every", "0"]
VARIANTS: dict[str, list[str]] = {
    "default": [],
    "difference, batch mean": ["--comparison.form", "difference", "--comparison.center", "batch"],
    "direct (no comparison)": ["--comparison.form", "direct"],
    "win": ["--comparison.form", "win"],
    "without ACE": ["--policy.num-ace-tokens", "0"],
    "KL to the anchor": ["--optim.kl-weight", "0.1"],
    "smaller steps": ["--optim.lora-learning-rate", "2e-3", "--optim.ace-learning-rate", "7e-3"],
    "16 prompts, 6 samples each": ["--train.prompts-per-epoch", "16", "--train.samples-per-prompt", "6"],
    "12 prompts, 8 samples each, 24 epochs": [
        "--train.num-epochs",
        "24",
        "--train.eval-every",
        "8",
        "--train.prompts-per-epoch",
        "12",
        "--train.samples-per-prompt",
        "8",
    ],
    "one anchor image a sample": ["--comparison.anchor", "one_to_one"],
}
"""Name → arguments over the default preset and a shorter run."""


def train(arguments: list[str], folder: Path) -> dict[str, Any]:
    """One run; its summary.json."""
    command = [sys.executable, "-m", "cxrl.train", "--run-dir", str(folder), *arguments]
    subprocess.run(command, check=True)
    return json.loads((folder / "summary.json").read_text())


def relative(summary: dict[str, Any]) -> dict[str, float]:
    """What the targets are stated in: misalignment, diversity and Fréchet distance relative to the
    anchor's.
    """
    anchor, policy = summary["anchor"], summary["policy"]
    return {
        "misalignment": policy["posture"] / anchor["posture"] - 1,
        "auroc": policy["auroc"] - anchor["auroc"],
        "consistency": policy["consistency"] - anchor["consistency"],
        "fid": policy["fid"] / anchor["fid"] - 1,
        "diversity": policy["diversity"] / anchor["diversity"],
    }


def frechet_by_half(folder: Path) -> dict[str, dict[str, float]]:
    """Fréchet distance in the classifier's and the posture regressor's features apart, anchor and policy."""
    from cxrl.data.sources import load_prompts
    from cxrl.evaluation.judges import load_judges
    from cxrl.metrics.distribution import frechet_distance
    from cxrl.rl.engine import Engine
    from cxrl.rl.evaluation import Evaluator
    from cxrl.rl.reopen import open_run
    from cxrl.rl.rollout import Sampler

    engine, judges = Engine(folder), load_judges()
    config, policy = open_run(folder, engine)
    prompts = load_prompts(config, policy.base, "eval").prompts
    evaluator = Evaluator(Sampler(policy, config.sampler), prompts, judges, config, engine)
    result: dict[str, dict[str, float]] = {}
    for side in ("anchor", "policy"):
        features = judges.features(evaluator.draw(anchor=side == "anchor")).chunk(2, 1)
        halves = zip(("classifier", "posture"), features, judges.reference.chunk(2, 1), strict=True)
        result[side] = {name: frechet_distance(x, reference) for name, x, reference in halves}
    return result


def judging_share(folder: Path) -> float:
    """Of the time of a run: what rollout, anchor bank, rewards and update did not take."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    training = sum(s for r in records for name, s in r["seconds"].items() if name != "judging")
    return 1 - training / json.loads((folder / "summary.json").read_text())["wall_seconds"]


def gap_table(summaries: list[dict[str, Any]]) -> str:
    """Markdown: the share of the way from the anchor to real films that the policy went."""
    lines = ["| seed | " + " | ".join(METRICS) + " |", "|---" * (len(METRICS) + 1) + "|"]
    for s in summaries:
        lines.append(f"| {s['seed']} | " + " | ".join(f"{s['gap'][m]:.0%}" for m in METRICS) + " |")
    for s in summaries:
        cells = " | ".join(f"{s['real'][m]:.3f}" for m in METRICS)
        lines.append(f"| real films, {s['seed']} | {cells} |")
    return "\n".join(lines)


def train_table(summaries: list[dict[str, Any]]) -> str:
    """Markdown: anchor → policy for every seed and metric."""
    columns = [*METRICS, "fid classifier", "fid posture", "seconds"]
    lines = ["| seed | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for s in summaries:
        cells = [f"{s['anchor'][m]:.3f} → {s['policy'][m]:.3f}" for m in METRICS]
        half = s["fid_by_half"]
        cells += [f"{half['anchor'][h]:.1f} → {half['policy'][h]:.1f}" for h in ("classifier", "posture")]
        lines.append(f"| {s['seed']} | " + " | ".join(cells) + f" | {s['wall_seconds']:.0f} |")
    return "\n".join(lines)


def study_table(rows: list[dict[str, Any]]) -> str:
    """Markdown: every variant relative to its anchor."""
    lines = ["| variant | misalignment | AUROC | consistency | FID | diversity |", "|---" * 6 + "|"]
    for row in rows:
        r = row["relative"]
        lines.append(
            f"| {row['variant']} | {r['misalignment']:+.1%} | {r['auroc']:+.3f} | {r['consistency']:+.3f} "
            f"| {r['fid']:+.1%} | {r['diversity']:.1%} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[])
    parser.add_argument("--out", type=Path, default=TRAIN, help="where the summaries of --seeds go")
    parser.add_argument("--study", nargs="*", metavar="VARIANT", help="all variants, or the named ones")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--runs", type=Path, help="keep the run directories here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        runs = args.runs or Path(scratch)
        if args.seeds:
            summaries = []
            for seed in args.seeds:
                folder = runs / f"seed-{seed}"
                summary = train(["--seed", str(seed), "--overwrite"], folder)
                measured = {"fid_by_half": frechet_by_half(folder), "judging_share": judging_share(folder)}
                summaries.append(summary | measured)
            args.out.write_text(json.dumps(summaries, indent=1) + "\n")
        if args.study is not None:
            rows = json.loads(STUDY.read_text()) if STUDY.exists() else []
            for name in args.study or VARIANTS:
                arguments = [*SHORT, *VARIANTS[name]]
                summary = train([*arguments, "--overwrite"], runs / name.replace(" ", "-"))
                row = {"variant": name, "arguments": arguments, "relative": relative(summary)}
                row |= {k: summary[k] for k in ("anchor", "policy", "seed", "wall_seconds")}
                rows = [*(r for r in rows if r["variant"] != name), row]
                STUDY.write_text(json.dumps(rows, indent=1) + "\n")
    if args.table:
        for path in filter(Path.exists, (TRAIN, FRESH)):
            summaries = json.loads(path.read_text())
            rows = [{"variant": f"seed {s['seed']}", "relative": relative(s)} for s in summaries]
            print(f"{path.name}\n\n{train_table(summaries)}\n\n{study_table(rows)}\n")
            print(f"{gap_table(summaries)}\n")
        for path in filter(Path.exists, (STUDY, EARLIER)):
            print(f"{path.name}\n\n{study_table(json.loads(path.read_text()))}\n")


if __name__ == "__main__":
    main()
