"""What a caller of the method hands over in place of the configuration's parts: refused where it enters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cxrl.data.prompts import ReportPrompt
from cxrl.errors import CxrlError, shown
from cxrl.options import NO_TEXT_REASON, is_text
from cxrl.rewards.base import check_reward

_JUDGE_CALLS = ("posture", "classify", "image_embeds", "text_embeds", "features")
_JUDGE_VALUES = ("findings", "reference")


def check_rewards(rewards: Any, names: Sequence[str]) -> None:
    """Raise CxrlError unless ``rewards`` has a model that scores for each of ``names``."""
    if not isinstance(rewards, Mapping):
        raise CxrlError(
            f"rewards: {shown(rewards)} is no mapping; expected name → model, such as {{'mine': m}}"
        )
    missing = [name for name in names if name not in rewards]
    if missing:
        raise CxrlError(
            f"rewards: there is no model for {', '.join(missing)}, expected one for each of rewards.names "
            f"({', '.join(names)})"
        )
    for name, reward in rewards.items():
        check_reward(name, reward)


def check_judges(judges: Any) -> None:
    """Raise CxrlError unless ``judges`` has what :class:`cxrl.evaluation.summary.JudgeModels` asks for."""
    missing = [name for name in _JUDGE_CALLS if not callable(getattr(judges, name, None))]
    missing += [name for name in _JUDGE_VALUES if not hasattr(judges, name)]
    if isinstance(judges, type) or missing:
        kind = f"the class {judges.__name__}" if isinstance(judges, type) else shown(judges)
        what = f", which has no {', '.join(missing)}" if missing else ""
        raise CxrlError(
            f"judges: {kind}{what}; expected an object as cxrl.evaluation.summary.JudgeModels describes it"
        )


def check_prompt_lists(prompts: Any) -> None:
    """Raise CxrlError unless ``prompts`` is (training, held-out) or (training, selection, held-out), each a
    sequence of ReportPrompt.
    """
    if not isinstance(prompts, tuple | list) or len(prompts) not in (2, 3):
        what = f"{len(prompts)} lists" if isinstance(prompts, tuple | list) else shown(prompts)
        raise CxrlError(
            f"prompts: {what}; expected (training, held-out) or (training, selection, held-out), lists of "
            "ReportPrompt"
        )
    names = ("training", "held-out") if len(prompts) == 2 else ("training", "selection", "held-out")
    for which, reports in zip(names, prompts, strict=True):
        if isinstance(reports, str | Mapping) or not isinstance(reports, Sequence):
            raise CxrlError(f"prompts: {which} is {shown(reports)}; expected a list of ReportPrompt")
        for place, report in enumerate(reports):
            if not isinstance(report, ReportPrompt):
                raise CxrlError(f"prompts: {which} {place} is {shown(report)}; expected a ReportPrompt")
            check_text(report.text, f"prompts: {which} {place}")


def check_text(text: Any, where: str) -> None:
    """Raise CxrlError unless a report is a text, without NUL."""
    if not isinstance(text, str):
        raise CxrlError(f"{where}: {shown(text)} is no report; expected a text")
    if not is_text(text):
        raise CxrlError(f"{where}: {shown(text)} {NO_TEXT_REASON}")


def whole_numbers(values: Any, name: str, high: int) -> list[int]:
    """``values`` as integers from 0 to ``high``. Raises CxrlError for anything else."""
    return [_whole(value, name, high) for value in listed(values, name, "whole numbers")]


def listed(values: Any, name: str, of: str) -> list[Any]:
    """The items of anything that can be gone through but a text. Raises CxrlError for the rest."""
    walk: Callable[[], Any] | None = getattr(values, "__iter__", None)
    if walk is None or isinstance(values, str | bytes | Mapping | type):
        raise CxrlError(f"{name}: {shown(values)} is no list; expected {of}")
    return list(values)


def _whole(value: Any, name: str, high: int) -> int:
    number = value.__index__() if hasattr(value, "__index__") and not isinstance(value, bool | type) else -1
    if not 0 <= number <= high:
        raise CxrlError(f"{name}: {shown(value)} is none; expected whole numbers from 0 to {high}")
    return int(number)
