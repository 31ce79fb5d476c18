import io

import pytest

from cxrl.output.terminal import TerminalProgress, duration, epoch_lines, summary_table


def record(epoch, **extra):
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
        **extra,
    }


class Terminal(io.StringIO):
    def isatty(self):
        return True


def screen(text):
    """What a terminal shows after the text, understanding the two sequences that are used."""
    rows, y = [""], 0
    position = 0
    while position < len(text):
        if text.startswith("\x1b[", position):
            end = next(i for i in range(position + 2, len(text)) if text[i].isalpha())
            number, code = text[position + 2 : end], text[end]
            if code == "A":
                y -= int(number)
            else:
                assert (code, number) == ("J", "")
                rows = [*rows[:y], ""]
            position = end + 1
        elif text[position] == "\n":
            y += 1
            if y == len(rows):
                rows.append("")
            position += 1
        else:
            rows[y] += text[position]
            position += 1
    return rows[:-1]


def test_an_epoch_tells_everything():
    progress, health = epoch_lines(record(11), 60)
    assert progress == (
        "epoch 12/60  eta 3:41  posture -0.412 (win 56%)  diagnosis 0.931 (win 50%)  "
        "consistency 0.300 (win 61%)"
    )
    assert health == "ratio 1.000000 (off 2e-07)  clip 12%  kl 1.2e-03  diversity 0.281"


def test_without_an_anchor_there_is_no_win_rate():
    assert "win" not in epoch_lines(record(0, win_rate={}), 60)[0]


def test_a_pipe_gets_a_line_an_epoch():
    stream = io.StringIO()
    progress = TerminalProgress(3, stream)
    progress.message("judging the anchor")
    for epoch in range(3):
        progress.epoch(record(epoch))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "judging the anchor"
    assert [line[:9] for line in lines[1:]] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert all("diversity 0.281" in line for line in lines[1:])
    assert "\x1b" not in stream.getvalue()


def test_a_terminal_keeps_messages_and_redraws_the_epoch(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    stream = Terminal()
    progress = TerminalProgress(3, stream)
    progress.message("judging the anchor")
    progress.epoch(record(0))
    progress.epoch(record(1))
    progress.message("warning: diversity")
    progress.epoch(record(2))
    progress.close()
    progress.message("done")
    shown = screen(stream.getvalue())
    assert shown[:2] == ["judging the anchor", "warning: diversity"]
    assert shown[2].startswith("epoch 3/3  eta 3:41  posture -0.412")
    assert shown[3].startswith("ratio 1.000000")
    assert shown[4] == "done"
    assert len(shown) == 5
    assert max(len(row) for row in shown) == 79, "a wrapped line would break the redrawing"


def test_the_judges_scores_stay():
    values = dict.fromkeys(("posture", "auroc", "consistency", "fid", "ms_ssim", "diversity"), 0.5)
    stream = io.StringIO()
    TerminalProgress(3, stream).epoch(record(1, eval=values | {"fid": 12345.0}))
    assert stream.getvalue().startswith(
        "judges after epoch 2: posture 0.500  auroc 0.500  consistency 0.500  fid 1.23e+04"
    )


def test_only_the_first_process_speaks(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    stream = io.StringIO()
    progress = TerminalProgress(3, stream)
    progress.epoch(record(0))
    progress.message("hello")
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0:00"), (59.6, "1:00"), (221, "3:41"), (3599.7, "1:00:00"), (7384, "2:03:04")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def side(value, low, high):
    keys = ("posture", "auroc", "consistency", "fid", "ms_ssim", "diversity")
    return dict.fromkeys(keys, value) | {"ci": {key: [low, high] for key in keys}}


def test_the_final_table():
    summary = {
        "anchor": side(-0.689, -0.72, -0.65) | {"ms_ssim": None},
        "policy": side(-0.5, None, None),
        "change": side(0.189, 0.15, 0.21),
        "seed": 3,
        "wall_seconds": 581.0,
        "num_images": 256,
        "judges": {"name": "phantom", "feature_dim": 128},
    }
    lines = summary_table(summary).splitlines()
    assert lines[0].split() == ["anchor", "policy", "change", "[95", "%]"]
    assert lines[1].split("  ")[0] == "posture"
    assert "higher is better" in lines[1]
    assert "-0.689 [-0.720, -0.650]" in lines[1]
    assert "-0.500 " in lines[1]
    assert lines[1].endswith("+0.189 [+0.150, +0.210]")
    assert "lower is better" in lines[4]
    assert "undefined" in lines[5]
    assert lines[-1] == "256 images a side; judges 'phantom', fid on 128 of their features; seed 3; 9:41"
    assert len({line.index("-0.500") for line in lines[1:-1]}) == 1, "columns are aligned"
    kept = summary_table(summary | {"epochs": 24, "kept_epoch": 16})
    assert kept.endswith("; 9:41; weights of epoch 16 of 24, the last within limits")
    assert summary_table(summary | {"epochs": 24}) == "\n".join(lines), "a summary from before it was noted"
    assert summary_table(summary | {"epochs": 24, "kept_epoch": 24}) == "\n".join(lines)
