"""What a configuration needs, for ``cxrl.doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cxrl.config import Config
from cxrl.requirements import required_files
from cxrl.scorers.choice import TASKS
from cxrl.scorers.required import MissingFile


def config(**sections: Any) -> Config:
    return Config.from_dict(sections)


def test_the_default_needs_what_ships_and_has_it() -> None:
    found = required_files(Config())
    assert len(found) == 8
    assert all(required.is_present for required in found)
    assert [r.option for r in found][:2] == ["model.path", "rewards.posture"]


def test_everything_a_configuration_lacks_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    made = config(
        model={"path": "some/base"},
        data={"source": "mimic_cxr", "root": str(tmp_path / "mimic")},
        rewards={
            "posture": "pspnet",
            "diagnosis": "densenet121-res224-mimic_ch",
            "consistency": "some/siglip",
        },
        eval={
            "posture": "p.safetensors",
            "diagnosis": "densenet121-res224-nih",
            "consistency": str(tmp_path),
        },
        run={"xrv_cache": str(tmp_path)},
    )
    found = {r.option: r for r in required_files(made)}
    assert set(found) == {
        "model.path",
        *(f"{section}.{task}" for section in ("rewards", "eval") for task in TASKS),
        "data.root",
        "data.reports",
    }
    assert not any(r.is_present for r in found.values())
    for required in found.values():
        text = str(MissingFile(required))
        assert "\n" not in text
        assert text.startswith(f"{required.option}: ")
    assert "PhysioNet credential" in str(MissingFile(found["data.reports"]))
    assert "no SHA-256 is known" in str(MissingFile(found["eval.diagnosis"]))
    assert "Apache-2.0" in str(MissingFile(found["rewards.diagnosis"]))
    (tmp_path / "mimic_ch-densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt").write_bytes(b"")
    assert {r.option for r in required_files(made) if r.is_present} == {"rewards.diagnosis"}
