"""What a run says: live bars and a history of epochs on a terminal, plain lines into a pipe, the final table.

A bar for the epochs and one for the stage are redrawn by a thread, four times a second: nothing stands still
while a network computes. The history scrolls above them in columns that fit a terminal of 80.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Bars

from cxrl.command import is_shown
from cxrl.metrics.names import KEYS, LOWER_IS_BETTER, NEAR_TO_REAL
from cxrl.rl.progress import Progress
from cxrl.tables import format_table

_NARROW = 80


class TerminalProgress(Progress):
    """Shows progress. Of several processes only the first speaks; with ``--quiet`` only warnings
    are shown.
    """

    def __init__(self, num_epochs: int, stream: TextIO | None = None) -> None:
        """
        Args:
            num_epochs: Of the whole run; 0 where nothing is trained.
            stream: Where to; the standard output.
        """
        self.num_epochs = num_epochs
        self.stream = sys.stdout if stream is None else stream
        self.silent = os.environ.get("RANK", "0") != "0"
        self.live = self.stream.isatty() and not self.silent and is_shown("info")
        self._console = Console(file=self.stream, highlight=False, markup=False)
        self._bars: Bars | None = None
        self._stage: TaskID | None = None
        self._header: tuple[str, ...] = ()

    @contextlib.contextmanager
    def stage(self, name: str, total: int) -> Iterator[None]:
        """Show a bar of ``total`` rows; into a pipe a line where a stage is a long one."""
        if self.live:
            self._stage = self._open().add_task(name, total=total or None)
        elif " " in name:
            self.message(f"{name}: {total:,} rows")
        yield
        if self._bars is not None and self._stage is not None:
            self._bars.remove_task(self._stage)
        self._stage = None

    def advance(self, count: int) -> None:
        """So many more rows of the stage are done."""
        if self._bars is not None and self._stage is not None:
            self._bars.advance(self._stage, count)

    def evaluation(self, epoch: int, record: dict[str, Any]) -> None:
        """Show a line of judges' scores; at the start those of the anchor and of real films."""
        rows = [(f"after epoch {epoch}", record.get("eval"))]
        if not epoch:
            rows = [("anchor", record["anchor"]), ("real films", record["real"])]
        cells = [(name, *(score(values[key]) for key in KEYS)) for name, values in rows if values]
        text = format_table(cells, header=("judges", *KEYS), right=range(1, len(KEYS) + 1))
        self.message(text if epoch else f"{text}\n")
        self._header = ()

    def checkpoint(self, path: Path) -> None:
        """Said with ``--log-level debug``."""
        if is_shown("debug"):
            self.message(f"checkpoint {path}")

    def epoch(self, record: dict[str, Any]) -> None:
        """Show the line of a completed epoch."""
        width = shutil.get_terminal_size().columns if self.live else None
        header, row = epoch_row(record, self.num_epochs, width)
        widths = [max(len(a), len(b)) for a, b in zip(header, row, strict=True)]
        if header != self._header:
            self.message("  ".join(cell.rjust(w) for cell, w in zip(header, widths, strict=True)))
            self._header = header
        self.message("  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)))
        if is_shown("debug"):
            self.message("  ".join(f"{name} {s:.2f} s" for name, s in record.get("seconds", {}).items()))
        if self._bars is not None:
            task = self._bars.tasks[0]
            self._bars.update(task.id, completed=record["epoch"] + 1, eta=record["eta_seconds"])

    def message(self, text: str) -> None:
        """Show a line that stays."""
        if not self.silent and is_shown("warning" if text.startswith("warning:") else "info"):
            self._console.print(text, soft_wrap=True)
            self.stream.flush()

    def close(self) -> None:
        """Leave what is shown where it is; later output starts below it."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _open(self) -> Bars:
        if self._bars is None:
            self._bars = Bars(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                _Numbers(),
                console=self._console,
                refresh_per_second=4,
                transient=True,
                expand=True,
            )
            whole = self.num_epochs
            self._bars.add_task("epochs", total=whole or None, eta=None, visible=whole > 0)
            self._bars.start()
        return self._bars


class _Numbers(TextColumn):
    """Behind a bar: how many of how many, rate, elapsed, time to go, and memory."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Any:
        from rich.text import Text

        elapsed = task.elapsed or 0.0
        if task.total is None:
            return Text(f"{duration(elapsed)}  {memory_text()}")
        words = [f"{task.completed:,.0f}/{task.total:,.0f}"]
        if task.description == "epochs":
            eta = task.fields["eta"]
            words += [duration(elapsed), "eta ?" if eta is None else f"eta {duration(eta)}", memory_text()]
        else:
            words.append(f"{task.completed / elapsed:,.0f}/s" if elapsed else "")
            done = task.completed
            eta = duration(elapsed * (task.total - done) / done) if done else "?"
            words += [duration(elapsed), f"eta {eta}"]
        return Text("  ".join(words))


def memory_text() -> str:
    """What the process holds: of the GPU where torch uses one, else of the machine."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)  # which is there once torch is whole
    if cuda is not None and hasattr(cuda, "is_initialized") and cuda.is_initialized():
        return f"{cuda.max_memory_reserved() / 2**30:.1f} GiB"
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return ""
    return f"{pages * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB"


def epoch_row(
    record: Mapping[str, Any], num_epochs: int, width: int | None = None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Header and cells of an epoch: rewards with win-rates, then health; the last that do not fit in
    ``width`` are left out.
    """
    wins = record["win_rate"]
    cells = [("epoch", f"{record['epoch'] + 1}/{num_epochs}")]
    for name, value in record["reward"].items():
        win = f" {wins[name]:4.0%}" if name in wins else ""
        cells.append((f"{name}{' win' if win else ''}", f"{score(value)}{win}"))
    cells += [
        ("diversity", f"{record['diversity']:.3f}"),
        ("clip", f"{record['clip_fraction']:.0%}"),
        ("eta", duration(record["eta_seconds"])),
        ("kl", f"{record['kl']:.0e}"),
        ("ratio off", f"{record['ratio_max_dev']:.0e}"),
    ]
    while width and sum(max(map(len, pair)) + 2 for pair in cells) - 2 > width and len(cells) > 2:
        cells.pop()
    header, row = zip(*cells, strict=True)
    return header, row


def duration(seconds: float) -> str:
    """Hours, minutes and seconds as 1:02:03, or 2:03 below an hour."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def summary_table(summary: Mapping[str, Any]) -> str:
    """Anchor, policy, real films, change with its 95 % interval and the share of the gap that was closed, as
    text of at most 80 columns; below it who judged.

    Args:
        summary: The content of ``summary.json``.
    """
    header = ("", "anchor", "policy", "real films", "change [95 %]", "gap closed")
    real, gap = summary.get("real"), summary.get("gap")
    rows = []
    for key in KEYS:
        arrow = "↓" if key in LOWER_IS_BETTER else "↑"
        toward = "→" if key in NEAR_TO_REAL and real else arrow
        sides = (summary["anchor"], summary["policy"], real)
        share = gap[key] if gap else None
        rows.append(
            (
                f"{key} {toward}",
                *("-" if side is None or side[key] is None else score(side[key]) for side in sides),
                _change(summary["change"], key),
                "-" if share is None else f"{share:.0%}",
            )
        )
    table = format_table(rows, header=header, right=range(1, 6))
    return f"{table}\n{_judged_by(summary)}"


def _judged_by(summary: Mapping[str, Any]) -> str:
    judges = summary["judges"]
    names = [judges[task] for task in ("posture", "diagnosis", "consistency") if judges.get(task)]
    who = ", ".join(dict.fromkeys(map(str, names))) or str(judges["name"])
    fid = f"fid on {judges['feature_dim']} of their features"
    if judges.get("no_fid"):
        fid = f"no fid ({judges['no_fid']})"
    took = duration(summary["wall_seconds"])
    rows = [
        ("images", f"{summary['num_images']} a side; seed {summary['seed']}; {took}"),
        *_reports(summary),
        ("judges", f"{who}; {fid}"),
    ]
    if judges.get("real_films"):
        rows.append(("real films", judges["real_films"]))
    kept, epochs = summary.get("kept_epoch"), summary.get("epochs")
    if kept is not None and kept != epochs:
        rows.append(("weights", f"of epoch {kept} of {epochs}, the last within limits"))
    rows.append(("", "↑ higher, ↓ lower, → nearer to real films is better; - unknown"))
    return format_table(rows, width=_NARROW)


def _reports(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    if summary.get("num_reports") is None:  # of an earlier version
        return []
    chosen = summary.get("num_selection_reports")
    by = "" if chosen is None else f"; epochs were judged, and chosen, by {chosen} others"
    return [("reports", f"{summary['num_reports']}, which chose nothing{by}")]


def _change(side: Mapping[str, Any], key: str) -> str:
    if side[key] is None:
        return "-"
    low, high = side["ci"][key]
    return score(side[key], "+") + ("" if low is None else f" [{score(low, '+')}, {score(high, '+')}]")


def score(value: float | None, sign: str = "") -> str:
    """A number in about five characters."""
    if value is None or value != value:
        return "-"
    digits = ".3f" if abs(value) < 10 else ".1f" if abs(value) < 1000 else ".3g"
    return f"{value:{sign}{digits}}"
