"""How different the images of one prompt are.

MS-SSIM (Wang, Simoncelli, Bovik 2003): contrast·structure cs at every scale, luminance l at the last,
    MS-SSIM = l_S^{w_S} · Π_s cs_s^{w_s},
Gaussian window 11 with σ = 1.5, valid pixels only, halving by 2×2 means, C_1 = (0.01 L)², C_2 = (0.03 L)²,
cs clamped at 0. The five published weights need a side of 176 px. Smaller images get as many scales as keep
the window inside (3 at 64 px, 4 at 96 and 128 px), with the first weights rescaled to sum to 1: values of
different sizes are not comparable.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_CHUNK = 16
"""Pairs at once: five maps each still fit a core's cache, twice as fast as 64."""


def num_scales(height: int, width: int) -> int:
    """Scales for an image size, 1 to 5. Raises ValueError below 11 px."""
    side = min(height, width)
    if side < WINDOW:
        raise ValueError(f"MS-SSIM needs images of at least {WINDOW} px, got {height}×{width}")
    scales = 1
    while scales < len(WEIGHTS) and side >> scales >= WINDOW:
        scales += 1
    return scales


def ms_ssim(x: Tensor, y: Tensor, *, data_range: float = 1.0) -> Tensor:
    """Multi-scale structural similarity of image pairs.

    Args:
        x: float [N, C, H, W] in [0, data_range].
        y: Like ``x``. Integer images are refused: their differences wrap.
        data_range: The largest minus the smallest possible value, L.

    Returns:
        float32 [N] in [0, 1]; 1 for equal images.
    """
    if x.shape != y.shape or x.ndim != 4:
        raise ValueError(f"expected two equal shapes [N, C, H, W], got {tuple(x.shape)} and {tuple(y.shape)}")
    if not (x.is_floating_point() and y.is_floating_point()):
        raise ValueError(f"expected floating-point images, got {x.dtype} and {y.dtype}")
    x, y = x.float() / data_range, y.float() / data_range
    scales = num_scales(x.shape[2], x.shape[3])
    weights = torch.tensor(WEIGHTS[:scales]) / sum(WEIGHTS[:scales])
    result = torch.ones(x.shape[0], x.shape[1], device=x.device)
    for scale in range(scales):
        luminance, contrast = _ssim_terms(x, y)
        term = luminance * contrast if scale == scales - 1 else contrast
        result = result * term.mean((2, 3)).clamp_min(0.0) ** weights[scale]
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return result.mean(1)


def _ssim_terms(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance and contrast·structure maps of images in [0, 1]."""
    c1, c2 = 0.01**2, 0.03**2
    # Centring the pair first keeps E[x²] − E[x]² accurate in float32 where images are nearly constant.
    offset = 0.5 * (x.mean((2, 3), keepdim=True) + y.mean((2, 3), keepdim=True))
    u, v = x - offset, y - offset
    n = x.shape[0]
    blurred = _blur(torch.cat([u, v, u * u, v * v, u * v]))
    mean_u, mean_v, uu, vv, uv = blurred.unflatten(0, (5, n)).unbind(0)
    var_u, var_v, cov = uu - mean_u**2, vv - mean_v**2, uv - mean_u * mean_v
    mean_x, mean_y = mean_u + offset, mean_v + offset
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return luminance, (2 * cov + c2) / (var_u + var_v + c2)


def _blur(images: Tensor) -> Tensor:
    t = torch.arange(WINDOW, dtype=torch.float32, device=images.device) - WINDOW // 2
    window = torch.exp(-(t**2) / (2 * SIGMA**2))
    window = window / window.sum()
    flat = images.reshape(-1, 1, *images.shape[2:])
    flat = F.conv2d(F.conv2d(flat, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    return flat.reshape(*images.shape[:2], *flat.shape[2:])


def prompt_pairs(prompt_of: Tensor) -> tuple[Tensor, Tensor]:
    """All unordered pairs of samples of the same prompt: two int64 [Q] index tensors."""
    first, second = torch.triu_indices(prompt_of.numel(), prompt_of.numel(), offset=1)
    same = prompt_of[first] == prompt_of[second]
    return first[same], second[same]


def within_prompt(images: Tensor, prompt_of: Tensor, num_prompts: int) -> tuple[Tensor, Tensor]:
    """Mean pairwise distance and MS-SSIM of the images of each prompt.

    Args:
        images: float32 [N, 1, H, W] in [0, 1].
        prompt_of: int64 [N], the prompt of every image.
        num_prompts: P.

    Returns:
        Two float64 [P]: root-mean-square pixel distance (higher is more diverse) and MS-SSIM (lower is more
        diverse); nan for a prompt with fewer than two images.
    """
    first, second = prompt_pairs(prompt_of.cpu())
    pair_prompt = prompt_of.cpu()[first]
    rms, similar = [], []
    for a, b in zip(first.split(_CHUNK), second.split(_CHUNK), strict=True):
        x, y = images[a.to(images.device)], images[b.to(images.device)]
        rms.append((x - y).square().mean((1, 2, 3)).sqrt().cpu())
        similar.append(ms_ssim(x, y).cpu())
    count = torch.bincount(pair_prompt, minlength=num_prompts).double()
    totals = [
        torch.zeros(num_prompts, dtype=torch.float64).index_add_(
            0, pair_prompt, torch.cat(v or [count[:0]]).double()
        )
        for v in (rms, similar)
    ]
    return totals[0] / count, totals[1] / count
