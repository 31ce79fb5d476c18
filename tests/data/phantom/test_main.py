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
