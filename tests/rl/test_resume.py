"""A killed run resumes from its last checkpoint bit-identically; two processes take one process's steps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cxrl.storage.checkpoint import checkpoints, load_checkpoint
from cxrl.storage.layout import LORA_FILE

# One script serves the whole module, and a busy machine may be slow.
pytestmark = pytest.mark.timeout(900)
HERE = Path(__file__).parent
TIMEOUT = 20.0  # forked_runs.TIMEOUT
TIMES = {"seconds", "wall_seconds", "eta_seconds"}


def outcome(run: Path) -> dict[str, Any]:
    """All that a run leaves, without the times."""
    files = [*sorted(run.glob("adapter/*.safetensors")), *sorted(run.glob("checkpoints/*/*.safetensors"))]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((run / "summary.json").read_text())
    return {
        "tensors": {str(f.relative_to(run)): f.read_bytes() for f in files},
        "metrics": [{k: v for k, v in line.items() if k not in TIMES} for line in lines],
        "summary": {k: v for k, v in summary.items() if k not in TIMES},
        "samples": {f.name: f.read_bytes() for f in sorted(run.glob("samples/*.png"))},
        "judged": {
            name: (run / name).read_bytes() for name in ("bounds.json", "scores.csv", "gallery.safetensors")
        },
        "card": (run / "adapter" / "README.md").read_bytes(),
    }


@pytest.fixture(scope="module")
def runs(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Folder with a run by moment of death, each resumed to its end, and how each ended."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, str(HERE / "forked_runs.py"), str(HERE / "conftest.py"), str(tiny_pipeline)]
    # One thread: sums in another order are other bits.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(folder)], env=environment, capture_output=True, text=True, timeout=880, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "moment",
    [
        "second_step_of_first_epoch",
        "while_writing_the_first_checkpoint",
        "before_the_rename_of_the_second",
        "while_deleting_an_old_one",
        "before_deleting_the_last_old_one",
        "within_the_third_epoch",
        "in_a_metrics_line",
        "while_saving_the_adapter",
        "before_the_summary",
    ],
)
def test_killed_and_resumed_is_never_killed(runs: tuple[Path, dict[str, Any]], moment: str) -> None:
    folder, signals = runs
    assert signals[moment] == signal.SIGKILL  # it really died there
    expected, found = outcome(folder / "never"), outcome(folder / moment)
    assert [line["epoch"] for line in found["metrics"]] == [0, 1, 2, 3]
    for part in expected:
        assert found[part] == expected[part], part
    assert {p.name for p in (folder / moment).iterdir()} == {p.name for p in (folder / "never").iterdir()}
    assert not list((folder / moment).glob("checkpoints/.*"))


def ends(signals: dict[str, Any], run: str) -> list[tuple[int, int | None]]:
    return [(end["signal"], end["status"]) for end in signals[run]]


@pytest.mark.parametrize("run", ["two_processes", "two_accumulating"])
def test_two_processes_are_one_to_rounding(runs: tuple[Path, dict[str, Any]], run: str) -> None:
    folder, signals = runs
    assert ends(signals, run) == [(0, 0), (0, 0)], signals[run]
    one, two = (outcome(folder / name)["metrics"] for name in ("never", run))
    assert len(one) == len(two) == 4
    for a, b in zip(one, two, strict=True):
        assert a["num_rows"] == b["num_rows"]
        for name in ("reward", "reward_std", "win_rate"):
            assert b[name] == pytest.approx(a[name], rel=1e-3, abs=1e-5), (a["epoch"], name)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-2)
    weights = [load_file(folder / name / "adapter" / LORA_FILE) for name in ("never", run)]
    for name, value in weights[0].items():
        # Eight steps of AdamW of 1e-3; measured 2.4e-7, on weights of up to 1.6.
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=8e-6)


def test_two_processes_in_bfloat16_agree_with_each_other(runs: tuple[Path, dict[str, Any]]) -> None:
    """Their kernels may depend on the batch, so one process differs; that all agree is checked at a save."""
    folder, signals = runs
    assert signals["one_in_bfloat16"] == 0
    assert ends(signals, "two_in_bfloat16") == [(0, 0), (0, 0)], signals["two_in_bfloat16"]
    one, two = (outcome(folder / name)["metrics"] for name in ("one_in_bfloat16", "two_in_bfloat16"))
    for a, b in zip(one, two, strict=True):
        # Images in bfloat16: three significant digits, averaged over pixels and samples.
        assert b["reward"] == pytest.approx(a["reward"], rel=1e-2, abs=2e-3)
    saved = load_checkpoint(checkpoints(folder / "two_in_bfloat16" / "checkpoints")[-1])
    assert {t.dtype for t in saved.tensors["weights.safetensors"].values()} == {torch.float32}


LOST = "error: process 0 of 2 lost another while "


@pytest.mark.parametrize(
    ("run", "expected", "messages", "last"),
    [
        ("one_killed", [(0, 2), (signal.SIGKILL, None)], [LOST, ""], 4),
        ("one_refuses", [(0, 2), (0, 2)], [LOST, "error: a reward has no score for sample 3"], 4),
        (
            "main_refuses",
            [(0, 2), (0, 2)],
            ["No space left on device", "error: process 1 of 2 lost another while waiting"],
            2,
        ),
        ("one_disagrees", [(0, 2), (0, 2)], ["disagree on 2 of", "the first ace"], 2),
        ("one_silent", [(0, 2), (signal.SIGKILL, None)], [LOST, ""], 4),
    ],
)
def test_when_one_process_ends_so_do_the_others_and_the_checkpoint_stays(
    runs: tuple[Path, dict[str, Any]], run: str, expected: list[Any], messages: list[str], last: int
) -> None:
    folder, signals = runs
    assert ends(signals, run) == expected, signals[run]
    for end, message in zip(signals[run], messages, strict=True):
        assert message in end["stderr"]
        assert "Traceback" not in end["stderr"]
    if LOST in messages:
        told = signals[run][0]["stderr"]
        assert "go on with --resume" in told
        assert "run.process_timeout" in told
    # Whoever noticed did so at once: sooner than by its timeout, but where there was silence and not an end.
    first, second = sorted(end["seconds"] for end in signals[run])
    assert run == "one_silent" or second - first < TIMEOUT
    saved = checkpoints(folder / run / "checkpoints")
    assert [p.name for p in saved] == [f"step-{last:06d}"]
    load_checkpoint(saved[0])


def test_a_run_on_two_processes_resumes_bit_identically(runs: tuple[Path, dict[str, Any]]) -> None:
    folder, signals = runs
    assert ends(signals, "one_killed_resumed") == [(0, 0), (0, 0)], signals["one_killed_resumed"]
    expected, found = outcome(folder / "two_processes"), outcome(folder / "one_killed_resumed")
    for part in expected:
        assert found[part] == expected[part], part


def test_the_run_did_something(runs: tuple[Path, dict[str, Any]]) -> None:
    folder, signals = runs
    assert signals["never"] == 0
    names = {p.name for p in (folder / "never").iterdir()}
    assert names == {
        ".cxrl-run.json",
        "config.yaml",
        "provenance.json",
        "bounds.json",
        "metrics.jsonl",
        "summary.json",
        "scores.csv",
        "gallery.safetensors",
        "checkpoints",
        "adapter",
        "samples",
        "logs",
    }
    assert len(outcome(folder / "never")["tensors"]) == 2 + 5
    assert sorted(outcome(folder / "never")["samples"]) == [
        "epoch-000002.png",
        "epoch-000004.png",
        "result.png",
    ]
