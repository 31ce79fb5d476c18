"""What a cell of a table says: a label, a split, the name of a column. What is ambiguous is None."""

from __future__ import annotations

import math
import re

LABELS_EXPECTED = "1, 0, -1 (uncertain), true, false, yes, no, or a blank (unknown)"
SPLITS_EXPECTED = "train, validate or test"

_LABELS = {
    **dict.fromkeys(("true", "yes"), 1.0),
    **dict.fromkeys(("false", "no"), 0.0),
    **dict.fromkeys(("", "nan", "na", "n/a", "<na>", "null"), math.nan),
}
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validate", "validation", "valid", "val", "dev", "development"), "validate"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2})?")


def read_label(cell: str) -> float | None:
    """1 present, 0 absent, -1 uncertain, nan unknown; None where the cell is none of these."""
    cell = cell.strip().lower()
    if cell in _LABELS:
        return _LABELS[cell]
    value = float(cell) if _NUMBER.fullmatch(cell) else math.inf
    return value if value in (0.0, 1.0, -1.0) else None


def read_split(cell: str) -> str | None:
    """ "train", "validate" or "test", from any of their usual names; None where it is none."""
    return _SPLITS.get(cell.strip().lower())


def fold(column: str) -> str:
    """A column's name without case, blanks, ``_`` and ``-``: what makes "Pleural_Effusion " a known one."""
    return re.sub(r"[\s_-]+", "", column).casefold()
