"""What is passed on: an sdist and a wheel that work elsewhere, and how to cite."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from cxrl.version import __version__

ROOT = Path(__file__).parents[1]


def test_the_citation_is_of_this_version() -> None:
    data = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= data.keys()
    assert (data["version"], data["license"]) == (__version__, "Apache-2.0")
    assert data["references"][0]["url"] == "https://arxiv.org/abs/2403.06516"


def run(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        words,
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dist/, made from the tracked files: the sdist, and from it the wheel."""
    folder = tmp_path_factory.mktemp("dist")
    source = folder / "src"
    source.mkdir()
    if (ROOT / ".git").exists():
        words = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), "ls-files", "-z"]
        names = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split("\0")
    else:  # a copy of the tracked files
        skip = ("build", "runs", "dist")
        names = [
            str(p.relative_to(ROOT))
            for p in ROOT.rglob("*")
            if p.is_file()
            and not {"__pycache__", *skip} & set(p.relative_to(ROOT).parts)
            and not any(part.endswith(".egg-info") for part in p.parts)
            and p.suffix != ".so"
        ]
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "build", "--outdir", str(folder / "dist"), cwd=source, CXRL_CUDA="OFF")
    return folder / "dist"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_sdist_and_the_wheel_hold_what_they_must(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    (sdist,) = built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for wanted in (
        *("cxrl/py.typed", "cxrl/presets/phantom.yaml", "cxrl/output/templates/report.html.j2"),
        *(
            "cxrl/assets/phantom/pipeline/unet/diffusion_pytorch_model.safetensors",
            "cxrl_kernels/attention.py",
        ),
    ):
        assert wanted in names, wanted
    assert any(name.startswith("cxrl/_C.") for name in names)
    assert any(name.endswith("LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {"csrc/bindings.cpp", "CMakeLists.txt", "setup.py", "LICENSE", "README.md"} <= held


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_wheel_runs_in_a_clean_environment(built: Path, tmp_path: Path) -> None:
    """One whose only other packages are the ones that this is tested with: they are 5 GB."""
    (wheel,) = built.glob("*.whl")
    run(sys.executable, "-m", "venv", str(tmp_path / "venv"), cwd=tmp_path)
    python = str(tmp_path / "venv" / "bin" / "python")
    site = next((tmp_path / "venv" / "lib").glob("python*")) / "site-packages"
    run(python, "-m", "pip", "install", "--no-deps", "--quiet", str(wheel), cwd=tmp_path)
    packages = next(p for p in sys.path if p.endswith("site-packages"))
    (site / "packages.pth").write_text(packages + "\n")  # paths alone: no editable install comes with them
    told = run(python, "-c", "import cxrl, cxrl._C; print(cxrl.__file__)", cwd=tmp_path, PYTHONPATH="")
    assert told.stdout.startswith(str(site))
    cxrl = str(tmp_path / "venv" / "bin" / "cxrl")
    assert run(cxrl, "--version", cwd=tmp_path).stdout == f"cxrl {__version__}\n"
    words = "train --preset smoke --run-dir run --train.num-epochs 1 --eval.num-images 2 --eval.bootstrap 0"
    run(cxrl, *words.split(), cwd=tmp_path, PYTHONPATH="", OMP_NUM_THREADS="1")
    run(cxrl, "report", "run", cwd=tmp_path, PYTHONPATH="")
    assert (tmp_path / "run-report.html").is_file()
