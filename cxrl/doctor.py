"""``cxrl doctor``: what a configuration needs, what is there, and what a run will cost."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cxrl.command import hint, run_command
from cxrl.errors import CxrlError

if TYPE_CHECKING:
    from cxrl.arguments import Parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status: 2 where something is missing."""
    return run_command(_doctor, argv)


def parser() -> Parser:
    """The options."""
    from cxrl.cli import ConfigParser

    about = "Says what a run of cxrl train needs, what is there, and what it will cost."
    return ConfigParser("cxrl doctor", about)


def _doctor(argv: Sequence[str]) -> None:
    from cxrl.cli import resolve

    args = parser().parse(argv)
    config = resolve(args)
    if args.print_config:
        print(config.to_yaml(), end="")
        return
    from cxrl import checkup
    from cxrl.requirements import required_files

    print(checkup.environment_text(), flush=True)
    files = required_files(config)
    print(f"\n{checkup.files_text(config, files)}", flush=True)
    print(f"\n{checkup.estimate_text(config, files)}", flush=True)
    if lacking := [file for file in files if not file.is_present]:
        broken = sum(bool(file.problem) for file in lacking)
        words = f"missing for preset {config.preset}: {len(lacking) - broken}"
        raise CxrlError(f"{words}{f', broken: {broken}' if broken else ''}; see above")
    print("\nbefore a long run: cxrl headroom with the same options says what the rewards can gain")
    hint("cxrl", "train", *argv)


if __name__ == "__main__":
    sys.exit(main())
