"""The judges: models that score for evaluation and gave no reward (other architecture, seed and films)."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cxrl.data.reports import FINDINGS
from cxrl.errors import CxrlError
from cxrl.models.scorers import Scorer, load_scorer

PHANTOM_JUDGES = Path(__file__).parents[1] / "assets" / "phantom" / "judges"


class Judges:
    """Posture, findings, image-text agreement and the features of the Fréchet distance.

    Images are float32 [N, 1, H, W] in [0, 1].

    Attributes:
        findings: Names of the F findings that the classifier knows.
        reference: float32 [R, 128], features of clean films with natural pose.
    """

    def __init__(
        self, posture: Scorer, diagnosis: Scorer, consistency: Scorer, reference: Tensor, scale: Tensor
    ) -> None:
        self._posture, self._diagnosis, self._consistency = posture, diagnosis, consistency
        self.findings: tuple[str, ...] = diagnosis.config.findings or FINDINGS
        self.reference = reference
        self._scale = scale

    @torch.no_grad()
    def posture(self, images: Tensor) -> Tensor:
        """psi [N, 5], see :mod:`cxrl.rewards.posture`."""
        return self._posture(images)[0]

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        """Probability [N, F] of every finding."""
        return self._diagnosis(images)[0].sigmoid()

    @torch.no_grad()
    def image_embeds(self, images: Tensor) -> Tensor:
        """Unit-norm [N, E]."""
        return self._consistency.image_embeds(images)

    @torch.no_grad()
    def text_embeds(self, texts: list[str]) -> Tensor:
        """Unit-norm [N, E]."""
        return self._consistency.text_embeds(texts)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """[N, 128]: the last hidden layers of the classifier and of the posture regressor, side by side.

        Together they see what is shown and how it is placed; one alone is blind to the other's half. Each
        half is in units of its root-mean-square spread on the clean films, so that neither drowns the other.
        """
        return torch.cat([self._diagnosis.features(images), self._posture.features(images)], 1) / self._scale


def load_judges(path: str = "phantom", device: torch.device | str = "cpu") -> Judges:
    """The judges of a folder; "phantom" is the one that ships.

    Raises:
        CxrlError: A file is missing or cannot be read.
    """
    folder = PHANTOM_JUDGES if path == "phantom" else Path(path)
    tasks = (
        load_scorer(folder / f"{task}.safetensors", device=device)
        for task in ("posture", "diagnosis", "consistency")
    )
    reference = folder / "reference.safetensors"
    try:
        tensors = load_file(reference)
        features, scale = tensors["features"].float(), tensors["scale"]
    except (SafetensorError, OSError, KeyError) as error:
        raise CxrlError(
            f"{reference} cannot be read ({error}); `python -m cxrl.pretrain --preset phantom` makes it"
        ) from None
    posture, diagnosis, consistency = tasks
    return Judges(posture, diagnosis, consistency, features.to(device), scale.to(device))
