"""``cxrl report``: one HTML page of a run or several: judges, curves, gallery, training, provenance."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cxrl.command import hint, run_command
from cxrl.errors import CxrlError

if TYPE_CHECKING:
    from cxrl.arguments import Parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    return run_command(_report, argv)


def parser() -> Parser:
    """The options."""
    from cxrl.arguments import Parser, file_path

    parser = Parser("cxrl report", "Write one self-contained HTML page of runs, finished or not.")
    parser.add_argument("runs", metavar="RUN", type=file_path, nargs="*", help="runs of cxrl train")
    parser.add_argument("--run", metavar="DIR", type=file_path, help="another way to name one")
    parser.add_argument(
        "--out", metavar="FILE", type=file_path, help="the page; default RUN-report.html, or cxrl-report.html"
    )
    return parser


def _report(argv: Sequence[str]) -> None:
    from cxrl.storage.writing import check_writable, write_text

    args = parser().parse(argv)
    runs: list[Path] = [*args.runs, *([] if args.run is None else [args.run])]
    if not runs:
        raise CxrlError("which run? cxrl report runs/phantom (see cxrl report --help)")
    first = runs[0].resolve()
    alone = first.parent / f"{first.name}-report.html"
    out = args.out or (alone if len(runs) == 1 else Path("cxrl-report.html"))
    check_writable(out, "--out")
    from cxrl.output.page import check_runs, runs_page
    from cxrl.output.run_data import is_restricted

    check_runs(runs)
    write_text(out, runs_page(runs), private=any(is_restricted(run) for run in runs))
    print(out)
    hint(
        "cxrl",
        "generate",
        "--run",
        str(runs[0]),
        "--prompt",
        "Small left pleural effusion.",
        "--out",
        "images",
    )


if __name__ == "__main__":
    sys.exit(main())
