"""``cxrl NAME …``: the entry point, also as ``python -m cxrl``. Every command is a module of its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cxrl.command import run_command
from cxrl.commands import COMMANDS


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not words[0].startswith("-"):
        return run_named(words[0], words[1:])
    if len(words) > 1 and words[0] in ("-h", "--help"):
        return run_named(words[1], ["--help", *words[2:]])
    return run_command(_about, words)


def run_named(name: str, argv: Sequence[str]) -> int:
    """Run the command of that name."""
    if name not in COMMANDS:
        return run_command(_unknown, [name])
    import importlib

    return importlib.import_module(COMMANDS[name][0]).main(argv)


def _unknown(words: Sequence[str]) -> None:
    from cxrl.errors import CxrlError, unknown_name

    raise CxrlError(f"{unknown_name('command', words[0], COMMANDS)} (see cxrl --help)")


def _about(words: Sequence[str]) -> None:
    """``cxrl``, ``cxrl --help``, ``cxrl --version``."""
    from cxrl.errors import CxrlError, unknown_name
    from cxrl.tables import format_table
    from cxrl.version import __version__

    if words and words[0] == "--version":
        print(f"cxrl {__version__}")
        return
    if words and words[0] not in ("-h", "--help"):
        known = ("--help", "--version")
        raise CxrlError(f"{unknown_name('option', words[0], known)} (see cxrl --help)")
    rows = [(f"  {name}", about) for name, (_, about) in COMMANDS.items()]
    print(
        "usage: cxrl COMMAND [OPTIONS]\n\n"
        "Reinforcement learning with comparative feedback for text-to-chest-X-ray models.\n"
        "Synthetic images only. Not for diagnosis.\n\n"
        f"commands:\n{format_table(rows, width=100)}\n\n"
        "cxrl COMMAND --help explains a command; cxrl --version names the version.\n"
        "Start with: cxrl train"
    )


if __name__ == "__main__":
    sys.exit(main())
