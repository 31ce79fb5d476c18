"""The command line: options made from the configuration, errors in one line. Imports nothing heavy."""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import traceback
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from cxrl.config import Config, sections
from cxrl.errors import CxrlError, unknown_name
from cxrl.options import Section, allowed, field_types
from cxrl.presets import load_preset, load_yaml, presets
from cxrl.storage.layout import CONFIG

DEFAULT_PRESET = "phantom"
EXIT_USER_ERROR, EXIT_BUG, EXIT_INTERRUPTED = 2, 1, 130


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are :class:`CxrlError` with the nearest option names."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog, description=description, allow_abbrev=False, formatter_class=_Formatter)
        self.values: set[str] = set()
        self.add_argument("--debug", action="store_true", help="show tracebacks")

    def error(self, message: str) -> NoReturn:
        raise CxrlError(f"{message} (see python -m {self.prog} --help)")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Like ``parse_args``; names may use underscores or dashes."""
        known = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
        result, rest = self.parse_known_args(self._normalise(argv))
        for token in rest:
            if token.startswith("--"):
                raise unknown_name("option", token.split("=")[0], known)
            self.error(f"unexpected argument {token!r}")
        return result

    def _normalise(self, argv: Sequence[str]) -> list[str]:
        """Dashes for underscores in names; ``--name=value``, so that ``-1,2`` is a value and no option."""
        tokens: list[str] = []
        for token in argv:
            if tokens and tokens[-1] in self.values and not token.startswith("--"):
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
    parser.add_argument("--preset", metavar="NAME", help=f"{', '.join(presets())}; default {DEFAULT_PRESET}")
    parser.add_argument("--config", metavar="FILE", help="YAML whose values go over the preset's")
    chosen = {name: load_preset(name) for name in presets()}
    add_fields(parser, parser, Config, chosen)
    for name, section in sections().items():
        group = parser.add_argument_group(name, section.help)
        add_fields(
            parser, group, section, {preset: getattr(config, name) for preset, config in chosen.items()}
        )
    return parser


def resolve(args: argparse.Namespace, base: Config | None = None) -> Config:
    """Preset, then file, then single fields; or single fields over ``base``.

    Raises:
        CxrlError: An unknown name or a bad value.
    """
    overrides: dict[str, Any] = {}
    for flag, value in vars(args).items():
        if flag.startswith("--") and value is not None:
            name, _, field = flag[2:].partition(".")
            if field:
                overrides.setdefault(name, {})[field] = value
            else:
                overrides[name] = value
    if base is None and args.config:
        base = load_yaml(args.config, load_preset(args.preset) if args.preset else None)
    return Config.from_dict(overrides, base or load_preset(args.preset or DEFAULT_PRESET))


def train_parser() -> Parser:
    """The options of ``cxrl.train``: those of the configuration and a few of its own."""
    parser = config_parser(
        "cxrl.train", "Fine-tune a text-to-image model of chest radiographs by comparative feedback."
    )
    parser.usage = (
        "python -m cxrl.train [--preset NAME] [--config FILE] [--run-dir DIR] [--section.field VALUE ...]"
    )
    parser.add_argument("--run-dir", metavar="DIR", help="where everything is written; default runs/PRESET")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint of the run directory"
    )
    parser.add_argument("--overwrite", action="store_true", help="delete the run that the directory holds")
    return parser


def add_fields(parser: Parser, group: Any, section: type[Section], chosen: Mapping[str, Section]) -> None:
    """One option per field; ``chosen`` holds the section in every preset."""
    for f in fields(section):
        tp = field_types(section)[f.name]
        if f.name == "preset" or f"{section.section}.{f.name}" == "run.dir" or not f.metadata:
            continue
        flag = "--" + f"{section.section}.{f.name}".lstrip(".").replace("_", "-")
        differing = {preset: getattr(values, f.name) for preset, values in chosen.items()}
        notes = [
            ", ".join(word for word in (f.metadata["unit"], allowed(f.metadata)) if word),
            f"default {_show(f.default)}",
            *(f"{preset} {_show(value)}" for preset, value in differing.items() if value != f.default),
        ]
        text = f"{f.metadata['reason']} [{'; '.join(note for note in notes if note)}]"
        optional = {"nargs": "?", "const": "true"} if tp is bool else {}
        group.add_argument(flag, dest=flag, metavar=_metavar(tp), help=text.replace("%", "%%"), **optional)
        parser.values.add(flag)


def _metavar(tp: Any) -> str:
    if typing.get_origin(tp) is tuple:
        return f"{_metavar(typing.get_args(tp)[0])},..."
    return {int: "N", float: "X", bool: "BOOL"}.get(tp, "NAME")


def _show(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(_show(v) for v in value)
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value) or "empty"


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
        if args.preset or args.config:
            given = "--preset" if args.preset else "--config"
            raise CxrlError(
                f"--resume takes the run's own config.yaml; leave {given} out, override single fields"
            )
        run_dir = Path(args.run_dir or f"runs/{DEFAULT_PRESET}")
        if not (run_dir / CONFIG).is_file():
            raise CxrlError(f"nothing to resume in {run_dir}: it has no {CONFIG}; start without --resume")
        base = load_yaml(run_dir / CONFIG)
    config = resolve(args, base)
    config.data.check_root()
    run_dir = Path(args.run_dir or config.run.dir or f"runs/{config.preset}")
    run = {"dir": str(run_dir), "debug": config.run.debug or args.debug}
    return TrainOptions(Config.from_dict({"run": run}, config), run_dir, args.resume, args.overwrite)


def at_least(low: int) -> Callable[[str], int]:
    """The type of an option that is a whole number from ``low`` on."""

    def number(text: str) -> int:
        if not text.strip().lstrip("+-").isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {low}")
        return int(text)

    return number


def run_command(command: Callable[[Sequence[str]], None], argv: Sequence[str] | None) -> int:
    """Call a command; errors become one line on stderr and an exit status.

    Returns:
        0; 2 for what the user can mend; 130 for Ctrl-C; 1 for anything else, which is a bug. ``--debug`` (or
        ``run.debug``) shows the traceback as well.
    """
    argv = sys.argv[1:] if argv is None else argv
    debug = any(token.split("=")[0].replace("_", "-") in ("--debug", "--run.debug") for token in argv)
    warnings.showwarning = _show_warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Unicode shows '?', it does not fail
    try:
        command(argv)
        sys.stdout.flush()
        return 0
    except BrokenPipeError:
        # The reader, such as `head`, has gone: nobody to tell, and Python must not try to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BUG
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        line, status = _explain(error)
    print(line, file=sys.stderr, flush=True)
    return status


def _explain(error: BaseException) -> tuple[str, int]:
    """The line and the exit status of an error."""
    if isinstance(error, KeyboardInterrupt):
        return "; ".join(("interrupted", *map(str, error.args))), EXIT_INTERRUPTED
    if isinstance(error, CxrlError | OSError | ValueError):
        return f"error: {_one_line(error)}", EXIT_USER_ERROR
    return f"error: {type(error).__name__}: {_one_line(error)} (--debug shows where)", EXIT_BUG


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr, flush=True)


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.strerror}: {error.filename}"
    return " ".join(str(error).split()) or type(error).__name__
