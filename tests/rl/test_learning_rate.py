"""Learning rates by epoch."""

from __future__ import annotations

import math

import pytest

from cxrl.config import OptimConfig
from cxrl.rl.learning_rate import rate_share


def shares(num_epochs: int = 10, **settings: object) -> list[float]:
    config = OptimConfig(**settings)  # type: ignore[arg-type]
    return [rate_share(config, epoch, num_epochs) for epoch in range(num_epochs)]


def test_the_default_is_constant() -> None:
    assert shares() == [1.0] * 10


def test_linear_and_cosine_fall_to_their_floor() -> None:
    assert shares(schedule="linear", final_rate_share=0.25) == pytest.approx(
        [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.25]
    )
    cosine = shares(schedule="cosine")
    expected = [max(0.05, 0.5 * (1 + math.cos(math.pi * epoch / 10))) for epoch in range(10)]
    assert cosine == pytest.approx(expected)
    assert cosine[5] == pytest.approx(0.5)
    assert cosine[-1] == 0.05


def test_warm_up_rises_to_what_the_schedule_says() -> None:
    assert shares(warmup_epochs=4) == pytest.approx([0.25, 0.5, 0.75, *[1.0] * 7])
    plain, warm = (shares(schedule="cosine", warmup_epochs=n) for n in (0, 4))
    assert warm[:3] == pytest.approx([0.25 * plain[0], 0.5 * plain[1], 0.75 * plain[2]])
    assert warm[3:] == plain[3:]


def test_no_rate_is_ever_zero() -> None:
    for schedule in ("constant", "linear", "cosine"):
        assert min(shares(1, schedule=schedule, warmup_epochs=3)) > 0
        assert min(shares(200, schedule=schedule, final_rate_share=1e-6)) > 0
