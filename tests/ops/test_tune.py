from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from cxrl.ops import _dispatch, tune


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    _dispatch.forget_choices()
    return tmp_path


def table_path() -> Path:
    path = _dispatch.table_path("cpu")
    assert path is not None
    return path


def test_a_stock_backend_stays_unless_beaten() -> None:
    assert tune.choose({"reference": 1.0, "cpp": 0.99}) == "reference"
    assert tune.choose({"reference": 1.0, "cpp": 0.9}) == "cpp"
    assert tune.choose({"reference": 1.0, "sdpa": 0.5, "cpp": 0.6}) == "sdpa"


def test_the_table_decides(cache: Path, cpp: str) -> None:
    assert _dispatch.select("pairwise_comparison", None, "cpu", (), "win") == "cpp"
    table = {
        "version": _dispatch.TABLE_VERSION,
        "choices": {"pairwise_comparison": {"win": "reference"}, "attention": {"few/float32/64": "sdpa"}},
    }
    path = table_path()
    tune.save(table, path)
    assert [p.name for p in (cache / "cxrl").iterdir()] == [path.name]
    _dispatch.forget_choices()
    assert _dispatch.select("pairwise_comparison", None, "cpu", (), "win") == "reference"
    assert _dispatch.select("pairwise_comparison", None, "cpu", (), "direct") == "cpp"
    assert _dispatch.select("attention", None, "cpu", (), "few/float32/64") == "sdpa"
    assert _dispatch.select("attention", None, "cpu", (), "few/float32/32") == "cpp"
    # What was asked for is stronger.
    assert _dispatch.select("pairwise_comparison", "cpp", "cpu", (), "win") == "cpp"


@pytest.mark.parametrize("content", ["{", "[]", '{"version": 0, "choices": {}}', '{"version": 1}'])
def test_a_bad_table_is_ignored_and_said_once(
    cache: Path, cpp: str, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = table_path()
    path.parent.mkdir()
    path.write_text(content)
    with caplog.at_level(logging.WARNING, logger="cxrl"):
        for case in ("win", "direct"):
            assert _dispatch.select("pairwise_comparison", None, "cpu", (), case) == "cpp"
    assert len(caplog.records) == 1
    assert "python -m cxrl.ops.tune writes it anew" in caplog.text


def test_the_command(
    cache: Path, cpp: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tune, "attention_cases", lambda device: [])
    assert tune.main(["--repeats", "1", "--dry-run"]) == 0
    assert not list(cache.iterdir())
    assert tune.main(["--repeats", "1"]) == 0
    table = json.loads(table_path().read_text())
    assert set(table["choices"]["pairwise_comparison"]) == {"difference", "win", "bradley_terry", "direct"}
    assert all(row["median_seconds"].keys() == {"reference", "cpp"} for row in table["measured"])
    assert "trajectory_log_prob" in capsys.readouterr().out


def test_every_attention_case_runs(cpp: str) -> None:
    cases = list(tune.attention_cases("cpu"))
    assert len({case for _, case, _ in cases}) == len(cases)
    assert {case.partition("/")[0] for _, case, _ in cases} == {"few", "little", "many"}
    op, case, run = cases[0]
    assert case == "few/float32/16"
    assert tune.measure(op, run, "cpu", 1).keys() == {"reference", "sdpa", "cpp"}


def test_the_command_refuses(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert tune.main(["--repeats", "0"]) == 2
    assert "--repeats 0; expected 1 or more" in capsys.readouterr().err
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert tune.main(["--device", "cuda"]) == 2
    assert "no CUDA device" in capsys.readouterr().err
