"""The variants of a sweep: a YAML list of overrides, each with a name, over one configuration."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxrl.config import Config
from cxrl.errors import CxrlError, shown
from cxrl.options import check_effect
from cxrl.presets.strict_yaml import read_yaml_list
from cxrl.storage.run_dir import flat

ABLATION = Path(__file__).parent / "ablation.yaml"
MOST = 200
"""Variants of a sweep."""
NO_LIMITS = {"train": {"early_stop_diversity": 0.0, "early_stop_fid": 0.0}}
"""A run that stops early is not at equal updates, so none does, unless the list says so."""


@dataclass(frozen=True)
class Variant:
    """A configuration with a name.

    Attributes:
        name: As in the list.
        folder: Of its runs: letters, digits and ``-``.
        config: Resolved, but for ``seed``.
        changed: Full name → value, where it differs from the sweep's own configuration.
    """

    name: str
    folder: str
    config: Config
    changed: dict[str, Any]


def read_variants(path: Path, base: Config) -> list[Variant]:
    """The variants of a file over a configuration.

    Raises:
        CxrlError: The file cannot be read; a variant has no name, one that another has, or a setting that is
            none or would have no effect. The message names file and variant.
    """
    rows = read_yaml_list(path)
    if not 1 <= len(rows) <= MOST:
        raise CxrlError(f"{path}: {len(rows)} variants, expected 1 to {MOST}")
    start = Config.from_dict(NO_LIMITS, base)
    found: list[Variant] = []
    for place, row in enumerate(rows, 1):
        where = f"{path}, variant {place}"
        if not isinstance(row, dict) or not isinstance(row.get("name"), str) or not row["name"].strip():
            raise CxrlError(f"{where}: expected a mapping with a name, such as {{name: full}}")
        name = " ".join(row["name"].split())
        changes = {key: value for key, value in row.items() if key != "name"}
        for refused in ("preset", "seed", "run"):
            if refused in changes:
                raise CxrlError(f"{where} ({shown(name)}): {refused} is the sweep's own; leave it out")
        config = Config.from_dict(changes, start, source=f"{where} ({shown(name)})")
        given = [f"{s}.{key}" for s, values in changes.items() if isinstance(values, dict) for key in values]
        check_effect(config, start, dict.fromkeys((n.replace("-", "_") for n in given), where))
        folder = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "variant"
        before, now = (flat(c.to_dict()) for c in (start, config))
        changed = {key: now[key] for key in now if now[key] != before[key]}
        for other in found:
            if folder == other.folder:
                raise CxrlError(f"{where}: {shown(name)} has the name, or nearly, of {shown(other.name)}")
        found.append(Variant(name, folder, config, changed))
    return found


def same_runs(variants: Sequence[Variant]) -> dict[str, str]:
    """Name of every variant → name of the first one with the same configuration, whose runs it shares."""
    first: dict[str, str] = {}
    return {v.name: first.setdefault(_key(v.config), v.name) for v in variants}


def _key(config: Config) -> str:
    return json.dumps(config.to_dict(), sort_keys=True)
