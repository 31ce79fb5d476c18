"""The analytic thorax: attenuation of every pixel from anatomy, findings and pose.

Coordinates. ``u`` runs to the image's right (the patient's left), ``v`` down, both in [-1, 1] over the
film. The *canonical* frame is the same square for a film with the identity pose. Pose psi = (log s_x, log
s_y, t_x, t_y, theta) is the affine of the paper's equation "canonical alignment": film = M canonical with
``M = [[s_x cos, -s_y sin, t_x], [s_x sin, s_y cos, t_y]]``, so resampling the film on ``affine_grid(M)``
brings it to canonical pose, and every pixel here is looked up at ``M^-1 (u, v)``.

A film is Beer-Lambert attenuation of summed tissue, shown as bright where dense, blurred and with quantum
noise.
Shapes: B films, pixels [B, H, W], one value a film [B, 1, 1], float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
"""float32 throughout."""
Params = dict[str, Array]
"""Anatomy and findings, each [B, 1, 1]; ``vessel_angle``, ``vessel_bend``, ``vessel_gain`` are [B, 2, V]."""

NUM_VESSELS = 8
FIELD_OF_VIEW = 0.87
"""Anatomy units per film unit: the lungs fill about 80 % of the film's width, as real films are
collimated.
"""


def _step(distance: Array, width: float | Array) -> Array:
    """Smooth 0..1 step, 1 where ``distance`` is positive; ``width`` is the softness in canonical units."""
    return np.asarray(0.5 + 0.5 * np.tanh(distance * (1.1 / width)), dtype=np.float32)


def _bump(distance: Array, width: float | Array) -> Array:
    return np.asarray(np.exp(-np.square(distance / width)), dtype=np.float32)


def canonical_grid(psi: Array, size: int) -> tuple[Array, Array]:
    """Canonical coordinates of every pixel: ``M^-1 (pixel)`` for psi [B, 5] -> two [B, H, W]."""
    axis = ((np.arange(size, dtype=np.float32) + 0.5) * (2.0 / size) - 1.0).astype(np.float32)
    log_sx, log_sy, tx, ty, theta = (psi[:, i, None, None].astype(np.float32) for i in range(5))
    du, dv = axis[None, None, :] - tx, axis[None, :, None] - ty
    cos, sin = np.cos(theta), np.sin(theta)
    u, v = (cos * du + sin * dv) * np.exp(-log_sx), (-sin * du + cos * dv) * np.exp(-log_sy)
    return u * FIELD_OF_VIEW, v * FIELD_OF_VIEW - 0.09


def _body(u: Array, v: Array) -> Array:
    """Trunk, shoulders with arms, neck: thickness of soft tissue."""
    x = np.abs(u)
    shoulder = -0.78 + 0.34 * np.square(np.maximum(x - 0.16, 0.0)) + 0.10 * x
    trunk = _step(v - shoulder, 0.05) * _step(0.88 + 0.05 * np.sin(2.2 * v + 0.6) - x, 0.035)
    neck = _step(0.235 + 0.10 * _step(v + 0.86, 0.12) - x, 0.035)
    arm = _step(v - shoulder - 0.02, 0.04) * _step(x - 0.90, 0.03) * _step(1.35 - x - 0.22 * (v + 0.7), 0.05)
    roundness = np.sqrt(np.maximum(1.0 - np.square(x / 1.18), 0.05))
    return np.asarray(
        np.maximum(trunk, neck) * (0.62 + 0.30 * roundness) + 0.55 * arm * (1.0 - trunk), dtype=np.float32
    )


class Thorax:
    """One side of the chest at a time: the lung field and everything that lies on it."""

    def __init__(self, u: Array, v: Array, p: Params) -> None:
        self.u, self.v, self.p = u, v, p

    def side(self, index: int) -> tuple[Array, Array, Array]:
        """(attenuation, lung field, lung field without fluid); 0 is the patient's right (image left), 1
        the left.
        """
        p, v = self.p, self.v
        sign = -1.0 if index == 0 else 1.0
        x = sign * self.u
        tag = "r" if index == 0 else "l"
        # lung outline: lateral wall, mediastinal border, dome
        height = np.clip((p["lung_mid"] - v) / (p["lung_mid"] - p["apex"]), -1.0, 1.0)
        up = np.maximum(height, 0.0)
        lateral = p["lung_width"] * np.power(np.maximum(1.0 - up**2.6, 0.0), 0.5) - 0.03 * np.minimum(
            height, 0.0
        )
        medial = 0.125 + 0.02 * index + 0.05 * _bump(v - 0.02, 0.22)
        dome = p[f"dome_{tag}"] + 0.85 * np.square(x - 0.29) + 1.6 * np.square(np.maximum(x - 0.48, 0.0))
        inside = np.minimum(np.minimum(lateral - x, 1.4 * (x - medial)), 0.8 * (dome - v))
        lung = _step(inside, 0.022)
        # vessels radiate from the hilum and taper
        hx, hy = 0.19, 0.00 - 0.03 * index
        dx, dy = x - hx, v - hy
        radius = np.sqrt(np.square(dx) + np.square(dy)) + 1e-4
        angle = np.arctan2(dy, dx)
        vessels = np.zeros_like(v)
        width = 0.017 + 0.013 * np.maximum(1.0 - 1.7 * radius, 0.0)
        for k in range(NUM_VESSELS):
            bend = p["vessel_angle"][:, index, k, None, None] + p["vessel_bend"][
                :, index, k, None, None
            ] * np.sin(5.0 * radius)
            vessels += p["vessel_gain"][:, index, k, None, None] * _bump(
                radius * np.sin(0.5 * (angle - bend)) * 2.0, width
            )
        vessels = (1.0 - np.exp(-1.2 * vessels)) * np.maximum(1.0 - 1.3 * radius, 0.0)
        hilum = _bump(radius, 0.095)
        marking = 0.19 * vessels * (1.0 + 0.9 * p["edema"]) * (1.0 - 0.6 * hilum) + 0.20 * hilum
        # collapsed lung: air outside the pleural line, no markings there
        gap = p[f"pneumothorax_{tag}"]
        has_gap = (gap > 0).astype(np.float32)
        rim = lateral - x - gap * (1.0 + 0.55 * up)
        apical = v - (p["apex"] + 1.15 * gap)
        edge = np.minimum(rim, apical)
        air = has_gap * (1.0 - _step(edge, 0.015)) * _step(0.30 + 1.2 * gap - v, 0.10)
        line = has_gap * _bump(edge - 0.015, 0.017) * _step(0.30 + 1.2 * gap - v, 0.10)
        content = 0.075 + marking * (1.0 - air) - 0.07 * air + 0.30 * line + has_gap * 0.06 * (1.0 - air)
        # edema: haze from the hilum ("bat wing"); consolidation: soft patch; lesion: sharp disc
        haze = p["edema"] * (0.34 * _bump(radius - 0.06, 0.34) + 0.05)
        cx, cy = x - p[f"consolidation_x_{tag}"], v - p[f"consolidation_y_{tag}"]
        wobble = 1.0 + 0.22 * np.sin(9.0 * cx + p["texture"]) * np.sin(8.0 * cy + 2.0 * p["texture"])
        reach = np.sqrt(np.square(cx / 1.15) + np.square(cy)) * wobble
        patch = p[f"consolidation_{tag}"] * _step(0.20 - reach, 0.075)
        nx, ny = x - p[f"lesion_x_{tag}"], v - p[f"lesion_y_{tag}"]
        disc = p[f"lesion_{tag}"] * _step(p["lesion_radius"] - np.sqrt(np.square(nx) + np.square(ny)), 0.020)
        content = content + (1.0 - air) * (haze + 0.42 * patch) + 0.50 * disc
        # effusion: a meniscus that climbs the wall
        level = p[f"effusion_{tag}"]
        surface = (
            level + 0.10 - 0.42 * np.square(np.maximum(x - 0.22, 0.0)) * (1.0 + np.maximum(0.3 - level, 0.0))
        )
        fluid = _step(v - surface, 0.035)
        content = content * (1.0 - fluid) + 0.62 * fluid
        return (
            np.asarray(lung * content, dtype=np.float32),
            lung,
            np.asarray(lung * (1.0 - fluid), dtype=np.float32),
        )


def attenuation(u: Array, v: Array, p: Params) -> Array:
    """Summed attenuation [B, H, W] >= 0 of the whole film."""
    x = np.abs(u)
    body = _body(u, v)
    thorax = Thorax(u, v, p)
    right, lung_r, dry_r = thorax.side(0)
    left, lung_l, dry_l = thorax.side(1)
    lung, dry = lung_r + lung_l, dry_r + dry_l
    total = body * (1.0 - lung) * 0.66 + (right + left) + 0.13 * lung * body
    # below the dome: liver and stomach with its bubble
    below = body * (1.0 - lung) * _step(v - 0.42, 0.10)
    bubble = _bump(u - p["bubble_x"], 0.13) * _bump(v - p["dome_l"] - 0.24, 0.055)
    total += below * (0.24 - 0.34 * bubble * p["bubble"])
    # mediastinum, aortic knob, heart
    mediastinum = _step(0.135 + 0.03 * _step(v - 0.0, 0.25) - x, 0.03) * _step(v + 0.85, 0.08)
    knob = _step(0.085 - np.sqrt(np.square(u - 0.125) + np.square((v + 0.24) * 0.9)), 0.02)
    trachea = _bump(u - 0.01, 0.042) * _step(-0.20 - v, 0.06) * _step(v + 0.98, 0.05)
    size = p["heart"]
    hu, hv = u - 0.085 - 0.10 * (size - 1.0), v - p["heart_y"]
    tilt = 0.5
    a, b = hu * np.cos(tilt) + hv * np.sin(tilt), -hu * np.sin(tilt) + hv * np.cos(tilt)
    heart = _step(1.0 - np.sqrt(np.square(a / (0.315 * size)) + np.square(b / (0.255 * size))), 0.085)
    atrium = _step(
        1.0 - np.sqrt(np.square((u + 0.10) / (0.135 * size)) + np.square((v - p["heart_y"] - 0.02) / 0.22)),
        0.12,
    )
    core = np.maximum(np.maximum(heart, 0.9 * atrium), np.maximum(0.75 * mediastinum, 0.8 * knob))
    total += core * (0.30 + 0.34 * dry) * body - 0.20 * trachea * body
    # skeleton: spine, posterior and anterior ribs, clavicles, scapulae
    spine = _step(0.085 - x, 0.02)
    discs = 0.75 + 0.25 * np.cos((v * 11.5 + p["rib_phase"]) * 2.0 * np.pi / 1.35)
    total += 0.22 * spine * discs * body
    cage_top = np.maximum(1.0 - np.square(np.maximum(0.1 - v, 0.0) / 0.94), 0.0)
    cage = (
        _step((p["lung_width"] + 0.05) * np.sqrt(cage_top) - x, 0.03)
        * _step(0.78 - v, 0.10)
        * _step(v + 0.84, 0.03)
    )
    posterior = v - 0.62 * np.square(x - 0.16) + 0.04 * p["rib_phase"]
    anterior = v + 0.50 * x - 0.25 * x * x + 0.05
    total += cage * (0.115 * _comb(posterior, p["rib_gap"]) * _step(x - 0.06, 0.03))
    total += (
        cage * 0.060 * _comb(anterior, p["rib_gap"] * 1.02) * _step(x - 0.26, 0.06) * _step(0.45 - v, 0.1)
    )
    clavicle_y = -0.60 - 0.20 * np.sin(2.6 * (x - 0.10)) * (0.6 + 0.2 * x) + 0.05 * p["clavicle"]
    clavicle = _bump(v - clavicle_y, 0.033) * _step(x - 0.10, 0.02) * _step(0.72 - x, 0.04)
    scapula = _bump(x - 0.80 - 0.12 * (v + 0.3), 0.06) * _step(v + 0.52, 0.06) * _step(0.10 - v, 0.10)
    humerus = _step(0.105 - np.sqrt(np.square(x - 0.97) + np.square(v + 0.50)), 0.03)
    total += body * (0.22 * clavicle + 0.13 * scapula + 0.22 * humerus)
    return np.asarray(np.maximum(total, 0.0), dtype=np.float32)


def _comb(coordinate: Array, gap: Array) -> Array:
    """Bands repeated every ``gap``: a shaft with brighter cortical edges."""
    phase = coordinate / gap
    phase = np.abs(phase - np.round(phase)) * 2.0
    return np.asarray(_step(0.46 - phase, 0.14) * (0.72 + 0.28 * _bump(phase - 0.38, 0.16)), dtype=np.float32)


def film(total: Array, exposure: Array, contrast: Array, noise: Array, blur: bool = True) -> Array:
    """Attenuation [B, H, W] to a film in [0, 1]: scatter, Beer-Lambert, window, quantum noise (``noise``
    is N(0, 1)).
    """
    if blur:
        total = _blur(total)
    value = 1.0 - np.exp(-contrast * total)
    dose = np.sqrt(np.maximum(1.0 - 0.7 * value, 0.1))
    value = value * exposure + 0.010 * noise * dose
    return np.asarray(np.clip(value, 0.0, 1.0), dtype=np.float32)


def _blur(image: Array) -> Array:
    """Focal-spot blur: the binomial kernel (1, 4, 1)/6 along both axes, edges repeated."""
    padded = np.pad(image, ((0, 0), (1, 1), (0, 0)), mode="edge")
    image = (padded[:, :-2] + 4.0 * padded[:, 1:-1] + padded[:, 2:]) / 6.0
    padded = np.pad(image, ((0, 0), (0, 0), (1, 1)), mode="edge")
    return np.asarray(
        (padded[:, :, :-2] + 4.0 * padded[:, :, 1:-1] + padded[:, :, 2:]) / 6.0, dtype=np.float32
    )
