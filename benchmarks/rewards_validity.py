"""The guard ``cxrl/scorers/validity.py`` on real films, and the fit of its coefficients.

    python benchmarks/rewards_validity.py --films images.csv            results/rewards_validity.json
    python benchmarks/rewards_validity.py --films images.csv --fit      prints new coefficients

The CSV has the columns ``image`` (relative to it) and ``patient``. Nothing of the films is written but
numbers. "cross-validated" refits the coefficients without the patients and the pictures that are then
scored, four times: that is what to expect on other films of the same hospital.
"""

from __future__ import annotations

import argparse
import csv
import functools
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cxrl.images.read import read_image
from cxrl.scorers.validity import empty_share, film_features, film_validity, mirror_agreement

RESULT = Path(__file__).parent / "results" / "rewards_validity.json"
SIZE = 256
FOLDS, AUGMENTED = 4, 8
RIDGE = 0.003
PICTURES = (
    *(
        "astronaut",
        "brick",
        "camera",
        "cell",
        "chelsea",
        "coffee",
        "coins",
        "grass",
        "gravel",
        "horse",
        "ihc",
    ),
    *("hubble_deep_field", "moon", "page", "retina", "rocket", "text", "motorcycle_left", "color", "phantom"),
)
"""That scikit-image ships: textures, faces, histology, text, a retina and a head phantom."""


def pictures() -> Tensor:
    """Six cuts of every picture and their negatives, [20 · 12, 1, SIZE, SIZE]."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    rng = torch.Generator().manual_seed(0)
    cuts = []
    for name in PICTURES:
        with Image.open(next(folder.glob(f"{name}.*"))) as file:
            picture = torch.from_numpy(np.array(file.convert("L"), dtype=np.float32) / 255.0)
        for k in range(6):
            side = int(
                min(picture.shape) * (1.0 if k == 0 else 0.4 + 0.6 * float(torch.rand((), generator=rng)))
            )
            top, left = (int(torch.randint(n - side + 1, (), generator=rng)) for n in picture.shape)
            cut = resized(picture[None, None, top : top + side, left : left + side])[0]
            cuts += [cut, 1.0 - cut]
    return torch.stack(cuts)


def resized(images: Tensor) -> Tensor:
    return F.interpolate(images, (SIZE, SIZE), mode="bilinear", antialias=True).clamp(0, 1)


def pink(images: Tensor, power: float, rng: torch.Generator) -> Tensor:
    """Noise whose amplitude falls with frequency to a power: cloud-like textures, over the full range."""
    size = images.shape[-1]
    frequency = torch.fft.fftfreq(size)
    radius = (frequency[:, None] ** 2 + frequency[None] ** 2).sqrt().clamp_min(1 / size)
    noise = torch.fft.fft2(torch.randn(images.shape, generator=rng)) / radius**power
    noise = torch.fft.ifft2(noise).real
    low, high = noise.amin((2, 3), keepdim=True), noise.amax((2, 3), keepdim=True)
    return (noise - low) / (high - low)


def blobs(images: Tensor, rng: torch.Generator) -> Tensor:
    cells = int(torch.randint(3, 9, (), generator=rng))
    coarse = torch.rand(len(images), 1, cells, cells, generator=rng)
    return F.interpolate(coarse, images.shape[-2:], mode="bicubic").clamp(0, 1)


def white_noise(images: Tensor, rng: torch.Generator) -> Tensor:
    level = torch.rand(len(images), 1, 1, 1, generator=rng)
    return (level + 0.25 * torch.randn(images.shape, generator=rng)).clamp(0, 1)


def not_films(films: Tensor, others: Tensor, seed: int) -> dict[str, Tensor]:
    """What must be refused, made of films or as many of them."""
    rng = torch.Generator().manual_seed(seed)
    half = films.shape[-1] // 2
    return {
        "blank": torch.rand(len(films), 1, 1, 1, generator=rng).expand_as(films),
        "almost no contrast": films.mean((2, 3), keepdim=True)
        + 0.1 * (films - films.mean((2, 3), keepdim=True)),
        "white noise": white_noise(films, rng),
        "1/f noise": pink(films, 1.0, rng),
        "1/f^1.5 noise": pink(films, 1.5, rng),
        "1/f^2 noise": pink(films, 2.0, rng),
        "blobs": blobs(films, rng),
        "inverted": 1.0 - films,
        "upside down": films.flip(-2),
        "on its side": films.transpose(-1, -2),
        "quarters swapped": films.roll((half, half), (-2, -1)),
        "upper and lower half swapped": films.roll(half, -2),
        "left and right half swapped": films.roll(half, -1),
        "other pictures": others,
    }


def with_a_half_wrong(films: Tensor, seed: int) -> dict[str, Tensor]:
    """Films of which a half is missing or there twice, which is no part of the fit; and mirrored ones."""
    rng = torch.Generator().manual_seed(seed)
    half = films.shape[-1] // 2
    left, right = films[..., :half], films[..., half:]
    doubled = {
        "left half doubled": torch.cat([left, left.flip(-1)], -1),
        "right half doubled": torch.cat([right.flip(-1), right], -1),
    }
    noisy = {
        f"{name}, turned, moved, noisy": (
            turned(images, 5.0 * (2.0 * torch.rand(len(films), generator=rng) - 1.0), 0.06)
            + 0.02 * torch.randn(films.shape, generator=rng)
        ).clamp(0, 1)
        for name, images in doubled.items()
    }
    black = torch.zeros_like
    return {
        **doubled,
        **noisy,
        "left half black": torch.cat([black(left), right], -1),
        "right half black": torch.cat([left, black(right)], -1),
        "upper half black": torch.cat([black(films[..., :half, :]), films[..., half:, :]], -2),
        "lower half black": torch.cat([films[..., :half, :], black(films[..., half:, :])], -2),
        "mirrored": films.flip(-1),
    }


def turned(images: Tensor, degrees: Tensor, shift: float) -> Tensor:
    """Every image turned by its degrees [N] and moved sideways, in half widths."""
    angle = degrees * (math.pi / 180)
    rows = [
        torch.stack([angle.cos(), -angle.sin(), torch.full_like(angle, shift)], 1),
        torch.stack([angle.sin(), angle.cos(), torch.zeros_like(angle)], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def augmented(films: Tensor, rng: torch.Generator) -> Tensor:
    """Films a little turned, scaled, moved, mirrored and brighter or darker: half the variety of policies."""
    n = len(films)
    angle, scale = 0.08 * torch.randn(n, generator=rng), 1.0 + 0.1 * torch.randn(n, generator=rng)
    shift = 0.08 * torch.randn(n, 2, generator=rng)
    rows = [
        torch.stack([scale * angle.cos(), -scale * angle.sin(), shift[:, 0]], 1),
        torch.stack([scale * angle.sin(), scale * angle.cos(), shift[:, 1]], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), list(films.shape), align_corners=False)
    moved = F.grid_sample(films, grid, padding_mode="border", align_corners=False)
    mirrored = torch.rand(n, 1, 1, 1, generator=rng) < 0.5
    gamma = torch.exp(0.25 * torch.randn(n, 1, 1, 1, generator=rng))
    return torch.where(mirrored, moved.flip(-1), moved).clamp(0, 1) ** gamma


def fit(films: Tensor, others: Tensor) -> tuple[Tensor, float]:
    """Ridge logistic regression by Newton's method, films and other images weighted alike."""
    rng = torch.Generator().manual_seed(0)
    good, bad = [film_features(films)], []
    for seed in range(AUGMENTED):
        moved = augmented(films, rng)
        good.append(film_features(moved))
        bad += [film_features(images) for images in not_films(moved, others, seed).values()]
    x = torch.cat([*good, *bad]).double()
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    num_good, num_bad = (sum(map(len, part)) for part in (good, bad))
    y = torch.cat([torch.ones(num_good), torch.zeros(num_bad)]).double()
    weight = torch.where(y > 0, 0.5 / num_good, 0.5 / num_bad)
    penalty = torch.full((x.shape[1],), RIDGE, dtype=x.dtype)
    penalty[-1] = 0.0
    w = torch.zeros(x.shape[1], dtype=x.dtype)
    for _ in range(50):
        p = (x @ w).sigmoid()
        gradient = x.T @ (weight * (p - y)) + penalty * w
        hessian = (x * (weight * (p * (1 - p) + 1e-6))[:, None]).T @ x + penalty.diag()
        w = w - torch.linalg.solve(hessian, gradient)
    return w[:-1].float(), float(w[-1])


def scores(validity: Callable[[Tensor], Tensor], films: Tensor, others: Tensor) -> dict[str, Tensor]:
    groups = {"films": films, **not_films(films, others, seed=99), **with_a_half_wrong(films, seed=98)}
    return {name: validity(images) for name, images in groups.items()}


def table(values: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Films: share above 0.5 and at 1. Others: share below 0.5, mean and largest validity."""
    rows: dict[str, dict[str, float]] = {}
    for name, value in values.items():
        above = float((value > 0.5).float().mean())
        share = {"accepted": above, "at_one": float((value == 1.0).float().mean())}
        rows[name] = share if name == "films" else {"refused": 1.0 - above, "largest": float(value.max())}
        rows[name] = {k: round(v, 4) for k, v in {**rows[name], "mean": float(value.mean())}.items()}
        rows[name]["num_images"] = len(value)
    return rows


def limits(films: Tensor) -> dict[str, float]:
    """How far real films and spoilt ones are from the limits on halves, fitted to nobody."""
    border = SIZE // 8
    sides = [(border, border, 0, 0), (0, 0, border, border), (border,) * 4, (0, 0, 0, border)]
    bordered = torch.cat([resized(F.pad(films, side)) for side in sides])
    spoilt = with_a_half_wrong(films, seed=98)
    doubled = torch.cat([images for name, images in spoilt.items() if "doubled" in name])
    black = torch.cat([images for name, images in spoilt.items() if "black" in name])
    found = {
        "films, most like their mirror image": mirror_agreement(films).max(),
        "films with black borders, most like it": mirror_agreement(bordered).max(),
        "doubled halves, least like it": mirror_agreement(doubled).min(),
        "films, widest empty strip": empty_share(films).max(),
        "halves black, narrowest empty strip": empty_share(black).min(),
    }
    return {name: round(float(value), 3) for name, value in found.items()}


def cross_validated(films: Tensor, patients: list[str], others: Tensor) -> dict[str, dict[str, float]]:
    order = sorted(set(patients), key=lambda name: hashlib.sha256(name.encode()).digest())
    fold_of = torch.tensor([order.index(p) % FOLDS for p in patients])
    kind_of = torch.arange(len(others)) // 12 % FOLDS
    collected: dict[str, list[Tensor]] = {}
    for fold in range(FOLDS):
        w, b = fit(films[fold_of != fold], others[kind_of != fold])

        validity = functools.partial(film_validity, coefficients=w.tolist(), intercept=b)
        for name, value in scores(validity, films[fold_of == fold], others[kind_of == fold]).items():
            collected.setdefault(name, []).append(value)
    return table({name: torch.cat(parts) for name, parts in collected.items()})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--films", type=Path, required=True, help="CSV with the columns image and patient")
    parser.add_argument("--fit", action="store_true", help="fit to all films and print")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    with args.films.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    films = torch.stack([read_image(args.films.parent / row["image"], SIZE) for row in rows])
    others = pictures()
    if args.fit:
        w, b = fit(films, others)
        print("COEFFICIENTS =", tuple(round(float(v), 2) for v in w), "\nINTERCEPT =", round(b, 2))
        return
    patients = [row["patient"] for row in rows]
    result = {
        "num_films": len(films),
        "num_patients": len(set(patients)),
        "size": SIZE,
        "shipped": table(scores(film_validity, films, others)),
        "cross_validated": cross_validated(films, patients, others),
        "limits": limits(films),
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
