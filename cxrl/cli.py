"""The command line: options made from the configuration, errors in one line. Imports nothing heavy."""

from __future__ import annotations

import argparse
import os
import shutil
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from cxrl.command import run_command as run_command
from cxrl.config import Config, sections
from cxrl.errors import CxrlError, shown, unknown_name
from cxrl.options import NO_TEXT_REASON, Section, allowed, check_effect, field_types, is_text, show, to_number
from cxrl.presets import load_preset, load_yaml, presets, read_config
from cxrl.storage.layout import CONFIG

DEFAULT_PRESET = "phantom"
_LONGEST_MESSAGE = 400
_LONGEST_PATH, _LONGEST_NAME = 4095, 255
"""Bytes of a path and of a name in it, on Linux."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are :class:`CxrlError` with the nearest option names."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog, description=description, allow_abbrev=False, formatter_class=_Formatter)
        self.add_argument("--debug", action="store_true", help="show tracebacks")

    def error(self, message: str) -> NoReturn:
        short = message if len(message) <= _LONGEST_MESSAGE else f"{message[:_LONGEST_MESSAGE]}…"
        raise CxrlError(f"{short} (see python -m {self.prog} --help)")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Like ``parse_args``; names may use underscores or dashes.

        Raises:
            CxrlError: An unknown name, a missing or bad value, a text with NUL or bytes that are not UTF-8.
        """
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
                self.error(str(unknown_name("option", token.split("=")[0], known)))
            self.error(f"unexpected argument {shown(token)}")
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


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str, **_: Any) -> None:
        width = min(shutil.get_terminal_size((100, 24)).columns, 110)
        super().__init__(prog, width=width, max_help_position=36)


@dataclass(frozen=True)
class TrainOptions:
    """What ``python -m cxrl.train`` was asked to do."""

    config: Config
    run_dir: Path
    resume: bool
    overwrite: bool


def config_parser(prog: str, description: str) -> Parser:
    """``--preset``, ``--config`` and every field of the configuration; :func:`resolve` reads them."""
    parser = Parser(prog, description)
    parser.usage = f"python -m {prog} [--preset NAME] [--config FILE] [--section.field VALUE ...]"
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help=f"{', '.join(presets())}; default: the file's, else {DEFAULT_PRESET}",
    )
    parser.add_argument(
        "--config", metavar="FILE", type=file_path, help="YAML whose values go over the preset's"
    )
    chosen = {name: load_preset(name) for name in presets()}
    add_fields(parser, Config, chosen)
    for name, section in sections().items():
        group = parser.add_argument_group(name, section.help)
        add_fields(group, section, {preset: getattr(config, name) for preset, config in chosen.items()})
    return parser


def resolve(args: argparse.Namespace, base: Config | None = None) -> Config:
    """Preset, then file, then single fields; or single fields over ``base``.

    Raises:
        CxrlError: An unknown name, a bad value, or one that would have no effect.
    """
    overrides: dict[str, Any] = {}
    given: dict[str, str] = {}
    if base is not None:
        start = base
    elif args.config is None:
        start = base = load_preset(DEFAULT_PRESET if args.preset is None else args.preset)
    else:
        base, start, names = read_config(args.config, args.preset, DEFAULT_PRESET)
        given = dict.fromkeys(names, str(args.config))
    for flag, value in vars(args).items():
        if flag.startswith("--") and value is not None:
            name, _, field = flag[2:].partition(".")
            if field:
                overrides.setdefault(name, {})[field] = value
            else:
                overrides[name] = value
            given[flag[2:].replace("-", "_")] = ""
    config = Config.from_dict(overrides, base)
    check_effect(config, start, given)
    return config


def train_parser() -> Parser:
    """The options of ``cxrl.train``: those of the configuration and a few of its own."""
    parser = config_parser(
        "cxrl.train", "Fine-tune a text-to-image model of chest radiographs by comparative feedback."
    )
    parser.usage = (
        "python -m cxrl.train [--preset NAME] [--config FILE] [--run-dir DIR] [--section.field VALUE ...]"
    )
    parser.add_argument(
        "--run-dir", metavar="DIR", type=file_path, help="where everything is written; default runs/PRESET"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint of the run directory"
    )
    parser.add_argument("--overwrite", action="store_true", help="delete the run that the directory holds")
    return parser


def add_fields(
    group: Any, section: type[Section], chosen: Mapping[str, Section], without: Collection[str] = ()
) -> None:
    """One option per field but for ``without``; ``chosen`` holds the section in every preset."""
    for f in fields(section):
        tp = field_types(section)[f.name]
        if f.name == "preset" or f"{section.section}.{f.name}" == "run.dir" or not f.metadata:
            continue
        if f.name in without:
            continue
        flag = "--" + f"{section.section}.{f.name}".lstrip(".").replace("_", "-")
        differing = {preset: getattr(values, f.name) for preset, values in chosen.items()}
        notes = [
            ", ".join(word for word in (f.metadata["unit"], allowed(f.metadata)) if word),
            f"default {show(f.default)}",
            *(f"{preset} {show(value)}" for preset, value in differing.items() if value != f.default),
            *(f"needs {need.words}" for need in f.metadata["only_if"]),
        ]
        text = f"{f.metadata['reason']} [{'; '.join(note for note in notes if note)}]"
        optional = {"nargs": "?", "const": "true"} if tp is bool else {}
        group.add_argument(flag, dest=flag, metavar=_metavar(tp), help=text.replace("%", "%%"), **optional)


def _metavar(tp: Any) -> str:
    if typing.get_origin(tp) is tuple:
        return f"{_metavar(typing.get_args(tp)[0])},..."
    return {int: "N", float: "X", bool: "BOOL"}.get(tp, "NAME")


def parse_train(argv: Sequence[str]) -> TrainOptions:
    """The options of ``cxrl.train`` as a resolved configuration: preset, then file, then single fields.

    With ``--resume`` the configuration is the run's own ``config.yaml``, then single fields.

    Raises:
        CxrlError: An unknown name or a bad value; nothing to resume.
    """
    args = train_parser().parse(argv)
    if args.resume and args.overwrite:
        raise CxrlError("--resume and --overwrite exclude each other; choose one")
    base = None
    if args.resume:
        for given in ("preset", "config"):
            if getattr(args, given) is not None:
                raise CxrlError(
                    f"--resume takes the run's own config.yaml; leave --{given} out, override single fields"
                )
        run_dir = args.run_dir or Path("runs", DEFAULT_PRESET)
        if not (run_dir / CONFIG).is_file():
            raise CxrlError(f"nothing to resume in {run_dir}: it has no {CONFIG}; start without --resume")
        base = load_yaml(run_dir / CONFIG)
    config = absolute(resolve(args, base))
    config.data.check_root()
    run_dir = args.run_dir or Path(config.run.dir or f"runs/{config.preset}")
    run = {"dir": str(run_dir), "debug": config.run.debug or args.debug}
    return TrainOptions(Config.from_dict({"run": run}, config), run_dir, args.resume, args.overwrite)


_PATHS = {
    "model": ("path",),
    "data": ("root", "reports"),
    "rewards": ("path", "posture", "diagnosis", "consistency"),
    "eval": ("judges", "reference", "posture", "diagnosis", "consistency"),
}
"""Options that may name a file or folder; a name or hub id is none that exists."""


_MODELS, _WORDS = ("pspnet", "densenet121-"), ("phantom", "none")
"""What is no path even where a file has that name."""


def absolute(config: Config) -> Config:
    """With the paths that exist made absolute: a run is resumed, and drawn from, in any working directory."""
    changes: dict[str, dict[str, str]] = {}
    for section, names in _PATHS.items():
        for name in names:
            value = getattr(getattr(config, section), name)
            before, colon, file = value.partition(":")
            if colon and before.startswith(_MODELS):  # NAME:FILE
                found = f"{before}:{os.path.abspath(file)}" if Path(file).exists() else value
            elif value and not value.startswith(_MODELS) and value not in _WORDS and Path(value).exists():
                found = os.path.abspath(value)
            else:
                continue
            changes.setdefault(section, {})[name] = found
    return Config.from_dict(changes, config)


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


def file_path(text: str) -> Path:
    """The type of an option that is a file or folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the path is empty")
    path = Path(text)
    if len(text.encode()) > _LONGEST_PATH or any(len(p.encode()) > _LONGEST_NAME for p in path.parts):
        raise argparse.ArgumentTypeError(f"{shown(text)} is too long for a path")
    return path
