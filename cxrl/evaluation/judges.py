"""The judges: models that score for evaluation and gave no reward (other architecture, seed and films)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cxrl.config import Config
from cxrl.errors import CxrlError
from cxrl.evaluation.reference import reference_features
from cxrl.models.weight_check import state_problem
from cxrl.scorers.choice import TASKS, ModelChoice, OpenedModel, model_choices, open_models
from cxrl.scorers.phantom_network import Scorer, load_scorer
from cxrl.scorers.protocols import (
    ConsistencyModel,
    DiagnosisModel,
    PostureModel,
    check_judges,
    load_consistency,
    load_diagnosis,
    load_posture,
)
from cxrl.shipped import JUDGES, PHANTOM, folder_of


class Judges:
    """Posture, findings, image-text agreement and the features of the Fréchet distance.

    Images are float32 [N, 1, H, W] in [0, 1].

    Attributes:
        findings: Names of the F findings that the classifier knows.
        reference: float32 [R, D], features of real films, or of clean ones of the phantom; None where there
            are none, and then there is no Fréchet distance.
        apart: float32 [M, D] of as many other real films as are judged of a side, if there are enough.
        description: Which models, which features and which reference, for summary.json.
    """

    def __init__(
        self,
        posture: PostureModel,
        diagnosis: DiagnosisModel,
        consistency: ConsistencyModel,
        reference: Tensor | None = None,
        *,
        pair: tuple[Scorer, Tensor] | None = None,
        description: dict[str, Any] | None = None,
    ) -> None:
        """``pair``: a second model whose features stand beside the classifier's, and the [D] units."""
        self._posture, self._diagnosis, self._consistency = posture, diagnosis, consistency
        self._pair = pair
        self.findings: tuple[str, ...] = diagnosis.findings
        self.reference = reference
        self.apart: Tensor | None = None
        self.description = description or {}

    @torch.no_grad()
    def posture(self, images: Tensor) -> Tensor:
        """psi [N, 5], see :mod:`cxrl.rewards.posture`."""
        return self._posture.pose(images)[0]

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        """Probability [N, F] of every finding."""
        return self._diagnosis.diagnose(images)[0]

    @torch.no_grad()
    def image_embeds(self, images: Tensor) -> Tensor:
        """Unit-norm [N, E]."""
        return self._consistency.embed_images(images)[0]

    @torch.no_grad()
    def text_embeds(self, texts: list[str]) -> Tensor:
        """Unit-norm [N, E]."""
        return self._consistency.text_embeds(texts)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """[N, D]: the last hidden layer of the classifier, for the phantom beside the posture regressor's.

        These two together see what is shown and how it is placed; one is blind to the other's half. Each half
        is in units of its root-mean-square spread on the clean films, so that neither drowns the other.
        """
        if self._pair is None:
            return self._diagnosis.features(images)
        model, scale = self._pair
        return torch.cat([self._diagnosis.features(images), model.features(images)], 1) / scale


def load_judges(path: str = PHANTOM, device: torch.device | str = "cpu") -> Judges:
    """The judges of a folder that ``cxrl.pretrain`` made; "phantom" is the one that ships.

    Raises:
        CxrlError: A file is missing or cannot be read.
    """
    folder = folder_of(path, JUDGES)
    return assemble_judges({task: ModelChoice("eval", task, "", folder).open() for task in TASKS}, device)


def open_judges(config: Config) -> dict[str, OpenedModel]:
    """Task → opened model of a judge.

    Raises:
        CxrlError: A judge is one of the rewards, or a file is missing or not the expected one.
    """
    check_judges(model_choices(config, "rewards"), model_choices(config, "eval"))
    return open_models(config, "eval")


def build_judges(
    config: Config,
    image_size: tuple[int, int],
    device: torch.device | str = "cpu",
    models: Mapping[str, OpenedModel] | None = None,
) -> Judges:
    """The judges of a configuration, with the features of real films where they are chosen for them.

    Args:
        config: ``eval`` says which models, ``data`` where real films are.
        image_size: (height, width) of generated images; real films are brought to it first.
        device: Where they judge.
        models: Of :func:`open_judges`, where the caller has called it.

    Raises:
        CxrlError: A judge is one of the rewards, or a file is missing or cannot be read.
    """
    models = models or open_judges(config)
    judges = assemble_judges(models, device)
    if models["diagnosis"].value:
        films = reference_features(config, models["diagnosis"], judges.features, image_size)
        judges.reference, judges.apart = films.features, films.apart
        judges.description |= films.told
    return judges


def assemble_judges(opened: Mapping[str, OpenedModel], device: torch.device | str) -> Judges:
    """The judges of opened models, one a task. Raises CxrlError: a file cannot be read."""
    posture, diagnosis, consistency = (opened[task] for task in TASKS)
    description: dict[str, Any] = {task: model.value or PHANTOM for task, model in opened.items()}
    models = (
        load_posture(posture, device),
        load_diagnosis(diagnosis, device),
        load_consistency(consistency, device),
    )
    if diagnosis.value:
        description |= {"features": f"last hidden layer of {diagnosis.value}"}
        return Judges(*models, description=description)
    folder = diagnosis.folder
    beside = models[0] if not posture.value else load_scorer(folder / "posture.safetensors", device=device)
    assert isinstance(beside, Scorer)
    features, scale = _reference(folder / "reference.safetensors")
    description |= {
        "features": "last hidden layers of diagnosis.safetensors and posture.safetensors",
        "reference": f"{len(features)} clean films of the phantom",
    }
    pair = (beside, scale.to(device))
    return Judges(*models, features.to(device), pair=pair, description=description)


def _reference(path: Path) -> tuple[Tensor, Tensor]:
    """float32 [R, D] features of clean films and their [D] units.

    Raises:
        CxrlError: The file is missing or damaged, or a tensor is missing, of another shape or not finite.
    """
    width = 2 * Scorer.num_features
    try:
        tensors = load_file(path)
        rows = tensors["features"].shape[0] if "features" in tensors and tensors["features"].ndim else 0
        expected = {"features": torch.empty(rows, width), "scale": torch.empty(width)}
        problem = state_problem(expected, tensors)
        if not problem and rows < 2:
            problem = f"has features of {rows} films, expected at least two"
        if not problem and not bool((tensors["scale"] > 0).all()):
            problem = "has a scale that is not above zero"
        if problem:
            raise ValueError(f"it {problem}")
    except (SafetensorError, OSError, ValueError) as error:
        raise CxrlError(
            f"{path} cannot be read ({error}); `cxrl pretrain --preset phantom` makes it"
        ) from None
    return tensors["features"].float(), tensors["scale"].float()
