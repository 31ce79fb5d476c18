"""Configurations from YAML files: the presets of this folder and a user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cxrl.config import Config
from cxrl.errors import CxrlError, unknown_name

FOLDER = Path(__file__).parent


def presets() -> list[str]:
    """Names of the presets that ship."""
    return sorted(p.stem for p in FOLDER.glob("*.yaml"))


def load_preset(name: str) -> Config:
    """The defaults with a preset over them. Raises CxrlError with the nearest names when there is none."""
    if name not in presets():
        raise unknown_name("preset", name, presets())
    return Config.from_dict({**_read_yaml(FOLDER / f"{name}.yaml"), "preset": name})


def load_yaml(path: str | Path, base: Config | None = None) -> Config:
    """``base`` with the values of a YAML file over it. A file that names a preset starts from that preset.

    Raises:
        CxrlError: The file cannot be read, is not a YAML mapping, or holds a bad name or value.
    """
    data = _read_yaml(Path(path))
    if base is None and isinstance(data.get("preset"), str):
        base = load_preset(data["preset"])
    return Config.from_dict(data, base, source=str(path))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise CxrlError(
            f"cannot read configuration {path}: {getattr(error, 'strerror', None) or error}"
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise CxrlError(
            f"{path}: not valid YAML{where}: {getattr(error, 'problem', None) or 'cannot be parsed'}"
        ) from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise CxrlError(f"{path}: expected sections such as 'train:', got {type(data).__name__}")
    return data
