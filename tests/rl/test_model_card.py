"""The model card: it warns first, tells what was judged, leaks nothing, and its snippet draws."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from cxrl.config import Config
from cxrl.metrics.names import KEYS
from cxrl.presets import load_preset
from cxrl.rl.model_card import escaped, model_card
from cxrl.rl.trainer import Trainer


def side(value: float) -> dict[str, Any]:
    return dict.fromkeys(KEYS, value) | {"ci": {key: [value - 0.1, value + 0.1] for key in KEYS}}


def summary(**more: Any) -> dict[str, Any]:
    return {
        **{"anchor": side(0.2), "policy": side(0.5), "change": side(0.3), "real": side(0.8)},
        **{"gap": dict.fromkeys(KEYS, 0.5), "num_images": 8, "epochs": 24, "kept_epoch": 16},
        "judges": {"name": "phantom", "real_films": "films of the test"},
        **more,
    }


FINGERPRINT = {"unet": "0123456789abcdef"}


def test_it_tells_what_it_is_and_how_it_was_judged() -> None:
    text = model_card(load_preset("phantom"), summary(), FINGERPRINT)
    card = ModelCard(text)
    assert card.data.library_name == "diffusers"
    assert "synthetic" in card.data.tags
    assert card.data.base_model is None, "what ships is not on the hub"
    body = text.split("---\n", 2)[2]
    assert "**Synthetic images only. Not for diagnosis.**" in body.splitlines()[3]
    assert "weights of 16 of 24" in body
    assert "posture × 0.75" in body
    assert "| auroc (higher is better) | 0.200 | 0.500 | 0.800 | +0.300 [+0.200, +0.400] | 50% |" in body
    assert "diversity (nearer to real is better)" in body
    assert "unet 0123456789ab" in body
    assert model_card(load_preset("phantom"), summary(), FINGERPRINT) == text


def test_without_real_films_it_says_so() -> None:
    text = model_card(load_preset("phantom"), summary(real=None, gap=None, judges={"name": "x"}), FINGERPRINT)
    assert "no real films were judged" in text
    assert "| auroc (higher is better) | 0.200 | 0.500 | – | +0.300 [+0.200, +0.400] | – |" in text
    assert "diversity (higher is better)" in text


def test_no_path_of_this_machine_is_in_it(tmp_path: Path) -> None:
    base = tmp_path / "secret" / "my|base"
    base.mkdir(parents=True)
    config = Config.from_dict(
        {
            "model": {"path": str(base)},
            "rewards": {"path": str(tmp_path / "secret" / "scorers"), "consistency": ""},
            "eval": {"judges": str(tmp_path / "secret" / "judges")},
        }
    )
    judges = {"name": str(tmp_path / "secret" / "judges"), "diagnosis": str(tmp_path / "x.safetensors")}
    text = model_card(config, summary(judges=judges), FINGERPRINT)
    assert str(tmp_path) not in text
    assert "secret" not in text
    assert escaped("a|<b>\n# c") == "a\\|\\<b\\> \\# c"


@pytest.mark.parametrize("changes", [{}, {"sampler": {"guidance_scale": 2.0}}, {"policy": {"train": "full"}}])
def test_its_snippet_draws(
    changes: dict[str, Any], make_config: Any, fakes: dict[str, Any], tiny_pipeline: Path, tmp_path: Path
) -> None:
    sections = {"train": {"num_epochs": 1}} | changes
    run = tmp_path / "run"
    Trainer(make_config(**sections), run, **fakes).run()
    text = (run / "adapter" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    code = code.replace('folder = "."', f"folder = {str(run / 'adapter')!r}")
    code = re.sub(r"from_pretrained\('the folder [^']*'\)", f"from_pretrained({str(tiny_pipeline)!r})", code)
    names: dict[str, Any] = {}
    exec(code.replace("Small left pleural effusion.", "left effusion"), names)
    assert isinstance(names["image"], Image.Image)
