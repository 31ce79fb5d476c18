"""The posture regressor from films alone, with no pose label: it learns to read warps that it was shown.

A film is warped by a known affine psi (:mod:`cxrl.data.phantom.thorax` has the convention) and the network
regresses the pose that the film then has: psi put on top of the film's own pose. The own poses are unknown;
they are learned with the network, one row a film, so that what it reads is in true units, not shrunk towards
the mean. In the end their mean is taken off: the mean pose of the training films is the canonical one. A
mirrored film has the mirrored pose. The network starts from the phantom's regressor that ships.

No border gives the warp away. The network sees the central ``CROP`` of an image alone, in training and in
use, and a warp is drawn only if all of that crop lies inside the original film: no pixel from outside, no
fill, no mirror. Sharpness, exposure and noise, which zooming changes too, are jittered.

Validity is learned beside it, against spoilt films and textures (:mod:`cxrl.pretraining.decoys`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cxrl.data.rows import read_rows
from cxrl.errors import CxrlError
from cxrl.images.read import SUFFIXES, UnreadableImage, read_image
from cxrl.pretraining.decoys import decoys
from cxrl.pretraining.fit import FitOptions, fit
from cxrl.pretraining.scorers import jitter
from cxrl.scorers.phantom_network import Scorer, ScorerConfig, load_scorer, save_scorer
from cxrl.shipped import REWARDS

COMPONENTS = ("log_scale_x", "log_scale_y", "shift_x", "shift_y", "rotation")
CROP = 0.75
INPUT_SIZE = 64
FILM_SIZE = 86
"""Pixels of a warped film a side; its crop has about ``INPUT_SIZE``."""
STORED_SIZE = 128
MAX_WARP = torch.tensor([0.26, 0.26, 0.3, 0.3, 0.35])
"""Half ranges of the warps: log scale, half widths of the film, radians (20 degrees)."""
LOSS_SCALE = torch.tensor([0.14, 0.14, 0.11, 0.11, 0.13])
"""About the spread of the warps."""
MIRRORED = torch.tensor([1.0, 1.0, -1.0, 1.0, -1.0])
BATCH_SIZE = 32
NUM_DECOYS = 8
MIN_FILMS = 8
NUM_STEPS = 1200
_MIMIC_PATIENT = re.compile(r"p\d{8}")


@dataclass(frozen=True)
class PostureFilms:
    """Films and whose they are.

    Attributes:
        images: uint8 [N, 1, S, S].
        patients: N names; films of one name are never in both halves of a split.
        names: N paths, relative to the folder or table that named them.
        unreadable: What was left out, as ``path: reason``.
        by_patient: False where nothing told the patient of some film, which then counts as a patient itself.
    """

    images: Tensor
    patients: tuple[str, ...]
    names: tuple[str, ...]
    unreadable: tuple[str, ...]
    by_patient: bool

    def __len__(self) -> int:
        return len(self.patients)

    def pixels(self, index: Tensor | slice = slice(None)) -> Tensor:
        """float32 [n, 1, S, S] in [0, 1]."""
        return self.images[index].float().div_(255.0)


def load_films(data: Path, size: int = STORED_SIZE, max_films: int = 20_000) -> PostureFilms:
    """Frontal films of a folder or a table, cut to a square.

    Args:
        data: A table with ``image`` (relative to it), and ``patient`` and ``view`` where they exist; a
            view that is neither AP nor PA is left out. Or a folder: every image below it, which all must be
            frontal films, the patient being a folder named like MIMIC-CXR's (p10000032).
        size: Pixels a side.
        max_films: More are thinned out, evenly.

    Raises:
        CxrlError: Nothing there, or fewer than ``MIN_FILMS`` films can be read.
    """
    if data.is_dir():
        names = sorted(str(p.relative_to(data)) for p in data.rglob("*") if p.suffix.lower() in SUFFIXES)
        parts = [Path(name).parts[:-1] for name in names]
        owners = [next((p for p in folders if _MIMIC_PATIENT.fullmatch(p)), "") for folders in parts]
        chosen, root = list(zip(names, owners, strict=True)), data
    elif not data.exists():
        raise CxrlError(f"--data: {data} does not exist, expected a folder or a table")
    else:
        rows = [row for _, row in read_rows(data, ("image",), "--data")]
        frontal = [row for row in rows if row.get("view", "").strip().upper() in ("", "AP", "PA")]
        chosen = [(row["image"].strip(), row.get("patient", "").strip()) for row in frontal]
        root = data.parent
    if len(chosen) > max_films:
        chosen = [chosen[i * len(chosen) // max_films] for i in range(max_films)]
    images, kept, unreadable = [], [], []
    for name, patient in chosen:
        try:
            images.append(read_image(root / name, size).mul(255.0).round().to(torch.uint8))
            kept.append((name, patient))
        except UnreadableImage as error:
            unreadable.append(f"{root / name}: {error.reason}")
    if len(images) < MIN_FILMS:
        first = f"; first problem: {unreadable[0]}" if unreadable else ""
        raise CxrlError(
            f"--data {data}: {len(images)} readable frontal films, expected at least {MIN_FILMS}{first}"
        )
    patients = tuple(patient or name for name, patient in kept)
    by_patient = all(patient for _, patient in kept)
    return PostureFilms(
        torch.stack(images), patients, tuple(name for name, _ in kept), tuple(unreadable), by_patient
    )


def split_by_patient(patients: Sequence[str], fold: int = 0, num_folds: int = 5) -> tuple[Tensor, Tensor]:
    """Indices (train, held out); the order of a digest of the name decides, not that of the files.

    Args:
        patients: One name a film.
        fold: Which of the folds is held out, from 0. Every patient is held out in exactly one.
        num_folds: At most the number of patients.

    Raises:
        CxrlError: One patient alone.
    """
    order = sorted(set(patients), key=lambda name: hashlib.sha256(name.encode()).digest())
    if len(order) < 2:
        raise CxrlError("--data: all films are of one patient, expected at least two to hold one out")
    held_out = set(order[fold::num_folds])
    is_held_out = torch.tensor([name in held_out for name in patients])
    return (~is_held_out).nonzero().flatten(), is_held_out.nonzero().flatten()


def inverse_matrix(psi: Tensor) -> Tensor:
    """[N, 2, 3]: from the warped film's coordinates to the film's own, the inverse of M(psi)."""
    cos, sin = psi[:, 4].cos(), psi[:, 4].sin()
    rotate = torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], 1)
    linear = rotate * (-psi[:, :2]).exp().unsqueeze(-1)
    return torch.cat([linear, -linear @ psi[:, 2:4].unsqueeze(-1)], dim=2)


def compose(psi: Tensor, own: Tensor) -> Tensor:
    """The pose [N, 5] of a film of pose ``own`` that is warped by ``psi``; exact where psi scales both axes
    alike, else the shear is left out.
    """
    cos, sin = psi[:, 4].cos(), psi[:, 4].sin()
    x, y = (psi[:, :2].exp() * own[:, 2:4]).unbind(1)
    shift = torch.stack([cos * x - sin * y, sin * x + cos * y], 1)
    return psi + torch.cat([own[:, :2], shift, own[:, 4:]], 1)


def is_inside(psi: Tensor) -> Tensor:
    """Whether every pixel of the crop [N] shows the film itself."""
    corners = torch.tensor([[-CROP, -CROP, 1.0], [-CROP, CROP, 1.0], [CROP, -CROP, 1.0], [CROP, CROP, 1.0]])
    return (inverse_matrix(psi) @ corners.T).abs().amax(dim=(1, 2)) <= 1.0


def random_psi(num: int, generator: torch.Generator) -> Tensor:
    """Warps [num, 5] whose crop lies inside the film: uniform within ``MAX_WARP``, then shift and rotation
    reduced together as far as needed. So zooming out is as frequent as zooming in, and the film as it is lies
    in the middle.
    """
    psi = (2.0 * torch.rand(num, 5, generator=generator) - 1.0) * MAX_WARP
    for _ in range(24):
        psi[~is_inside(psi), 2:] *= 0.85
    return psi


def warp(images: Tensor, psi: Tensor, size: int = FILM_SIZE) -> Tensor:
    """Images [N, 1, h, w] with pose psi [N, 5] put on top of their own: [N, 1, size, size], black outside."""
    grid = F.affine_grid(inverse_matrix(psi), [len(images), 1, size, size], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


class _Alignment(nn.Module):
    """A scorer, and the own poses of its training films [num_films, 5]."""

    def __init__(self, num_films: int) -> None:
        super().__init__()
        self.scorer = Scorer(ScorerConfig("posture", "resnet", 16, INPUT_SIZE, len(COMPONENTS), crop=CROP))
        self.scorer.load_state_dict(load_scorer(REWARDS / "posture.safetensors").state_dict())
        self.own_pose = nn.Parameter(torch.zeros(num_films, len(COMPONENTS)))


def fit_posture(
    films: PostureFilms,
    train: Tensor,
    *,
    num_steps: int = NUM_STEPS,
    work_dir: Path,
    seed: int = 0,
    tell: Callable[[str], None] = print,
) -> Scorer:
    """A regressor of psi, with validity, trained on the films ``train``; continues from ``work_dir``."""
    model = _Alignment(len(train)).to(memory_format=torch.channels_last)

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(train), (BATCH_SIZE,), generator=generator)
        psi = random_psi(BATCH_SIZE, generator)
        images, pose = _bend(films.pixels(train[index]), psi, generator), compose(psi, model.own_pose[index])
        mirrored = torch.rand(BATCH_SIZE, generator=generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        pose = torch.where(mirrored[:, None], pose * MIRRORED, pose)
        images = _cover(images, generator)
        bad = decoys(images[:NUM_DECOYS], generator)
        images = jitter(_exposure(torch.cat([images, bad]), generator), generator)
        output, validity = model.scorer(images.to(memory_format=torch.channels_last))
        is_film = (torch.arange(len(images)) < BATCH_SIZE).float()
        error = F.smooth_l1_loss(output[:BATCH_SIZE] / LOSS_SCALE, pose / LOSS_SCALE)
        return error + 0.2 * F.binary_cross_entropy_with_logits(validity, is_film)

    options = FitOptions(num_steps, learning_rate=3e-3, weight_decay=0.05, ema_decay=0.995)
    digest = hashlib.sha256(films.images[train].numpy().tobytes()).hexdigest()[:16]
    fit("posture", model, loss_at, options, seed=seed, work_dir=work_dir, data=digest, tell=tell)
    with torch.no_grad():
        model.scorer.head.bias.sub_(model.own_pose.mean(0))
    return model.scorer


def _bend(images: Tensor, psi: Tensor, generator: torch.Generator) -> Tensor:
    """:func:`warp`, and the film bent a little: chests differ more than a few films show."""
    grid = F.affine_grid(inverse_matrix(psi), [len(images), 1, FILM_SIZE, FILM_SIZE], align_corners=False)
    bend = 0.02 * torch.randn(len(images), 2, 5, 5, generator=generator)
    grid = grid + F.interpolate(bend, grid.shape[1:3], mode="bicubic", align_corners=True).movedim(1, -1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _cover(images: Tensor, generator: torch.Generator) -> Tensor:
    """A grey rectangle on every image, so that no single landmark is relied on."""
    axis = torch.linspace(-1.0, 1.0, images.shape[-1])
    x, y, width, height, grey = torch.rand(5, len(images), 1, 1, 1, generator=generator)
    across, down = (axis - 2.0 * x + 1.0).abs(), (axis[:, None] - 2.0 * y + 1.0).abs()
    return torch.where((across < 0.35 * width) & (down < 0.35 * height), grey, images)


def _exposure(images: Tensor, generator: torch.Generator) -> Tensor:
    """Another gamma and contrast per film: hospitals and generators differ more than noise does."""
    shape = (len(images), 1, 1, 1)
    gamma = (0.3 * torch.randn(shape, generator=generator)).exp()
    contrast = 0.7 + 0.4 * torch.rand(shape, generator=generator)
    centre = images.mean(dim=(2, 3), keepdim=True)
    return (centre + contrast * (images - centre)).clamp(1e-4, 1.0) ** gamma


def r_squared(estimate: Tensor, truth: Tensor) -> dict[str, float]:
    """Coefficient of determination of every column of [N, 5], by component."""
    error = (estimate - truth).square().sum(0)
    spread = (truth - truth.mean(0)).square().sum(0)
    return dict(zip(COMPONENTS, (1.0 - error / spread).tolist(), strict=True))


@torch.no_grad()
def recover(scorer: Scorer, images: Tensor, num_warps: int, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Reads known warps of images [N, 1, h, h]: (warp, estimate, estimate of the film unwarped), each
    [N * num_warps, 5].
    """
    psi = random_psi(len(images) * num_warps, torch.Generator().manual_seed(seed))
    estimates = []
    for i, image in enumerate(images):
        mine = psi[i * num_warps : (i + 1) * num_warps]
        warped = warp(image.expand(num_warps, 1, -1, -1), mine, images.shape[-1])
        estimates.append(scorer(torch.cat([warped, image[None]]))[0])
    estimate = torch.stack(estimates)
    unwarped = estimate[:, -1:].expand(-1, num_warps, -1)
    return psi, estimate[:, :-1].flatten(0, 1), unwarped.flatten(0, 1)


@torch.no_grad()
def evaluate(scorer: Scorer, films: PostureFilms, held_out: Tensor, max_films: int = 256) -> dict[str, Any]:
    """How well known warps of held-out films are recovered, and films told from what is none.

    Returns:
        ``r2_change``: R² of the estimate less the estimate of the same film without the warp, against the
        change that the warp makes to that, by component;
        ``r2``: of the estimate itself, a film's own pose counting as error; ``own_pose_sd``: spread of the
        unwarped films' estimates; ``validity`` and ``decoy_validity``: mean probability of being a film, of
        films and of decoys.
    """
    images = films.pixels(held_out[:: -(-len(held_out) // max_films)])
    psi, estimate, unwarped = recover(scorer, images, 16)
    own, validity = scorer(images)
    bad = decoys(images, torch.Generator().manual_seed(2))
    table: dict[str, Any] = {
        "r2_change": r_squared(estimate - unwarped, compose(psi, unwarped) - unwarped),
        "r2": r_squared(estimate, psi),
        "own_pose_sd": dict(zip(COMPONENTS, own.std(0).tolist(), strict=True)),
    }
    table = {name: {c: round(v, 4) for c, v in row.items()} for name, row in table.items()}
    table["validity"] = round(float(validity.sigmoid().mean()), 4)
    table["decoy_validity"] = round(float(scorer(bad)[1].sigmoid().mean()), 4)
    return table


def pretrain_posture(
    data: Path,
    out: Path,
    work_dir: Path,
    *,
    num_steps: int = NUM_STEPS,
    seed: int = 0,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Trains on the films of ``data`` and writes the safetensors file ``out``, a ``posture.safetensors``.

    Returns:
        The table of :func:`evaluate` on held-out patients, and the numbers of films and patients.
    """
    films = load_films(data)
    for problem in films.unreadable[:5]:
        tell(f"left out: {problem}")
    if len(films.unreadable) > 5:
        tell(f"left out: {len(films.unreadable) - 5} more")
    if data.is_dir():
        tell("a folder does not tell views: every image is taken for a frontal film")
    if not films.by_patient:
        tell("no patient is known for some films: each of them counts as a patient of its own in the split")
    train, held_out = split_by_patient(films.patients)
    tell(f"{len(train)} films to train on, {len(held_out)} of other patients held out")
    scorer = fit_posture(films, train, num_steps=num_steps, work_dir=work_dir, seed=seed, tell=tell)
    save_scorer(scorer, out)
    return {
        "num_films": len(films),
        "num_unreadable": len(films.unreadable),
        "num_patients": len(set(films.patients)),
        "num_held_out_films": len(held_out),
        **evaluate(scorer, films, held_out),
    }
