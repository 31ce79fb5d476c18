"""PRDC against the package of its authors, and where the values are known."""

from __future__ import annotations

import pytest
import torch
from prdc import compute_prdc

import cxrl.metrics.prdc as module
from cxrl.metrics.prdc import PRDC, prdc


def normal(num: int, dim: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.mark.parametrize(
    ("num_real", "num_generated", "dim", "k"), [(60, 40, 3, 5), (30, 90, 16, 3), (17, 7, 2, 1)]
)
@pytest.mark.parametrize("block", [2048, 7])
def test_it_equals_the_package(
    num_real: int, num_generated: int, dim: int, k: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    real, generated = normal(num_real, dim, 0), normal(num_generated, dim, 1, 0.3)
    expected = compute_prdc(real.double().numpy(), generated.double().numpy(), nearest_k=k)
    found = prdc(real, generated, nearest_k=k)
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(float(value), abs=1e-6), name
    assert 0 < found.precision < 1, "else it would not tell much"


def test_wide_features_equal_the_package_too() -> None:
    """Shifted far from the origin, where inner products cancel."""
    real = normal(120, module.WIDE, 0) @ torch.diag(torch.linspace(0.01, 2, module.WIDE)) + 10.0
    generated = normal(90, module.WIDE, 1) @ torch.diag(torch.linspace(0.01, 2, module.WIDE)) + 10.02
    generated[:5] = real[:5]
    expected = compute_prdc(real.double().numpy(), generated.double().numpy(), nearest_k=5)
    found = prdc(real, generated)
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(float(value), abs=1e-6), name
    assert 0 < found.precision < 1
    assert 0 < found.coverage < 1


def test_the_same_distribution_is_near_one_and_another_is_nothing() -> None:
    same, other = prdc(normal(400, 8, 0), normal(400, 8, 1)), prdc(normal(400, 8, 0), normal(400, 8, 1, 50.0))
    assert min(same.precision, same.recall, same.coverage) > 0.85
    assert same.density == pytest.approx(1.0, abs=0.1)
    assert (other.precision, other.recall, other.density, other.coverage) == (0.0, 0.0, 0.0, 0.0)


def test_a_collapsed_generator_is_precise_and_covers_nothing() -> None:
    real = normal(400, 8, 0)
    collapsed = real[:4].repeat(100, 1) + 0.01 * normal(400, 8, 2)
    found = prdc(real, collapsed)
    assert found.precision == 1.0
    assert found.recall < 0.05
    assert found.coverage < 0.3


def test_copies_among_one_side_have_balls_of_no_size() -> None:
    real = normal(20, 4, 0)
    copies = real[:1].repeat(20, 1)
    found = prdc(real, copies)
    expected = compute_prdc(real.double().numpy(), copies.double().numpy(), nearest_k=5)
    assert found.recall == pytest.approx(float(expected["recall"])) == 0.0


@pytest.mark.parametrize(
    ("real", "generated", "message"),
    [
        (normal(5, 3, 0), normal(9, 3, 0), r"real: expected \[N, D\] with more than nearest_k 5 rows"),
        (normal(9, 3, 0), normal(5, 3, 0), "generated: expected"),
        (normal(9, 3, 0), normal(9, 4, 0), "real features have 3 columns, generated 4: another backbone"),
        (normal(9, 3, 0), torch.full((9, 3), torch.nan), "generated: row 0 is not finite"),
    ],
)
def test_what_has_no_value_is_refused(real: torch.Tensor, generated: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prdc(real, generated)


def test_shares_are_of_their_parts() -> None:
    found: PRDC = prdc(normal(50, 3, 0), normal(30, 3, 1), nearest_k=2)
    assert found.precision == float((found.num_balls > 0).double().mean())
    assert found.coverage == float(found.is_covered.double().mean())
    assert found.recall == float(found.is_recalled.double().mean())
    assert (len(found.num_balls), len(found.is_covered), found.nearest_k) == (30, 50, 2)
