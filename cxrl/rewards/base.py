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
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from cxrl.data.prompts import PromptBatch, ReportPrompt
from cxrl.errors import CxrlError, named, shown, unknown_name
from cxrl.scorers.choice import OpenedModel
from cxrl.shipped import REWARDS, folder_of

BUILT_IN = {
    "posture": "PostureReward",
    "diagnosis": "DiagnosisReward",
    "consistency": "ConsistencyReward",
}
"""Module of cxrl.rewards → class; imported when rewards are built, not before."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,59}")


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
        name: What the configuration calls it: letters, digits, ``_`` and ``-``, a letter first, at most 60.
            Registering a name again replaces it, as a notebook does; those of ``BUILT_IN`` are taken.

    Raises:
        CxrlError: The name is none or taken; what is decorated cannot be called, or is a class without
            ``score``.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise CxrlError(
            f"register_reward: {shown(name)} is no name; expected letters, digits, _ and -, a letter first"
        )

    def keep(factory: T) -> T:
        if name in BUILT_IN and getattr(factory, "__module__", "") != f"cxrl.rewards.{name}":
            raise CxrlError(f"register_reward: {name} is a reward that ships; choose another name")
        is_class = isinstance(factory, type)
        if not callable(factory) or (is_class and not callable(getattr(factory, "score", None))):
            raise CxrlError(
                f"register_reward: {shown(getattr(factory, '__name__', factory))} for {name!r} has no "
                "score(images, batch); expected a class that has, or a function (path, device) that makes one"
            )
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
        CxrlError: An unknown name (the nearest one is suggested), weights that cannot be read, or one of the
            user's own that raises or has no ``score``.
    """
    built_in = _built_in()
    folder = folder_of(path, REWARDS)
    rewards: dict[str, Reward] = {}
    for name in names:
        if name not in _REGISTRY:
            raise CxrlError(f"rewards.names: {unknown_name('reward', name, _REGISTRY)}")
        factory, model = _REGISTRY[name], (models or {}).get(name)
        if name in built_in:
            with_model = () if model is None else (model,)
            rewards[name] = built_in[name](folder, torch.device(device), *with_model)
        else:
            with named(f"reward {name!r}: {getattr(factory, '__name__', 'its factory')}(path, device)", None):
                rewards[name] = factory(folder, torch.device(device))
            check_reward(name, rewards[name])
    return rewards


def check_reward(name: str, reward: object) -> None:
    """Raise CxrlError unless it can score."""
    if isinstance(reward, type) or not callable(getattr(reward, "score", None)):
        what = f"the class {reward.__name__}" if isinstance(reward, type) else shown(reward)
        raise CxrlError(f"reward {name!r} is {what}, expected an object with score(images, batch)")


def own_rewards(names: Sequence[str]) -> list[str]:
    """Which of ``names`` the user registered."""
    return [name for name in names if name not in BUILT_IN]


def _built_in() -> dict[str, Any]:
    """The built-in rewards, registered."""
    classes = {n: getattr(importlib.import_module(f"cxrl.rewards.{n}"), cls) for n, cls in BUILT_IN.items()}
    _REGISTRY.update(classes)
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
    """Every reward of every image. Each gets a copy of images and batch of its own, and may change it.

    Args:
        images: float32 [N, 1, H, W] in [0, 1].
        batch: The prompts of the N images.
        scored: Is told how many more images one of the rewards has scored.

    Returns:
        The K names, and float32 [N, K].

    Raises:
        CxrlError: A reward raises, or returns another shape or a value that is not finite; the reward and the
            sample are named.
    """
    columns = []
    for name, reward in rewards.items():
        with named(f"reward {name!r}", reward):
            score = reward.score(images.clone(), batch.copy())
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
        columns.append(score.detach().float().clone())
        scored(len(batch))
    return tuple(rewards), torch.stack(columns, dim=1)
