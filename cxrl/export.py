"""``cxrl export``: the policy of a run as a folder for plain diffusers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cxrl.command import run_command

if TYPE_CHECKING:
    from cxrl.arguments import Parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    return run_command(_export, argv)


def parser() -> Parser:
    """The options."""
    from cxrl.arguments import Parser, file_path, run_option

    parser = Parser("cxrl export", "Write the policy of a run as a pipeline that plain diffusers loads.")
    run_option(parser)
    parser.add_argument(
        "--out", metavar="DIR", type=file_path, required=True, help="a folder that is not there, or empty"
    )
    return parser


def _export(argv: Sequence[str]) -> None:
    from cxrl.storage.writing import check_new_folder

    args = parser().parse(argv)
    check_new_folder(args.out, "--out")
    from cxrl.rl.plain import export_run

    export_run(args.run, args.out)
    print(f"{args.out}: a StableDiffusionPipeline; its README.md has the call for cxrl's pixels")


if __name__ == "__main__":
    sys.exit(main())
