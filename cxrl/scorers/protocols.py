"""The models that score, by task: what each must offer, and loading the one that a choice names.

Every model takes images float32 [N, 1, H, W] in [0, 1], brings its own normalisation, and says for every
image how plausible it is as a chest film (``validity`` in [0, 1]): by a head of its own, or by
:mod:`cxrl.scorers.validity`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from cxrl.errors import CxrlError
from cxrl.scorers.choice import ModelChoice, OpenedModel, file_sha256
from cxrl.scorers.phantom_network import Scorer, load_scorer


class PostureModel(Protocol):
    """Reads the pose of a film."""

    def pose(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """psi [N, 5], see :mod:`cxrl.rewards.posture`, and validity [N]."""


class DiagnosisModel(Protocol):
    """Tells what a film shows."""

    @property
    def findings(self) -> tuple[str, ...]:
        """CheXpert's names of the F outputs, or the phantom's."""

    def diagnose(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Probability [N, F] and validity [N]."""

    def features(self, images: Tensor) -> Tensor:
        """[N, D], the last hidden layer."""


class ConsistencyModel(Protocol):
    """Puts films and reports into one space."""

    def embed_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Unit-norm [N, E] and validity [N]."""

    def text_embeds(self, texts: list[str]) -> Tensor:
        """Unit-norm [N, E]."""


def load_posture(model: OpenedModel, device: torch.device | str) -> PostureModel:
    """The network of a model. Raises CxrlError: it is damaged or not what it should be."""
    if model.kind == "scorer":
        return _scorer(model, device)
    from cxrl.scorers.xrv_pspnet import AnatomicalPosture

    return AnatomicalPosture(model, device)


def load_diagnosis(model: OpenedModel, device: torch.device | str) -> DiagnosisModel:
    """As :func:`load_posture`."""
    if model.kind == "scorer":
        scorer = _scorer(model, device)
        if len(scorer.findings) != scorer.config.num_outputs:
            raise CxrlError(
                f"{model.path} has {scorer.config.num_outputs} outputs and does not name them; expected the "
                f"phantom's {len(scorer.findings)}, or findings in its metadata"
            )
        return scorer
    from cxrl.scorers.xrv_densenet import XrvClassifier

    return XrvClassifier(model, device)


def load_consistency(model: OpenedModel, device: torch.device | str) -> ConsistencyModel:
    """As :func:`load_posture`."""
    if model.kind == "scorer":
        return _scorer(model, device)
    from cxrl.scorers.image_text import ImageTextModel

    return ImageTextModel(model, device)


def _scorer(model: OpenedModel, device: torch.device | str) -> Scorer:
    scorer = load_scorer(model.path, device=device)
    if scorer.config.task != model.task:
        raise CxrlError(
            f"{model.option}: {model.path} is a model of {scorer.config.task}, not of {model.task}"
        )
    return scorer


def check_judges(rewards: Mapping[str, ModelChoice], judges: Mapping[str, ModelChoice]) -> None:
    """Refuse a judge that is one of the rewards: the same name, the same file or a copy of it.

    Raises:
        CxrlError: Both options.
    """
    for reward in rewards.values():
        for judge in judges.values():
            if _is_same(reward, judge):
                raise CxrlError(
                    f"{judge.option}: {judge.value or judge.path} is also {reward.option}; a judge must be "
                    "another model than those that reward (other weights, better other data)"
                )


def _is_same(a: ModelChoice, b: ModelChoice) -> bool:
    if a.kind == b.kind == "transformers" and a.value == b.value:
        return True
    one, other = ([path.resolve() for path in choice.weights] for choice in (a, b))
    if set(one) & set(other):
        return True
    if not all(path.is_file() for path in (*one, *other)):
        return False
    if not one or sorted(p.stat().st_size for p in one) != sorted(p.stat().st_size for p in other):
        return False
    return sorted(map(file_sha256, one)) == sorted(map(file_sha256, other))
