from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cxrl.data.phantom.__main__ import main


def test_the_contact_sheet_command_writes_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sheet.png"
    assert main(["--out", str(out), "--size", "32"]) == 0
    assert "synthetic" in capsys.readouterr().out
    with Image.open(out) as sheet:
        assert sheet.width == 6 * 32 * 3
        assert np.asarray(sheet).std() > 20
        assert sheet.text["Synthetic"].startswith("Synthetic image")  # type: ignore[attr-defined]
        assert sheet.text["Seed"] == "0"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "required: --out"),
        (["--out"], "--out: expected one argument"),
        (["--out", ""], "--out: the path is empty"),
        (["--out", "."], "--out: cannot write .: is a directory"),
        (["--out", "a\0b"], "--out: 'a\\x00b' holds NUL"),
        (["--out", "/dev/null/x.png"], "--out: cannot write /dev/null/x.png"),
        (["--out", "s.png", "--seed", "-1"], "--seed: '-1' is not a whole number of at least 0"),
        (["--out", "s.png", "--seed", "x"], "--seed: 'x' is not a whole number"),
        (["--out", "s.png", "--seed", str(2**31)], "--seed: '2147483648' is not a whole number"),
        (["--out", "s.png", "--size", "0"], "--size: '0' is not a whole number of at least 16"),
        (["--out", "s.png", "--size", "100000"], "--size: '100000' is not a whole number"),
        (["--out", "s.png", "--size", "6.4"], "--size: '6.4' is not a whole number"),
        (["--out", "s.png", "--sise", "64"], "did you mean --size?"),
        (["s.png"], "required: --out"),
    ],
)
def test_bad_input_is_one_line_before_any_work(
    argv: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "cxrl.data.phantom.sheet.corpus", lambda *_, **__: pytest.fail("drew before it refused")
    )
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err
    assert captured.out == ""
    assert not list(tmp_path.iterdir())
