"""Prompts: what the policy is asked to draw, and what the rewards check it against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cxrl.findings import NO_FINDING, SUPPORT_DEVICES


@dataclass(frozen=True)
class ReportPrompt:
    """One report.

    Attributes:
        prompt_id: Stable number of the prompt in its data set; the key of the anchor bank.
        text: The report as the text encoder gets it.
        labels: One value per finding of the data set: 1 present, 0 absent, nan unknown (masked).
        findings: Names of the labels; empty where they are in the order of the models that use them.
    """

    prompt_id: int
    text: str
    labels: tuple[float, ...]
    findings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.findings and len(self.findings) != len(self.labels):
            raise ValueError(f"{len(self.labels)} labels for {len(self.findings)} findings")

    def labels_of(self, findings: Sequence[str]) -> tuple[float, ...]:
        """The labels of these findings, nan for those that the data set does not know.

        ``No Finding`` says that all others but devices are absent; that is filled in where ``findings`` does
        not hold it.

        Raises:
            ValueError: The labels have no names, and are not as many.
        """
        if not self.labels:
            return (math.nan,) * len(findings)
        if self.findings:
            known = dict(zip(self.findings, self.labels, strict=True))
            if NO_FINDING not in findings and known.get(NO_FINDING) == 1.0:
                absent = {name: 0.0 for name in findings if name != SUPPORT_DEVICES}
                known = absent | {name: value for name, value in known.items() if not math.isnan(value)}
            return tuple(known.get(name, math.nan) for name in findings)
        if len(self.labels) != len(findings):
            raise ValueError(
                f"prompt {self.prompt_id}: {len(self.labels)} unnamed labels for {len(findings)} findings"
            )
        return self.labels


@dataclass(frozen=True)
class PromptBatch:
    """The distinct prompts of a batch and the prompt of every sample.

    Attributes:
        prompts: The P distinct prompts.
        prompt_of: int64 [N], sample n belongs to ``prompts[prompt_of[n]]``.
    """

    prompts: tuple[ReportPrompt, ...]
    prompt_of: Tensor

    def __post_init__(self) -> None:
        if self.prompt_of.dtype != torch.int64 or self.prompt_of.ndim != 1:
            raise ValueError(
                f"prompt_of must be int64 [N], got {self.prompt_of.dtype} {tuple(self.prompt_of.shape)}"
            )
        if self.prompt_of.numel() and not 0 <= int(self.prompt_of.min()) <= int(self.prompt_of.max()) < len(
            self.prompts
        ):
            raise ValueError(f"prompt_of points outside the {len(self.prompts)} prompts of the batch")

    @classmethod
    def repeat(cls, prompts: Sequence[ReportPrompt], samples_per_prompt: int) -> PromptBatch:
        """Every prompt ``samples_per_prompt`` times, samples of a prompt side by side."""
        return cls(tuple(prompts), torch.arange(len(prompts)).repeat_interleave(samples_per_prompt))

    def __len__(self) -> int:
        return self.prompt_of.numel()

    def copy(self) -> PromptBatch:
        """The same, with a ``prompt_of`` of its own."""
        return PromptBatch(self.prompts, self.prompt_of.clone())

    def slice(self, start: int, stop: int) -> PromptBatch:
        """Samples ``start:stop`` with the same distinct prompts."""
        return PromptBatch(self.prompts, self.prompt_of[start:stop])

    @property
    def texts(self) -> list[str]:
        """The report of every sample, N strings."""
        return [self.prompts[i].text for i in self.prompt_of.tolist()]

    @property
    def labels(self) -> Tensor:
        """float32 [N, F]: the labels of every sample in the data set's order, nan where unknown."""
        return torch.tensor([p.labels for p in self.prompts], dtype=torch.float32)[self.prompt_of]

    def labels_of(self, findings: Sequence[str]) -> Tensor:
        """float32 [N, F]: the labels of these findings, nan where unknown; see :class:`ReportPrompt`."""
        rows = [p.labels_of(findings) for p in self.prompts]
        return torch.tensor(rows, dtype=torch.float32).reshape(len(rows), len(findings))[self.prompt_of]
