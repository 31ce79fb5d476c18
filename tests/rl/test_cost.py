"""Counts against a run's own records, sizes against real networks."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cxrl.cli import parse_train
from cxrl.config import Config
from cxrl.models.base import load_base
from cxrl.models.policy import Policy
from cxrl.presets import load_preset
from cxrl.rl.cost import Footprint, counts, estimate, footprint, matmul_rate
from cxrl.rl.step_memory import RowMemory, rows_memory
from cxrl.train import main as train

CPU = torch.device("cpu")


def config(**sections: dict) -> Config:
    return Config.from_dict(sections, load_preset("phantom"))


def test_counts_of_a_known_run() -> None:
    work = counts(config())
    assert work.images_per_epoch == 8 * 12
    assert work.rollout_rows == 96 * 8
    assert work.update_rows == 96 * 7  # the last step has no noise and nothing to learn
    assert work.anchor_rows == 0
    assert work.bank_rows == 64 * 8 * 8  # every training report, eight anchor images, eight steps
    # Reports that choose: the anchor, the policy after epochs 8, 16 and 24. Of the result: anchor and policy.
    assert work.eval_rows == ((1 + 3) * 16 * 4 + 2 * 256) * 8
    assert counts(config(train={"eval_every": 0})).eval_rows == ((1 + 1) * 16 * 4 + 2 * 256) * 8
    assert counts(config(train={"eval_every": 10})).eval_rows == work.eval_rows
    assert counts(config(eval={"num_images": 8})).eval_rows == (4 * 8 + 2 * 8) * 8


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
    assert train(arguments) == 0
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
    size = footprint(settings, CPU)
    assert size is not None
    base = load_base(tiny_pipeline)
    networks = (base.unet, base.vae, base.text_encoder)
    assert size.weights == sum(p.numel() for part in networks for p in part.parameters())
    policy = Policy(base, settings.policy)
    assert size.trained == sum(p.numel() for p in policy.trainable.values())


MEASURE = """
import sys, torch
from cxrl.config import Config
from cxrl.models.base import load_base
from cxrl.models.policy import Policy

folder, checkpointing, train, rows = sys.argv[1], sys.argv[2] == "True", sys.argv[3], int(sys.argv[4])
torch.set_num_threads(1)
base = load_base(folder, gradient_checkpointing=checkpointing)
policy = Policy(base, Config.from_dict({"policy": {"train": train, "lora_rank": 4}}).policy)

def step(rows, size):
    x = torch.randn(rows, 4, size, size)
    embeds = torch.randn(rows, 16, base.unet.config.cross_attention_dim)
    policy.predict(x, torch.zeros(rows, dtype=torch.int64), embeds)[0].sum().backward()

def kib(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))

step(1, 8)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak begins anew
before = kib("VmRSS")
step(rows, base.latent_shape[1])
print((kib("VmHWM") - before) * 1024)
"""


@pytest.fixture(scope="module")
def half_scale(make_pipeline: Callable[..., Path]) -> Path:
    """Blocks as those of Stable Diffusion 1 at half their width, latents of 384 pixels."""
    return make_pipeline(
        width=256,
        unet={
            "sample_size": 48,
            "block_out_channels": (160, 320),
            "layers_per_block": 2,
            "attention_head_dim": 8,
            "norm_num_groups": 32,
        },
    )


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process's peak")
@pytest.mark.parametrize("train", ["lora", "full"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_memory_is_what_a_process_takes(half_scale: Path, checkpointing: bool, train: str) -> None:
    settings = config(
        model={"path": str(half_scale), "gradient_checkpointing": checkpointing},
        policy={"train": train, "lora_rank": 4},
    )
    size = footprint(settings, CPU)
    assert size is not None
    # Without the threshold glibc keeps what is freed, up to as much again.
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(half_scale), str(checkpointing), train, "2"],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert size.update.of(2) == pytest.approx(int(done.stdout), rel=0.25), size.update


def test_stable_diffusion_takes_what_the_documentation_says(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig

    channels = (128, 256, 512, 512)
    with torch.device("meta"):
        UNet2DConditionModel(sample_size=64, cross_attention_dim=768).save_config(tmp_path / "unet")
        AutoencoderKL(
            block_out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        ).save_config(tmp_path / "vae")
    CLIPTextConfig(hidden_size=768, num_attention_heads=12, intermediate_size=3072).save_pretrained(
        tmp_path / "text_encoder"
    )
    (tmp_path / "model_index.json").write_text("{}")
    rows = []
    for checkpointing in (False, True):
        model = {"path": str(tmp_path), "dtype": "bfloat16", "gradient_checkpointing": checkpointing}
        size = footprint(config(model=model, policy={"lora_rank": 16, "num_ace_tokens": 8}), CPU)
        assert size is not None
        rows.append(size.update.row / 2**20)
    text = (Path(__file__).parents[2] / "docs" / "base-models.md").read_text(encoding="utf-8")
    words = r"a row takes ([\d.]+) GiB in the update, (\d+) MiB with .*?, and (\d+) MiB in"
    told = re.search(words, text, re.S)
    assert told is not None
    assert rows[0] / 1024 == pytest.approx(float(told[1]), abs=0.05)
    assert rows[1] == pytest.approx(float(told[2]), abs=5)
    assert size.sampling.row / 2**20 == pytest.approx(float(told[3]), abs=1)


def test_rows_cost_what_they_keep() -> None:
    with torch.device("meta"):
        network = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.Tanh(), torch.nn.Linear(256, 8))
    before = dict(network.requires_grad_(False).named_parameters())

    def run(rows: int) -> None:
        network(torch.empty(rows, 64, requires_grad=True)).sum().backward()

    found = rows_memory(CPU, network, run)
    # Input, tanh's result; and at the peak either the product before it or a gradient of that size.
    assert 4 * (64 + 2 * 256) <= found.row <= 4 * (64 + 3 * 256 + 16)
    assert found.of(3) == found.fixed + 3 * found.row
    assert dict(network.named_parameters()) == before, "the weights come back"
    assert rows_memory(CPU, network, lambda rows: None) == RowMemory(0, 0)


def test_a_base_that_is_not_here_has_no_size() -> None:
    assert footprint(config(model={"path": "nobody/nothing"}), CPU) is None
    assert footprint(config(model={"path": "/no/such/folder"}), CPU) is None


def test_time_and_memory_follow_the_work() -> None:
    size = Footprint(
        weights=1000,
        trained=10,
        flops=2_000_000,
        update=RowMemory(500, 7),
        sampling=RowMemory(100, 3),
        decoding=60,
    )
    one = estimate(config(), size, rate=1e9)
    # forward, and twice as much for the backward pass with it, at 40 % of the rate
    assert one.seconds_per_epoch == pytest.approx((768 + 2 * 672) * 2e6 / 0.4e9)
    assert one.bytes_activations == 96 * 500 + 7
    assert one.bytes_weights == 1000 * 4 + 10 * 4 * 5
    assert estimate(config(), size, 1e9, num_processes=4).seconds_total == pytest.approx(
        one.seconds_total / 4
    )
    few = config(optim={"micro_batch_size": 2}, sampler={"guidance_scale": 2.0, "batch_size": 32})
    assert estimate(few, size, 1e9).bytes_activations == 64 * 100 + 3
    fewer = config(optim={"micro_batch_size": 2}, sampler={"batch_size": 1})
    assert estimate(fewer, dataclasses.replace(size, decoding=5000), 1e9).bytes_activations == 5000
    less = estimate(config(model={"gradient_checkpointing": True}), size, 1e9)
    assert less.seconds_per_epoch > one.seconds_per_epoch


def test_rate_is_positive() -> None:
    assert matmul_rate(torch.device("cpu"), torch.float32, seconds=0.01) > 1e8
