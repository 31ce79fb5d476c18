"""Deviations of drawn masks whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cxrl.scorers.posture_geometry import (
    BORDER,
    CUT_PENALTY,
    LUNG_HEIGHT,
    LUNG_WIDTH,
    SIZE_TOLERANCE,
    STRUCTURES,
    posture_from_masks,
)

H = W = 200
NAMES = {name: i for i, name in enumerate(STRUCTURES)}


def box(left: float, top: float, right: float, bottom: float) -> Tensor:
    """0/1 [H, W], edges as shares of the film."""
    mask = torch.zeros(H, W)
    mask[round(top * H) : round(bottom * H), round(left * W) : round(right * W)] = 1.0
    return mask


def film(
    *,
    dx: float = 0.0,
    dy: float = 0.0,
    scale: float = 1.0,
    spine_dx: float = 0.0,
    left_clavicle_dy: float = 0.0,
    parts: tuple[str, ...] = STRUCTURES,
) -> Tensor:
    """[14, H, W]: lungs of the usual size, clavicles, a spine; the patient's left is on the right."""
    x0, x1 = 0.5 + dx - scale * LUNG_WIDTH / 2, 0.5 + dx + scale * LUNG_WIDTH / 2
    y0, y1 = 0.5 + dy - scale * LUNG_HEIGHT / 2, 0.5 + dy + scale * LUNG_HEIGHT / 2
    share = scale * LUNG_WIDTH
    drawn = {
        "Right Lung": box(max(x0, 0), max(y0, 0), x0 + 0.46 * share, min(y1, 1)),
        "Left Lung": box(x1 - 0.40 * share, max(y0, 0), min(x1, 1), min(y1, 1)),
        "Right Clavicle": box(0.5 + dx - 0.35, 0.18, 0.5 + dx - 0.05, 0.20),
        "Left Clavicle": box(
            0.5 + dx + 0.05, 0.18 + left_clavicle_dy, 0.5 + dx + 0.35, 0.20 + left_clavicle_dy
        ),
        "Spine": box(0.5 + dx + spine_dx - 0.03, 0.0, 0.5 + dx + spine_dx + 0.03, 1.0),
    }
    return torch.stack([drawn[n] if n in drawn and n in parts else torch.zeros(H, W) for n in STRUCTURES])


def psi(**changes: float) -> Tensor:
    found, validity = posture_from_masks(film(**changes)[None])  # type: ignore[arg-type]
    assert float(validity) == 1.0
    return found[0]


def test_a_well_placed_film_deviates_from_nothing() -> None:
    assert torch.allclose(psi(), torch.zeros(5), atol=0.01)


@pytest.mark.parametrize("dx", [-0.05, 0.05])
def test_off_centre(dx: float) -> None:
    found = psi(dx=dx)
    assert float(found[2]) == pytest.approx(2 * dx, abs=0.012)
    assert float(found[[0, 1, 3, 4]].abs().max()) < 0.01
    assert float(psi(dy=dx)[3]) == pytest.approx(2 * dx, abs=0.012)


@pytest.mark.parametrize("scale", [0.5, 0.7, 0.95, 1.1])
def test_size_beyond_the_tolerance(scale: float) -> None:
    found = psi(scale=scale)
    expected = max(abs(math.log(scale)) - SIZE_TOLERANCE, 0.0) * math.copysign(1.0, math.log(scale))
    assert float(found[0]) == pytest.approx(expected, abs=0.02)
    assert float(found[1]) == pytest.approx(expected, abs=0.02)


def test_lungs_that_reach_an_edge_are_not_whole() -> None:
    found = psi(dy=0.1)
    assert float(found[1]) == pytest.approx(CUT_PENALTY, abs=0.01)
    assert float(found[0]) == pytest.approx(0.0, abs=0.01)
    near = psi(dy=0.1 - 2 * BORDER)
    assert float(near[1]) == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize("shift", [-0.04, 0.04])
def test_a_rotated_patient_has_the_spine_off_the_middle_of_the_clavicles(shift: float) -> None:
    found = psi(spine_dx=shift)
    # Half the difference of the distances is the shift itself, in half widths.
    assert float(found[2].abs()) == pytest.approx(2 * abs(shift), abs=0.012)
    # It adds to an offset of the lungs and never hides it.
    assert float(psi(spine_dx=shift, dx=0.04)[2]) == pytest.approx(math.hypot(0.08, 0.08), abs=0.015)
    assert float(psi(spine_dx=shift, dx=-0.04)[2]) == pytest.approx(-math.hypot(0.08, 0.08), abs=0.015)


def test_clavicles_that_are_not_level() -> None:
    found = psi(left_clavicle_dy=0.04)
    assert float(found[4]) == pytest.approx(math.atan2(0.04, 0.40), abs=0.01)
    assert float(psi(left_clavicle_dy=-0.04)[4]) == pytest.approx(-math.atan2(0.04, 0.40), abs=0.01)


def test_without_clavicles_or_spine_only_the_lungs_speak() -> None:
    lungs = film(dx=0.05, parts=("Left Lung", "Right Lung"))[None]
    found, validity = posture_from_masks(lungs)
    assert float(validity) == 1.0
    assert float(found[0, 2]) == pytest.approx(0.1, abs=0.012)
    assert float(found[0, 4]) == pytest.approx(0.0, abs=0.01)


def test_a_small_lung_counts_little() -> None:
    whole = film()
    small = whole.clone()
    small[NAMES["Left Lung"], H // 3 :] = 0.0
    small[NAMES["Right Lung"]] = whole[NAMES["Right Lung"]]
    found, validity = posture_from_masks(small[None])
    assert float(validity) == 1.0
    assert float(found[0].norm()) < 0.15


@pytest.mark.parametrize(
    "masks",
    [
        torch.zeros(1, 14, H, W),
        torch.ones(1, 14, H, W),
        film(parts=("Left Lung",))[None],
        film(scale=0.1)[None],
        film()[[*range(4), 5, 4, *range(6, 14)]][None],
    ],
    ids=["nothing", "everything", "one_lung", "tiny", "mirrored"],
)
def test_without_two_lungs_there_is_no_posture(masks: Tensor) -> None:
    found, validity = posture_from_masks(masks)
    assert float(validity) == 0.0
    assert torch.equal(found, torch.zeros(1, 5))


def test_films_of_a_batch_do_not_touch_each_other() -> None:
    films = torch.stack([film(), film(dx=0.05), torch.zeros(14, H, W), film(spine_dx=0.03)])
    together, validity = posture_from_masks(films)
    for n in range(4):
        alone, valid = posture_from_masks(films[n : n + 1])
        assert torch.equal(alone[0], together[n])
        assert torch.equal(valid[0], validity[n])
    assert posture_from_masks(films[:0])[0].shape == (0, 5)


def test_probabilities_count_from_one_half() -> None:
    masks = film()[None]
    assert torch.equal(posture_from_masks(0.6 * masks)[0], posture_from_masks(masks)[0])
    assert float(posture_from_masks(0.4 * masks)[1]) == 0.0
