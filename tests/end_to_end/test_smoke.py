"""The main job as a user starts it: the smoke preset on the models that ship, in processes of their own."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from cxrl.images.png import SYNTHETIC

pytestmark = pytest.mark.slow

KEYS = ("posture", "auroc", "consistency", "fid", "ms_ssim", "diversity", "pose_sd")
TIMES = ("seconds", "wall_seconds", "eta_seconds")


def command(name: str, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs ``python -m cxrl.NAME`` on one thread, so that its bits do not depend on the machine's load."""
    done = subprocess.run(
        [sys.executable, "-m", f"cxrl.{name}", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == status, done.stderr[-2000:]
    return done


def outcome(run: Path) -> dict[str, Any]:
    """All that a run decides: weights, metrics and scores, without the times."""
    summary = json.loads((run / "summary.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "adapter": {p.name: p.read_bytes() for p in sorted((run / "adapter").glob("*.safetensors"))},
        "metrics": [{k: v for k, v in line.items() if k not in TIMES} for line in lines],
        "summary": {k: v for k, v in summary.items() if k not in TIMES},
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smoke") / "run"
    done = command("train", "--preset", "smoke", "--run-dir", str(folder))
    assert "posture" in done.stdout
    assert done.stderr == f"next: cxrl report {folder}\n"
    return folder


def test_the_run_directory_holds_exactly_what_is_promised(run: Path) -> None:
    assert {p.name for p in run.iterdir()} == {
        *(".cxrl-run.json", "config.yaml", "provenance.json", "bounds.json", "metrics.jsonl", "summary.json"),
        *("scores.csv", "gallery.safetensors"),
        *("checkpoints", "adapter", "samples", "logs"),
    }
    assert {p.name for p in (run / "adapter").iterdir()} == {
        *("pytorch_lora_weights.safetensors", "ace.safetensors", "adapter.json", "README.md")
    }
    assert {p.suffix for p in (run / "checkpoints").rglob("*") if p.is_file()} <= {".safetensors", ".json"}
    assert any((run / "logs").rglob("events.out.tfevents.*"))


def test_everything_is_finite_and_moved(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1]
    for line in lines:
        assert set(line["reward"]) == {"posture", "diagnosis", "consistency"}
        # The ratio of float32 networks is 1 to rounding before the first step.
        assert line["ratio_max_dev"] <= 1e-5
    summary = json.loads((run / "summary.json").read_text())
    for side in ("anchor", "policy"):
        assert set(summary[side]) >= {*KEYS, "ci"}
        for key in KEYS:
            low, high = summary[side]["ci"][key]
            assert math.isfinite(summary[side][key]), (side, key)
            assert low <= high, (side, key)
    assert set(summary) >= {"anchor", "policy", "seed", "wall_seconds", "num_images", "judges"}
    assert summary["policy"]["posture"] != summary["anchor"]["posture"]
    lora = load_file(run / "adapter" / "pytorch_lora_weights.safetensors")
    # LoRA's second factor starts at zero.
    assert all(bool(v.any()) for k, v in lora.items() if "lora_B" in k)
    assert all(bool(v.isfinite().all()) for v in lora.values())


def test_killed_after_an_epoch_and_resumed_is_the_same_run(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    words = [sys.executable, "-m", "cxrl.train", "--preset", "smoke", "--run-dir", str(folder)]
    process = subprocess.Popen(
        words,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 250
    while process.poll() is None and not list((folder / "checkpoints").glob("step-*")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    assert not (folder / "summary.json").exists()
    command("train", "--run-dir", str(folder), "--resume")
    expected, found = outcome(run), outcome(folder)
    for part in expected:
        assert found[part] == expected[part], part


def test_a_second_run_in_the_same_place_is_refused(run: Path) -> None:
    before = outcome(run)
    done = command("train", "--preset", "smoke", "--run-dir", str(run), status=2)
    assert done.stderr.startswith("error: ")
    assert "--resume" in done.stderr
    assert done.stderr.count("\n") == 1
    assert outcome(run) == before


def test_images_of_policy_and_anchor_say_that_they_are_synthetic(run: Path, tmp_path: Path) -> None:
    words = ["--run", str(run), "--prompt", "Small left pleural effusion.", "--num-images", "2"]
    command("generate", *words, "--out", str(tmp_path))
    command("generate", *words, "--out", str(tmp_path), "--anchor")
    files = sorted(tmp_path.glob("*.png"))
    assert [f.name for f in files] == [
        *("anchor-000000.png", "anchor-000001.png"),
        *("policy-000000.png", "policy-000001.png"),
    ]
    for file in files:
        with Image.open(file) as image:
            assert image.size == (64, 64)
            assert image.text["Synthetic"] == SYNTHETIC  # type: ignore[attr-defined]
            assert len(image.getcolors() or ()) > 50
    assert files[0].read_bytes() != files[2].read_bytes()
    for grid in (run / "samples").glob("*.png"):
        with Image.open(grid) as image:
            assert image.text["Synthetic"] == SYNTHETIC  # type: ignore[attr-defined]


def test_evaluate_repeats_the_scores(run: Path, tmp_path: Path) -> None:
    command("evaluate", "--run", str(run), "--out", str(tmp_path / "scores.json"))
    found, expected = (json.loads(p.read_text()) for p in (tmp_path / "scores.json", run / "summary.json"))
    for summary in (found, expected):
        assert summary.pop("wall_seconds") > 0
    assert found == expected


def test_the_report_is_one_page(run: Path, tmp_path: Path) -> None:
    command("report", "--run", str(run), "--out", str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    assert "Not for diagnosis" in page
    assert "data:image/png;base64," in page
    assert not re.search(r"https?://", page)


def test_the_configuration_is_the_preset(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["preset"], config["model"]["path"], config["sampler"]["guidance_scale"]) == (
        *("smoke", "phantom"),
        2.0,
    )


def test_the_ace_tensor_is_one_of_the_text_encoder_s_width(run: Path) -> None:
    (ace,) = load_file(run / "adapter" / "ace.safetensors").values()
    assert ace.dtype == torch.float32
    assert tuple(ace.shape) == (4, 128)
