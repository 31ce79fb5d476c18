"""A base on disk: a StableDiffusionPipeline's folder or hub id, its parts found, checked and told apart.

:func:`check_base` is the one judgement on a folder: ``cxrl.doctor`` tells it, and
:func:`cxrl.models.base.load_base` begins with it.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxrl.errors import CxrlError
from cxrl.models.fingerprint import SCHEDULER_FIELDS, network_digest, scheduler_digest, tokenizer_digest
from cxrl.models.loading import NetworkFiles, attempt, check_network, quiet
from cxrl.shipped import BASE, is_shipped
from cxrl.storage.reading import in_hub_cache

_NOT_HERE = " (no such folder here; taken as a hub id)"
_MIN_VOCABULARY = 256
_MAX_TOKENS = 100_000  # tokenizers without a limit say 1e30


class PromptReader:
    """A pipeline's tokenizer with the limit of its text encoder.

    Attributes:
        tokenizer: Of transformers.
        max_tokens: Longest prompt in tokens, with the two that mark its ends.
    """

    def __init__(self, tokenizer: Any, text_config: Any) -> None:
        self.tokenizer = tokenizer
        positions = getattr(text_config, "max_position_embeddings", _MAX_TOKENS)
        self.max_tokens = int(min(tokenizer.model_max_length, positions, _MAX_TOKENS))

    def num_tokens(self, text: str) -> int:
        """Tokens of a prompt, with the two that mark its ends."""
        return len(self.tokenizer(text, truncation=False, verbose=False)["input_ids"])


@dataclass(frozen=True)
class BaseFiles:
    """A StableDiffusionPipeline on disk whose parts are there and fit, see :func:`check_base`.

    Attributes:
        networks: "unet", "vae" and "text_encoder" → its files.
        reader: The tokenizer, with the text encoder's limit.
        scheduler: The scheduler's configuration.
    """

    networks: dict[str, NetworkFiles]
    reader: PromptReader
    scheduler: dict[str, Any]

    def fingerprint(self) -> dict[str, str]:
        """Part → digest of what is stored. Reads all values. Raises CxrlError: one of them is not finite."""
        return {
            **{part: network_digest(files) for part, files in self.networks.items()},
            "scheduler": scheduler_digest(self.scheduler),
            "tokenizer": tokenizer_digest(self.reader.tokenizer, self.reader.max_tokens),
        }


def local_folder(path: str | Path) -> Path | None:
    """Where ``model.path`` is on this machine: what ships for "phantom", a folder, or where huggingface_hub
    keeps the files of a hub id; None for a hub id of which there are none.
    """
    if is_shipped(path):
        return BASE
    if Path(path).is_dir():
        return Path(path).absolute()
    index = in_hub_cache(str(path), "model_index.json")
    return None if index is None else index.parent


def is_here(path: str | Path) -> bool:
    """Whether ``model.path`` names what ships or a folder, not a hub id."""
    return is_shipped(path) or Path(path).is_dir()


def load_tokenizer(path: str | Path) -> PromptReader:
    """The tokenizer of a pipeline with the text encoder's limit, see :func:`load_base`. Loads no weights.

    Raises:
        CxrlError: It is missing or unreadable.
    """
    source = str(local_folder(path) or path)
    return _load_reader(source, _encoder_and_tokenizer(source)[1])


def check_base(folder: Path, *, allow_pickle: bool = False, name: str = "") -> BaseFiles:
    """Whether a folder is a base that can be loaded; no weight's value is read.

    Args:
        folder: Of a StableDiffusionPipeline.
        allow_pickle: As in :func:`load_base`.
        name: What to call it in messages; by default its path.

    Raises:
        CxrlError: A part is missing, unreadable or of a wrong kind, a tensor is missing, too many or of
            another shape, or the parts do not fit together; the message names it.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    name = name or str(folder)
    encoder, tokenizer = _encoder_and_tokenizer(str(folder), name)
    kinds = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": encoder}
    networks = {
        part: check_network(
            kind,
            folder / part,
            _cannot_load(part, name),
            allow_pickle=allow_pickle,
            pickle_option="--model.allow-pickle",
        )
        for part, kind in kinds.items()
    }
    reader = _load_reader(str(folder), tokenizer, name)
    what = _cannot_load("scheduler", name)
    scheduler = attempt(what, lambda: _object(DDIMScheduler.load_config(str(folder), subfolder="scheduler")))
    unet, vae, text_encoder = (files.skeleton for files in networks.values())
    _check_parts(name, unet, vae, text_encoder, reader.tokenizer)
    _check_betas(what, scheduler)
    return BaseFiles(networks, reader, scheduler)


def find_base(path: str, allow_pickle: bool) -> tuple[str, BaseFiles]:
    """What to call the base of ``model.path``, and its files, downloaded where they are not on this machine.

    Raises:
        CxrlError: As :func:`check_base`.
    """
    folder = local_folder(path)
    if folder is not None and is_here(path):
        name = path if is_shipped(path) else str(folder)
        return name, check_base(folder, allow_pickle=allow_pickle, name=name)
    if folder is not None:
        with contextlib.suppress(CxrlError):
            return path, check_base(folder, allow_pickle=allow_pickle, name=path)
    return path, check_base(_download(path, allow_pickle), allow_pickle=allow_pickle, name=path)


def _download(repo: str, allow_pickle: bool) -> Path:
    """The files of a hub id; of the variant fp16 where there are no others, but their error is not told."""
    from diffusers import StableDiffusionPipeline

    settings: dict[str, Any] = {"use_safetensors": None if allow_pickle else True}
    # Not looked at, so not fetched.
    settings |= {"safety_checker": None, "feature_extractor": None, "image_encoder": None}

    def fetch(**variant: str) -> Path:
        with quiet():
            return Path(StableDiffusionPipeline.download(repo, **settings, **variant))

    try:
        return attempt(_cannot_load("model_index.json", repo), fetch)
    except CxrlError as error:
        try:
            return fetch(variant="fp16")
        except Exception:  # as in attempt
            raise error from None


def _cannot_load(part: str, name: str) -> str:
    """How a message begins."""
    return f"model.path: cannot load {part} of {name}{'' if is_here(name) else _NOT_HERE}"


def _encoder_and_tokenizer(source: str, name: str = "") -> tuple[Any, Any]:
    """The classes of a pipeline's text encoder and tokenizer."""
    import transformers
    from diffusers import StableDiffusionPipeline

    name = name or source
    what = _cannot_load("model_index.json", name)
    index = attempt(what, lambda: _object(StableDiffusionPipeline.load_config(source)))

    def kind(part: str) -> Any:
        entry = index.get(part)
        entry = entry[1] if isinstance(entry, (list, tuple)) and len(entry) == 2 else None
        return getattr(transformers, entry, None) if isinstance(entry, str) else None

    encoder, tokenizer = kind("text_encoder"), kind("tokenizer")
    if not hasattr(encoder, "config_class") or not hasattr(tokenizer, "from_pretrained"):
        raise CxrlError(
            f"model.path: {name} has no text encoder or tokenizer of transformers in model_index.json; "
            "expected a StableDiffusionPipeline"
        )
    return encoder, tokenizer


def _load_reader(source: str, kind: Any, name: str = "") -> PromptReader:
    from transformers import AutoConfig

    name = name or source
    what = _cannot_load("tokenizer", name)
    with quiet():
        tokenizer = attempt(what, lambda: kind.from_pretrained(source, subfolder="tokenizer"))
        if len(tokenizer) < _MIN_VOCABULARY:  # transformers makes an empty one where the files are missing
            raise CxrlError(f"{what}: it has {len(tokenizer)} tokens")
        config = attempt(
            _cannot_load("text_encoder", name),
            lambda: AutoConfig.from_pretrained(source, subfolder="text_encoder"),
        )
    return PromptReader(tokenizer, config)


def _object(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise CxrlError(f"it holds a {type(content).__name__}, expected a JSON object")
    return content


def _check_parts(name: str, unet: Any, vae: Any, text_encoder: Any, tokenizer: Any) -> None:
    """Refuse what has the files of a StableDiffusionPipeline and does not work like one."""
    u, problem = unet.config, ""
    latent, width = vae.config.latent_channels, getattr(text_encoder.config, "hidden_size", None)
    words, last = getattr(text_encoder.config, "vocab_size", None), max(tokenizer.get_vocab().values())
    if not u.in_channels == u.out_channels == latent:
        problem = (
            f"its UNet takes {u.in_channels} channels and gives {u.out_channels}, its autoencoder has "
            f"{latent}; an inpainting, upscaling or learned-variance model is none that draws from text alone"
        )
    elif u.encoder_hid_dim_type is None and u.cross_attention_dim != width:
        problem = f"its UNet reads text of width {u.cross_attention_dim}, its text encoder gives {width}"
    elif u.addition_embed_type is not None or u.class_embed_type is not None or u.num_class_embeds:
        problem = "its UNet needs more than text and timestep, as SDXL's does"
    elif not _is_size(u.sample_size):
        problem = f"sample_size in unet/config.json is {u.sample_size}, not a height and width of latents"
    elif not _is_factor(vae.config.scaling_factor):
        problem = (
            f"scaling_factor in vae/config.json is {vae.config.scaling_factor}, not a number other than 0"
        )
    elif isinstance(words, int) and last >= words:
        problem = f"its tokenizer gives numbers up to {last}, its text encoder knows {words} tokens"
    if problem:
        raise CxrlError(f"model.path: {name}: {problem}; expected a StableDiffusionPipeline")


def _is_size(value: Any) -> bool:
    sides = [value] if isinstance(value, int) else value
    return isinstance(sides, (list, tuple)) and all(isinstance(n, int) and n > 0 for n in sides)


def _is_factor(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value != 0


def _check_betas(what: str, config: dict[str, Any]) -> None:
    """Refuse noise levels that are none; which chains they allow is :mod:`cxrl.rl.schedule`'s to say."""
    from diffusers import DDIMScheduler

    known = {name: value for name, value in config.items() if name in SCHEDULER_FIELDS}
    levels = attempt(what, lambda: DDIMScheduler(**known).alphas_cumprod)  # type: ignore[attr-defined]
    if not bool(((levels >= 0) & (levels <= 1)).all()):
        raise CxrlError(f"{what}: its betas give noise levels outside [0, 1]; expected betas in [0, 1]")
