"""What a run says: a live display on a terminal, a line an epoch into a pipe, and the final table."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from cxrl.evaluation.summary import KEYS, LOWER_IS_BETTER
from cxrl.rl.progress import Progress

_UP, _CLEAR_BELOW = "\x1b[{}A", "\x1b[J"


class TerminalProgress(Progress):
    """Shows progress. On a terminal the last epoch is redrawn in place, messages scroll above it.

    Of several processes only the first speaks.
    """

    def __init__(self, num_epochs: int, stream: TextIO | None = None) -> None:
        self.num_epochs = num_epochs
        self.stream = sys.stdout if stream is None else stream
        self.silent = os.environ.get("RANK", "0") != "0"
        self.live = self.stream.isatty()
        self._shown: list[str] = []

    def epoch(self, record: dict[str, Any]) -> None:
        """Show the record of a completed epoch, and the judges' scores when it holds them."""
        progress, health = epoch_lines(record, self.num_epochs)
        if "eval" in record:
            self.message(f"judges after epoch {record['epoch'] + 1}: {_scores(record['eval'])}")
        if self.live:
            self._draw([progress, health])
        else:
            self._write(f"{progress}  {health}\n")

    def message(self, text: str) -> None:
        """Show a line that stays."""
        shown = self._shown
        self._draw([])
        self._write(f"{text}\n")
        if shown:
            self._draw(shown)

    def close(self) -> None:
        """Leave what is shown where it is; later output starts below it."""
        self._shown = []

    def _draw(self, lines: list[str]) -> None:
        """Replace the live display."""
        back = _UP.format(len(self._shown)) + _CLEAR_BELOW if self._shown else ""
        width = shutil.get_terminal_size().columns - 1
        self._shown = [line[:width] for line in lines]
        self._write(back + "".join(f"{line}\n" for line in self._shown))

    def _write(self, text: str) -> None:
        if not self.silent and text:
            self.stream.write(text)
            self.stream.flush()


def epoch_lines(record: Mapping[str, Any], num_epochs: int) -> tuple[str, str]:
    """Two lines of an epoch: progress with rewards and win-rates; ratio, clip fraction, KL and diversity."""
    wins = record["win_rate"]
    rewards = (
        f"{name} {_number(value)}" + (f" (win {wins[name]:.0%})" if name in wins else "")
        for name, value in record["reward"].items()
    )
    eta = duration(record["eta_seconds"])
    progress = "  ".join((f"epoch {record['epoch'] + 1}/{num_epochs}", f"eta {eta}", *rewards))
    health = (
        f"ratio {record['ratio_mean']:.6f} (off {record['ratio_max_dev']:.0e})  "
        f"clip {record['clip_fraction']:.0%}  kl {record['kl']:.1e}  diversity {_number(record['diversity'])}"
    )
    return progress, health


def duration(seconds: float) -> str:
    """Hours, minutes and seconds as 1:02:03, or 2:03 below an hour."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def summary_table(summary: Mapping[str, Any]) -> str:
    """Anchor, policy and change with 95 % intervals, as text.

    Args:
        summary: The content of ``summary.json``.
    """
    rows: list[tuple[str, ...]] = [("", "", "anchor", "policy", "change [95 %]")]
    sides = (("anchor", ""), ("policy", ""), ("change", "+"))
    for key in KEYS:
        arrow = "lower is better" if key in LOWER_IS_BETTER else "higher is better"
        cells = (_cell(summary[side], key, sign) for side, sign in sides)
        rows.append((key, arrow, *cells))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    judges = summary["judges"]
    fid = f"fid on {judges['feature_dim']} of their features"
    if judges.get("no_fid"):
        fid = f"no fid ({judges['no_fid']})"
    lines.append(
        f"{summary['num_images']} images a side; judges {judges['name']!r}, {fid}; seed {summary['seed']}; "
        f"{duration(summary['wall_seconds'])}"
    )
    kept, epochs = summary.get("kept_epoch"), summary.get("epochs")
    if kept is not None and kept != epochs:
        lines[-1] += f"; weights of epoch {kept} of {epochs}, the last within limits"
    return "\n".join(lines)


def _cell(side: Mapping[str, Any], key: str, sign: str) -> str:
    if side[key] is None:
        return "undefined"
    low, high = side["ci"][key]
    interval = "" if low is None else f" [{low:{sign}.3f}, {high:{sign}.3f}]"
    return f"{side[key]:{sign}.3f}{interval}"


def _scores(values: Mapping[str, float]) -> str:
    return "  ".join(f"{key} {_number(values[key])}" for key in KEYS)


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.3g}"
