"""Files for their owner alone: what a run on restricted data writes quotes that data."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

_NO_OTHERS = 0o077


@contextlib.contextmanager
def owner_only(private: bool) -> Iterator[None]:
    """Inside, every file and folder that this process makes is its owner's alone (modes 0600 and 0700).

    It is the umask, so it holds in threads and in libraries that write by themselves; folders that are there
    already keep their mode. Does nothing unless ``private``.
    """
    if not private:
        yield
        return
    before = os.umask(_NO_OTHERS)
    try:
        yield
    finally:
        os.umask(before)


def current_umask() -> int:
    """The bits that new files lack. The system tells only while it sets one."""
    mask = os.umask(_NO_OTHERS)
    os.umask(mask)
    return mask
