"""``python -m cxrl.evaluate``: the summary of a run, drawn and judged again."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cxrl.command import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    return run_command(_evaluate, argv)


def _evaluate(argv: Sequence[str]) -> None:
    from cxrl.cli import Parser, file_path, whole_number
    from cxrl.config import MAX_IMAGES
    from cxrl.storage.writing import check_writable, write_json

    parser = Parser("cxrl.evaluate", "Judge a run again by models that gave no reward.")
    parser.add_argument(
        "--run", metavar="DIR", type=file_path, required=True, help="run directory of cxrl.train"
    )
    parser.add_argument(
        "--num-images",
        metavar="N",
        type=whole_number(2, MAX_IMAGES),
        help=f"of each side, at most {MAX_IMAGES}; default as the run was judged",
    )
    parser.add_argument("--out", metavar="FILE", type=file_path, required=True, help="JSON, as summary.json")
    args = parser.parse(argv)
    from cxrl.output.terminal import summary_table
    from cxrl.rl.reopen import evaluate_run

    check_writable(args.out, "--out")
    summary = evaluate_run(args.run, num_images=args.num_images)
    write_json(args.out, summary)
    print(summary_table(summary))


if __name__ == "__main__":
    sys.exit(main())
