"""What a user can cause: one line that names the value, what was expected and where to change it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CxrlError(Exception):
    """A message for the user. The commands print it as ``error: …`` on stderr and exit with status 2."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> CxrlError:
    """The error for a name that does not exist, with the nearest names or else all of them.

    Args:
        kind: What the name should have been, for example ``"preset"``.
        name: What was given.
        known: The names that exist.
    """
    return CxrlError(f"unknown {kind} {name!r}; {nearest(name, known)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """``did you mean …?`` with the names that are most alike, or else ``known: …`` with all."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    likeness = [difflib.SequenceMatcher(None, name, candidate).ratio() for candidate in near]
    near = [candidate for candidate, ratio in zip(near, likeness, strict=True) if ratio > likeness[0] - 0.1]
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names) or 'none'}"
