"""``adapter/``: the averaged weights of a policy where plain diffusers can read them.

    pytorch_lora_weights.safetensors   ``pipe.load_lora_weights(folder)``
    unet.safetensors                   in its place with policy.train full
    ace.safetensors                    one tensor ``ace`` [n, D] to append to ``prompt_embeds``
    README.md                          a model card, which may be edited
    adapter.json                       what they belong to, how they were sampled, size and SHA-256 of each

The description is deleted first and written last: a folder without one is no adapter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from cxrl.errors import CxrlError
from cxrl.models.policy import ACE, Policy
from cxrl.storage.layout import ACE_FILE, ADAPTER_FILE, ADAPTER_FILES, CARD_FILE, LORA_FILE, UNET_FILE
from cxrl.storage.reading import check_files, describe_file, read_json, read_tensors
from cxrl.storage.run_dir import remove_adapter
from cxrl.storage.writing import replacing, write_json, write_tensors, write_text

FORMAT = 2
_HINT = "the checkpoint is intact: make room and use --resume"


def save_adapter(
    policy: Policy, folder: Path, about: Mapping[str, Any] | None = None, card: str = ""
) -> None:
    """Write the averaged weights of a policy; other files of the folder stay.

    Args:
        policy: Its average.
        folder: The adapter's.
        about: What else ``adapter.json`` should say, JSON: epoch, sampler.
        card: The text of its model card; none without.

    Raises:
        CxrlError: A file cannot be written; it is named.
    """
    remove_adapter(folder)
    with policy.ema_weights():
        if policy.config.train == "lora":
            _save_lora(policy, folder / LORA_FILE)
        elif policy.config.train == "full":
            write_tensors(folder / UNET_FILE, policy.base.unet.state_dict(), hint=_HINT)
        if policy.ace is not None:
            write_tensors(folder / ACE_FILE, {ACE: policy.ace}, hint=_HINT)
    if card and not (folder / CARD_FILE).exists():  # what is left there is somebody else's
        write_text(folder / CARD_FILE, card, hint=_HINT)
    files = {name: describe_file(folder / name) for name in ADAPTER_FILES if (folder / name).exists()}
    content = {"format": FORMAT, **policy.describe(), **(about or {}), "files": files}
    write_json(folder / ADAPTER_FILE, {**content, "sha256": _digest(content)}, hint=_HINT)


def read_description(folder: Path) -> dict[str, Any]:
    """What ``adapter.json`` says, once the files are seen to be the ones that it describes.

    Raises:
        CxrlError: A file is missing, damaged, or was changed; it is named.
    """
    path = folder / ADAPTER_FILE
    about = read_json(path)
    if about.get("format") != FORMAT:
        raise CxrlError(
            f"{path} is not of this version of cxrl: format {about.get('format')!r}, not {FORMAT}"
        )
    if about.pop("sha256", None) != _digest(about):
        raise CxrlError(f"cannot read {path}: its content has changed since it was written")
    check_files(folder, about.get("files"))
    return about


def load_adapter(policy: Policy, folder: Path) -> None:
    """Read the files of an adapter into a policy's weights and their average.

    Raises:
        CxrlError: A file is missing, unreadable or of another shape.
    """
    weights: dict[str, Tensor] = {}
    if policy.config.train == "lora":
        for name, tensor in read_tensors(folder / LORA_FILE).items():
            part = name.removeprefix("unet.").removesuffix(".weight")
            weights[f"{part}.default.weight"] = tensor
    elif policy.config.train == "full":
        weights.update(read_tensors(folder / UNET_FILE))
    if policy.ace is not None:
        weights.update(read_tensors(folder / ACE_FILE))
    policy.load_weights(weights, str(folder))
    policy.ema = {name: p.detach().clone() for name, p in policy.trainable.items()}


def _save_lora(policy: Policy, path: Path) -> None:
    from diffusers import StableDiffusionPipeline
    from peft.utils import get_peft_model_state_dict

    unet = policy.base.unet
    layers = {k: v.detach().cpu().contiguous() for k, v in get_peft_model_state_dict(unet).items()}
    metadata = unet.peft_config["default"].to_dict()
    metadata = {k: sorted(v) if isinstance(v, set) else v for k, v in metadata.items()}
    with replacing(path, hint=_HINT) as partial:
        try:
            StableDiffusionPipeline.save_lora_weights(
                partial.parent,
                unet_lora_layers=layers,
                weight_name=partial.name,
                unet_lora_adapter_metadata=metadata,
            )
        except SafetensorError as error:
            raise OSError(str(error)) from error
        _order_metadata(partial)


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _order_metadata(path: Path) -> None:
    """Sort a safetensors file's metadata, which is written in random order: equal weights, equal bytes."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
