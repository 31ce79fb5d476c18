"""Devices that a test may ruin."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest


@pytest.fixture
def full_device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A device without room for a byte; for root one of its own, since a wrong write would replace that."""
    if os.geteuid() != 0:
        return Path("/dev/full")
    path = tmp_path_factory.mktemp("devices") / "full"
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 7))
        path.open("wb").close()
    except OSError as error:
        pytest.skip(f"root cannot make a device here: {error}")
    return path
