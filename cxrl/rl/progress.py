"""Who is told what a run does: the terminal, a notebook, a test. Imports nothing heavy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


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
