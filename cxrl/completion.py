"""``cxrl completion SHELL``: what a shell needs to complete commands and options."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cxrl.command import run_command

if TYPE_CHECKING:
    import argparse

    from cxrl.arguments import Parser

SHELLS = ("bash", "zsh")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    return run_command(_completion, argv)


def parser() -> Parser:
    """The options."""
    from cxrl.arguments import Parser

    parser = Parser("cxrl completion", 'Print a shell\'s completion. bash: eval "$(cxrl completion bash)"')
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))
    return parser


def _completion(argv: Sequence[str]) -> None:
    import shtab

    shell = parser().parse(argv).shell
    print(shtab.complete(_all_commands(), shell))


def _all_commands() -> argparse.ArgumentParser:
    """One parser with every command below it, and the words that each option takes."""
    import argparse
    import importlib

    import shtab

    from cxrl.arguments import file_path
    from cxrl.commands import COMMANDS

    root = argparse.ArgumentParser("cxrl", description="text-to-chest-X-ray models by comparative feedback")
    root.add_argument("--version", action="store_true", help="name the version")
    names = root.add_subparsers(parser_class=argparse.ArgumentParser)
    for name, (module, about) in COMMANDS.items():
        made = importlib.import_module(module).parser()
        for action in made._actions:
            action.choices = action.choices or _words(action.dest)
            if action.type is file_path:
                action.complete = shtab.FILE
        names.add_parser(name, parents=[made], add_help=False, help=about)
    return root


def _words(option: str) -> Any:
    """The values of an option that takes one of a few."""
    from dataclasses import fields

    from cxrl.config import Config, sections
    from cxrl.presets import presets

    section, _, name = option.removeprefix("--").replace("-", "_").rpartition(".")
    if name == "preset":
        return presets()
    owner = sections().get(section, Config)
    field = next((f for f in fields(owner) if f.name == name and f.metadata), None)
    return None if field is None else field.metadata["choices"] or None


if __name__ == "__main__":
    sys.exit(main())
