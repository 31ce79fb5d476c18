"""What the GPU kernels take of their processors, as committed in benchmarks/results/kernel_resources.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import kernel_resources  # noqa: E402

sys.path.remove(str(BENCHMARKS))

KERNELS = {
    "cuda": (
        *(f"attention{part}_kernel" for part in ("", "_query_grad", "_key_grad", "_sum_parts")),
        "trajectory_log_prob_kernel",
        "trajectory_log_prob_backward_kernel",
        "denoise_step_kernel",
        "pairwise_comparison_kernel",
        "pairwise_comparison_backward_kernel",
        "group_win_rate_kernel",
    ),
    "triton": ("attention", "trajectory_log_prob", "denoise_step", "pairwise_comparison", "group_win_rate"),
}


@pytest.mark.parametrize("arch", kernel_resources.ARCHS)
@pytest.mark.parametrize("backend", KERNELS)
def test_every_kernel_is_in_the_table(backend: str, arch: int) -> None:
    keys = [k for k in json.loads(kernel_resources.TABLE.read_text())["kernels"] if k.endswith(f"/sm_{arch}")]
    for kernel in KERNELS[backend]:
        assert any(k.startswith(f"{backend}/{kernel}") for k in keys), kernel


# Triton allots registers itself; the check keeps the little that it spills from growing.
SPILLS = {"cuda": 0, "triton": 128}


def test_no_kernel_spills_or_takes_too_much() -> None:
    for key, row in json.loads(kernel_resources.TABLE.read_text())["kernels"].items():
        assert row["spill_stores_bytes"] <= SPILLS[key.partition("/")[0]], key
        assert row["registers"] <= 255, key
        assert row["shared_bytes"] <= kernel_resources.MAX_SHARED[int(key.rpartition("_")[2])], key


def test_what_the_check_finds() -> None:
    row = {"registers": 40, "spill_stores_bytes": 0, "shared_bytes": 100}
    table = {
        "tools": {"nvcc": "1"},
        "kernels": {"cuda/a/sm_90": row, "cuda/b/sm_90": row, "cuda/a/sm_80": row},
    }

    def found(version: str = "1", **change: int) -> list[str]:
        fresh = {"cuda/a/sm_90": {**row, **change}, "cuda/b/sm_90": row}
        return kernel_resources.problems(fresh, table, {"nvcc": version}, (90,))

    assert not found()
    assert found(registers=41) == ["cuda/a/sm_90 takes 41 registers, 40 before"]
    assert not found("2", registers=41)
    assert found("2", spill_stores_bytes=8) == ["cuda/a/sm_90 spills 8 bytes, 0 before"]
    assert "a block has" in found("2", shared_bytes=1 << 20)[0]
    missing = kernel_resources.problems({"cuda/c/sm_90": row}, table, {"nvcc": "1"}, (90,))
    assert len(missing) == 3


@pytest.mark.slow
@pytest.mark.timeout(1200)  # a minute or two of nvcc on idle cores, many on busy ones
@pytest.mark.skipif(kernel_resources.nvcc_path() is None, reason="needs nvcc")
def test_compiles_to_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    # All architectures at once keep all cores at work.
    assert kernel_resources.main(["--check", "--no-triton"]) == 0, capsys.readouterr().out
