"""The terminal: a history that fits, bars that move, plain lines into a pipe, and the final table."""

from __future__ import annotations

import io
import re
import time
from typing import Any

import pyte
import pytest

from cxrl.command import set_level
from cxrl.metrics.names import KEYS
from cxrl.output.terminal import TerminalProgress, duration, epoch_row, memory_text, score, summary_table


@pytest.fixture(autouse=True)
def level() -> Any:
    set_level("info")
    yield
    set_level("info")


def record(epoch: int, **extra: Any) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "eta_seconds": 221.0,
        "reward": {"posture": -0.4123, "diagnosis": 0.931, "consistency": 0.3},
        "win_rate": {"posture": 0.56, "diagnosis": 0.5, "consistency": 0.61},
        "ratio_mean": 1.0000002,
        "ratio_max_dev": 2.4e-7,
        "clip_fraction": 0.124,
        "kl": 0.00123,
        "diversity": 0.2812,
        "seconds": {"rollout": 1.25},
        **extra,
    }


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def screen(stream: io.StringIO, columns: int = 80) -> list[str]:
    """What a terminal shows."""
    shown = pyte.Screen(columns, 60)
    pyte.Stream(shown).feed(stream.getvalue().replace("\n", "\r\n"))
    return [line.rstrip() for line in shown.display if line.strip()]


def told(progress: TerminalProgress) -> None:
    """A short run."""
    scores = dict.fromkeys(KEYS, 0.5)
    with progress.stage("drawing anchor", 20):
        progress.advance(20)
    progress.evaluation(0, {"anchor": scores, "real": scores | {"fid": 12345.0, "diversity": None}})
    for epoch in range(3):
        with progress.stage("rollout", 10):
            progress.advance(10)
        if epoch == 1:
            progress.evaluation(2, {"eval": scores})
        progress.epoch(record(epoch))
        progress.checkpoint("checkpoints/step-000002")  # type: ignore[arg-type]
    progress.message("warning: diversity")
    progress.close()


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> Any:
    def set_columns(columns: int) -> None:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("LINES", "60")
        monkeypatch.setenv("TERM", "xterm")

    return set_columns


def test_a_pipe_gets_plain_lines() -> None:
    stream = io.StringIO()
    told(TerminalProgress(3, stream))
    lines = stream.getvalue().splitlines()
    assert "\x1b" not in stream.getvalue()
    assert lines[0] == "drawing anchor: 20 rows"
    assert lines[1].split() == ["judges", *KEYS]
    assert lines[2].split() == ["anchor", *["0.500"] * 7]
    assert lines[3].split() == ["real", "films", *["0.500"] * 3, "1.23e+04", "0.500", "-", "0.500"]
    assert [line.split()[0] for line in lines if re.match(r" *\d/3", line)] == ["1/3", "2/3", "3/3"]
    header = next(line for line in lines if line.startswith("epoch"))
    assert header.split() == [
        *(
            "epoch",
            "posture",
            "win",
            "diagnosis",
            "win",
            "consistency",
            "win",
            "diversity",
            "clip",
            "eta",
            "kl",
        ),
        *("ratio", "off"),
    ]
    row = next(line for line in lines if "1/3" in line)
    assert row.split() == [
        *("1/3", "-0.412", "56%", "0.931", "50%", "0.300", "61%", "0.281", "12%", "3:41", "1e-03", "2e-07")
    ]
    assert len({len(line) for line in lines if re.match(r" *\d/3|epoch", line)}) == 1, "columns are aligned"
    assert lines.count(header) == 2, "again after the judges have spoken"
    assert lines[-1] == "warning: diversity"


@pytest.mark.parametrize("columns", [80, 100, 160])
def test_no_line_of_a_terminal_wraps(wide: Any, columns: int) -> None:
    wide(columns)
    stream = Terminal()
    told(TerminalProgress(3, stream))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).replace("\r", "\n")
    assert max(map(len, text.splitlines())) <= columns
    shown = screen(stream, columns)
    assert [line.split()[0] for line in shown if re.match(r" *\d/3", line)] == ["1/3", "2/3", "3/3"]
    assert shown[-1] == "warning: diversity"
    assert not [line for line in shown if "━" in line], "bars go when it is over"
    assert any("ratio off" in line for line in shown) == (columns > 80)


def test_bars_tell_how_far_and_how_fast(wide: Any) -> None:
    wide(80)
    stream = Terminal()
    progress = TerminalProgress(3, stream)
    with progress.stage("rollout", 1000):
        progress.advance(250)
        time.sleep(0.6)  # redrawn four times a second, by a thread
        shown = screen(stream)
        progress.epoch(record(0))
        time.sleep(0.6)
    after = screen(stream)
    progress.close()
    epochs, stage = shown[-2:]
    assert re.fullmatch(r"epochs +━+ 0/3  0:0\d  eta \?  \d+\.\d GiB", epochs)
    assert re.fullmatch(r"rollout .*━ 250/1,000  [\d,]+/s  0:0\d  eta \d:\d\d", stage)
    assert re.search(r"1/3  0:0\d  eta 3:41", after[-2])
    assert after[-3].split()[0] == "1/3"


def test_nothing_stands_still_while_nothing_is_told(wide: Any) -> None:
    wide(80)
    stream = Terminal()
    progress = TerminalProgress(3, stream)
    with progress.stage("loading", 0):
        before = len(stream.getvalue())
        time.sleep(1.0)
        assert len(stream.getvalue()) > before, "no second without a change"
    progress.close()


def test_quiet_leaves_warnings() -> None:
    for name, expected in (("warning", ["warning: diversity"]), ("error", [])):
        set_level(name)
        stream = Terminal()
        told(TerminalProgress(3, stream))
        assert stream.getvalue().splitlines() == expected
    set_level("debug")
    stream = io.StringIO()
    told(TerminalProgress(3, stream))
    assert "checkpoint checkpoints/step-000002" in stream.getvalue()
    assert "rollout 1.25 s" in stream.getvalue()
    set_level("info")


def test_only_the_first_process_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    stream = Terminal()
    told(TerminalProgress(3, stream))
    assert stream.getvalue() == ""


def test_without_an_anchor_there_is_no_win_rate() -> None:
    header, row = epoch_row(record(0, win_rate={}), 60)
    assert "win" not in " ".join(header)
    assert "%" not in row[1]
    assert re.fullmatch(r"\d+\.\d GiB", memory_text())
    assert [score(v) for v in (None, float("nan"), -0.5, 41.23, 12345.0)] == [
        "-",
        "-",
        "-0.500",
        "41.2",
        "1.23e+04",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0:00"), (59.6, "1:00"), (221, "3:41"), (3599.7, "1:00:00"), (7384, "2:03:04")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def side(value: float, low: float | None, high: float | None) -> dict[str, Any]:
    return dict.fromkeys(KEYS, value) | {"ci": {key: [low, high] for key in KEYS}}


SUMMARY = {
    "anchor": side(-0.689, -0.72, -0.65) | {"ms_ssim": None},
    "policy": side(-0.5, None, None),
    "real": side(-0.2, None, None) | {"fid": None},
    "change": side(0.189, 0.15, 0.21),
    "gap": side(0.39, 0.3, 0.5) | {"fid": None},
    "seed": 3,
    "wall_seconds": 581.0,
    "num_images": 256,
    "judges": {"name": "phantom", "feature_dim": 128, "real_films": "256 films of the phantom"},
    "epochs": 24,
    "kept_epoch": 16,
}


def test_the_final_table_fits_and_has_real_films() -> None:
    lines = summary_table(SUMMARY).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["anchor", "policy", "real", "films", "change", "[95", "%]", "gap", "closed"]
    assert lines[1].split() == [
        "posture",
        "↑",
        "-0.689",
        "-0.500",
        "-0.200",
        "+0.189",
        "[+0.150,",
        "+0.210]",
        "39%",
    ]
    assert [line.split()[1] for line in lines[1:7]] == ["↑", "↑", "↑", "↓", "→", "→"]
    assert lines[4].split()[4] == "-", "no Fréchet distance of real films"
    assert lines[5].split()[2] == "-"
    text = " ".join(lines[7:])
    assert "images      256 a side; seed 3; 9:41" in text
    assert "phantom; fid on 128 of their features" in text
    assert "256 films of the phantom" in text
    assert "of epoch 16 of 24, the last within limits" in text


def test_the_judges_that_judged_are_named() -> None:
    judges = {"name": "phantom", "posture": "pspnet", "diagnosis": "densenet121-res224-chex"}
    judges |= {"consistency": "google/medsiglip-448", "feature_dim": None, "no_fid": "no films"}
    told = summary_table(SUMMARY | {"judges": judges, "real": None, "gap": None})
    flat = " ".join(told.split())
    assert "judges pspnet, densenet121-res224-chex, google/medsiglip-448; no fid (no films)" in flat
    assert "phantom" not in told
    assert "diversity ↑" in told, "nothing is known of real films"
