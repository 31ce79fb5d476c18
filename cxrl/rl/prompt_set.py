"""The reports of a run: which exist, and which an epoch draws."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cxrl.config import Config
from cxrl.data.prompts import ReportPrompt
from cxrl.errors import CxrlError
from cxrl.models.base import BaseModel
from cxrl.rl.seeding import generator


def load_prompts(config: Config, base: BaseModel, split: str) -> list[ReportPrompt]:
    """Reports of a split that the text encoder can read whole.

    Args:
        config: ``data`` says which and how many, ``seed`` which phantom reports.
        base: Its tokenizer counts.
        split: "train" or "eval" (held out).

    Raises:
        CxrlError: None is left, or one is too long and ``data.on_long_prompt`` is "error".
    """
    from cxrl.data.phantom import phantom_prompts

    num = config.data.num_prompts if split == "train" else config.data.eval_num_prompts
    return readable(phantom_prompts(num, seed=config.seed, split=split), base, config.data.on_long_prompt)


def readable(prompts: Sequence[ReportPrompt], base: BaseModel, on_long_prompt: str) -> list[ReportPrompt]:
    """The prompts that fit the text encoder, distinct by number.

    Raises:
        CxrlError: The list is empty, none fits, one is too long and that is an error, or a number occurs
            twice.
    """
    if not prompts:
        raise CxrlError("the prompt list is empty; expected at least one report")
    if len({p.prompt_id for p in prompts}) != len(prompts):
        raise CxrlError(
            "two prompts share a prompt_id, which names the anchor bank's rows; make them distinct"
        )
    kept = []
    for prompt in prompts:
        count = base.num_tokens(prompt.text)
        if count <= base.max_tokens:
            kept.append(prompt)
        elif on_long_prompt == "error":
            raise CxrlError(
                f"prompt {prompt.prompt_id} has {count} tokens, the text encoder reads {base.max_tokens}: "
                f"{prompt.text[:60]!r}…; shorten it or set data.on_long_prompt drop"
            )
    if not kept:
        raise CxrlError(
            f"all {len(prompts)} prompts are longer than the {base.max_tokens} tokens that the text encoder "
            "reads; shorten them"
        )
    return kept


def epoch_prompts(
    prompts: Sequence[ReportPrompt], per_epoch: int, *, seed: int, epoch: int
) -> list[ReportPrompt]:
    """The distinct prompts of an epoch: passes over a fresh shuffle, a function of (seed, epoch) alone."""
    per_pass = len(prompts) // per_epoch
    number, position = divmod(epoch, per_pass)
    order = torch.randperm(len(prompts), generator=generator(seed, "prompts", number)).tolist()
    return [prompts[i] for i in order[position * per_epoch : (position + 1) * per_epoch]]
