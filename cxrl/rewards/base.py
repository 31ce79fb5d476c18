"""The reward protocol, the registry and the one place where scores are checked.

A reward maps images float32 [N, 1, H, W] in [0, 1] and their prompts to scores [N], higher is better. It is
frozen, brings its own normalisation and never rates a blank, noise or non-film image well. A user's own, in
ten lines::

    from cxrl import register_reward

    @register_reward("brightness")
    class Brightness:
        name = "brightness"

        def __init__(self, path, device):
            pass

        def score(self, images, batch):
            return images.mean(dim=(1, 2, 3))
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from cxrl.data.prompts import PromptBatch, ReportPrompt
from cxrl.errors import CxrlError, unknown_name
from cxrl.scorers.choice import OpenedModel
from cxrl.shipped import REWARDS, folder_of

BUILT_IN = {
    "posture": "PostureReward",
    "diagnosis": "DiagnosisReward",
    "consistency": "ConsistencyReward",
}
"""Module of cxrl.rewards → class; imported when rewards are built, not before."""


@runtime_checkable
class Reward(Protocol):
    """Anything with a name and a score. One that needs labels also has ``findings``, their names."""

    name: str

    def score(self, images: Tensor, batch: PromptBatch) -> Tensor:
        """Scores [N] of images float32 [N, 1, H, W] in [0, 1]; higher is better."""


Factory = Callable[[Path, torch.device], Reward]
_REGISTRY: dict[str, Factory] = {}
T = TypeVar("T", bound=Factory)


def register_reward(name: str) -> Callable[[T], T]:
    """Decorator: makes ``factory(path, device)`` available as ``--rewards.names name``.

    Args:
        name: What the configuration calls it. Registering a name again replaces it.
    """

    def keep(factory: T) -> T:
        _REGISTRY[name] = factory
        return factory

    return keep


def build_rewards(
    names: Sequence[str],
    path: str,
    device: torch.device | str = "cpu",
    models: Mapping[str, OpenedModel] | None = None,
) -> dict[str, Reward]:
    """The rewards ``names`` in that order.

    Args:
        names: Registered names.
        path: Folder of the reward models; "phantom" is the one that ships.
        device: Where they score.
        models: Name of a built-in reward → its model, in place of the file of that name in ``path``; see
            :func:`cxrl.scorers.choice.open_models`.

    Raises:
        CxrlError: An unknown name (the nearest one is suggested), or weights that cannot be read.
    """
    built_in = _built_in()
    folder = folder_of(path, REWARDS)
    rewards: dict[str, Reward] = {}
    for name in names:
        if name not in _REGISTRY:
            raise CxrlError(f"rewards.names: {unknown_name('reward', name, _REGISTRY)}")
        factory, model = _REGISTRY[name], (models or {}).get(name)
        if model is not None and factory is built_in.get(name):
            rewards[name] = built_in[name](folder, torch.device(device), model)
        else:
            rewards[name] = factory(folder, torch.device(device))
    return rewards


def own_rewards(names: Sequence[str]) -> list[str]:
    """Which of ``names`` the user registered, also in place of a built-in one."""
    built_in = _built_in()
    return [name for name in names if _REGISTRY.get(name) is not built_in.get(name)]


def _built_in() -> dict[str, Any]:
    """The built-in rewards, registered where nothing else is under their names."""
    classes = {n: getattr(importlib.import_module(f"cxrl.rewards.{n}"), cls) for n, cls in BUILT_IN.items()}
    for name, cls in classes.items():
        _REGISTRY.setdefault(name, cls)
    return classes


def check_labels(rewards: Mapping[str, Reward], prompts: Sequence[ReportPrompt]) -> None:
    """Refuse a reward that needs labels where no prompt has a known one: it would be a constant.

    Raises:
        CxrlError: The reward, its findings and what to change.
    """
    for name, reward in rewards.items():
        findings: Sequence[str] = getattr(reward, "findings", ())
        if findings and all(math.isnan(v) for p in prompts for v in p.labels_of(findings)):
            raise CxrlError(
                f"rewards.names: {name} needs labels of {', '.join(findings)}, and none of {len(prompts)} "
                "reports has a known one; leave it out, or name label columns (--data.label-columns)"
            )


@torch.no_grad()
def score_all(
    rewards: dict[str, Reward],
    images: Tensor,
    batch: PromptBatch,
    scored: Callable[[int], None] = lambda count: None,
) -> tuple[tuple[str, ...], Tensor]:
    """Every reward of every image.

    Args:
        images: float32 [N, 1, H, W] in [0, 1].
        batch: The prompts of the N images.
        scored: Is told how many more images one of the rewards has scored.

    Returns:
        The K names, and float32 [N, K].

    Raises:
        CxrlError: A reward returns another shape, or a value that is not finite; the reward and the sample
            are named.
    """
    columns = []
    for name, reward in rewards.items():
        score = reward.score(images, batch)
        if not isinstance(score, Tensor) or tuple(score.shape) != (len(batch),):
            got = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
            raise CxrlError(
                f"reward {name!r} returned {got}, expected a tensor of shape ({len(batch)},): "
                "one score an image"
            )
        bad = (~torch.isfinite(score)).nonzero().flatten()
        if len(bad):
            n = int(bad[0])
            number = batch.prompts[int(batch.prompt_of[n])].prompt_id
            raise CxrlError(
                f"reward {name!r} is {float(score[n])} for sample {n} of {len(batch)} (prompt {number}); "
                "rewards must be finite"
            )
        columns.append(score.detach().float())
        scored(len(batch))
    return tuple(rewards), torch.stack(columns, dim=1)
