"""The DDIM table against diffusers' own step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from cxrl.errors import CxrlError
from cxrl.rl.schedule import ddim_table

STABLE_DIFFUSION = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
}


def config(**settings: Any) -> dict[str, Any]:
    return {**STABLE_DIFFUSION, **settings}


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    ("num_steps", "spacing", "eta", "to_one"),
    [
        (8, "trailing", 1.0, True),
        (7, "trailing", 0.3, False),
        (50, "leading", 1.0, False),
        (10, "linspace", 0.7, True),
    ],
)
def test_a_row_is_diffusers_step(
    prediction: str, num_steps: int, spacing: str, eta: float, to_one: bool
) -> None:
    settings = config(prediction_type=prediction, set_alpha_to_one=to_one, steps_offset=1)
    table = ddim_table(settings, num_steps, eta, spacing)
    scheduler: Any = DDIMScheduler(**settings, timestep_spacing=spacing)
    scheduler.set_timesteps(num_steps)
    assert table.timesteps.tolist() == scheduler.timesteps.tolist()
    generator = torch.Generator().manual_seed(0)
    for t, (c_x, c_e, sigma) in zip(scheduler.timesteps, table.rows, strict=True):
        x, output, noise = torch.randn(3, 2, 4, 5, 3, generator=generator).double()
        step = scheduler.step(output, t, x, eta=eta, variance_noise=noise)
        # diffusers computes its coefficients in float32: about 1e-7 of terms up to 1/sqrt(alpha_999) = 15.
        torch.testing.assert_close(
            c_x * x + c_e * output + sigma * noise, step.prev_sample, rtol=1e-5, atol=2e-5
        )


def test_zero_terminal_snr_with_v_prediction() -> None:
    table = ddim_table(config(prediction_type="v_prediction", rescale_betas_zero_snr=True), 8, 1.0)
    # At alpha = 0, x_0 = -v: the first step knows nothing of x_T but its noise.
    assert table.rows.isfinite().all()
    c_x, c_e, sigma = table.rows[0].tolist()
    assert c_x == pytest.approx(0.0, abs=1e-6)
    assert c_e**2 + sigma**2 == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(CxrlError, match="zero terminal SNR"):
        ddim_table(config(prediction_type="epsilon", rescale_betas_zero_snr=True), 8, 1.0)


def test_the_noiseless_step_is_no_part_of_the_policy() -> None:
    table = ddim_table(config(set_alpha_to_one=True), 8, 1.0)
    assert table.rows[-1, 2] == 0
    assert table.policy_steps.tolist() == list(range(7))
    with_noise = ddim_table(config(set_alpha_to_one=False), 8, 1.0, "leading")
    assert with_noise.rows[-1, 2] == 0  # t = 0: alpha and alpha_prev are equal
    assert ddim_table(config(set_alpha_to_one=False, steps_offset=1), 8, 1.0, "leading").num_policy_steps == 8


def test_variance_is_ddpms_at_eta_one() -> None:
    rows = ddim_table(config(), 1000, 1.0).rows
    scheduler: Any = DDIMScheduler(**config())
    alphas = scheduler.alphas_cumprod.double()
    posterior = scheduler.betas.double()[1:] * (1 - alphas[:-1]) / (1 - alphas[1:])
    torch.testing.assert_close(rows[:-1, 2].double().square(), posterior.flip(0), rtol=1e-3, atol=0)


def test_configs_of_other_schedulers_do() -> None:
    pndm = {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "clip_sample": True, **STABLE_DIFFUSION}
    pndm["clip_sample"] = True
    assert torch.equal(ddim_table(pndm, 8, 1.0).rows, ddim_table(config(), 8, 1.0).rows)


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({"thresholding": True}, (8, 1.0), "thresholding"),
        ({"prediction_type": "flow"}, (8, 1.0), "flow"),
        ({}, (1001, 1.0), "sampler.num_steps: 1001"),
        ({"set_alpha_to_one": True}, (1, 1.0), "num_steps >= 2"),
    ],
)
def test_what_has_no_table_is_refused(
    settings: dict[str, Any], arguments: tuple[int, float], message: str
) -> None:
    with pytest.raises(CxrlError, match=message):
        ddim_table(config(**settings), *arguments)
