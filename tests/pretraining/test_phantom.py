"""The smoke preset of ``cxrl.pretrain``: every stage once, and all that it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from cxrl import pretrain
from cxrl.data.phantom.films import corpus
from cxrl.evaluation.judges import load_judges
from cxrl.pretraining.phantom import SMOKE
from cxrl.rewards.base import build_rewards

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pretrain") / "assets"
    assert pretrain.main(["--preset", "smoke", "--out", str(out)]) == 0
    return out


def test_it_leaves_exactly_what_ships(assets: Path) -> None:
    assert {p.name for p in assets.iterdir()} == {
        *("pipeline", "rewards", "judges"),
        *("MODEL_CARD.md", "quality.json"),
    }
    assert {p.name for p in (assets / "rewards").iterdir()} == {
        f"{task}.safetensors" for task in ("posture", "diagnosis", "consistency")
    }
    assert {p.name for p in (assets / "judges").iterdir()} == {
        f"{task}.safetensors" for task in ("posture", "diagnosis", "consistency", "reference")
    }
    suffixes = {p.suffix for p in assets.rglob("*") if p.is_file()}
    assert suffixes <= {".safetensors", ".json", ".txt", ".md"}
    assert sum(p.stat().st_size for p in assets.rglob("*") if p.is_file()) < 20e6


def test_the_base_loads_in_plain_diffusers(assets: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(assets / "pipeline").to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    rng = torch.Generator().manual_seed(0)
    image = pipe("Large left pleural effusion.", num_inference_steps=2, generator=rng).images[0]
    assert image.size == (64, 64)
    assert np.isfinite(np.asarray(image)).all()


def test_rewards_and_judges_load(assets: Path) -> None:
    assert set(build_rewards(("posture", "diagnosis", "consistency"), str(assets / "rewards"))) == {
        *("posture", "diagnosis", "consistency")
    }
    judges = load_judges(str(assets / "judges"))
    features = judges.features(corpus(3, seed=0).pixels())
    assert judges.reference.shape == (SMOKE.num_reference_films, features.shape[1])


def test_the_card_tells_settings_and_quality(assets: Path) -> None:
    card, table = (assets / "MODEL_CARD.md").read_text(), json.loads((assets / "quality.json").read_text())
    assert "Not for diagnosis" in card
    assert f"base_steps {SMOKE.base_steps}" in card
    natural = ", natural pose, held-out phrasings"
    assert set(table) == {
        "base",
        *(f"{role}{corpus}" for role in ("rewards", "judges") for corpus in ("", natural)),
    }
    for part, values in table.items():
        for key, value in values.items():
            assert f"| {part} | {key} |" in card
            numbers = value.values() if isinstance(value, dict) else [value]
            # 16 images do not show every finding, and one that is never asked for has no AUROC.
            assert all(np.isfinite(number) for number in numbers) or (part, key) == (
                "base",
                "auroc_per_finding",
            )


def test_the_same_command_goes_on_from_its_checkpoints(
    assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = assets.with_name(f"{assets.name}.work")
    argv = ["--preset", "smoke", "--out", str(tmp_path / "again"), "--work-dir", str(work)]
    assert pretrain.main(argv) == 0
    said = capsys.readouterr().out
    for stage in ("autoencoder", "decoder", "text_encoder", "base", "rewards-posture", "judges-consistency"):
        assert f"{stage}: continues at step 3 of 3" in said
    for file in assets.rglob("*.safetensors"):
        assert (tmp_path / "again" / file.relative_to(assets)).read_bytes() == file.read_bytes(), file.name
