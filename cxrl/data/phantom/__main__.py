"""``cxrl phantom --out sheet.png``: every finding, and random films of both corpora."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cxrl.command import hint, run_command

if TYPE_CHECKING:
    from cxrl.arguments import Parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    return run_command(_sheet, argv)


def parser() -> Parser:
    """The options."""
    from cxrl.arguments import Parser, file_path, whole_number
    from cxrl.config import MAX_SEED

    parser = Parser("cxrl phantom", "Draw every finding of the phantom, and random films.")
    parser.add_argument("--out", metavar="FILE", type=file_path, required=True, help="PNG to write")
    parser.add_argument(
        "--seed", metavar="S", type=whole_number(0, MAX_SEED), default=0, help="of the films; default 0"
    )
    parser.add_argument(
        "--size",
        metavar="N",
        type=whole_number(16, 512),
        default=64,
        help="pixels a side of a film, 16 to 512; default 64",
    )
    return parser


def _sheet(argv: Sequence[str]) -> None:
    from cxrl.arguments import check_png
    from cxrl.storage.writing import check_writable

    args = parser().parse(argv)
    check_png(args.out, "--out")
    check_writable(args.out, "--out")
    from cxrl.data.phantom.sheet import contact_sheet

    contact_sheet(args.out, seed=args.seed, size=args.size)
    print(f"{args.out}: synthetic phantom films, not for diagnosis")
    hint("cxrl", "train")


if __name__ == "__main__":
    sys.exit(main())
