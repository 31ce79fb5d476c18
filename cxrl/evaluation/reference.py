"""Features of real films, what the Fréchet distance compares with: computed once per data set and model.

Where there are films enough, as many as are judged of a side are kept apart from the reference: their
distance to it is what real films of that number have, the least that a generator can reach.

The films are those of the evaluation split, or of a folder. They are brought to the size of the generated
images before the model resizes them, so that both sides are resampled alike. The cache holds features of real
films, so only its owner may read it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from cxrl.config import Config
from cxrl.data.films import read_films
from cxrl.data.index import FilmRecord, Tally, describe
from cxrl.data.sources import cache_folder, load_index
from cxrl.errors import CxrlError
from cxrl.images.read import SUFFIXES
from cxrl.scorers.choice import OpenedModel, file_sha256
from cxrl.storage.writing import write_tensors

FORMAT = 1
_AT_ONCE = 64


@dataclass(frozen=True)
class Reference:
    """Features of real films.

    Attributes:
        features: float32 [R, D] on the CPU; None where there are no films.
        apart: float32 [M, D] of other films, at most ``eval.num_images``; None where there are too few.
        told: For summary.json: ``reference``, or ``no_fid``, the reason why there is none.
    """

    features: Tensor | None
    apart: Tensor | None
    told: dict[str, str]


def reference_features(
    config: Config, model: OpenedModel, features: Callable[[Tensor], Tensor], image_size: tuple[int, int]
) -> Reference:
    """Features of real films.

    Args:
        config: ``eval.reference`` and ``eval.num_reference``, ``data`` and ``seed``.
        model: The one that ``features`` is of.
        features: Images float32 [N, 1, H, W] in [0, 1] → [N, D].
        image_size: (height, width) of generated images.

    Raises:
        CxrlError: ``eval.reference`` is no folder with films, or fewer than two can be read.
    """
    films, root, where = _films(config)
    if not films:
        return Reference(None, None, {"no_fid": where})
    films, others = _divided(films, config)
    found = _features(films, root, config, model, features, image_size)
    apart = _features(others, root, config, model, features, image_size) if others else None
    if apart is not None:
        apart = apart[: config.eval.num_images] if len(apart) >= config.eval.num_images else None
    told = {"reference": f"{len(found)} real films of {where}"}
    return Reference(found, apart, told)


def _features(
    films: Sequence[FilmRecord],
    root: Path,
    config: Config,
    model: OpenedModel,
    features: Callable[[Tensor], Tensor],
    image_size: tuple[int, int],
) -> Tensor:
    """float32 [R, D] of films, from the cache where they are there."""
    key = {
        "format": FORMAT,
        "model": model.value,
        "weights": file_sha256(model.path),
        "dtype": model.dtype,
        "size": image_size,
        "films": [(str(root / film.image), *_stat(root / film.image)) for film in films],
    }
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    folder = cache_folder(config.data)
    path = folder.parent / "features" / f"{digest[:16]}.safetensors" if folder else None
    found = _read(path)
    tally = Tally()
    if found is None:
        parts = []
        for start in range(0, len(films), _AT_ONCE):
            images, _ = read_films(films[start : start + _AT_ONCE], root, image_size, tally=tally)
            if len(images):
                parts.append(features(images).float().cpu())
        found = torch.cat(parts) if parts else torch.zeros(0, 1)
        if not bool(found.isfinite().all()):
            raise CxrlError(
                f"{model.option}: {model.value or model.path} gives features that are not finite for "
                "real films"
            )
        if len(found) < 2:
            raise CxrlError(
                f"eval.reference: {len(found)} of {len(films)} real films can be read "
                f"({describe(tally.counts())}); expected at least two, or eval.reference none"
            )
        _write(path, found)
    return found


def _films(config: Config) -> tuple[list[FilmRecord], Path, str]:
    """The films, what they are relative to, and where they come from; without films, why there are none."""
    e, data = config.eval, config.data
    if e.reference == "none":
        return [], Path(), "eval.reference is none"
    if e.reference:
        root = Path(e.reference)
        paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES) if root.is_dir() else []
        if not paths:
            raise CxrlError(f"eval.reference: {root} is no folder with {', '.join(SUFFIXES)} files, nor none")
        names = [str(p.relative_to(root)) for p in paths]
        films = [FilmRecord(i, name, name, "test", "", name, "", ()) for i, name in enumerate(names)]
        return films, root, "the folder eval.reference"
    if not data.has_films:
        reason = f"data.source {data.source} has no real films; name a folder with eval.reference"
        return [], Path(), reason
    index = load_index(data)
    films = [film for film in index.split(data.eval_split) if film.image]
    where = f"split {data.eval_split} of {data.source}"
    return films, index.root, where if films else f"no film in {where}"


def _divided(films: Sequence[FilmRecord], config: Config) -> tuple[list[FilmRecord], list[FilmRecord]]:
    """At most ``eval.num_reference`` films, in the order of a digest of (seed, film); and ``eval.num_images``
    others with a few to spare, from the end, where that leaves at least as many to the reference.
    """

    def digest(film: FilmRecord) -> bytes:
        return hashlib.blake2b(f"{config.seed}/{film.film}".encode(), digest_size=8).digest()

    ordered, num = sorted(films, key=digest), config.eval.num_images
    others = num + num // 20 + 1
    kept = len(ordered) - others if len(ordered) >= num + others else len(ordered)
    return ordered[: min(kept, config.eval.num_reference)], ordered[kept:]


def _stat(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _read(path: Path | None) -> Tensor | None:
    if path is None or not path.is_file():
        return None
    try:
        features = load(path.read_bytes())["features"]
    except (SafetensorError, OSError, KeyError):
        return None
    return features if features.ndim == 2 and bool(features.isfinite().all()) else None


def _write(path: Path | None, features: Tensor) -> None:
    if path is None:
        return
    hint = "choose another --data.cache, or none"
    write_tensors(path, {"features": features}, private=True, hint=hint)
