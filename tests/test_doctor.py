"""cxrl.doctor: what is there, what is missing and how to get it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cxrl import checkup, doctor


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "matmul_rate", lambda device, dtype: 1e9)


def flat(text: str) -> str:
    """Lines wrap where a path is long: the words alone."""
    return " ".join(text.split())


def test_the_default_has_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    out = flat(capsys.readouterr().out)
    assert "MISSING" not in out
    assert "model.path there: " in out
    for word in ("environment", "preset phantom needs", "96 an epoch", "backend triton", "cxrl._C", "GiB"):
        assert word in out


def test_a_preset_without_its_files(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    arguments = ["--preset", "mimic", "--run.xrv-cache", str(tmp_path / "xrv")]
    assert doctor.main(arguments) == 2
    captured = capsys.readouterr()
    out = flat(captured.out)
    assert f"{tmp_path}/xrv/mimic_ch-densenet121" in out
    assert "28,382,012 bytes, SHA-256 23b13a04459684ffa41247d068207a7657b4e1b4dec2b02431f5026bd75b1189" in out
    assert f"and put it into {tmp_path}/xrv" in out
    assert "data.root MISSING: the data of mimic_cxr (give --data.root)" in out
    assert "cxrl pretrain --preset posture" in out
    assert "memory, time not known before model.path is on this machine" in out
    assert captured.err.strip() == "error: missing for preset mimic: 8; see above"


def test_what_is_there_is_found(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    reports = tmp_path / "reports.csv"
    reports.write_text("text\nno acute findings\n")
    assert doctor.main(["--data.source", "prompts", "--data.root", str(reports)]) == 0
    assert f"data.root there: {reports}" in flat(capsys.readouterr().out)


def test_bad_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--preset", "mimik"]) == 2
    assert "did you mean" in capsys.readouterr().err
    assert doctor.main(["--rewards.diagnosis", "densenet121-res224-mimic"]) == 2
    assert "densenet121-res224-mimic_ch" in capsys.readouterr().err
