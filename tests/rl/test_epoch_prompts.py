from __future__ import annotations

from cxrl.data.prompts import ReportPrompt
from cxrl.rl.epoch_prompts import epoch_prompts

PROMPTS = [ReportPrompt(i, str(i), ()) for i in range(10)]


def draw(epoch: int, seed: int = 0, per_epoch: int = 4) -> list[int]:
    return [p.prompt_id for p in epoch_prompts(PROMPTS, per_epoch, seed=seed, epoch=epoch)]


def test_an_epochs_prompts_are_distinct_and_a_function_of_seed_and_epoch() -> None:
    for epoch in range(20):
        assert len(set(draw(epoch))) == 4
        assert draw(epoch) == draw(epoch)
    assert [draw(e) for e in range(6)] != [draw(e, seed=1) for e in range(6)]


def test_a_pass_repeats_no_prompt() -> None:
    for first in (0, 2, 4):
        assert len({*draw(first), *draw(first + 1)}) == 8
    assert sorted(draw(3, per_epoch=10)) == list(range(10))
