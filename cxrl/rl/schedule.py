"""DDIM as a table: without clipping of x_0 the mean of a step is linear in x_t and in the network's output.

With ᾱ_t = a, ᾱ_prev = p:

    σ² = η² · (1−p)/(1−a) · (1−a/p)            d = √(1−p−σ²)
    x_prev = c_x · x_t + c_e · m + σ · ε       m the network's output

    epsilon       c_x = √(p/a)                     c_e = d − √p·√(1−a)/√a
    v_prediction  c_x = √p·√a + d·√(1−a)           c_e = d·√a − √p·√(1−a)
    sample        c_x = d/√(1−a)                   c_e = √p − d·√a/√(1−a)

Timesteps and ᾱ_prev are those of diffusers' ``DDIMScheduler``, so plain diffusers samples the same chain
(Song et al. 2021, formulas 12 and 16; Salimans & Ho 2022 for v). The arithmetic is float64, the table
float32.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from cxrl.errors import CxrlError

MIN_SIGMA = 1e-6
"""Below it a step is deterministic in float32 and no part of the policy."""


@dataclass(frozen=True)
class DDIMTable:
    """The steps of a chain, first step first.

    Attributes:
        timesteps: int64 [T].
        rows: float32 [T, 3], columns c_x, c_e, σ; σ is exactly 0 in a deterministic step.
        policy_steps: int64 [T_p], indices of the steps with σ > 0.
    """

    timesteps: Tensor
    rows: Tensor
    policy_steps: Tensor

    def __len__(self) -> int:
        return self.timesteps.numel()

    @property
    def num_policy_steps(self) -> int:
        return self.policy_steps.numel()

    def step_weights(self, exponent: float) -> Tensor:
        """float32 [T_p]: by what the log-ratio of every step is multiplied, g^-exponent of mean size.

        The gradient of a step's log-probability at the network's output is g = |c_e| / σ times a residual of
        unit size: the steps that lay out a film get a fraction of what the last ones get. With ``exponent`` 1
        all steps get the same; the root mean square of g^(1 - exponent) over steps is kept g's. A step whose
        mean the network hardly moves (g below a thousandth of the largest) is not weighted beyond that.

        Args:
            exponent: In [0, 1]; 0 gives ones.
        """
        rows = self.rows[self.policy_steps].double()
        gain = rows[:, 1].abs() / rows[:, 2]
        gain = gain.clamp_min(1e-3 * gain.max())
        size = (gain.square().mean() / gain.pow(2 * (1 - exponent)).mean()).sqrt()
        return (size * gain.pow(-exponent)).float()

    def to(self, device: torch.device | str) -> DDIMTable:
        return DDIMTable(self.timesteps.to(device), self.rows.to(device), self.policy_steps.to(device))


def ddim_scheduler(scheduler_config: Mapping[str, Any], timestep_spacing: str) -> Any:
    """diffusers' ``DDIMScheduler`` of the chain: betas and prediction type of a model's scheduler, whatever
    its class, and no clipping of x_0, as :func:`ddim_table`.

    Raises:
        CxrlError: The betas are none that DDIM knows.
    """
    known = set(inspect.signature(DDIMScheduler.__init__).parameters) - {"self"}
    config = {k: v for k, v in scheduler_config.items() if k in known}
    try:
        return DDIMScheduler(**{**config, "timestep_spacing": timestep_spacing, "clip_sample": False})
    except NotImplementedError as error:
        raise CxrlError(f"the scheduler's betas are none that DDIM knows: {error}") from None


def ddim_table(
    scheduler_config: Mapping[str, Any], num_steps: int, eta: float, timestep_spacing: str = "trailing"
) -> DDIMTable:
    """Build the table of a chain.

    Args:
        scheduler_config: Of the model's scheduler; what DDIM does not know is ignored, so that a PNDM or
            DDPM config does as well. ``clip_sample`` is ignored as it is in every latent diffusion pipeline.
        num_steps: T, at most the number of training timesteps.
        eta: Step noise relative to DDPM's, in (0, 1].
        timestep_spacing: "trailing", "leading" or "linspace".

    Raises:
        CxrlError: A chain that has no such table, or no step with σ > 0.
    """
    if not {"beta_start", "beta_end", "beta_schedule", "trained_betas"} & set(scheduler_config):
        name = scheduler_config.get("_class_name", "the scheduler")
        raise CxrlError(
            f"{name} has no betas (flow matching has none), and DDIM needs them: another base, see model.path"
        )
    if scheduler_config.get("thresholding"):
        raise CxrlError(
            "the scheduler has thresholding on, which is not linear and meant for pixels; set it to false"
        )
    total = int(scheduler_config.get("num_train_timesteps", 1000))
    if not 1 <= num_steps <= total:
        raise CxrlError(f"sampler.num_steps: {num_steps}, but the model was trained with {total} timesteps")
    scheduler = ddim_scheduler(scheduler_config, timestep_spacing)
    scheduler.set_timesteps(num_steps)
    timesteps = scheduler.timesteps.to(torch.int64)
    if int(timesteps.max()) >= total:
        raise CxrlError(
            f"sampler.timestep_spacing: {timestep_spacing} with the scheduler's steps_offset leaves the "
            f"{total} trained timesteps; use trailing"
        )
    if len(timesteps) != num_steps or int(timesteps.min()) < 0:  # arange in floating point, one too many
        raise CxrlError(
            f"sampler.num_steps: of {num_steps} {timestep_spacing} steps through {total} timesteps DDIM "
            f"makes {len(timesteps)}, one of them below the first; use another number, or leading"
        )

    alphas = scheduler.alphas_cumprod.double()
    previous = timesteps - total // num_steps
    a = alphas[timesteps]
    p = torch.where(previous >= 0, alphas[previous.clamp(min=0)], scheduler.final_alpha_cumprod.double())
    variance = eta**2 * (1 - p) / (1 - a) * (1 - a / p)
    d = (1 - p - variance).clamp(min=0).sqrt()
    prediction = scheduler.config.prediction_type
    if prediction == "epsilon":
        if bool((a == 0).any()):
            raise CxrlError(
                "the scheduler has zero terminal SNR, where a network that predicts epsilon says nothing; "
                "use sampler.timestep_spacing leading, or a v_prediction model"
            )
        c_x, c_e = (p / a).sqrt(), d - (p * (1 - a) / a).sqrt()
    elif prediction == "v_prediction":
        c_x, c_e = (p * a).sqrt() + d * (1 - a).sqrt(), d * a.sqrt() - (p * (1 - a)).sqrt()
    elif prediction == "sample":
        c_x, c_e = d / (1 - a).sqrt(), p.sqrt() - d * (a / (1 - a)).sqrt()
    else:
        raise CxrlError(
            f"prediction_type {prediction!r} is not known; expected epsilon, v_prediction or sample"
        )
    sigma = variance.clamp(min=0).sqrt()
    sigma = torch.where(sigma < MIN_SIGMA, torch.zeros_like(sigma), sigma)
    steps = sigma.nonzero().flatten()
    if not steps.numel():
        raise CxrlError(
            f"sampler.eta: {eta} leaves no step with noise, so no policy; expected > 0, and num_steps >= 2"
        )
    return DDIMTable(timesteps, torch.stack([c_x, c_e, sigma], dim=1).float(), steps)
