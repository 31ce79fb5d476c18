"""The configuration on the command line: an option for every field, preset, then file, then single fields."""

from __future__ import annotations

import argparse
import os
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any

from cxrl.arguments import Parser, file_path
from cxrl.config import Config, sections
from cxrl.errors import CxrlError, unknown_name
from cxrl.options import Section, allowed, check_effect, field_types, show
from cxrl.presets import load_preset, load_yaml, preset_sentence, presets, read_config
from cxrl.storage.layout import CONFIG
from cxrl.tables import format_table

DEFAULT_PRESET = "phantom"
FREQUENT = (
    *("--preset", "--config", "--run-dir", "--resume", "--overwrite"),
    *("--samples", "--reports", "--run", "--sweep", "--seeds", "--jobs", "--out", "--dry-run"),
    *("--seed", "--model.path", "--data.root", "--train.num-epochs", "--comparison.form"),
)
"""What the first page of help shows."""


@dataclass(frozen=True)
class TrainOptions:
    """What ``cxrl train`` was asked to do."""

    config: Config
    run_dir: Path
    resume: bool
    overwrite: bool
    only_print: bool


class ConfigParser(Parser):
    """A parser of the configuration. Its help has a first page, one for each section, and ``all``; defaults
    are those of the preset that the same command line names.
    """

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog, description)
        self.usage = f"{prog} [--preset NAME] [--config FILE] [--section.field VALUE ...]"
        self.add_argument("--preset", metavar="NAME", help=f"see below; default {DEFAULT_PRESET}")
        self.add_argument(
            "--config", metavar="FILE", type=file_path, help="YAML whose values go over the preset's"
        )
        self.add_argument(
            "--print-config", action="store_true", help="print the resolved YAML and do nothing else"
        )
        add_fields(self, Config)
        for name, section in sections().items():
            add_fields(self.add_argument_group(name, section.help), section)

    def help_text(self, topic: str, argv: Sequence[str]) -> str:
        """A page of help: "" the first, a section, or "all"."""
        known = (*sections(), "all")
        if topic not in ("", *known):
            raise unknown_name("topic", topic, known)
        self._tell_defaults(_named_preset(argv), others=topic != "")
        if topic == "all":
            return self.format_help()
        formatter = self._get_formatter()
        if topic:
            group = next(g for g in self._action_groups if g.title == topic)
            formatter.start_section(f"{topic}: {group.description}")
            formatter.add_arguments(group._group_actions)
            formatter.end_section()
            return formatter.format_help()
        formatter.add_usage(self.usage, self._actions, [])
        formatter.add_text(self.description)
        actions = {name: action for action in self._actions for name in action.option_strings}
        formatter.start_section("options that are used most")
        formatter.add_arguments([actions[name] for name in FREQUENT if name in actions])
        formatter.add_arguments([actions["--print-config"]])
        formatter.end_section()
        pages = [
            (f"presets ({DEFAULT_PRESET} without --preset)", presets(), preset_sentence),
            (f"all options: {self.prog} --help SECTION, or --help all", list(sections()), _size),
        ]
        lines = []
        for title, names, tell in pages:
            told = format_table([(f"  {name}", tell(name)) for name in names], width=formatter._width)
            lines.append(f"\n{title}:\n{told}\n")
        formatter.start_section(self.common.title)
        formatter.add_arguments(self.common._group_actions)
        formatter.end_section()
        return f"{formatter.format_help()}{''.join(lines)}"

    def _tell_defaults(self, preset: str, *, others: bool) -> None:
        """Put the preset's values, and if asked for those of the others, into the help of every option."""
        chosen = {name: load_preset(name) for name in presets()}
        for action in self._actions:
            section, _, name = action.dest.removeprefix("--").replace("-", "_").rpartition(".")
            owner = sections().get(section, Config)
            field = next((f for f in fields(owner) if f.name == name), None)
            if not action.dest.startswith("--") or field is None:
                continue
            of = {
                other: getattr(getattr(config, section) if section else config, name)
                for other, config in chosen.items()
            }
            default = of.pop(preset)
            differing = {other: value for other, value in of.items() if others and value != default}
            action.help = describe(field, default, differing)


def _named_preset(argv: Sequence[str]) -> str:
    """The preset of a command line that may be wrong elsewhere."""
    for place, token in enumerate(argv):
        name, equals, value = token.partition("=")
        if name == "--preset":
            value = value if equals else "".join(argv[place + 1 : place + 2])
            return value if value in presets() else DEFAULT_PRESET
    return DEFAULT_PRESET


def _size(section: str) -> str:
    owner = sections()[section]
    return f"{owner.help} ({len(fields(owner))} options)"


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


def train_parser() -> ConfigParser:
    """The options of ``cxrl train``: those of the configuration and a few of its own."""
    parser = ConfigParser(
        "cxrl train", "Fine-tune a text-to-image model of chest radiographs by comparative feedback."
    )
    parser.usage = "cxrl train [--preset NAME] [--config FILE] [--run-dir DIR] [--section.field VALUE ...]"
    parser.add_argument(
        "--run-dir", metavar="DIR", type=file_path, help="where everything is written; default runs/PRESET"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint of the run directory"
    )
    parser.add_argument("--overwrite", action="store_true", help="delete the run that the directory holds")
    return parser


def add_fields(group: Any, section: type[Section], without: Collection[str] = ()) -> None:
    """One option per field but for ``without``; its help tells the section's own default."""
    for f in fields(section):
        tp = field_types(section)[f.name]
        if f.name == "preset" or f"{section.section}.{f.name}" == "run.dir" or not f.metadata:
            continue
        if f.name in without:
            continue
        flag = "--" + f"{section.section}.{f.name}".lstrip(".").replace("_", "-")
        optional = {"nargs": "?", "const": "true"} if tp is bool else {}
        text = describe(f, f.default, {})
        group.add_argument(flag, dest=flag, metavar=_metavar(tp), help=text, **optional)


def describe(field: Field[Any], default: Any, others: Mapping[str, Any]) -> str:
    """The help of a field: why it is there, unit, range, default, and what ``others`` (presets) have."""
    metadata = field.metadata
    notes = [
        ", ".join(word for word in (metadata["unit"], allowed(metadata)) if word),
        f"default {show(default)}",
        *(
            f"{', '.join(o for o in others if others[o] == v)} {show(v)}"
            for v in dict.fromkeys(others.values())
        ),
        *(f"needs {need.words}" for need in metadata["only_if"]),
    ]
    return f"{metadata['reason']} [{'; '.join(note for note in notes if note)}]".replace("%", "%%")


def _metavar(tp: Any) -> str:
    if typing.get_origin(tp) is tuple:
        return f"{_metavar(typing.get_args(tp)[0])},..."
    return {int: "N", float: "X", bool: "BOOL"}.get(tp, "NAME")


def parse_train(argv: Sequence[str]) -> TrainOptions:
    """The options of ``cxrl train`` as a resolved configuration: preset, then file, then single fields.

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
    return TrainOptions(
        Config.from_dict({"run": run}, config), run_dir, args.resume, args.overwrite, args.print_config
    )


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
