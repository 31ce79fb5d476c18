"""Fine-tuning of an existing pipeline's UNet on a table of images and reports (RoentGen-like domain
adaptation).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from cxrl.data.rows import read_rows
from cxrl.errors import CxrlError
from cxrl.images import read as pixels
from cxrl.models.base import BaseModel, load_base
from cxrl.models.pipeline import save_pipeline
from cxrl.pretraining.base import fit_base
from cxrl.pretraining.fit import FitOptions

COLUMNS = ("image", "text")


def read_table(path: Path) -> list[tuple[Path, str]]:
    """Rows (image file, text) of a table with the columns ``image`` and ``text``; images are relative to it.

    Raises:
        CxrlError: The file or a column is missing, an image or a text is empty, or there is no row.
    """
    rows = read_rows(path, COLUMNS, "--table")
    for line, row in rows:
        for column in COLUMNS:
            if not row[column].strip():
                raise CxrlError(f"--table: {path} line {line} has no {column}")
    return [(path.parent / row["image"], row["text"]) for _, row in rows]


def read_image(path: Path, height: int, width: int, channels: int) -> Tensor:
    """float32 [channels, height, width] in [-1, 1]: grey, centre-cropped to the aspect ratio and resized.

    Raises:
        CxrlError: The file is missing, truncated, blank or no image.
    """
    try:
        image = pixels.read_image(path, (height, width))
    except pixels.UnreadableImage as error:
        raise CxrlError(f"{error}; mend or remove its row") from None
    return (image * 2.0 - 1.0).expand(channels, -1, -1)


def finetune(
    base_path: str,
    table: Path,
    out: Path,
    work_dir: Path,
    *,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    tell: Callable[[str], None] = print,
) -> None:
    """Trains the UNet of ``base_path`` on ``table`` and writes a pipeline folder to ``out``; resumes from
    ``work_dir``.

    The text encoder and the autoencoder stay frozen. Texts that the tokenizer would cut are refused.
    """
    from diffusers import DDIMScheduler

    rows = read_table(table)
    base = load_base(base_path)
    for _, text in rows:
        count = base.num_tokens(text)
        if count > base.max_tokens:
            raise CxrlError(
                f"{table}: a text has {count} tokens, the text encoder reads {base.max_tokens}: {text[:60]!r}"
            )
    tell(f"encoding {len(rows)} images")
    latents = _latents(base, [path for path, _ in rows])
    base.unet.requires_grad_(True)
    fit_base(
        latents,
        [text for _, text in rows],
        tokenizer=base.tokenizer,
        text_encoder=base.text_encoder,
        unet=base.unet,
        scheduler=DDIMScheduler.from_config(base.scheduler_config),
        options=FitOptions(num_steps, learning_rate=learning_rate, ema_decay=0.99),
        batch_size=min(batch_size, len(rows)),
        seed=seed,
        work_dir=work_dir,
        data=hashlib.sha256(table.read_bytes() + json.dumps(base.fingerprint()).encode()).hexdigest(),
        tell=tell,
    )
    save_pipeline(
        out,
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=base.unet,
        scheduler=DDIMScheduler.from_config(base.scheduler_config),
    )
    tell(f"{out}: a pipeline fine-tuned for {num_steps} steps on {len(rows)} images")


@torch.no_grad()
def _latents(base: BaseModel, paths: list[Path]) -> Tensor:
    _, h, w = base.latent_shape
    scale = 2 ** (len(base.vae.config.block_out_channels) - 1)
    shift = getattr(base.vae.config, "shift_factor", None) or 0.0
    encoded = []
    for start in range(0, len(paths), 16):
        images = [
            read_image(p, h * scale, w * scale, base.vae.config.in_channels)
            for p in paths[start : start + 16]
        ]
        mean = base.vae.encode(torch.stack(images).to(base.dtype)).latent_dist.mean
        encoded.append((mean.float() - shift) * base.vae.config.scaling_factor)
    return torch.cat(encoded).contiguous()
