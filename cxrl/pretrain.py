"""``cxrl pretrain``: the embedded default from nothing, a posture regressor from films, or a
pipeline fine-tuned on a table of images and texts.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cxrl.command import hint, run_command
from cxrl.errors import CxrlError, unknown_name

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from cxrl.arguments import Parser

OPTIONS: dict[str, tuple[str, ...]] = {
    "phantom": (),
    "smoke": (),
    "posture": ("data", "steps"),
    "fine-tuning": ("base", "table", "steps", "batch_size", "learning_rate"),
}
"""What is done, a preset but for the last → its own options; ``--out``, ``--work-dir`` and ``--seed`` go with
all."""
PRESETS = tuple(OPTIONS)[:-1]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    return run_command(_pretrain, argv)


def parser() -> Parser:
    """The options."""
    from cxrl.arguments import Parser, file_path, real_number, whole_number
    from cxrl.config import MAX_IMAGES, MAX_SEED

    parser = Parser(
        "cxrl pretrain",
        "Train the embedded default or a posture regressor, or fine-tune a pipeline on a table.",
    )
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help="phantom: everything that ships (hours on two cores); smoke: every part, a minute, no quality; "
        "posture: the posture reward from films of your own",
    )
    parser.add_argument(
        "--out", metavar="PATH", type=file_path, required=True, help="the result: a folder; posture: a file"
    )
    parser.add_argument(
        "--work-dir",
        metavar="DIR",
        type=file_path,
        help="checkpoints; the same folder continues a killed run; default OUT.work",
    )
    parser.add_argument("--seed", metavar="S", type=whole_number(0, MAX_SEED), default=0, help="default 0")
    parser.add_argument(
        "--steps",
        metavar="N",
        type=whole_number(1, 10_000_000),
        help="default: fine-tuning 1000, posture 1200",
    )
    posture = parser.add_argument_group("--preset posture")
    posture.add_argument(
        "--data",
        metavar="PATH",
        type=file_path,
        help="a folder of frontal films, or a table with the column image (and patient, view)",
    )
    table = parser.add_argument_group("fine-tuning")
    table.add_argument("--base", metavar="DIR", help="a StableDiffusionPipeline folder or hub id")
    table.add_argument(
        "--table",
        metavar="FILE",
        type=file_path,
        help="table with columns image and text: .csv, .tsv, .jsonl, .parquet",
    )
    table.add_argument("--batch-size", metavar="N", type=whole_number(1, MAX_IMAGES), help="default 8")
    table.add_argument(
        "--learning-rate", metavar="X", type=real_number(0.0, 1.0), help="above 0, at most 1; default 1e-5"
    )
    return parser


def _pretrain(argv: Sequence[str]) -> None:
    args = parser().parse(argv)
    _check(args)
    from cxrl.storage.writing import check_folder_writable, check_writable

    work_dir = args.work_dir or args.out.with_name(args.out.name + ".work")
    (check_writable if args.preset == "posture" else check_folder_writable)(args.out, "--out")
    check_folder_writable(work_dir, "--work-dir" if args.work_dir else "--out")
    try:
        _train(args, work_dir)
    except KeyboardInterrupt as stop:
        if work_dir.is_dir():
            stop.args = (f"the same command goes on from {work_dir}",)
        raise


def _train(args: argparse.Namespace, work_dir: Path) -> None:
    if args.preset is None:
        from cxrl.pretraining.finetune import finetune

        finetune(
            args.base,
            args.table,
            args.out,
            work_dir,
            num_steps=args.steps or 1000,
            batch_size=args.batch_size or 8,
            learning_rate=1e-5 if args.learning_rate is None else args.learning_rate,
            seed=args.seed,
        )
        hint(
            "cxrl",
            "train",
            "--model.path",
            str(args.out),
            "--data.source",
            "table",
            "--data.root",
            str(args.table),
        )
        return
    if args.preset == "posture":
        from cxrl.pretraining.posture import NUM_STEPS, pretrain_posture

        table = pretrain_posture(
            args.data, args.out, work_dir, num_steps=args.steps or NUM_STEPS, seed=args.seed
        )
    else:
        from cxrl.pretraining.phantom import SMOKE, PhantomPlan, pretrain_phantom

        plan = dataclasses.replace(PhantomPlan() if args.preset == "phantom" else SMOKE, seed=args.seed)
        table = pretrain_phantom(plan, args.out, work_dir)
    print(json.dumps(table, indent=1))
    if args.preset == "posture":
        hint(
            "cxrl", "train", "--preset", "mimic", "--rewards.posture", str(args.out), "--data.root", "FOLDER"
        )
    else:
        paths = {"model.path": "pipeline", "rewards.path": "rewards", "eval.judges": "judges"}
        hint("cxrl", "train", *(w for n, f in paths.items() for w in (f"--{n}", str(args.out / f))))


def _check(args: argparse.Namespace) -> None:
    """Raises CxrlError where options do not go together."""
    if args.preset is not None and args.preset not in PRESETS:
        raise unknown_name("preset", args.preset, PRESETS)
    if (args.preset is None) == (args.table is None):
        raise CxrlError("give either --preset or --base with --table (fine-tuning)")
    chosen = args.preset or "fine-tuning"
    for name in dict.fromkeys(name for names in OPTIONS.values() for name in names):
        if getattr(args, name) is not None and name not in OPTIONS[chosen]:
            owners = " or ".join(owner for owner, names in OPTIONS.items() if name in names)
            own = f"--preset {chosen}" if args.preset else "--table"
            raise CxrlError(f"--{name.replace('_', '-')} goes with {owners}, not with {own}; leave one out")
    if args.preset is None and args.base is None:
        raise CxrlError("--table needs --base, the pipeline that is fine-tuned ('phantom' ships)")
    if args.preset == "posture" and args.data is None:
        raise CxrlError("--preset posture needs --data, a folder or a table of frontal films")
    if args.preset == "posture" and (args.out.suffix != ".safetensors" or args.out.is_dir()):
        raise CxrlError(f"--out: {args.out} is no file named *.safetensors, which --preset posture writes")


if __name__ == "__main__":
    sys.exit(main())
