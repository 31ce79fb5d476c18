"""``python -m cxrl.pretrain``: the embedded default from nothing, or a pipeline fine-tuned on a table of
images and texts.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cxrl.cli import Parser, at_least, run_command
from cxrl.errors import CxrlError, unknown_name

PRESETS = ("phantom", "smoke")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    return run_command(_pretrain, argv)


def _parser() -> Parser:
    parser = Parser("cxrl.pretrain", "Train the embedded default, or fine-tune a pipeline on a table.")
    phantom = parser.add_argument_group("the embedded default")
    phantom.add_argument(
        "--preset",
        metavar="NAME",
        help="phantom: everything that ships (hours on two cores); smoke: every part, a minute, no quality",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="where the result goes")
    parser.add_argument(
        "--work-dir",
        metavar="DIR",
        type=Path,
        help="checkpoints; the same folder continues a killed run; default OUT.work",
    )
    parser.add_argument("--seed", metavar="S", type=at_least(0), default=0, help="default 0")
    table = parser.add_argument_group("fine-tuning")
    table.add_argument("--base", metavar="DIR", help="a StableDiffusionPipeline folder or hub id")
    table.add_argument(
        "--table", metavar="FILE", type=Path, help="CSV or Parquet with columns image and text"
    )
    table.add_argument("--steps", metavar="N", type=at_least(1), default=1000, help="default 1000")
    table.add_argument("--batch-size", metavar="N", type=at_least(1), default=8, help="default 8")
    table.add_argument("--learning-rate", metavar="X", type=float, default=1e-5, help="default 1e-5")
    return parser


def _pretrain(argv: Sequence[str]) -> None:
    args = _parser().parse(argv)
    if (args.preset is None) == (args.table is None):
        raise CxrlError("give either --preset (the embedded default) or --base with --table (fine-tuning)")
    work_dir = args.work_dir or args.out.with_name(args.out.name + ".work")
    if args.table is not None:
        if args.base is None:
            raise CxrlError("--table needs --base, the pipeline that is fine-tuned ('phantom' ships)")
        from cxrl.pretraining.finetune import finetune

        finetune(
            args.base,
            args.table,
            args.out,
            work_dir,
            num_steps=args.steps,
            batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            seed=args.seed,
        )
        return
    if args.preset not in PRESETS:
        raise unknown_name("preset", args.preset, PRESETS)
    import json

    from cxrl.pretraining.phantom import SMOKE, PhantomPlan, pretrain_phantom

    plan = PhantomPlan(seed=args.seed) if args.preset == "phantom" else SMOKE
    table = pretrain_phantom(plan, args.out, work_dir)
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    sys.exit(main())
