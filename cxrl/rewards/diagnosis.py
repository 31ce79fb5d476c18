"""Diagnostic condition, r_diag (paper: reward 2): does the film show what the report says, and nothing else.

A frozen multi-label classifier gives the probability of every finding. The score is the mean of two
averages: the probability of the findings that the report names, and one minus that of those it does not.
Unknown labels (nan) are masked: what a report does not mention counts neither way.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from cxrl.data.prompts import PromptBatch
from cxrl.rewards.base import register_reward
from cxrl.scorers.choice import ModelChoice, OpenedModel
from cxrl.scorers.protocols import load_diagnosis


def label_agreement(probability: Tensor, labels: Tensor) -> Tensor:
    """Agreement [N] in [0, 1] of probabilities [N, F] with labels [N, F] (1, 0, nan); 0.5 where no label
    is known.
    """
    present, absent = (labels == 1).float(), (labels == 0).float()

    def mean(value: Tensor, mask: Tensor) -> Tensor:
        count = mask.sum(dim=1)
        return torch.where(count > 0, (value * mask).sum(dim=1) / count.clamp(min=1), torch.nan)

    halves = torch.stack([mean(probability, present), mean(1.0 - probability, absent)])
    return halves.nanmean(dim=0).nan_to_num(0.5)


@register_reward("diagnosis")
class DiagnosisReward:
    """r_diag of ``diagnosis.safetensors``, or of the model that ``rewards.diagnosis`` chooses.

    Attributes:
        findings: Names of the classifier's outputs; the labels of the prompts are looked up by them.
    """

    name = "diagnosis"

    def __init__(self, path: Path, device: torch.device, model: OpenedModel | None = None) -> None:
        self.model = load_diagnosis(model or ModelChoice("rewards", self.name, "", path).open(), device)
        self.findings = self.model.findings

    def score(self, images: Tensor, batch: PromptBatch) -> Tensor:
        """Label agreement [N] in [0, 1], times the probability that the image is a chest film."""
        probability, validity = self.model.diagnose(images)
        labels = batch.labels_of(self.findings).to(probability.device)
        return label_agreement(probability, labels) * validity
