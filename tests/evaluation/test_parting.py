"""Where a reward and its judge part, and where they only seem to."""

from __future__ import annotations

import pytest

from cxrl.evaluation.parting import JUDGE_OF, Scored, partings

WIDTH = 0.02


def scored(epoch: int, reward: float | None, judge: float | None, *, width: float | None = WIDTH) -> Scored:
    """Consistency alone is known; intervals reach ``width`` to both sides."""

    def around(value: float | None) -> list[float | None]:
        return [None, None] if value is None or width is None else [value - width, value + width]

    return Scored(
        epoch,
        {"consistency": judge, "posture": None},
        {"consistency": reward},
        {"consistency": around(judge)},
        {"consistency": around(reward)},
    )


def history(*pairs: tuple[float | None, float | None]) -> list[Scored]:
    return [scored(epoch, *pair) for epoch, pair in enumerate(pairs)]


@pytest.mark.parametrize(
    ("pairs", "since"),
    [
        ([(0.1, 0.2), (0.2, 0.15)], 0),
        ([(0.1, 0.2), (0.2, 0.3), (0.3, 0.25)], 1),
        ([(0.1, 0.2), (0.2, 0.3), (0.25, 0.29), (0.3, 0.25)], 1),
        # Together, within the noise, the other way round, or not any more.
        ([(0.1, 0.2), (0.2, 0.3)], None),
        ([(0.1, 0.2), (0.2, 0.19)], None),
        ([(0.1, 0.2), (0.11, 0.1)], None),
        ([(0.3, 0.2), (0.1, 0.3)], None),
        ([(0.3, 0.2), (0.1, 0.1)], None),
        ([(0.1, 0.2), (0.2, 0.1), (0.3, 0.25)], None),
        ([(0.1, 0.2)], None),
        ([(0.1, 0.2), (0.3, None)], None),
        ([(None, 0.2), (0.3, 0.1)], None),
    ],
)
def test_the_reward_rises_and_the_judge_falls(
    pairs: list[tuple[float | None, float | None]], since: int | None
) -> None:
    found = partings(history(*pairs))
    assert [p.since for p in found] == ([] if since is None else [since])
    for parting in found:
        before, after = pairs[since or 0], pairs[-1]
        assert (parting.reward, parting.judge, parting.epoch) == (
            "consistency",
            "consistency",
            len(pairs) - 1,
        )
        assert parting.reward_change == pytest.approx((after[0] or 0) - (before[0] or 0))
        assert parting.judge_change == pytest.approx((after[1] or 0) - (before[1] or 0))
        assert parting.judge_change < 0 < parting.reward_change
        named = "the anchor" if since == 0 else f"epoch {since}"
        assert f"since {named} the reward rose by" in str(parting)


def test_without_intervals_nothing_is_beyond_them() -> None:
    assert partings([scored(0, 0.1, 0.3, width=None), scored(1, 0.9, 0.1, width=None)]) == []


@pytest.mark.parametrize(
    ("reward", "judge", "real", "lags"),
    [
        (0.3, 0.25, (0.5, 0.5), False),  # half of its way, and a sixth
        (0.4, 0.25, (0.5, 0.5), True),  # three quarters, and a sixth
        (0.4, 0.35, (0.5, 0.5), False),
        (0.9, 0.25, None, False),
        (0.9, 0.25, (0.05, 0.5), False),  # the reward has no way to go
        (0.9, 0.25, (0.5, 0.1), False),
    ],
)
def test_the_judge_does_not_follow(
    reward: float, judge: float, real: tuple[float, float] | None, lags: bool
) -> None:
    films = None if real is None else scored(0, *real)
    found = partings(history((0.1, 0.2), (reward, judge)), films)
    assert [p.shares is not None for p in found] == [True] * lags
    if lags:
        assert found[0].shares == pytest.approx((0.75, 1 / 6))
        assert "the reward has gone 75%, the judge's consistency 17%" in str(found[0])


def test_every_shipped_reward_has_a_judge() -> None:
    assert set(JUDGE_OF) == {"posture", "diagnosis", "consistency"}
    both = [
        Scored(
            epoch,
            dict.fromkeys(JUDGE_OF.values(), 0.5 - 0.2 * epoch),
            dict.fromkeys(JUDGE_OF, 0.1 + 0.2 * epoch),
            {judge: [0.0, 0.45] for judge in JUDGE_OF.values()},
            {reward: [0.2, 0.9] for reward in JUDGE_OF},
        )
        for epoch in (0, 1)
    ]
    assert {p.reward for p in partings(both)} == set(JUDGE_OF)
