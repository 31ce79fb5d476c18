"""``python -m cxrl.doctor``: what a configuration needs, what is there, and what a run will cost."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cxrl.command import run_command
from cxrl.errors import CxrlError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status: 2 where something is missing."""
    return run_command(_doctor, argv)


def _doctor(argv: Sequence[str]) -> None:
    from cxrl.cli import config_parser, resolve

    parser = config_parser(
        "cxrl.doctor", "Says what a run of cxrl.train needs, what is there, and what it will cost."
    )
    config = resolve(parser.parse(argv))
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


if __name__ == "__main__":
    sys.exit(main())
