"""``cxrl push``: the adapter of a run, with its model card, to the Hugging Face hub."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cxrl.command import run_command
from cxrl.errors import CxrlError

if TYPE_CHECKING:
    from cxrl.arguments import Parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    return run_command(_push, argv)


def parser() -> Parser:
    """The options."""
    from cxrl.arguments import Parser, run_option

    parser = Parser("cxrl push", "Upload the adapter of a run and its model card. Never of restricted data.")
    run_option(parser)
    parser.add_argument("--to", metavar="OWNER/NAME", required=True, help="a repository of the hub")
    parser.add_argument("--private", action="store_true", help="for a repository that is made")
    parser.add_argument("--yes", action="store_true", help="upload; without it the files are listed")
    return parser


def _push(argv: Sequence[str]) -> None:
    args = parser().parse(argv)
    from cxrl.rl.push import check_repository, files_to_push, push_run
    from cxrl.tables import format_table

    check_repository(args.to)
    files = files_to_push(args.run)
    rows = [(f"  {path}", f"{path.stat().st_size:,}") for path in files]
    print(format_table(rows, header=("  file", "bytes"), right=[1]))
    if not args.yes:
        raise CxrlError(
            f"nothing was uploaded: --yes uploads these files to {args.to}, where others can see them"
        )
    print(push_run(args.run, args.to, private=args.private))


if __name__ == "__main__":
    sys.exit(main())
