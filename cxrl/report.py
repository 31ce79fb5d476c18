"""``python -m cxrl.report``: one HTML page of a run, with its table, curves and grids."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cxrl.command import run_command

if TYPE_CHECKING:
    from cxrl.arguments import Parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    return run_command(_report, argv)


def parser() -> Parser:
    """The options."""
    from cxrl.arguments import Parser, file_path

    parser = Parser("cxrl report", "Write one self-contained HTML page of a run, finished or not.")
    parser.add_argument(
        "--run", metavar="DIR", type=file_path, required=True, help="run directory of cxrl.train"
    )
    parser.add_argument("--out", metavar="FILE", type=file_path, help="the page; default DIR-report.html")
    return parser


def _report(argv: Sequence[str]) -> None:
    from cxrl.storage.writing import check_writable, write_text

    args = parser().parse(argv)
    from cxrl.output.page import is_restricted, run_page

    out = args.out or args.run.resolve().parent / f"{args.run.resolve().name}-report.html"
    check_writable(out, "--out")
    page = run_page(args.run)
    write_text(out, page, private=is_restricted(args.run))
    print(out)


if __name__ == "__main__":
    sys.exit(main())
