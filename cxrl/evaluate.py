"""``cxrl evaluate``: a run judged again, or any generated films judged against real ones."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cxrl.command import hint, run_command, say
from cxrl.errors import CxrlError

if TYPE_CHECKING:
    from argparse import Namespace

    from cxrl.arguments import Parser

BOOTSTRAP = 200
IMAGE_SIZE = 64
UTILITY_STEPS = 1000
_OF_RUN = ("run", "num_images")
_OF_SETS = (
    *("generated", "real", "train", "utility", "per", "subgroups"),
    *("judges", "posture", "diagnosis", "consistency", "sha256", "features"),
    *("image_size", "bootstrap", "seed", "cache"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    return run_command(_evaluate, argv)


def parser() -> Parser:
    """The options."""
    from cxrl.arguments import Parser, file_path, whole_number
    from cxrl.config import MAX_IMAGES

    parser = Parser(
        "cxrl evaluate", "Judge a run again, or any films against real ones, by models that gave no reward."
    )
    parser.usage = (
        "cxrl evaluate --run DIR [--num-images N] --out FILE\n"
        "       cxrl evaluate --generated FILMS --real FILMS [option ...] --out FOLDER"
    )
    parser.add_argument("--out", metavar="PATH", type=file_path, required=True,
        help="of a run: JSON, as summary.json; of films: a folder for scores.json, scores.md, scores.csv",
    )  # fmt: skip
    run = parser.add_argument_group("a run")
    run.add_argument("--run", metavar="DIR", type=file_path, help="a run of cxrl train")
    run.add_argument(
        "--num-images",
        metavar="N",
        type=whole_number(2, MAX_IMAGES),
        help=f"of each side, at most {MAX_IMAGES}; default as the run was judged",
    )
    sets = parser.add_argument_group("films: a folder, or a table with the column image (docs/evaluation.md)")
    sets.add_argument("--generated", metavar="FILMS", type=file_path, help="what is judged")
    sets.add_argument("--real", metavar="FILMS", type=file_path, help="what it is compared with")
    sets.add_argument(
        "--train",
        metavar="FILMS",
        type=file_path,
        help="what the generator was trained on: are there copies?",
    )
    sets.add_argument("--utility", metavar="STEPS", type=whole_number(1, 1_000_000), nargs="?",
        const=UTILITY_STEPS,
        help="train classifiers on --generated and on --train, test them on --real; "
        f"default {UTILITY_STEPS} steps",
    )  # fmt: skip
    sets.add_argument("--per", choices=("finding",), help="finding: all numbers for the films of each, too")
    sets.add_argument("--subgroups", metavar="A,B", type=_names, help="all numbers for each value of columns")
    sets.add_argument("--judges", metavar="DIR", help="models of cxrl pretrain; default those of the phantom")
    for task in ("posture", "diagnosis", "consistency"):
        sets.add_argument(f"--{task}", metavar="MODEL", help=f"another judge, as eval.{task}")
    sets.add_argument(
        "--sha256", metavar="TASK=HEX", type=_names, help="digests of judges and feature models"
    )
    sets.add_argument("--features", metavar="NAME[=PATH],…", type=_names,
        help="where distances are measured: judge (default), densenet=FILE, rad-dino=FOLDER, inception=FILE",
    )  # fmt: skip
    sets.add_argument("--image-size", metavar="PX", type=whole_number(16, 4096),
        help=f"a side that all films are brought to; default {IMAGE_SIZE}",
    )  # fmt: skip
    sets.add_argument("--bootstrap", metavar="N", type=whole_number(0, 10_000),
        help=f"resamples of prompts for 95 %% intervals; default {BOOTSTRAP}",
    )  # fmt: skip
    sets.add_argument("--seed", metavar="N", type=whole_number(0, 2**31 - 1), help="default 0")
    sets.add_argument("--cache", metavar="DIR", type=file_path,
        help="what is kept of a pass over the films, so that it can go on; default FOLDER/scan",
    )  # fmt: skip
    return parser


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) != len(names):
        raise CxrlError(f"{text!r} is no list of different names, as a,b")
    return names


def _evaluate(argv: Sequence[str]) -> None:
    args = parser().parse(argv)
    given = [[n for n in names if getattr(args, n) is not None] for names in (_OF_RUN, _OF_SETS)]
    if all(given):
        run, films = (f"--{names[0].replace('_', '-')}" for names in given)
        raise CxrlError(f"{run} and {films} do not go together: judge a run, or films; leave one out")
    if given[1]:
        for name in ("generated", "real"):
            if getattr(args, name) is None:
                raise CxrlError(f"--{name} is missing: films are judged with --generated FILMS --real FILMS")
        return _evaluate_sets(args)
    if args.run is None:
        raise CxrlError(
            "expected --run DIR, or --generated FILMS and --real FILMS (see cxrl evaluate --help)"
        )
    return _evaluate_run(args)


def _evaluate_run(args: Namespace) -> None:
    from cxrl.storage.writing import check_writable, write_json

    check_writable(args.out, "--out")
    from cxrl.output.run_data import is_restricted
    from cxrl.output.terminal import TerminalProgress, summary_table

    progress = TerminalProgress(0)
    try:
        with progress.stage("loading", 0):
            from cxrl.rl.reopen import evaluate_run
        summary = evaluate_run(args.run, num_images=args.num_images, progress=progress)
    finally:
        progress.close()
    write_json(args.out, summary, private=is_restricted(args.run))
    print(summary_table(summary))
    hint("cxrl", "report", str(args.run))


def _evaluate_sets(args: Namespace) -> None:
    from cxrl.storage.writing import check_folder_writable, write_json, write_text

    cache = args.cache or args.out / "scan"
    check_folder_writable(args.out, "--out")
    check_folder_writable(cache, "--cache")
    from cxrl.image_sets.sets import open_set

    subgroups = args.subgroups or ()
    generated = open_set(args.generated, "--generated", subgroups)
    real = open_set(args.real, "--real", subgroups)
    train = open_set(args.train, "--train") if args.train else None
    if args.utility:
        if train is None:
            raise CxrlError("--utility: --train is missing, the real films that a classifier learns from")
        for films, option in ((generated, "--generated"), (real, "--real"), (train, "--train")):
            if not films.labels:
                raise CxrlError(f"--utility: {option} {films.name} has no column of a finding")
    if args.per:
        for films, option in ((generated, "--generated"), (real, "--real")):
            if not films.labels:
                raise CxrlError(f"--per finding: {option} {films.name} has no column of a finding")
    from cxrl.output.terminal import TerminalProgress

    progress = TerminalProgress(0)
    try:
        with progress.stage("loading", 0):
            from cxrl.image_sets.judge import judge_sets, open_panel
            from cxrl.image_sets.memorised import MOST
            from cxrl.image_sets.utility import ARMS, NUM_SEEDS
            from cxrl.shipped import PHANTOM

            chosen = {task: getattr(args, task) for task in ("posture", "diagnosis", "consistency")}
            panel = open_panel(
                args.judges or PHANTOM,
                {t: v for t, v in chosen.items() if v is not None},
                args.sha256 or (),
                args.features or ("judge",),
            )
        count = len(generated) + len(real)
        count += len(train) + sum(min(MOST, len(side)) for side in (generated, real)) if train else 0
        count += (args.utility or 0) * len(ARMS) * NUM_SEEDS
        with progress.stage("judging", count):
            scores = judge_sets(
                generated,
                real,
                panel,
                cache=cache,
                image_size=IMAGE_SIZE if args.image_size is None else args.image_size,
                seed=args.seed or 0,
                bootstrap=BOOTSTRAP if args.bootstrap is None else args.bootstrap,
                per_finding=args.per is not None,
                subgroups=subgroups,
                train=train,
                pairs=args.out / "pairs.png",
                scanned=progress.advance,
                utility_steps=args.utility or 0,
                searched=progress.advance,
                trained=progress.advance,
            )
    finally:
        progress.close()
    from cxrl.image_sets.tell import scores_csv, scores_markdown, scores_text

    # Names of files, and pictures of films, are those of patients where the films are restricted, which
    # nothing here can know.
    write_json(args.out / "scores.json", scores, private=True)
    write_text(args.out / "scores.md", scores_markdown(scores), private=True)
    write_text(args.out / "scores.csv", scores_csv(scores), private=True)
    for warning in scores["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    print(scores_text(scores))
    say(f"{args.out / 'scores.md'}, scores.csv, scores.json{', pairs.png' if train else ''}")


if __name__ == "__main__":
    sys.exit(main())
