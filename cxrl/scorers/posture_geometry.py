"""Posture from the masks of anatomical structures: what radiographers read off them.

A film is well placed when (in this order of weight here)
- both lungs are whole on the film, centred and of the usual size: apices and costophrenic angles included;
- it is not rotated: the medial ends of the clavicles are equally far from the spine;
- the clavicles are level.
Size and symmetry of the lungs change with habitus, effusion or pneumonectomy, so symmetry counts little.
The deviations are written as psi = (log s_x, log s_y, t_x, t_y, theta), like that of the learned regressor:
0 is well placed, translations are in half sides of the film, angles in radians.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

STRUCTURES = (
    *("Left Clavicle", "Right Clavicle", "Left Scapula", "Right Scapula", "Left Lung", "Right Lung"),
    *("Left Hilus Pulmonis", "Right Hilus Pulmonis", "Heart", "Aorta", "Facies Diaphragmatica"),
    *("Mediastinum", "Weasand", "Spine"),
)
"""The 14 channels of the masks. Left is the patient's: on the right of a film as it is looked at."""
_CLAVICLES, _LUNGS, _SPINE = (0, 1), (4, 5), 13
LUNG_WIDTH, LUNG_HEIGHT = 0.86, 0.80
"""Usual share of the film that the pair of lungs spans."""
SIZE_TOLERANCE = 0.15
"""Of |log size| that is free: films of real patients differ by that much."""
BORDER = 0.01
"""Lungs nearer to an edge than this share of the film are taken as cut off."""
CUT_PENALTY = 0.10
"""Deviation for each edge that the lungs reach; a third of real films do, so it is mild."""
LEFT_SHARE = 0.46
"""Usual share of the left lung in the area of both; the heart takes the rest."""
SYMMETRY_WEIGHT = 0.1
"""Of the difference between the lungs' shares: a whole missing half counts like 3° of tilt."""
MIN_LUNG, MAX_LUNG = 0.02, 0.75
"""Smallest share of the film that each lung, and largest that both may cover."""
MIN_PART = 0.001


def posture_from_masks(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Deviations of N films from good placement.

    Args:
        masks: [N, 14, h, w], probability or 0/1 of every structure in the order of ``STRUCTURES``.

    Returns:
        psi float32 [N, 5], and validity float32 [N]: 1 where two lungs were found, side by side, else 0, and
        then psi means nothing.
    """
    m = (masks >= 0.5).float()
    height, width = m.shape[-2:]
    x = (torch.arange(width, device=m.device) + 0.5) / width * 2.0 - 1.0
    y = (torch.arange(height, device=m.device) + 0.5) / height * 2.0 - 1.0
    area = m.mean((2, 3))
    lungs = m[:, list(_LUNGS)].amax(1)
    columns, rows = lungs.amax(1), lungs.amax(2)
    left, right = _extent(columns, x, 2.0 / width)
    top, bottom = _extent(rows, y, 2.0 / height)
    center = _centroids(m, x, y)

    edge = 1.0 - 2.0 * BORDER
    cut_x = CUT_PENALTY * ((left < -edge).float() + (right > edge).float())
    cut_y = CUT_PENALTY * ((top < -edge).float() + (bottom > edge).float())
    share = area[:, _LUNGS[0]] / area[:, list(_LUNGS)].sum(1).clamp_min(1e-6)
    psi = torch.stack(
        [
            _joined(_beyond(((right - left) / (2.0 * LUNG_WIDTH)).clamp_min(1e-3).log()), cut_x),
            _joined(_beyond(((bottom - top) / (2.0 * LUNG_HEIGHT)).clamp_min(1e-3).log()), cut_y),
            _joined((left + right) / 2.0, _rotation(m, area, x), SYMMETRY_WEIGHT * (share - LEFT_SHARE)),
            (top + bottom) / 2.0,
            _tilt(area, center),
        ],
        1,
    )
    each, both = area[:, list(_LUNGS)], area[:, list(_LUNGS)].sum(1)
    apart = center[:, _LUNGS[0], 0] > center[:, _LUNGS[1], 0]
    found = (each > MIN_LUNG).all(1) & (both < MAX_LUNG) & apart
    return torch.where(found[:, None], psi, torch.zeros_like(psi)), found.float()


def _extent(present: Tensor, position: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """First and last edge of 0/1 [N, L] along an axis whose cells have centres ``position`` [L]."""
    low = torch.where(present > 0, position, torch.inf).amin(1) - step / 2
    high = torch.where(present > 0, position, -torch.inf).amax(1) + step / 2
    found = present.amax(1) > 0
    return torch.where(found, low, -1.0), torch.where(found, high, 1.0)


def _centroids(m: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """[N, 14, 2] centres (x, y) of 0/1 masks; (0, 0) of an empty one."""
    total = m.sum((2, 3)).clamp_min(1e-6)
    return torch.stack([m.sum(2) @ x / total, m.sum(3) @ y / total], 2)


def _beyond(value: Tensor) -> Tensor:
    """What of a deviation is more than the free tolerance."""
    return value.sign() * (value.abs() - SIZE_TOLERANCE).clamp_min(0.0)


def _joined(main: Tensor, *others: Tensor) -> Tensor:
    """Deviations of one axis as one number with the sign of the first: they add up and never cancel."""
    size = torch.stack([main, *others]).square().sum(0).sqrt()
    return torch.where(main < 0, -size, size)


def _rotation(m: Tensor, area: Tensor, x: Tensor) -> Tensor:
    """Difference of the distances from the medial clavicle ends to the spine, halved: 0 when unrotated.

    The spine is the centre of its mask at the height of the clavicles. 0 where a part was not found.
    """
    clavicles = m[:, list(_CLAVICLES)]
    at_height = clavicles.amax((1, 3))[:, :, None]
    spine = m[:, _SPINE] * at_height
    spine_area = spine.sum((1, 2))
    middle = spine.sum(1) @ x / spine_area.clamp_min(1e-6)
    columns = clavicles.amax(2)
    left_end = torch.where(columns[:, 0] > 0, x, torch.inf).amin(1)
    right_end = torch.where(columns[:, 1] > 0, x, -torch.inf).amax(1)
    found = (area[:, list(_CLAVICLES)] > MIN_PART).all(1) & (spine_area > 0)
    return torch.where(found, ((left_end - middle) - (middle - right_end)) / 2.0, torch.zeros_like(middle))


def _tilt(area: Tensor, center: Tensor) -> Tensor:
    """Angle of the line through the clavicles' centres, positive when the left one is lower; where they were
    not found that of the lungs' centres, at half weight: a raised diaphragm tilts them too.
    """

    def angle(pair: tuple[int, int]) -> Tensor:
        step = center[:, pair[0]] - center[:, pair[1]]
        return torch.atan2(step[:, 1], step[:, 0].clamp_min(1e-3)).clamp(-math.pi / 2, math.pi / 2)

    found = (area[:, list(_CLAVICLES)] > MIN_PART).all(1)
    return torch.where(found, angle(_CLAVICLES), 0.5 * angle(_LUNGS))
