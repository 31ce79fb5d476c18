"""``cxrl evaluate``: the summary of a run, drawn and judged again."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cxrl.command import hint, run_command

if TYPE_CHECKING:
    from cxrl.arguments import Parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    return run_command(_evaluate, argv)


def parser() -> Parser:
    """The options."""
    from cxrl.arguments import Parser, file_path, run_option, whole_number
    from cxrl.config import MAX_IMAGES

    parser = Parser("cxrl evaluate", "Judge a run again by models that gave no reward.")
    run_option(parser)
    parser.add_argument(
        "--num-images",
        metavar="N",
        type=whole_number(2, MAX_IMAGES),
        help=f"of each side, at most {MAX_IMAGES}; default as the run was judged",
    )
    parser.add_argument("--out", metavar="FILE", type=file_path, required=True, help="JSON, as summary.json")
    return parser


def _evaluate(argv: Sequence[str]) -> None:
    from cxrl.storage.writing import check_writable, write_json

    args = parser().parse(argv)
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


if __name__ == "__main__":
    sys.exit(main())
