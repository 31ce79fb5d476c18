"""A run of the smoke preset on the models that ship, for what is shown of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "run"
    words = [sys.executable, "-m", "cxrl.train", "--preset", "smoke", "--run-dir", str(folder), "--quiet"]
    subprocess.run(words, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return folder
