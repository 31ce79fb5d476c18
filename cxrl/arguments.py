"""The parser of every command: names, types, help and errors in one line. Imports nothing heavy."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from cxrl.command import LEVELS, set_level
from cxrl.errors import CxrlError, near_names, shown
from cxrl.options import NO_TEXT_REASON, is_text, to_number
from cxrl.version import __version__

_LONGEST_MESSAGE = 400
_LONGEST_PATH, _LONGEST_NAME = 4095, 255
"""Bytes of a path and of a name in it, on Linux."""
_OTHER_PICTURES = (
    *(".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".pdf", ".svg", ".dcm", ".dicom", ".jp2"),
    *(".html", ".json", ".csv"),
)
_NEAR = 0.7
"""Likeness of an option that is proposed for another."""
DESTRUCTIVE = ("--overwrite", "--rebuild", "--yes")
"""Options that are never proposed for a name that is not there."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are :class:`CxrlError` with the nearest option names.

    ``--help`` is answered before anything else is looked at, so that it needs no other argument. Every
    command has ``--version``, ``--quiet``, ``--log-level`` and ``--debug``.
    """

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog, description=description, allow_abbrev=False, formatter_class=_Formatter, add_help=False
        )
        self.common = self.add_argument_group("of every command")
        self.common.add_argument("-h", "--help", action="store_true", help="this page")
        self.common.add_argument("--version", action="version", version=f"cxrl {__version__}")
        self.common.add_argument("-q", "--quiet", action="store_true", help="only warnings and errors")
        self.common.add_argument(
            "--log-level", metavar="NAME", choices=LEVELS, help=f"{', '.join(LEVELS)}; default info"
        )
        self.common.add_argument("--debug", action="store_true", help="show tracebacks")

    def error(self, message: str) -> NoReturn:
        message = message.replace("ignored explicit argument", "takes no value, got")
        short = message if len(message) <= _LONGEST_MESSAGE else f"{message[:_LONGEST_MESSAGE]}…"
        raise CxrlError(f"{short} (see {self.prog} --help)")

    def help_text(self, topic: str, argv: Sequence[str]) -> str:
        """What ``--help TOPIC`` prints, "" without a topic; ``argv`` is the whole command line."""
        if topic:
            self.error(f"--help: {self.prog} has no further pages")
        return self.format_help()

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Like ``parse_args``; names may use underscores or dashes.

        Raises:
            CxrlError: An unknown name, a missing or bad value, a text with NUL or bytes that are not UTF-8.
        """
        for place, token in enumerate(argv):
            if token in ("-h", "--help"):
                after = argv[place + 1] if place + 1 < len(argv) else ""
                print(self.help_text("" if after.startswith("-") else after, argv), end="")
                sys.exit(0)
        known = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
        tokens = self._normalise(argv)
        for token in tokens:
            if not is_text(token):
                name, equals, value = token.partition("=")
                where, what = (name, value) if equals and is_text(name) else ("the command line", token)
                raise CxrlError(f"{where}: {shown(what)} {NO_TEXT_REASON}")
        result, rest = self.parse_known_args(tokens)
        for token in rest:
            if token.startswith("--"):
                self.error(_unknown_option(token.split("=")[0], known))
            self.error(f"unexpected argument {shown(token)}")
        if result.quiet and result.log_level is not None:
            self.error("--quiet is --log-level warning; leave one out")
        set_level("warning" if result.quiet else result.log_level or "info")
        return result

    def _normalise(self, argv: Sequence[str]) -> list[str]:
        """Dashes for underscores in names; ``--name=value``, so that ``-1,2`` is a value and no option."""
        takes_value = {
            name for action in self._actions if action.nargs != 0 for name in action.option_strings
        }
        tokens: list[str] = []
        for token in argv:
            if tokens and tokens[-1] in takes_value and not token.startswith("--"):
                tokens[-1] += f"={token}"
            elif token.startswith("--"):
                name, equals, value = token.partition("=")
                tokens.append(name.replace("_", "-") + equals + value)
            else:
                tokens.append(token)
        return tokens


def _unknown_option(name: str, known: Sequence[str]) -> str:
    """The message for an option that is not there, with the nearest ones, unless one of them destroys."""
    bare = {option.removeprefix("--"): option for option in known}
    near = [bare[word] for word in near_names(name.removeprefix("--"), bare, _NEAR)]
    safe = not any(option in DESTRUCTIVE for option in near)
    return f"unknown option {shown(name)}" + (f"; did you mean {' or '.join(near)}?" if near and safe else "")


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str, **_: Any) -> None:
        width = min(shutil.get_terminal_size((100, 24)).columns, 110)
        super().__init__(prog, width=width, max_help_position=36)

    def _split_lines(self, text: str, width: int) -> list[str]:
        """Names and hub ids stay whole: they are there to be copied."""
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def run_option(parser: Parser) -> None:
    """``--run``, of every command that opens a run."""
    parser.add_argument("--run", metavar="DIR", type=file_path, required=True, help="a run of cxrl train")


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """The type of an option that is a whole number from ``low`` to ``high``."""

    def number(text: str) -> int:
        value = to_number(text)
        if not low <= value <= high or value != int(value):
            raise argparse.ArgumentTypeError(
                f"{shown(text)} is not a whole number of at least {low} and at most {high}"
            )
        return int(value)

    return number


def real_number(above: float, high: float) -> Callable[[str], float]:
    """The type of an option that is a number above ``above``, up to ``high``."""

    def number(text: str) -> float:
        value = to_number(text)
        if not above < value <= high:
            raise argparse.ArgumentTypeError(
                f"{shown(text)} is not a number above {above:g} and at most {high:g}"
            )
        return value

    return number


def check_png(path: Path, option: str) -> None:
    """Raise CxrlError where the name is that of another kind of picture than what is written, a PNG."""
    if path.suffix.lower() in _OTHER_PICTURES:
        raise CxrlError(f"{option}: {path} is written as PNG; name it {path.with_suffix('.png')}")


def file_path(text: str) -> Path:
    """The type of an option that is a file or folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the path is empty")
    if text == "-":
        raise argparse.ArgumentTypeError("'-' is no path here; ./- is a file of that name")
    path = Path(text)
    if len(text.encode()) > _LONGEST_PATH or any(len(p.encode()) > _LONGEST_NAME for p in path.parts):
        raise argparse.ArgumentTypeError(f"{shown(text)} is too long for a path")
    return path
