"""A base of the shape of Stable Diffusion 2.1-base, which RoentGen-v2 has, is loaded and trained as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cxrl.generate import main as generate
from cxrl.models.base import load_base
from cxrl.models.policy import Policy
from cxrl.presets import load_preset, load_yaml
from cxrl.rl.schedule import ddim_table
from cxrl.train import main as train

UNET = {"block_out_channels": (32, 64), "attention_head_dim": (2, 4), "use_linear_projection": True}
"""Heads by block, and projections that are linear layers, unlike Stable Diffusion 1's."""
WORDS = ("left", "right", "both", "no", "acute", "normal")


@pytest.mark.parametrize(
    ("kind", "prediction"), [("PNDMScheduler", "epsilon"), ("DDIMScheduler", "v_prediction")]
)
def test_it_is_trained_and_drawn_from(
    make_pipeline: Callable[..., Path], tmp_path: Path, kind: str, prediction: str
) -> None:
    scheduler = {"prediction_type": prediction, "timestep_spacing": "leading", "set_alpha_to_one": False}
    folder = make_pipeline(width=1024, unet=UNET, scheduler_class=kind, scheduler=scheduler)
    base = load_base(folder)
    assert base.unet.config.cross_attention_dim == base.text_encoder.config.hidden_size == 1024
    assert base.scheduler_config["prediction_type"] == prediction
    ace = Policy(base, load_preset("roentgen-v2").policy, seed=0).ace
    assert ace is not None
    assert tuple(ace.shape) == (8, 1024)
    run, images, reports = tmp_path / "run", tmp_path / "images", tmp_path / "reports.csv"
    reports.write_text(
        "text,split,Pleural Effusion\n"
        + "".join(
            f"{'heart' if split == 'train' else 'lung'} {word},{split},{i % 2}\n"
            for split in ("train", "test")
            for i, word in enumerate(WORDS)
        )
    )
    arguments = ["--preset", "smoke", "--run-dir", str(run), "--model.path", str(folder)]
    arguments += ["--data.source", "prompts", "--data.root", str(reports), "--data.eval-split", "test"]
    arguments += ["--optim.micro-batch-size", "0", "--sampler.batch-size", "0"]
    assert train(arguments) == 0
    assert load_yaml(run / "config.yaml").optim.micro_batch_size == 8
    assert json.loads((run / "summary.json").read_text())["policy"]["posture"] is not None
    argv = ["--run", str(run), "--prompt", "left lung", "--num-images", "1", "--out", str(images)]
    assert generate(argv) == 0
    assert len(list(images.iterdir())) == 1


def test_what_the_scheduler_says_is_followed(make_pipeline: Callable[..., Path]) -> None:
    rows = {}
    for prediction in ("epsilon", "v_prediction"):
        folder = make_pipeline(width=32, unet=UNET, scheduler={"prediction_type": prediction})
        rows[prediction] = ddim_table(load_base(folder).scheduler_config, 5, 1.0, "trailing").rows
    assert not torch.equal(rows["epsilon"], rows["v_prediction"])
