"""CLIP- and SigLIP-type models of transformers as frozen judges of image and text.

Dispatched on ``config.model_type``; each brings its own image size, normalisation and token limit. Images
stay tensors on the device, resized with antialias as the model's processor does it. Safetensors only, from a
folder or from huggingface_hub's cache: nothing is downloaded.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cxrl.errors import CxrlError
from cxrl.models.base import DTYPES
from cxrl.models.loading import attempt, check_network
from cxrl.scorers.choice import OpenedModel
from cxrl.scorers.validity import film_validity

CLASSES = {"clip": "CLIPModel", "siglip": "SiglipModel", "siglip2": "Siglip2Model"}
"""``model_type`` → class. SigLIP 2 of fixed size is "siglip"; "siglip2" takes patches of any grid."""
_MODES = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers, in a processor's ``resample`` → torch's names."""


class ImageTextModel:
    """An image-text model.

    Attributes:
        description: What it is, for summary.json.
        max_tokens: Longest text in tokens; longer ones are cut, with one warning.
    """

    def __init__(self, model: OpenedModel, device: torch.device | str) -> None:
        """Raises CxrlError: it is unreadable or of another type; a tensor is missing, of another
        shape or not finite, and is named.
        """
        import transformers

        what = f"{model.option}: cannot load {model.value}"
        self.device, self.batch_size, self.description = torch.device(device), model.batch_size, model.value

        def read(kind: Any) -> Any:
            return attempt(what, lambda: kind.from_pretrained(model.path, local_files_only=True))

        config = read(transformers.AutoConfig)
        if config.model_type not in CLASSES or not hasattr(transformers, CLASSES[config.model_type]):
            raise CxrlError(f"{what}: its model_type is {config.model_type!r}, expected {', '.join(CLASSES)}")
        files = check_network(getattr(transformers, CLASSES[config.model_type]), model.path, what)
        files.check_values()
        self._network = files.load(DTYPES[model.dtype]).to(self.device).requires_grad_(False)
        self._tokenizer = read(transformers.AutoTokenizer)
        processor = read(transformers.AutoImageProcessor)
        self._type, self._processor = config.model_type, processor
        self.max_tokens = min(self._tokenizer.model_max_length, config.text_config.max_position_embeddings)
        self._texts: dict[str, Tensor] = {}
        self._has_warned = False

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Unit-norm float32 [N, E] of images float32 [N, 1, H, W] in [0, 1], and their film_validity [N]."""
        parts = [self._embed(part.to(self.device)) for part in images.split(self.batch_size)]
        return torch.cat(parts), film_validity(images.to(self.device))

    @torch.no_grad()
    def text_embeds(self, texts: list[str]) -> Tensor:
        """Unit-norm embeddings float32 [N, E] of texts; every distinct text is read once."""
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        self._warn_of_long(new)
        for text in new:  # alone, so that its bits do not depend on the others: a resumed run is the same run
            # SigLIP learned with every text padded to the limit and sees the padding; CLIP does not see it.
            tokens = self._tokenizer(
                text, padding="max_length", truncation=True, max_length=self.max_tokens, return_tensors="pt"
            ).to(self.device)
            mask = {"attention_mask": tokens["attention_mask"]} if self._type == "clip" else {}
            self._texts[text] = _unit(self._network.get_text_features(input_ids=tokens["input_ids"], **mask))[
                0
            ]
        return torch.stack([self._texts[text] for text in texts])

    def pixel_values(self, images: Tensor) -> Tensor:
        """[N, 3, h, w], what the model's own processor makes of images [N, 1, H, W] in [0, 1]."""
        p = self._processor
        images = self._resized(images.float())
        if getattr(p, "do_center_crop", False):
            height, width = _sides(p.crop_size)
            top, left = ((a - b) // 2 for a, b in zip(images.shape[-2:], (height, width), strict=True))
            images = images[..., top : top + height, left : left + width]
        mean, std = (
            torch.tensor(v, device=images.device).view(-1, 1, 1) for v in (p.image_mean, p.image_std)
        )
        return (images - mean) / std

    def _resized(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if self._type == "siglip2":
            from transformers.models.siglip2 import image_processing_siglip2 as siglip2

            size = siglip2.get_image_size_for_max_num_patches(
                height, width, self._processor.patch_size, self._processor.max_num_patches
            )
        elif edge := dict(self._processor.size).get("shortest_edge"):
            scale = edge / min(height, width)
            size = (edge, int(width * scale)) if height <= width else (int(height * scale), edge)
        else:
            size = _sides(self._processor.size)
        mode = _MODES[int(self._processor.resample)]
        return F.interpolate(images, size, mode=mode, antialias=True, align_corners=False).clamp(0.0, 1.0)

    def _embed(self, images: Tensor) -> Tensor:
        pixels = self.pixel_values(images).to(self._network.dtype)
        if self._type != "siglip2":
            return _unit(self._network.get_image_features(pixel_values=pixels))
        side = self._processor.patch_size
        n, channels, height, width = pixels.shape
        grid = (height // side, width // side)
        patches = pixels.reshape(n, channels, grid[0], side, grid[1], side).permute(0, 2, 4, 3, 5, 1)
        patches = patches.reshape(n, grid[0] * grid[1], -1)
        mask = torch.ones(patches.shape[:2], dtype=torch.int32, device=pixels.device)
        shapes = torch.tensor([grid] * n, device=pixels.device)
        inputs = {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": shapes}
        return _unit(self._network.get_image_features(**inputs))

    def _warn_of_long(self, texts: list[str]) -> None:
        lengths = [len(self._tokenizer(text, truncation=False, verbose=False)["input_ids"]) for text in texts]
        cut = [length for length in lengths if length > self.max_tokens]
        if cut and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"{len(cut)} of {len(texts)} reports have more than the {self.max_tokens} tokens that "
                f"{self.description} reads (up to {max(cut)}); their ends are cut",
                stacklevel=4,
            )


def _sides(size: Any) -> tuple[int, int]:
    return int(size["height"]), int(size["width"])


def _unit(output: Any) -> Tensor:
    """The features, which newer versions of transformers wrap, with unit norm in float32."""
    features = output if isinstance(output, Tensor) else output.pooler_output
    return F.normalize(features.float(), dim=-1)
