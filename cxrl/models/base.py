"""The frozen base: a StableDiffusionPipeline's parts, loaded from a folder or the hub, never trained.

Texts become prompt embeddings exactly as in ``StableDiffusionPipeline.encode_prompt``; latents become
images float32 [N, 1, H, W] in [0, 1], whether the autoencoder has one channel or three.
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
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
DECODE_PIXELS = 2 * 512 * 512
"""Most images, and most pixels of them, decoded at once. A decoder's activations are large: about 1 GiB for
512 × 512 pixels in float32, and more images at once are slower on a CPU."""
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
        offload: bool = False,
    ) -> None:
        self.path, self.offload = path, offload
        self._in_use: set[int] = set()
        self.unet, self.vae, self.text_encoder = unet, vae, text_encoder
        self.tokenizer = tokenizer
        self.scheduler_config = scheduler_config
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        self.latent_shape = (int(self.unet.config.in_channels), int(height), int(width))
        positions = getattr(text_encoder.config, "max_position_embeddings", _MAX_TOKENS)
        self.max_tokens = int(min(tokenizer.model_max_length, positions, _MAX_TOKENS))

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
    offload: bool = False,
    gradient_checkpointing: bool = False,
) -> BaseModel:
    """Load a base. Where there are only weights of the variant fp16, those are read, whatever ``dtype``.

    Args:
        path: "phantom" is the one that ships; else a StableDiffusionPipeline folder or a hub id.
        dtype: Of the networks: "float32", "bfloat16" or "float16".
        device: Where the networks go.
        allow_pickle: Also read weights that are not safetensors. A pickle can run code.
        offload: Keep text encoder and autoencoder on the CPU while they are not in use.
        gradient_checkpointing: Of the UNet: activations are computed again for the gradient.

    Raises:
        CxrlError: A part is missing, unreadable or of a wrong kind, or the parts do not fit together; the
            message names it.
    """
    import transformers
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel

    if dtype not in DTYPES:
        raise CxrlError(f"model.dtype: {dtype!r} is not one of {', '.join(DTYPES)}")
    folder = str(PHANTOM) if str(path) == "phantom" else str(path)
    index = _load(folder, "model_index.json", lambda: StableDiffusionPipeline.load_config(folder))
    weights = {"torch_dtype": DTYPES[dtype], "use_safetensors": None if allow_pickle else True}
    unet = _load_network(folder, "unet", UNet2DConditionModel, weights)
    vae = _load_network(folder, "vae", AutoencoderKL, weights)
    encoder_type = getattr(transformers, index.get("text_encoder", [None, ""])[1] or "", None)
    tokenizer_type = getattr(transformers, index.get("tokenizer", [None, ""])[1] or "", None)
    if encoder_type is None or tokenizer_type is None:
        raise CxrlError(
            f"model.path: {folder} has no text encoder or tokenizer of transformers in model_index.json; "
            "expected a StableDiffusionPipeline"
        )
    weights["dtype"] = weights.pop("torch_dtype")
    with no_progress_bar():
        text_encoder = _load_network(folder, "text_encoder", encoder_type, weights)
    tokenizer = _load(
        folder, "tokenizer", lambda: tokenizer_type.from_pretrained(folder, subfolder="tokenizer")
    )
    if len(tokenizer) < _MIN_VOCABULARY:  # transformers makes an empty one where the files are missing
        raise CxrlError(f"model.path: cannot load tokenizer of {folder}: it has {len(tokenizer)} tokens")
    scheduler = _load(folder, "scheduler", lambda: _scheduler_config(folder))
    _check_parts(folder, unet, vae, text_encoder)
    for network in (unet, vae, text_encoder):
        network.requires_grad_(False).eval()
        network.to("cpu" if offload and network is not unet else device)
    # Convolutions are most of the work, and both CPUs and GPUs run them faster in this layout.
    unet.to(memory_format=torch.channels_last)
    vae.to(memory_format=torch.channels_last)
    if gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return BaseModel(str(path), unet, vae, text_encoder, tokenizer, scheduler, offload=offload)


def _load_network(folder: str, part: str, kind: Any, weights: dict[str, Any]) -> Any:
    """The weights; those of the variant fp16 where there are no others. An error is that of the full ones."""

    def load(**variant: str) -> Any:
        return kind.from_pretrained(folder, subfolder=part, **weights, **variant)

    try:
        return _load(folder, part, load)
    except CxrlError as error:
        if "file named" not in str(error):  # there, and damaged: not to be passed over
            raise
        try:
            network = load(variant="fp16")
        except Exception:  # as in _load
            raise error from None
    warnings.warn(f"model.path: {folder} has only fp16 weights of {part}; they are read", stacklevel=3)
    return network


def _check_parts(folder: str, unet: Any, vae: Any, text_encoder: Any) -> None:
    """Refuse what has the files of a StableDiffusionPipeline and does not work like one."""
    u, problem = unet.config, ""
    latent, width = vae.config.latent_channels, getattr(text_encoder.config, "hidden_size", None)
    if not u.in_channels == u.out_channels == latent:
        problem = (
            f"its UNet takes {u.in_channels} channels and gives {u.out_channels}, its autoencoder has "
            f"{latent}; an inpainting, upscaling or learned-variance model is none that draws from text alone"
        )
    elif u.encoder_hid_dim_type is None and u.cross_attention_dim != width:
        problem = f"its UNet reads text of width {u.cross_attention_dim}, its text encoder gives {width}"
    elif u.addition_embed_type is not None or u.class_embed_type is not None or u.num_class_embeds:
        problem = "its UNet needs more than text and timestep, as SDXL's does"
    if problem:
        raise CxrlError(f"model.path: {folder}: {problem}; expected a StableDiffusionPipeline")


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
