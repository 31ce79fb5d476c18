"""What is exported gives, in plain diffusers, the pixels of cxrl."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging
from torch import Tensor

from cxrl.config import PolicyConfig, SamplerConfig
from cxrl.data.prompts import PromptBatch, ReportPrompt
from cxrl.errors import CxrlError
from cxrl.models.base import load_base
from cxrl.models.policy import Policy
from cxrl.rl.plain import BELOW_ONE, export_policy
from cxrl.rl.rollout import Sampler, image_noise
from cxrl.rl.schedule import ddim_scheduler, ddim_table
from cxrl.rl.seeding import generator
from cxrl.shipped import BASE

KINDS: dict[str, dict[str, Any]] = {
    "pndm": {
        "scheduler_class": "PNDMScheduler",
        "scheduler": {"prediction_type": "epsilon", "set_alpha_to_one": False, "skip_prk_steps": True},
    },
    "v": {"scheduler": {"prediction_type": "v_prediction", "clip_sample": True}, "image_channels": 1},
    "zero-snr": {"scheduler": {"rescale_betas_zero_snr": True, "steps_offset": 0}},
}
CASES = [
    ("trailing", 5, 0.3, 1.0),
    ("trailing", 8, 1.0, 2.5),
    ("leading", 9, 1.0, 1.0),
    ("linspace", 4, 0.3, 3.0),
]


@pytest.fixture(autouse=True)
def quiet() -> None:
    logging.disable_progress_bar()


def trained(folder: Path, **settings: Any) -> Policy:
    """A policy whose LoRA and ACE have moved from the base."""
    policy = Policy(load_base(folder), PolicyConfig(lora_rank=2, **settings), seed=0)
    rng = torch.Generator().manual_seed(1)
    for name, value in policy.ema.items():
        if "lora_" in name or name == "ace":
            value.add_(0.02 * torch.randn(value.shape, generator=rng))
    return policy


def drawn(policy: Policy, sampler: SamplerConfig, text: str, *, anchor: bool = False) -> Tensor:
    """float32 [1, 1, H, W], as ``cxrl.generate --seed 0`` draws it."""
    batch = PromptBatch.repeat([ReportPrompt(0, text, ())], 1)
    noise = image_noise([generator(0, "generate")], policy.base.latent_shape)
    with policy.ema_weights():
        return Sampler(policy, sampler).images(batch, noise, anchor=anchor)


def by_the_page(folder: Path, text: str) -> Tensor:
    """The image of the README's own code, float32 [1, 1, H, W]."""
    code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[0]
    for old, new in (
        ('folder = "."', f"folder = {str(folder)!r}"),
        ("Small left pleural effusion.", text),
        ("pipe(\n", 'pipe(\n    output_type="pt",\n'),
    ):
        assert code.count(old) == 1
        code = code.replace(old, new)
    names: dict[str, Any] = {}
    exec(code, names)
    image: Tensor = names["image"][None]
    return image.mean(1, keepdim=True)


@pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("spacing", "steps", "eta", "guidance"), CASES)
def test_the_page_s_call_gives_cxrl_s_pixels(
    make_pipeline: Callable[..., Path],
    tmp_path: Path,
    kind: str,
    spacing: str,
    steps: int,
    eta: float,
    guidance: float,
) -> None:
    policy = trained(make_pipeline(**KINDS[kind]))
    sampler = SamplerConfig(num_steps=steps, eta=eta, guidance_scale=guidance, timestep_spacing=spacing)
    expected = drawn(policy, sampler, "left lung")
    anchor = drawn(policy, sampler, "left lung", anchor=True)
    assert float((anchor - expected).abs().max()) > 1e-3, "the weights make a difference"
    export_policy(policy, sampler, tmp_path / "out")
    # float32 in another order; with zero terminal SNR a coefficient of diffusers' at η = 1 is the root of a
    # rounding of 1, up to 3e-4.
    tolerance = 1e-3 if kind == "zero-snr" and eta == 1.0 else 2e-5
    found = by_the_page(tmp_path / "out", "left lung")
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("settings", [{"train": "full"}, {"train": "none"}, {"num_ace_tokens": 0}])
def test_every_kind_of_policy(tiny_pipeline: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    policy = trained(tiny_pipeline, **settings)
    if settings.get("train") == "full":
        for value in policy.ema.values():
            value.mul_(1.01)
    sampler = SamplerConfig(num_steps=4, eta=0.5)
    expected = drawn(policy, sampler, "heart")
    export_policy(policy, sampler, tmp_path / "out")
    torch.testing.assert_close(by_the_page(tmp_path / "out", "heart"), expected, rtol=0, atol=2e-5)
    assert (tmp_path / "out" / "ace.safetensors").exists() == (settings.get("num_ace_tokens") != 0)
    assert "not for diagnosis" in (tmp_path / "out" / "README.md").read_text()


def test_an_autoencoder_that_shifts_is_refused(tiny_pipeline: Path, tmp_path: Path) -> None:
    policy = trained(tiny_pipeline)
    policy.base.vae.register_to_config(shift_factor=0.1)
    with pytest.raises(CxrlError, match="its autoencoder has a shift_factor"):
        export_policy(policy, SamplerConfig(num_steps=4), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("steps", [8, 30, 50])
def test_the_phantom_is_not_black(tmp_path: Path, steps: int) -> None:
    policy, sampler = trained(BASE), SamplerConfig(num_steps=steps, eta=1.0)
    expected = drawn(policy, sampler, "Small left pleural effusion.")
    export_policy(policy, sampler, tmp_path / "out")
    found = by_the_page(tmp_path / "out", "Small left pleural effusion.")
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)
    assert float(found.std()) > 0.05


def is_finite(eta: float, spacing: str, steps: int) -> bool:
    """Whether every step of diffusers' DDIM of the phantom is."""
    scheduler = ddim_scheduler(load_base().scheduler_config, spacing)
    scheduler.set_timesteps(steps)
    x = torch.ones(1, 1, 1, 1)
    return all(
        bool(scheduler.step(x, t, x, eta=eta, variance_noise=x).prev_sample.isfinite())
        for t in scheduler.timesteps
    )


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_below_one_no_number_of_steps_is_black(spacing: str) -> None:
    for steps in (5, 8, 10, 20, 25, 30, 40, 50, 75, 100, 150, 200):
        assert is_finite(BELOW_ONE, spacing, steps), steps
    if spacing == "trailing":
        # Which numbers of steps are black at 1 is a matter of the processor's rounding.
        black = [steps for steps in (6, 10, 20, 25, 30, 50) if not is_finite(1.0, spacing, steps)]
        assert black, "diffusers has mended it: BELOW_ONE can go"


def test_a_chain_with_a_step_too_many_is_refused() -> None:
    config = load_base().scheduler_config
    for steps in (61, 103, 998):
        with pytest.raises(
            CxrlError,
            match=rf"num_steps: of {steps} trailing steps through 1000 timesteps DDIM makes {steps + 1}",
        ):
            ddim_table(config, steps, 1.0, "trailing")
    assert len(ddim_table(config, 60, 1.0, "trailing")) == 60


def test_what_ships_runs_with_no_argument() -> None:
    pipe = StableDiffusionPipeline.from_pretrained(BASE)
    assert {part.dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder)} == {torch.float32}
    rng = torch.Generator().manual_seed(0)
    low, high = pipe("Small left pleural effusion.", generator=rng).images[0].getextrema()
    assert high - low > 100
