"""What ships: the phantom's base, reward models and judges. No other module knows the name that options give
them, or where they are.
"""

from __future__ import annotations

from pathlib import Path

PHANTOM = "phantom"
"""What ``model.path``, ``rewards.path`` and ``eval.judges`` call it."""
_FOLDER = Path(__file__).parent / "assets" / "phantom"
BASE, REWARDS, JUDGES = (_FOLDER / name for name in ("pipeline", "rewards", "judges"))


def is_shipped(value: str | Path) -> bool:
    """Whether an option's value is the name of what ships."""
    return str(value) == PHANTOM


def folder_of(value: str | Path, shipped: Path) -> Path:
    """The folder that an option names: ``shipped``, one of this module's, under the name; else the value."""
    return shipped if is_shipped(value) else Path(value)
