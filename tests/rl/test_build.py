"""The parts of a run from a configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from cxrl.presets import load_preset
from cxrl.rl.build import build
from cxrl.rl.engine import Engine
from cxrl.scorers.choice import ModelChoice


def test_every_model_is_opened_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened: list[str] = []
    open_one = ModelChoice.open

    def spy(choice: ModelChoice) -> object:
        opened.append(choice.option)
        return open_one(choice)

    monkeypatch.setattr(ModelChoice, "open", spy)
    parts = build(load_preset("smoke"), Engine(tmp_path))
    tasks = ("posture", "diagnosis", "consistency")
    assert opened == [f"{section}.{task}" for section in ("rewards", "eval") for task in tasks]
    assert set(parts.digests) == {*opened, "eval.judges"}
