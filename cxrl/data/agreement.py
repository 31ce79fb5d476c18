"""A prompt and its labels say the same: labels that the prompt does not say are masked.

Labels are of a whole report, a prompt is what is left of it after sentences were dropped. Rewards and judges
demand what the labels say, so these may say nothing that the prompt does not ask for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from cxrl.data.index import Tally
from cxrl.data.mentions import Said, said
from cxrl.findings import CHEXPERT_FINDINGS, NO_FINDING, SUPPORT_DEVICES

NOT_IN_PROMPT = "label present, masked: the report says it, the prompt does not"
NOWHERE = "label present, masked: no text says it"
NOT_DENIED = "label absent, masked: the prompt does not say so"


def agreeing(
    findings: Sequence[str],
    labels: Sequence[float],
    prompt: str,
    report: str,
    *,
    own: bool,
    tally: Tally,
    name: object,
) -> tuple[float, ...]:
    """The labels that the prompt says, the others nan.

    *Present* (1) stays where the prompt asserts the finding, *absent* (0) where it only denies it. ``No
    Finding`` stays present where the prompt denies something and asserts nothing but devices, and all absent
    labels but devices' stay with it; it stays absent where the prompt asserts a finding.

    Args:
        findings: Names of the labels.
        labels: 1, 0 or nan.
        prompt: The text that is drawn.
        report: The text that the labels are of.
        own: The labels are the user's own reading of this very text (a table): all stay if nothing was cut
            from it; else all but those that only the cut part says, or that the rest contradicts.
        tally: Gets what was masked, by reason.
        name: Of the study.
    """
    if own and prompt == report:
        return tuple(labels)
    here = said(prompt, tuple(dict.fromkeys((*findings, *CHEXPERT_FINDINGS))))  # for No Finding, all count
    ill = here.asserted - {SUPPORT_DEVICES}
    nothing = bool(here.denied) and not ill
    is_normal = nothing and NO_FINDING in findings and labels[findings.index(NO_FINDING)] == 1.0
    kept = []
    for finding, value in zip(findings, labels, strict=True):
        if math.isnan(value):
            stays = True
        elif finding == NO_FINDING:
            stays = nothing if value else bool(ill)
        else:
            by_normal = is_normal and not value and finding != SUPPORT_DEVICES
            stays = by_normal or _says(here, finding) == value
        if not stays:
            there = said(report, (finding,))
            if own and finding != NO_FINDING and not _speaks(here, finding) and not _speaks(there, finding):
                stays = True
            else:
                tally.add(_reason(there, finding, value), f"{name} {finding}")
        kept.append(value if stays else math.nan)
    return tuple(kept)


def _says(text: Said, finding: str) -> float:
    """1 where it asserts the finding, 0 where it only denies it, else nan."""
    return 1.0 if finding in text.asserted else 0.0 if finding in text.denied else math.nan


def _speaks(text: Said, finding: str) -> bool:
    return finding in text.asserted or finding in text.denied


def _reason(report: Said, finding: str, value: float) -> str:
    if not value:
        return NOT_DENIED
    return NOT_IN_PROMPT if finding == NO_FINDING or finding in report.asserted else NOWHERE
