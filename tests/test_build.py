"""What the build compiles the CUDA kernels for, whatever the nvcc that it finds."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OLD = (50, 52, 53, 60, 61, 62, 70, 72, 75)
# What `nvcc --list-gpu-code` says, by release; and what is to come of it.
RELEASES = {
    "10.2": (OLD, ""),
    "11.4": ((*OLD, 80, 86, 87), "80"),
    "12.0": ((*OLD, 80, 86, 87, 89, 90), "80-real;90"),
    "12.8": ((*OLD, 80, 86, 87, 89, 90, 100, 101, 120), "80-real;90-real;100-real;120"),
    "13.0": ((75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121), "80-real;90-real;100-real;120"),
    "one day": ((100, 110, 120, 130), "100-real;120"),
    "suffixes": (("80a", "90a", 100), "100"),
}


def choose(nvcc: str, tmp_path: Path, *options: str, **environment: str) -> tuple[str, list[str]]:
    """CMAKE_CUDA_ARCHITECTURES with this nvcc, and the lines that the user sees."""
    if shutil.which("cmake") is None:
        pytest.skip("needs cmake")
    script = tmp_path / "choose.cmake"
    script.write_text(
        "cmake_minimum_required(VERSION 3.20)\n"
        f'include("{ROOT / "csrc" / "cuda_architectures.cmake"}")\n'
        f'cxrl_choose_cuda_architectures("{nvcc}" problem)\n'
        "if(problem)\n  message(STATUS ${problem})\nendif()\n"
        f'file(WRITE "{tmp_path / "chosen"}" "${{CMAKE_CUDA_ARCHITECTURES}}")\n'
    )
    variables = {name: value for name, value in os.environ.items() if name != "CUDAARCHS"} | environment
    run = subprocess.run(
        ["cmake", *options, "-P", str(script)], env=variables, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert not run.stderr
    return (tmp_path / "chosen").read_text(), run.stdout.splitlines()


def fake_nvcc(folder: Path, codes: tuple[int | str, ...], status: int = 0) -> str:
    path = folder / "nvcc"
    lines = "".join(f"  echo sm_{code}\n" for code in codes)
    path.write_text(f'#!/bin/sh\nif [ "$1" = --list-gpu-code ]; then\n{lines}  exit {status}\nfi\nexit 1\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("release", RELEASES)
def test_architectures_that_nvcc_knows(release: str, tmp_path: Path) -> None:
    codes, expected = RELEASES[release]
    chosen, said = choose(fake_nvcc(tmp_path, codes), tmp_path)
    assert chosen == expected
    assert len(said) == 1
    missing = [f"sm_{arch}" for arch in (80, 90, 100, 120) if arch not in codes]
    assert all(name in said[0] for name in missing)
    if not expected:
        assert "compiles for none of sm_80, sm_90, sm_100, sm_120" in said[0]
    else:
        assert ("does not know" in said[0]) == bool(missing)


@pytest.mark.parametrize("nvcc", ["fails", "nowhere"])
def test_an_nvcc_that_lists_nothing(nvcc: str, tmp_path: Path) -> None:
    path = fake_nvcc(tmp_path, (80, 90), status=1) if nvcc == "fails" else str(tmp_path / "none")
    chosen, said = choose(path, tmp_path)
    assert chosen == ""
    assert "compiles for none of" in said[0]


def test_what_the_user_asks_for_stays(tmp_path: Path) -> None:
    nvcc = fake_nvcc(tmp_path, (80, 90))
    assert choose(nvcc, tmp_path, "-DCMAKE_CUDA_ARCHITECTURES=75;86-real") == ("75;86-real", [])
    assert choose(nvcc, tmp_path, CUDAARCHS="75") == ("", [])  # CMake itself reads it


def test_this_nvcc(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("needs nvcc")
    chosen, said = choose(nvcc, tmp_path)
    assert chosen.split(";")[-1] in ("80", "90", "100", "120")
    assert len(said) == 1
