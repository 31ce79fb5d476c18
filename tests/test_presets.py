"""Presets for real data: faithful to the paper where it speaks, and a reason beside every field."""

from __future__ import annotations

import pytest

from cxrl.presets import FOLDER, load_preset
from cxrl.rl.batch_sizes import ROWS
from cxrl.scorers.choice import model_choices
from cxrl.scorers.protocols import check_judges

REAL = ("mimic", "mimic-sd15", "openi", "roentgen-v2")


@pytest.mark.parametrize("name", REAL)
def test_what_the_paper_states(name: str) -> None:
    config = load_preset(name)
    assert config.comparison.form == "difference"
    assert config.comparison.anchor == "one_to_one"
    assert config.comparison.without_anchor == ("posture",)
    assert config.rewards.names == ("posture", "diagnosis", "consistency")
    assert config.policy.num_ace_tokens > 0
    assert config.data.source == ("openi" if name == "openi" else "mimic_cxr")
    if name in ("mimic", "openi"):
        assert "roent-gen" in config.model.path
    assert config.policy.lora_alpha == config.policy.lora_rank


@pytest.mark.parametrize("name", REAL)
def test_every_field_has_its_reason(name: str) -> None:
    fields = [
        line
        for line in (FOLDER / f"{name}.yaml").read_text().splitlines()
        if line.startswith("  ") and not line.lstrip().startswith("#")
    ]
    assert len(fields) > 20
    assert all(" # " in line for line in fields), [line for line in fields if " # " not in line]


@pytest.mark.parametrize("name", REAL)
def test_judges_are_other_models(name: str) -> None:
    config = load_preset(name)
    check_judges(model_choices(config, "rewards"), model_choices(config, "eval"))


@pytest.mark.parametrize("name", REAL)
def test_sampling_and_training_see_equal_shapes(name: str) -> None:
    config = load_preset(name)
    assert config.sampler.batch_size == config.optim.micro_batch_size == 0, "both as many as fit"
    images = config.train.prompts_per_epoch * config.train.samples_per_prompt
    assert all(images % rows == 0 for rows in ROWS)
    # At least as many held-out reports as the judged images need.
    assert config.data.eval_num_prompts * config.eval.samples_per_prompt >= config.eval.num_images
