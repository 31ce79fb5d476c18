"""The frozen base: a StableDiffusionPipeline's parts, loaded from a folder or the hub, never trained.

Texts become prompt embeddings exactly as in ``StableDiffusionPipeline.encode_prompt``; latents become
images float32 [N, 1, H, W] in [0, 1], whether the autoencoder has one channel or three.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cxrl.errors import CxrlError
from cxrl.models.base_files import PromptReader, find_base
from cxrl.shipped import PHANTOM

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DECODE_BATCH = 32
DECODE_PIXELS = 2 * 512 * 512
"""Most images, and most pixels of them, decoded at once. A decoder's activations are large: about 1 GiB for
512 × 512 pixels in float32, and more images at once are slower on a CPU."""


class BaseModel(PromptReader):
    """Frozen networks and what surrounds them.

    Attributes:
        path: Where it came from: "phantom", a hub id or the absolute path of a folder.
        unet, vae, text_encoder: In evaluation mode, without gradients.
        scheduler_config: Of the pipeline's scheduler; :func:`cxrl.rl.schedule.ddim_table` reads it.
        latent_shape: (C, h, w) of one latent.
        offload: Whether text encoder and autoencoder are on the UNet's device only while they are in use.
    """

    def __init__(
        self,
        path: str,
        unet: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        scheduler_config: dict[str, Any],
        *,
        fingerprint: dict[str, str],
        offload: bool = False,
    ) -> None:
        """``fingerprint``: see :meth:`fingerprint`."""
        super().__init__(tokenizer, text_encoder.config)
        self.path, self.offload = path, offload
        self._fingerprint = fingerprint
        self._in_use: set[int] = set()
        self.unet, self.vae, self.text_encoder = unet, vae, text_encoder
        self.scheduler_config = scheduler_config
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        self.latent_shape = (int(self.unet.config.in_channels), int(height), int(width))

    @contextlib.contextmanager
    def in_use(self, network: Any) -> Iterator[None]:
        """Inside, ``network`` is on the UNet's device. Nested uses move it once."""
        if not self.offload or id(network) in self._in_use:
            yield
            return
        self._in_use.add(id(network))
        network.to(self.device)
        try:
            yield
        finally:
            network.to("cpu")
            self._in_use.remove(id(network))

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.vae.parameters()).dtype

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images that latents of ``latent_shape`` decode to."""
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        return self.latent_shape[1] * factor, self.latent_shape[2] * factor

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Prompt embeddings of P texts.

        Returns:
            [P, L, D] in the text encoder's dtype, padded to L = ``max_tokens``.

        Raises:
            CxrlError: A text is longer than the tokenizer allows; nothing is cut silently.
        """
        for text in texts:
            count = self.num_tokens(text)
            if count > self.max_tokens:
                raise CxrlError(
                    f"prompt of {count} tokens, the text encoder reads {self.max_tokens}: "
                    f"{text[:60]!r}…; shorten it (training: data.on_long_prompt drop)"
                )
        tokens = self.tokenizer(
            list(texts),
            padding="max_length",
            max_length=self.max_tokens,
            truncation=True,
            return_tensors="pt",
        )
        mask = None
        if getattr(self.text_encoder.config, "use_attention_mask", False):
            mask = tokens.attention_mask.to(self.device)
        with self.in_use(self.text_encoder):
            return self.text_encoder(tokens.input_ids.to(self.device), attention_mask=mask)[0]

    def pad_embedding(self) -> Tensor:
        """[D] embedding of the last padding token of an empty prompt, where ACE starts."""
        return self.encode_text([""])[0, -1]

    @torch.no_grad()
    def decode(self, latents: Tensor, batch_size: int | None = None) -> Tensor:
        """Images of latents.

        Args:
            latents: float32 [N, C, h, w], scaled as the UNet sees them.
            batch_size: Most images decoded at once; None is as many as DECODE_BATCH and DECODE_PIXELS allow.

        Returns:
            float32 [N, 1, H, W] in [0, 1], the mean over the autoencoder's channels.
        """
        config = self.vae.config
        shift = getattr(config, "shift_factor", None) or 0.0
        z = (latents / config.scaling_factor + shift).to(self.dtype)
        if batch_size is None:
            scale = 2 ** (len(config.block_out_channels) - 1)
            pixels = latents.shape[-2] * latents.shape[-1] * scale**2
            batch_size = min(DECODE_BATCH, max(1, DECODE_PIXELS // pixels))
        with self.in_use(self.vae):
            parts = [
                (self.vae.decode(part, return_dict=False)[0].float() / 2 + 0.5)
                .clamp(0, 1)
                .mean(1, keepdim=True)
                for part in z.split(batch_size)
            ]
        return torch.cat(parts).contiguous()

    def fingerprint(self) -> dict[str, str]:
        """Hex digests of UNet, autoencoder, text encoder, scheduler and tokenizer as they are stored, of all
        that decides a pixel: see :mod:`cxrl.models.fingerprint`.
        """
        return dict(self._fingerprint)


def load_base(
    path: str | Path = PHANTOM,
    *,
    dtype: str = "float32",
    device: torch.device | str = "cpu",
    allow_pickle: bool = False,
    offload: bool = False,
    gradient_checkpointing: bool = False,
) -> BaseModel:
    """Load a base. Where there are only weights of the variant fp16, those are read, whatever ``dtype``.

    Args:
        path: "phantom" is the one that ships; else a StableDiffusionPipeline folder or a hub id. What
            huggingface_hub's cache lacks of a hub id is downloaded.
        dtype: Of the networks: "float32", "bfloat16" or "float16".
        device: Where the networks go.
        allow_pickle: Also read weights that are not safetensors. A pickle can run code.
        offload: Keep text encoder and autoencoder on the CPU while they are not in use.
        gradient_checkpointing: Of the UNet: activations are computed again for the gradient.

    Raises:
        CxrlError: As :func:`check_base`, or a weight is not finite; the message names it.
    """
    if dtype not in DTYPES:
        raise CxrlError(f"model.dtype: {dtype!r} is not one of {', '.join(DTYPES)}")
    name, files = find_base(str(path), allow_pickle)
    fingerprint = files.fingerprint()
    for part, found in files.networks.items():
        if found.variant:
            warnings.warn(f"model.path: {name} has only fp16 weights of {part}; they are read", stacklevel=2)
    unet, vae, text_encoder = (found.load(DTYPES[dtype]) for found in files.networks.values())
    for network in (unet, vae, text_encoder):
        network.requires_grad_(False).eval()
        network.to("cpu" if offload and network is not unet else device)
    # Convolutions are most of the work, and both CPUs and GPUs run them faster in this layout.
    unet.to(memory_format=torch.channels_last)
    vae.to(memory_format=torch.channels_last)
    if gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    tokenizer = files.reader.tokenizer
    return BaseModel(
        name, unet, vae, text_encoder, tokenizer, files.scheduler, fingerprint=fingerprint, offload=offload
    )
