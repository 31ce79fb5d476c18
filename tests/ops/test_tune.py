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


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--repeats", "0"], "--repeats '0'; expected 1 to 100000"),
        (["--repeats", "-1"], "--repeats"),
        (["--repeats", "1.5"], "--repeats '1.5'"),
        (["--repeats", "x"], "--repeats 'x'"),
        (["--repeats", "١"], "--repeats '١'"),
        (["--repeats", "9" * 5000], "--repeats '999"),
        (["--repeats", "100001"], "--repeats '100001'"),
        (["--repeats"], "expected one argument"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--device", "cuda"], "no CUDA device"),
        (["--dryrun"], "unrecognized arguments: --dryrun"),
        (["a\0b"], "unrecognized arguments"),
    ],
)
def test_the_command_refuses(
    argv: list[str],
    words: str,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(tune, "tune", lambda *_: pytest.fail("measured before it refused"))
    assert tune.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert words in error
    assert not list(cache.iterdir())


@pytest.mark.parametrize("kind", ["file", "home"])
def test_a_place_that_cannot_be_written_is_told_before_measuring(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "tune", lambda *_: pytest.fail("measured before it refused"))
    if kind == "file":
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    else:
        monkeypatch.setattr(_dispatch, "table_path", lambda *_: None)
    assert tune.main([]) == 2
    expected = {"file": "the table cannot be written (", "home": "this user has no home for the table"}
    assert expected[kind] in (error := capsys.readouterr().err)
    assert "set XDG_CACHE_HOME" in error


def test_ctrl_c_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tune, "tune", interrupt)
    assert tune.main(["--dry-run"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
