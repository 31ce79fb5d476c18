"""What a user can cause: one line that names the value, what was expected and where to change it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

_LONGEST = 160
"""Characters of a value in a message: a path fits, a file does not."""
_MOST_NAMES = 5
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "Cannot allocate memory")
"""How torch, a RuntimeError, and the system say it."""


class CxrlError(Exception):
    """A message for the user. The commands print it as ``error: …`` on stderr and exit with status 2."""


@contextlib.contextmanager
def named(what: str, owner: object) -> Iterator[None]:
    """Inside, what the user's own code raises becomes a :class:`CxrlError` that names it.

    Args:
        what: How the message begins.
        owner: The object whose code runs. What the project's own objects raise passes, and want of memory.
    """
    try:
        yield
    except Exception as error:
        own = isinstance(error, CxrlError) or type(owner).__module__.partition(".")[0] == "cxrl"
        if own or isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY):
            raise
        told = " ".join(str(error).split())
        raise CxrlError(f"{what} raised {type(error).__name__}{f': {told}' if told else ''}") from error


def unknown_name(kind: str, name: str, known: Iterable[str]) -> CxrlError:
    """The error for a name that does not exist, with the nearest names or else all of them.

    Args:
        kind: What the name should have been, for example ``"preset"``.
        name: What was given.
        known: The names that exist.
    """
    return CxrlError(f"unknown {kind} {shown(name)}; {nearest(name, known)}")


def shown(value: object) -> str:
    """A value as a message quotes it: escaped, and cut where it is long."""
    try:
        text = "nothing" if value is None else repr(value)
    except ValueError:  # Python prints no integer of more than 4300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def nearest(name: str, known: Iterable[str]) -> str:
    """``did you mean …?`` with the names that are most alike, or else ``known: …`` with the first five."""
    names = sorted(known)
    near = near_names(name, names)
    if near:
        return f"did you mean {' or '.join(near)}?"
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"known: {', '.join(names[:_MOST_NAMES]) or 'none'}{more}"


def near_names(name: str, known: Iterable[str], likeness: float = 0.6) -> list[str]:
    """At most three of the names that are most alike, none below ``likeness`` (0 to 1)."""
    import difflib  # here, as everything imports this module

    name = name[:_LONGEST]
    near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=likeness)
    ratios = [difflib.SequenceMatcher(None, name, candidate).ratio() for candidate in near]
    return [candidate for candidate, ratio in zip(near, ratios, strict=True) if ratio > ratios[0] - 0.1]
