"""Who is told what a run does: the terminal, a notebook, a test. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from cxrl.errors import CxrlError, named, shown


class Progress:
    """Is told what happens while a run works. This one says nothing: override what is wanted.

    With several processes every one tells its own; ``RANK`` in the environment is 0 for the first.
    """

    @contextlib.contextmanager
    def stage(self, name: str, total: int) -> Iterator[None]:
        """Inside, the run is in a stage of ``total`` rows: images, or (image, denoising step) pairs."""
        yield

    def advance(self, count: int) -> None:
        """So many more rows of the stage are done."""

    def evaluation(self, epoch: int, record: dict[str, Any]) -> None:
        """The judges' scores after ``epoch`` epochs: the keys of :meth:`epoch` that begin with ``eval``; of
        the anchor, at epoch 0, the content of bounds.json.
        """

    def checkpoint(self, path: Path) -> None:
        """A checkpoint was written."""

    def epoch(self, record: dict[str, Any]) -> None:
        """A completed epoch: the line of metrics.jsonl."""

    def message(self, text: str) -> None:
        """A line for the user."""


def checked(progress: Progress | None) -> Progress:
    """The user's own, which is named where it raises; one that says nothing in place of None.

    Raises:
        CxrlError: It is no :class:`Progress`.
    """
    if progress is None:
        return Progress()
    if not isinstance(progress, Progress):
        call = f"; write {progress.__name__}()" if isinstance(progress, type) else ""
        raise CxrlError(f"progress: {shown(progress)} is no object of a cxrl.Progress{call}")
    return _Checked(progress)


class _Checked(Progress):
    """Passes on what it is told."""

    def __init__(self, own: Progress) -> None:
        self._own = own

    def _named(self, method: str) -> AbstractContextManager[None]:
        return named(f"progress: {type(self._own).__name__}.{method}", self._own)

    @contextlib.contextmanager
    def stage(self, name: str, total: int) -> Iterator[None]:
        with self._named("stage"):
            stage = self._own.stage(name, total)
            stage.__enter__()
        try:
            yield
        except BaseException:
            with self._named("stage"):
                stage.__exit__(*sys.exc_info())
            raise
        with self._named("stage"):
            stage.__exit__(None, None, None)

    def advance(self, count: int) -> None:
        with self._named("advance"):
            self._own.advance(count)

    def evaluation(self, epoch: int, record: dict[str, Any]) -> None:
        with self._named("evaluation"):
            self._own.evaluation(epoch, record)

    def checkpoint(self, path: Path) -> None:
        with self._named("checkpoint"):
            self._own.checkpoint(path)

    def epoch(self, record: dict[str, Any]) -> None:
        with self._named("epoch"):
            self._own.epoch(record)

    def message(self, text: str) -> None:
        with self._named("message"):
            self._own.message(text)
