"""Do the films of a trained policy teach a classifier more than those of its anchor? By ``cxrl evaluate``.

    python benchmarks/utility.py --run runs/phantom --work DIR    results/utility_phantom.json
    python benchmarks/utility.py --table                          as Markdown, from the committed file

800 films of policy and of anchor (400 reports, 2 images each), 800 phantom films to train on and 800 to test
on, 600 steps, three seeds: a quarter of an hour on two cores. What is done is kept in DIR and not done again.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from cxrl.data.phantom.films import corpus, phantom_prompts
from cxrl.evaluate import main as evaluate
from cxrl.findings import PHANTOM_FINDINGS
from cxrl.generate import main as generate
from cxrl.images.png import to_uint8

RESULT = Path(__file__).parent / "results" / "utility_phantom.json"
SEED, NUM_FILMS, NUM_REPORTS, NUM_STEPS = 900_002, 800, 400, 600


def write_films(folder: Path, seed: int) -> None:
    """Phantom films, and a table with their reports and labels."""
    folder.mkdir(parents=True)
    films = corpus(NUM_FILMS, seed=seed)
    with (folder / "t.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "text", *PHANTOM_FINDINGS])
        for n, image in enumerate(films.pixels()):
            Image.fromarray(to_uint8(image)).save(folder / f"{n:04}.png")
            table.writerow([f"{n:04}.png", films.texts[n], *map(int, films.labels[n].tolist())])


def write_reports(path: Path, seed: int) -> None:
    """Reports with what they name."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", *PHANTOM_FINDINGS])
        for prompt in phantom_prompts(NUM_REPORTS, seed=seed):
            table.writerow([prompt.text, *map(int, prompt.labels)])


def run(command: Callable[[list[str]], int], *words: object) -> None:
    """A command of cxrl. Raises SystemExit where it fails."""
    if status := command([*map(str, words)]):
        raise SystemExit(status)


def measure(run_dir: Path, work: Path) -> dict[str, Any]:
    """The content of the result."""
    for number, name in enumerate(("real", "train")):
        if not (work / name).exists():
            write_films(work / name, SEED + number)
    reports = work / "prompts.csv"
    if not reports.exists():
        write_reports(reports, SEED + 2)
    found: dict[str, Any] = {"command": "python benchmarks/utility.py --run runs/phantom --work DIR"}
    for source, flags in (("anchor", ["--anchor"]), ("policy", [])):
        films, out = work / source[:3], work / f"sc-{source[:3]}"
        if not films.exists():
            draw = ["--run", run_dir, "--prompts", reports, "--num-images", 2, "--out", films]
            run(generate, "--quiet", *draw, *flags)
        sets = ["--generated", films / f"{source}.csv", "--real", work / "real" / "t.csv"]
        sets += ["--train", work / "train" / "t.csv", "--utility", NUM_STEPS, "--cache", work / "cache"]
        run(evaluate, *sets, "--out", out)
        scores = json.loads((out / "scores.json").read_text())
        copies = {key: scores["memorisation"][key] for key in ("reidentified", "reidentified_ci")}
        found[source] = {"utility": scores["utility"], "memorisation": copies}
    return found


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| trained on | AUROC, anchor's films | AUROC, policy's films |", "|---|---|---|"]
    pairs = zip(*(result[source]["utility"]["arms"] for source in ("anchor", "policy")), strict=True)
    for arms in pairs:
        cells = [f"{arm['auroc']:.3f} [{arm['ci'][0]:.3f}, {arm['ci'][1]:.3f}]" for arm in arms]
        lines.append(f"| {arms[0]['arm']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path)
    parser.add_argument("--work", type=Path, default=Path("utility"))
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.run:
        RESULT.write_text(json.dumps(measure(args.run, args.work), indent=1) + "\n")
    print(table(json.loads(RESULT.read_text())))


if __name__ == "__main__":
    main()
