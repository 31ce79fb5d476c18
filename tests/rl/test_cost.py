"""Counts against a run's own records, sizes against real networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cxrl import train
from cxrl.cli import parse_train
from cxrl.config import Config
from cxrl.models.base import load_base
from cxrl.models.policy import Policy
from cxrl.presets import load_preset
from cxrl.rl.cost import Footprint, counts, estimate, footprint, matmul_rate


def config(**sections: dict) -> Config:
    return Config.from_dict(sections, load_preset("phantom"))


def test_counts_of_a_known_run() -> None:
    work = counts(config())
    assert work.images_per_epoch == 8 * 12
    assert work.rollout_rows == 96 * 8
    assert work.update_rows == 96 * 7  # the last step has no noise and nothing to learn
    assert work.anchor_rows == 0
    assert work.bank_rows == 64 * 8 * 8  # every training report, eight anchor images, eight steps
    assert work.eval_rows == (1 + 3) * 256 * 8  # anchor once; policy after epochs 8 and 16 and at the end


@pytest.mark.parametrize("change", [[], ["--comparison.anchor", "one_to_one", "--optim.kl-weight", "0.1"]])
def test_counts_are_those_of_a_run(
    change: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {"forward": 0, "backward": 0}
    predict = Policy.predict

    def counted(self: Policy, x_t: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        output = predict(self, x_t, *args, **kwargs)
        branches = 2 if output[1] is not None else 1
        rows["backward" if torch.is_grad_enabled() else "forward"] += len(x_t) * branches
        return output

    monkeypatch.setattr(Policy, "predict", counted)
    arguments = ["--preset", "smoke", "--run-dir", str(tmp_path / "run"), *change]
    assert train.main(arguments) == 0
    settings = parse_train(arguments).config
    work, epochs = counts(settings), settings.train.num_epochs
    assert rows["backward"] == epochs * work.update_rows
    # Twice an epoch 16 rows watch the ratio and the KL, each with and without the prompt.
    probes = epochs * 2 * 16 * 2
    once = work.bank_rows + work.eval_rows
    assert rows["forward"] == epochs * (work.rollout_rows + work.anchor_rows) + once + probes


def test_guidance_doubles_rows_and_forms_decide_on_the_anchor() -> None:
    guided = counts(config(sampler={"guidance_scale": 3.0}))
    assert (guided.rollout_rows, guided.update_rows) == (2 * 96 * 8, 2 * 96 * 7)
    assert counts(config(comparison={"form": "direct"})).bank_rows == 0
    single = counts(config(comparison={"anchor": "one_to_one"}))
    assert (single.bank_rows, single.anchor_rows) == (0, 96 * 8)
    assert counts(config(optim={"kl_weight": 0.1})).anchor_rows == 96 * 7
    assert counts(config(optim={"timestep_fraction": 0.5})).update_rows == 96 * 4
    elsewhere = counts(config(model={"path": "nobody/nothing"}))  # its scheduler is not known
    assert elsewhere.update_rows == 96 * 8


def test_sizes_are_those_of_the_networks(tiny_pipeline: Path) -> None:
    settings = config(model={"path": str(tiny_pipeline)})
    size = footprint(settings)
    assert size is not None
    base = load_base(tiny_pipeline)
    networks = (base.unet, base.vae, base.text_encoder)
    assert size.weights == sum(p.numel() for part in networks for p in part.parameters())
    policy = Policy(base, settings.policy)
    assert size.trained == sum(p.numel() for p in policy.trainable.values())


def test_activations_are_what_autograd_keeps(tiny_pipeline: Path) -> None:
    settings = config(model={"path": str(tiny_pipeline)}, policy={"train": "full", "num_ace_tokens": 0})
    size = footprint(settings)
    assert size is not None
    unet = load_base(tiny_pipeline).unet.requires_grad_(True)
    weights = {p.untyped_storage().data_ptr() for p in unet.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.randn(1, unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    text = torch.randn(1, 16, unet.config.cross_attention_dim, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        unet(x, torch.zeros(1, dtype=torch.int64), text)
    # Stock attention on the meta device may keep other tensors than the kernel that runs here.
    assert 0.7 < size.activations / sum(kept.values()) < 1.4


def test_a_base_that_is_not_here_has_no_size() -> None:
    assert footprint(config(model={"path": "nobody/nothing"})) is None
    assert footprint(config(model={"path": "/no/such/folder"})) is None


def test_time_and_memory_follow_the_work() -> None:
    size = Footprint(weights=1000, trained=10, flops=2_000_000, activations=500)
    one = estimate(config(), size, rate=1e9)
    # forward, and twice as much for the backward pass with it, at 40 % of the rate
    assert one.seconds_per_epoch == pytest.approx((768 + 2 * 672) * 2e6 / 0.4e9)
    assert one.bytes_activations == 96 * 500
    assert one.bytes_weights == 1000 * 4 + 10 * 4 * 5
    assert estimate(config(), size, 1e9, num_processes=4).seconds_total == pytest.approx(
        one.seconds_total / 4
    )
    less = estimate(config(model={"gradient_checkpointing": True}), size, 1e9)
    assert less.bytes_activations < one.bytes_activations
    assert less.seconds_per_epoch > one.seconds_per_epoch


def test_rate_is_positive() -> None:
    assert matmul_rate(torch.device("cpu"), torch.float32, seconds=0.01) > 1e8
