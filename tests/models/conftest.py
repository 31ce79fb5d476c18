"""Bases with one thing changed, in every format that the libraries write."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

DIFFUSERS = "diffusion_pytorch_model"
STEMS = {
    "unet": (DIFFUSERS, DIFFUSERS),
    "vae": (DIFFUSERS, DIFFUSERS),
    "text_encoder": ("model", "pytorch_model"),
}
"""Part → names of its safetensors and of its pickles, without what follows."""

State = dict[str, torch.Tensor]
ChangedBase = Callable[..., Path]


def write_weights(folder: Path, part: str, tensors: Mapping[str, torch.Tensor], written_as: str) -> None:
    """Write a part's weights as "safetensors", "bin" or "fp16", or in two shards of them: "bin shards"."""
    is_pickle = written_as.startswith("bin")
    variant = [".fp16"] if written_as.startswith("fp16") else []
    if variant:
        tensors = {n: t.half() if t.is_floating_point() else t for n, t in tensors.items()}
    stem, suffix = STEMS[part][is_pickle], ".bin" if is_pickle else ".safetensors"
    if not written_as.endswith("shards"):
        _write(folder / "".join([stem, *variant, suffix]), tensors)
        return
    names, places = list(tensors), {}
    for number, some in enumerate((names[::2], names[1::2]), 1):
        path = folder / "".join([stem, *variant, f"-{number:05d}-of-00002", suffix])
        _write(path, {name: tensors[name] for name in some})
        places |= dict.fromkeys(some, path.name)
    index = folder / "".join([stem, suffix, ".index", *variant, ".json"])
    index.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": places}))


def _write(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    tensors = {name: t.contiguous().clone() for name, t in tensors.items()}
    if path.suffix == ".bin":
        torch.save(tensors, path)
    else:
        save_file(tensors, path, metadata={"format": "pt"})


@pytest.fixture
def changed_base(tiny_pipeline: Path, tmp_path: Path) -> ChangedBase:
    """``changed_base(part, change, written_as)``: a folder of a tiny base; the tensors of the part are what
    ``change`` makes of them. Always the same folder.
    """

    def make(
        part: str = "",
        change: Callable[[State], State] = lambda tensors: tensors,
        written_as: str = "safetensors",
    ) -> Path:
        folder = tmp_path / "changed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tiny_pipeline, folder)
        if part:
            path = folder / part / f"{STEMS[part][0]}.safetensors"
            tensors = change(load_file(path))
            path.unlink()
            write_weights(path.parent, part, tensors, written_as)
        return folder

    return make
