"""Distances between the distributions of generated and reference images, in the features of a named backbone.

Fréchet distance (Heusel et al. 2017, arXiv 1706.08500), between Gaussians fitted to both sets:
    d² = |m_1 − m_2|² + tr(C_1 + C_2 − 2 (C_1^½ C_2 C_1^½)^½)
It is biased upwards by about 1/N (Bińkowski et al. 2018, arXiv 1801.01401): compare only values of equal N
and backbone.
Kernel distance (KID, ibid.): the unbiased squared MMD with the kernel (x·y / D + 1)³.

All of it in float64. Of sets given as :class:`~cxrl.metrics.rows.Rows` no more is in memory than a block of
rows, a subset, or the D × D covariances.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from cxrl.metrics.rows import Rows

_WORK = 2**29
"""Bytes of all resamples that are worked on at once."""


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of a set of features.

    Attributes:
        mean: float64 [D].
        covariance: float64 [D, D], divided by one less than the number of rows.
    """

    mean: Tensor
    covariance: Tensor


def moments(features: Tensor | Rows) -> Moments:
    """Mean and covariance of features [N, D], N ≥ 2, in two passes over blocks of rows."""
    rows = _rows("features", features)
    total = torch.zeros(rows.shape[1], dtype=torch.float64)
    for block in rows.blocks():
        total += block.sum(0)
    mean = total / len(rows)
    squares = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    for block in rows.blocks():
        block -= mean
        squares.addmm_(block.T, block)
    return Moments(mean, squares / (len(rows) - 1))


def moments_distance(a: Moments, b: Moments) -> float:
    """Fréchet distance between the Gaussians of two sets of one backbone."""
    root = _psd_root(b.covariance)
    cross = torch.linalg.eigvalsh(root @ a.covariance @ root).clamp_min(0.0).sqrt().sum()
    value = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2.0 * cross
    return max(0.0, float(value))


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """Fréchet distance between two sets of features, at least two rows each.

    Args:
        features: [N, D].
        reference: [R, D].

    Returns:
        The squared distance, ≥ 0, computed in float64.
    """
    ones = torch.ones(1, features.shape[0], dtype=torch.float64)
    return float(weighted_frechet(features, reference, ones)[0])


def weighted_frechet(features: Tensor, reference: Tensor | Moments, weights: Tensor) -> Tensor:
    """Fréchet distances of B reweighted versions of ``features`` to ``reference``.

    Args:
        features: [N, D], held in memory.
        reference: [R, D], or its moments.
        weights: [B, N] multiplicity of every row of features, as of a bootstrap resample; sums ≥ 2.

    Returns:
        float64 [B].
    """
    x = _matrix("features", features)
    if isinstance(reference, Tensor):
        y = _matrix("reference", reference)
        reference = Moments(y.mean(0), torch.cov(y.T).reshape(y.shape[1], y.shape[1]))
    width = len(reference.mean)
    if x.shape[1] != width:
        raise ValueError(f"features have {x.shape[1]} columns, the reference has {width}: another backbone?")
    cov_y = reference.covariance
    gap = x.mean(0) - reference.mean
    x = x - x.mean(0)
    # tr (C_x C_y)^½ = Σ √λ with λ the eigenvalues of R C_x R, R = C_y^½, or, as C_x = Zᵀ Z, of Z C_y Zᵀ: the
    # smaller of the two, and no complex matrix square root.
    wide = x.shape[1] > x.shape[0]
    kernel = x @ cov_y @ x.T if wide else _psd_root(cov_y)

    def of(w: Tensor) -> Tensor:
        total = w.sum(1, keepdim=True)
        mean = w @ x / total
        z = (w / (total - 1.0)).sqrt()[:, :, None] * (x - mean[:, None, :])
        if wide:
            p = w / total
            centred = kernel - (p @ kernel)[:, None, :] - (p @ kernel)[:, :, None]
            centred = centred + torch.einsum("bi,ij,bj->b", p, kernel, p)[:, None, None]
            scale = (w / (total - 1.0)).sqrt()
            product = scale[:, :, None] * centred * scale[:, None, :]
        else:
            product = kernel @ (z.mT @ z) @ kernel
        cross = torch.linalg.eigvalsh(product).clamp_min(0.0).sqrt().sum(1)
        trace = z.square().sum((1, 2)) + cov_y.trace() - 2.0 * cross
        return (gap + mean).square().sum(1) + trace

    pieces = weights.to("cpu", torch.float64).split(max(1, 2**20 // x.numel()))
    # A resample of one piece holds its rows three times over, or that many N × N matrices.
    each = 24 * len(pieces[0]) * max(x.numel(), len(x) ** 2 if wide else 0) if pieces else 1
    return torch.cat(_side_by_side(of, pieces, _WORK // max(1, each))).clamp_min(0.0)


def _side_by_side(function: Callable[[Tensor], Tensor], pieces: Sequence[Tensor], most: int) -> list[Tensor]:
    """A function of every piece, each on one thread: for eigenvalues of many small matrices torch's own
    threads take half as long again as one. Where no two fit beside each other, one with all threads.
    """
    threads = torch.get_num_threads()
    workers = min(threads, most)
    if workers < 2:
        return [function(piece) for piece in pieces]
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(function, pieces))
    finally:
        torch.set_num_threads(threads)


def kernel_distance(
    features: Tensor | Rows,
    reference: Tensor | Rows,
    *,
    subset_size: int,
    num_subsets: int = 50,
    seed: int = 0,
) -> tuple[float, float]:
    """Kernel distance: mean and standard deviation over random subsets.

    Args:
        features: [N, D].
        reference: [R, D].
        subset_size: Rows drawn from each side without replacement, 2 ≤ subset_size < min(N, R).
        num_subsets: Subsets, ≥ 2.
        seed: Of the subsets.

    Raises:
        ValueError: The subsets would be the whole set, whose spread means nothing.
    """
    x, y = _rows("features", features), _rows("reference", reference)
    smallest = min(x.shape[0], y.shape[0])
    if not 2 <= subset_size < smallest:
        raise ValueError(
            f"subset_size {subset_size}: expected 2 or more and fewer than the {smallest} images of a side"
        )
    if num_subsets < 2:
        raise ValueError(f"num_subsets {num_subsets}: expected at least 2")
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(num_subsets):
        a, b = (side.take(torch.randperm(len(side), generator=generator)[:subset_size]) for side in (x, y))
        values.append(_unbiased_mmd(a, b))
    result = torch.tensor(values, dtype=torch.float64)
    return float(result.mean()), float(result.std())


def _unbiased_mmd(a: Tensor, b: Tensor) -> float:
    n, d = a.shape
    kernel_aa, kernel_bb, kernel_ab = ((u @ v.T / d + 1.0) ** 3 for u, v in ((a, a), (b, b), (a, b)))
    within = kernel_aa.sum() - kernel_aa.trace() + kernel_bb.sum() - kernel_bb.trace()
    return float(within / (n * (n - 1)) - 2.0 * kernel_ab.mean())


def _psd_root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a covariance; eigenvalues that rounding made negative count as 0."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0.0).sqrt()) @ vectors.T


def _rows(name: str, value: Tensor | Rows) -> Rows:
    if len(value.shape) != 2 or len(value) < 2:
        raise ValueError(f"{name}: expected at least two rows [N, D], got shape {tuple(value.shape)}")
    return value if isinstance(value, Rows) else Rows(value)


def _matrix(name: str, value: Tensor) -> Tensor:
    if value.ndim != 2 or value.shape[0] < 2:
        raise ValueError(f"{name}: expected at least two rows [N, D], got shape {tuple(value.shape)}")
    if not bool(torch.isfinite(value).all()):
        row = int((~torch.isfinite(value)).any(1).nonzero()[0])
        raise ValueError(f"{name}: row {row} is not finite")
    return value.detach().to("cpu", torch.float64)
