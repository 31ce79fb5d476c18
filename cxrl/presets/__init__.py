"""Configurations from YAML files: the presets of this folder and a user's own."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from cxrl.config import Config
from cxrl.errors import CxrlError, unknown_name
from cxrl.presets.strict_yaml import read_yaml

FOLDER = Path(__file__).parent


def presets() -> list[str]:
    """Names of the presets that ship."""
    return sorted(p.stem for p in FOLDER.glob("*.yaml"))


def preset_sentence(name: str) -> str:
    """What a preset is for: the first sentence of its file."""
    words = []
    for line in (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        words += line.lstrip("#").split()
    return " ".join(words).split(". ")[0].rstrip(".")


@cache
def load_preset(name: str) -> Config:
    """The defaults with a preset over them. Raises CxrlError with the nearest names when there is none."""
    if name not in presets():
        raise unknown_name("preset", name, presets())
    return Config.from_dict({**read_yaml(FOLDER / f"{name}.yaml"), "preset": name})


def load_yaml(path: str | Path) -> Config:
    """The configuration of a YAML file over the preset that it names, else over the defaults.

    Raises:
        CxrlError: The file cannot be read, is not a YAML mapping, or holds a bad name or value.
    """
    return read_config(path)[0]


def read_config(
    path: str | Path, preset: str | None = None, default: str | None = None
) -> tuple[Config, Config, list[str]]:
    """A YAML file over ``preset``, else over the one that it names, else over ``default`` or the defaults.

    Returns:
        The configuration, what it started from, and the full names of the fields that the file gives.

    Raises:
        CxrlError: As :func:`load_yaml`; or the file names another preset than ``preset``.
    """
    data = read_yaml(Path(path))
    own = data.get("preset")
    try:
        start = None if own is None else load_preset(str(own))
    except CxrlError as error:
        raise CxrlError(f"{path}: {error}") from None
    if preset is not None:
        start = load_preset(preset)
        if own not in (None, preset):
            raise CxrlError(f"{path}: its preset is {own}, but {preset} is asked for; leave one of them out")
    start = start or (Config() if default is None else load_preset(default))
    names = []
    for section, values in data.items():
        names += [f"{section}.{key}" for key in values] if isinstance(values, dict) else [section]
    config = Config.from_dict(data, start, source=str(path))
    return config, start, [name.replace("-", "_") for name in names]
