"""The command line of ``cxrl.pretrain``: what is refused before any work, and what an interrupt leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cxrl import pretrain


@pytest.fixture(autouse=True)
def idle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever begins to work fails the test."""
    for name in ("finetune.finetune", "posture.pretrain_posture", "phantom.pretrain_phantom"):
        monkeypatch.setattr(f"cxrl.pretraining.{name}", lambda *_, **__: pytest.fail("work has begun"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("", "required: --out"),
        ("--out o", "give either --preset or --base with --table"),
        ("--preset smok --out o", "did you mean smoke?"),
        ("--preset smoke --out", "--out: expected one argument"),
        ("--preset smoke --out=", "--out: the path is empty"),
        ("--preset smoke --out file", "--out: cannot write file: "),
        ("--preset smoke --out file/x", "--out: cannot write file/x: "),
        ("--preset smoke --out /dev/full", "--out: cannot write /dev/full: "),
        ("--preset smoke --out o --work-dir file", "--work-dir: cannot write file: "),
        ("--preset smoke --out o --seed -1", "--seed: '-1' is not a whole number of at least 0"),
        (
            "--preset smoke --out o --steps 5",
            "--steps goes with posture or fine-tuning, not with --preset smoke",
        ),
        ("--preset posture --out o.safetensors", "needs --data"),
        ("--preset posture --out o --data d", "is no file named *.safetensors"),
        ("--preset posture --out file/o.safetensors --data d", "--out: cannot write file/o.safetensors: "),
        ("--preset posture --out o.safetensors --data d --steps 0", "--steps: '0' is not a whole number"),
        ("--table t.csv --out o", "--table needs --base"),
        ("--base b --out o", "give either --preset or --base with --table"),
        ("--base b --table t.csv --out o --batch-size 1e9", "--batch-size: '1e9' is not a whole number"),
        ("--base b --table t.csv --out o --learning-rate 0", "--learning-rate: '0' is not a number above 0"),
        ("--base b --table t.csv --out o --learning-rate nan", "--learning-rate: 'nan' is not a number"),
        ("--base b --table t.csv --out file", "--out: cannot write file: "),
    ],
)
def test_bad_input_is_one_line_before_any_work(
    argv: str, words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert pretrain.main(argv.split()) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err
    assert captured.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("preset", ["smoke", "phantom"])
def test_the_seed_goes_with_every_preset(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Any] = []

    def keep(plan: Any, out: Path, work_dir: Path) -> dict[str, Any]:
        plans.append(plan)
        return {}

    monkeypatch.setattr("cxrl.pretraining.phantom.pretrain_phantom", keep)
    assert pretrain.main(["--preset", preset, "--out", "o"]) == 0
    assert pretrain.main(["--preset", preset, "--out", "o", "--seed", "7"]) == 0
    assert [plan.seed for plan in plans] == [0, 7]


def test_ctrl_c_says_what_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(plan: Any, out: Path, work_dir: Path) -> None:
        work_dir.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr("cxrl.pretraining.phantom.pretrain_phantom", stop)
    assert pretrain.main(["--preset", "smoke", "--out", "o"]) == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on from o.work\n"
