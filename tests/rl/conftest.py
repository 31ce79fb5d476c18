"""Fakes for the trainer's tests: rewards and judges that are a line each, and a toy policy of one number."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cxrl.config import Config
from cxrl.data.prompts import PromptBatch, ReportPrompt

TEXTS = (
    "no acute",
    "heart normal",
    "left effusion",
    "lung enlarged",
    "heart size",
    "is normal",
    "lung",
    "left lung",
)
HELD_OUT = ("no effusion", "heart enlarged", "normal lung", "left heart", "size normal")
"""The last one chooses, the others are of the result."""


class Brightness:
    """Mean of the image."""

    name = "posture"

    def score(self, images: Tensor, batch: PromptBatch) -> Tensor:
        return images.mean((1, 2, 3))


class LeftSide:
    """Left half brighter than the whole."""

    name = "diagnosis"

    def score(self, images: Tensor, batch: PromptBatch) -> Tensor:
        return images[..., : images.shape[-1] // 2].mean((1, 2, 3)) - images.mean((1, 2, 3))


class FakeJudges:
    """Deterministic functions of the image in the judges' places."""

    findings = ("a", "b")

    def __init__(self) -> None:
        self.reference = 0.5 + 0.05 * torch.randn(32, 4, generator=torch.Generator().manual_seed(0))

    def posture(self, images: Tensor) -> Tensor:
        return 0.1 * images.mean((1, 2, 3))[:, None].expand(-1, 5)

    def classify(self, images: Tensor) -> Tensor:
        return torch.stack([images.mean((1, 2, 3)), images[..., :8].mean((1, 2, 3))], 1)

    def image_embeds(self, images: Tensor) -> Tensor:
        return F.normalize(F.adaptive_avg_pool2d(images, 4).flatten(1), dim=1)

    def text_embeds(self, texts: list[str]) -> Tensor:
        return F.normalize(torch.ones(len(texts), 16), dim=1)

    def features(self, images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(images, 2).flatten(1)


@pytest.fixture
def fakes() -> dict[str, Any]:
    """Keyword arguments of a Trainer: fake rewards and judges, eight training and five held-out prompts."""
    prompts, held_out = (
        [ReportPrompt(i, text, (float(i % 2), float(i // 2 % 2))) for i, text in enumerate(texts)]
        for texts in (TEXTS, HELD_OUT)
    )
    return {
        "rewards": {"posture": Brightness(), "diagnosis": LeftSide()},
        "judges": FakeJudges(),
        "prompts": (prompts, held_out),
    }


@pytest.fixture
def make_config(tiny_pipeline: Path) -> Callable[..., Config]:
    """A tiny configuration on the tiny pipeline, with sections overridden."""

    def make(**sections: dict[str, Any]) -> Config:
        data: dict[str, Any] = {
            "model": {"path": str(tiny_pipeline)},
            "data": {"num_prompts": 8},
            "sampler": {"num_steps": 3, "batch_size": 12},
            "rewards": {"names": ["posture", "diagnosis"], "weights": [1, 1]},
            "comparison": {"bank_size": 3},
            "optim": {"minibatches": 2, "micro_batch_size": 12},
            "train": {"num_epochs": 3, "prompts_per_epoch": 2, "samples_per_prompt": 4}
            | {"checkpoint_every": 1, "eval_every": 2, "early_stop_fid": 0, "early_stop_diversity": 0},
            "eval": {"num_images": 4, "samples_per_prompt": 2, "bootstrap": 4, "grid_prompts": 1},
            "run": {"trackers": []},
        }
        seed = sections.pop("seed", 0)
        for name, values in sections.items():
            data[name] = data.get(name, {}) | values
        return Config.from_dict({**data, "seed": seed})

    return make


class ToyPolicy:
    """A network that ignores its input and predicts θ plus the mean of the ACE tokens: one latent number.

    So a step is x_prev ~ N(c_x·x_t + c_e·(θ + mean ACE), σ²), and gradients have a closed form.
    """

    def __init__(self, num_ace_tokens: int = 0) -> None:
        self.theta = nn.Parameter(torch.tensor(0.3))
        self.anchor_theta = self.theta.detach().clone()
        self.ace = nn.Parameter(torch.zeros(num_ace_tokens, 2)) if num_ace_tokens else None
        self.device = torch.device("cpu")
        self.trainable = {"theta": self.theta}
        if self.ace is not None:
            self.trainable["ace"] = self.ace
        scheduler = {"num_train_timesteps": 100, "beta_schedule": "scaled_linear"}
        scheduler |= {"beta_start": 0.001, "beta_end": 0.1, "prediction_type": "v_prediction"}
        scheduler |= {"set_alpha_to_one": False}
        self.base = types.SimpleNamespace(
            scheduler_config=scheduler,
            device=self.device,
            dtype=torch.float32,
            latent_shape=(1, 1, 1),
            text_encoder=None,
            in_use=lambda network: contextlib.nullcontext(),
            encode_text=lambda texts: torch.zeros(len(texts), 3, 2),
            decode=lambda latents: latents,
        )

    def predict(
        self,
        x_t: Tensor,
        timesteps: Tensor,
        embeds: Tensor,
        negative: Tensor | None,
        *,
        prompt_of: Tensor,
        anchor: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if anchor:
            return torch.zeros_like(x_t) + self.anchor_theta, None
        value = self.theta if self.ace is None else self.theta + self.ace.mean()
        return torch.zeros_like(x_t) + value, None

    def param_groups(self, lora: float, ace: float, decay: float) -> list[dict[str, Any]]:
        return [{"name": "lora", "params": list(self.trainable.values()), "lr": lora, "weight_decay": decay}]

    def update_ema(self) -> None:
        pass


@pytest.fixture
def make_toy() -> Callable[..., ToyPolicy]:
    return ToyPolicy
