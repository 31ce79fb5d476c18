from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from cxrl.config import ComparisonConfig, Config
from cxrl.rl.advantages import advantages
from cxrl.rl.comparison import RewardUnits, compare, form_scale, group_mean, needs_anchor, reward_units
from cxrl.rl.records import Comparison, RewardTable

NAMES = ("posture", "diagnosis")
GROUP = torch.arange(3).repeat_interleave(4)


def rewards(seed: int = 0) -> RewardTable:
    return RewardTable(NAMES, torch.randn(12, 2, generator=torch.Generator().manual_seed(seed)))


def bank(num: int = 8) -> torch.Tensor:
    values = torch.randn(3, num, 2, generator=torch.Generator().manual_seed(9))
    return values * torch.tensor([0.5, 1.0, 2.0])[:, None, None]


def run(
    table: RewardTable, anchors: Any, weights: tuple[float, ...] = (1.0, 1.0), **settings: Any
) -> Comparison:
    units = RewardUnits(torch.tensor([0.1, -0.2]), torch.tensor([2.0, 0.5]))
    return compare(table, anchors, GROUP, weights, units, ComparisonConfig(**settings))


def test_difference_with_posture_scored_directly() -> None:
    table, anchors = rewards(), bank()
    result = run(table, anchors, (0.5, 2.0), form="difference", without_anchor=("posture",))
    mean, std = anchors[..., 1].mean(1)[GROUP], anchors[..., 1].std(1, correction=0)[GROUP]
    expected = 0.5 * (table.values[:, 0] - 0.1) / 2.0 + 2.0 * (table.values[:, 1] - mean) / std
    torch.testing.assert_close(result.score, expected)
    assert result.win_rate.shape == (2,)  # posture is watched too


def test_direct_needs_no_anchor() -> None:
    table = rewards()
    result = run(table, None, form="direct", without_anchor=())
    torch.testing.assert_close(
        result.score, (table.values[:, 0] - 0.1) / 2.0 + (table.values[:, 1] + 0.2) / 0.5
    )
    assert result.win_rate.numel() == 0
    torch.testing.assert_close(run(table, bank(), form="direct").score, result.score)
    with pytest.raises(ValueError, match="needs anchor images"):
        run(table, None, form="win")


@pytest.mark.parametrize(
    ("without", "form", "needs"),
    [
        ("", "win", True),
        ("posture", "win", True),
        ("diagnosis,posture", "win", False),
        ("consistency,posture,diagnosis", "win", False),
        ("", "direct", False),
    ],
)
def test_anchors_are_needed_where_a_reward_is_compared(without: str, form: str, needs: bool) -> None:
    config = Config.from_dict({"rewards": {"names": "posture,diagnosis", "weights": "1,1"}})
    made = dataclasses.replace(
        config.comparison, form=form, without_anchor=tuple(filter(None, without.split(",")))
    )
    assert needs_anchor(dataclasses.replace(config, comparison=made)) == needs


def test_a_difference_centred_on_its_prompt_is_direct_but_for_its_scale() -> None:
    table, anchors = rewards(), bank()
    compared = run(table, anchors, form="difference", without_anchor=("posture",), min_std=1e-3)
    centred = compared.score - group_mean(compared.score, GROUP)
    std = anchors[..., 1].std(1, correction=0)[GROUP]
    units = torch.stack([torch.full((12,), 2.0), std], 1)
    direct = (table.values / units).sum(1)
    torch.testing.assert_close(centred, direct - group_mean(direct, GROUP), rtol=1e-4, atol=1e-5)
    # The per-prompt sd then takes even the scale away: the same advantages whatever the anchor is.
    alone = run(table, anchors, (0.0, 1.0), form="difference", without_anchor=())
    shifted = run(table, 3 * anchors + 7, (0.0, 1.0), form="difference", without_anchor=())
    first, second = (advantages(c.score, GROUP).values for c in (alone, shifted))
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4)
    # Without the centring the anchor is the baseline, and matters.
    first, second = (advantages(c.score, GROUP, center="batch").values for c in (alone, shifted))
    assert (first - second).abs().max() > 0.1


@pytest.mark.parametrize(
    ("form", "temperature"),
    [("difference", 1.0), ("win", 1.0), ("bradley_terry", 1.0), ("bradley_terry", 0.5)],
)
def test_every_form_counts_one_for_a_bank_sd(form: str, temperature: float) -> None:
    anchors = torch.special.ndtri((torch.arange(512) + 0.5) / 512)[None, :, None].expand(1, -1, 2) * 3.0
    step = 0.2
    table = RewardTable(NAMES, torch.tensor([[0.0, -3 * step / 2], [0.0, 3 * step / 2]]))
    units = RewardUnits(torch.zeros(2), torch.ones(2))
    config = ComparisonConfig(form=form, temperature=temperature, without_anchor=())
    prompt_of = torch.zeros(2, dtype=torch.int64)
    score = compare(table, anchors.contiguous(), prompt_of, (0.0, 1.0), units, config).score
    assert float(score[1] - score[0]) == pytest.approx(step, rel=0.05)
    assert form_scale("direct", 1.0) == 1.0


def test_one_anchor_image_is_measured_in_the_fixed_unit() -> None:
    table = rewards()
    anchors = torch.randn(12, 1, 2, generator=torch.Generator().manual_seed(4))
    units = RewardUnits(torch.zeros(2), torch.tensor([2.0, 0.5]))
    config = ComparisonConfig(form="difference", anchor="one_to_one", without_anchor=())
    result = compare(table, anchors, torch.arange(12), (1.0, 1.0), units, config)
    torch.testing.assert_close(result.score, ((table.values - anchors[:, 0]) / units.std).sum(1))


def test_a_tied_bank_does_not_blow_the_score_up() -> None:
    table = rewards()
    result = run(table, torch.zeros(3, 4, 2), form="difference", without_anchor=(), min_std=0.5)
    torch.testing.assert_close(result.score, table.values[:, 0] / 1.0 + table.values[:, 1] / 0.25)


def test_units_are_pooled_within_prompts() -> None:
    values = torch.tensor([[0.0, 5.0], [2.0, 5.0], [10.0, 5.0], [14.0, 5.0]])
    prompt_of = torch.tensor([0, 0, 1, 1])
    units = reward_units(RewardTable(NAMES, values), prompt_of)
    assert units.std.tolist() == pytest.approx([(10 / 4) ** 0.5, 1.0])  # a reward that never varies gets 1
    assert units.mean.tolist() == pytest.approx([6.5, 5.0])
    single = reward_units(RewardTable(NAMES, values), torch.arange(4))
    assert float(single.std[0]) == pytest.approx(float(values[:, 0].std(correction=0)))
