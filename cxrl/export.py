"""``python -m cxrl.export``: the policy of a run as a folder for plain diffusers."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cxrl.command import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    return run_command(_export, argv)


def _export(argv: Sequence[str]) -> None:
    from cxrl.cli import Parser, file_path
    from cxrl.storage.writing import check_new_folder

    parser = Parser("cxrl.export", "Write the policy of a run as a pipeline that plain diffusers loads.")
    parser.add_argument(
        "--run", metavar="DIR", type=file_path, required=True, help="run directory of cxrl.train"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=file_path, required=True, help="a folder that is not there, or empty"
    )
    args = parser.parse(argv)
    check_new_folder(args.out, "--out")
    from cxrl.rl.plain import export_run

    export_run(args.run, args.out)
    print(f"{args.out}: a StableDiffusionPipeline; its README.md has the call for cxrl's pixels")


if __name__ == "__main__":
    sys.exit(main())
