"""The frozen base: a StableDiffusionPipeline's parts, loaded from a folder or the hub, never trained.

Texts become prompt embeddings exactly as in ``StableDiffusionPipeline.encode_prompt``; latents become
images float32 [N, 1, H, W] in [0, 1], whether the autoencoder has one channel or three.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cxrl.errors import CxrlError

PHANTOM = Path(__file__).parents[1] / "assets" / "phantom" / "pipeline"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DECODE_BATCH = 32
"""A decoder's activations are large: more images at once are slower on a CPU and may not fit a GPU."""
_MIN_VOCABULARY = 256
_MAX_TOKENS = 100_000  # tokenizers without a limit say 1e30


class BaseModel:
    """Frozen networks and what surrounds them.

    Attributes:
        path: Where it came from, as given.
        unet, vae, text_encoder: In evaluation mode, without gradients.
        tokenizer: Of the text encoder.
        scheduler_config: Of the pipeline's scheduler; :func:`cxrl.rl.schedule.ddim_table` reads it.
        latent_shape: (C, h, w) of one latent.
        max_tokens: Longest prompt in tokens, with the two that mark its ends.
    """

    def __init__(
        self,
        path: str,
        unet: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        scheduler_config: dict[str, Any],
    ) -> None:
        self.path = path
        self.unet, self.vae, self.text_encoder = unet, vae, text_encoder
        self.tokenizer = tokenizer
        self.scheduler_config = scheduler_config
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        self.latent_shape = (int(self.unet.config.in_channels), int(height), int(width))
        positions = getattr(text_encoder.config, "max_position_embeddings", _MAX_TOKENS)
        self.max_tokens = int(min(tokenizer.model_max_length, positions, _MAX_TOKENS))

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

    def num_tokens(self, text: str) -> int:
        """Tokens of a prompt, with the two that mark its ends."""
        return len(self.tokenizer(text, truncation=False, verbose=False)["input_ids"])

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
        return self.text_encoder(tokens.input_ids.to(self.device), attention_mask=mask)[0]

    def pad_embedding(self) -> Tensor:
        """[D] embedding of the last padding token of an empty prompt, where ACE starts."""
        return self.encode_text([""])[0, -1]

    @torch.no_grad()
    def decode(self, latents: Tensor, batch_size: int = DECODE_BATCH) -> Tensor:
        """Images of latents.

        Args:
            latents: float32 [N, C, h, w], scaled as the UNet sees them.
            batch_size: Most images decoded at once.

        Returns:
            float32 [N, 1, H, W] in [0, 1], the mean over the autoencoder's channels.
        """
        config = self.vae.config
        shift = getattr(config, "shift_factor", None) or 0.0
        z = (latents / config.scaling_factor + shift).to(self.dtype)
        parts = [
            (self.vae.decode(part, return_dict=False)[0].float() / 2 + 0.5).clamp(0, 1).mean(1, keepdim=True)
            for part in z.split(batch_size)
        ]
        return torch.cat(parts).contiguous()

    def fingerprint(self) -> str:
        """Hex digest of the UNet's tensor names, shapes and first values: tells two bases apart at once."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.unet.state_dict().items()):
            name = name.replace(".base_layer.", ".")
            if "lora_" in name:
                continue
            head = tensor.detach().reshape(-1)[:256].float().cpu().numpy().tobytes()
            digest.update(f"{name}{tuple(tensor.shape)}".encode() + head)
        return digest.hexdigest()


@dataclass(frozen=True)
class Tokenizer:
    """A pipeline's tokenizer without the pipeline.

    Attributes:
        tokenizer: Of transformers.
        max_tokens: Longest prompt in tokens, with the two that mark its ends.
    """

    tokenizer: Any
    max_tokens: int

    def num_tokens(self, text: str) -> int:
        """Tokens of a prompt, with the two that mark its ends."""
        return len(self.tokenizer(text, truncation=False, verbose=False)["input_ids"])


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a pipeline, see :func:`load_base`.

    Raises:
        CxrlError: It is missing or unreadable.
    """
    from transformers import AutoTokenizer

    folder = str(PHANTOM) if str(path) == "phantom" else str(path)
    tokenizer = _load(
        folder, "tokenizer", lambda: AutoTokenizer.from_pretrained(folder, subfolder="tokenizer")
    )
    return Tokenizer(tokenizer, int(min(tokenizer.model_max_length, _MAX_TOKENS)))


def load_base(
    path: str | Path = "phantom",
    *,
    dtype: str = "float32",
    device: torch.device | str = "cpu",
    allow_pickle: bool = False,
) -> BaseModel:
    """Load a base.

    Args:
        path: "phantom" is the one that ships; else a StableDiffusionPipeline folder or a hub id.
        dtype: Of the networks: "float32", "bfloat16" or "float16".
        device: Where the networks go.
        allow_pickle: Also read weights that are not safetensors. A pickle can run code.

    Raises:
        CxrlError: A part is missing, unreadable or of a wrong kind; the message names it.
    """
    import transformers
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel

    if dtype not in DTYPES:
        raise CxrlError(f"model.dtype: {dtype!r} is not one of {', '.join(DTYPES)}")
    folder = str(PHANTOM) if str(path) == "phantom" else str(path)
    index = _load(folder, "model_index.json", lambda: StableDiffusionPipeline.load_config(folder))
    weights = {"torch_dtype": DTYPES[dtype], "use_safetensors": None if allow_pickle else True}
    unet = _load(
        folder, "unet", lambda: UNet2DConditionModel.from_pretrained(folder, subfolder="unet", **weights)
    )
    vae = _load(folder, "vae", lambda: AutoencoderKL.from_pretrained(folder, subfolder="vae", **weights))
    encoder_type = getattr(transformers, index.get("text_encoder", [None, ""])[1] or "", None)
    tokenizer_type = getattr(transformers, index.get("tokenizer", [None, ""])[1] or "", None)
    if encoder_type is None or tokenizer_type is None:
        raise CxrlError(
            f"model.path: {folder} has no text encoder or tokenizer of transformers in model_index.json; "
            "expected a StableDiffusionPipeline"
        )
    weights["dtype"] = weights.pop("torch_dtype")
    with no_progress_bar():
        text_encoder = _load(
            folder,
            "text_encoder",
            lambda: encoder_type.from_pretrained(folder, subfolder="text_encoder", **weights),
        )
    tokenizer = _load(
        folder, "tokenizer", lambda: tokenizer_type.from_pretrained(folder, subfolder="tokenizer")
    )
    if len(tokenizer) < _MIN_VOCABULARY:  # transformers makes an empty one where the files are missing
        raise CxrlError(f"model.path: cannot load tokenizer of {folder}: it has {len(tokenizer)} tokens")
    scheduler = _load(folder, "scheduler", lambda: _scheduler_config(folder))
    for network in (unet, vae, text_encoder):
        network.requires_grad_(False).eval().to(device)
    # Convolutions are most of the work, and both CPUs and GPUs run them faster in this layout.
    unet.to(memory_format=torch.channels_last)
    vae.to(memory_format=torch.channels_last)
    return BaseModel(str(path), unet, vae, text_encoder, tokenizer, scheduler)


def _scheduler_config(folder: str) -> dict[str, Any]:
    from diffusers import DDIMScheduler

    return dict(DDIMScheduler.load_config(folder, subfolder="scheduler"))


@contextlib.contextmanager
def no_progress_bar() -> Iterator[None]:
    """Transformers draws one for a few megabytes."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def _load(folder: str, part: str, load: Any) -> Any:
    """The part, or an error that names it; the libraries below raise a dozen types."""
    try:
        return load()
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        hint = "" if Path(folder).is_dir() else " (no such folder here; taken as a hub id)"
        raise CxrlError(f"model.path: cannot load {part} of {folder}{hint}: {reason}") from error
