"""One pass over a set of films: what the judges say of each, kept shard by shard so that it can go on.

A shard is named by the digest of all that decides it: the files with size and time of change, their texts,
the models, the size of the images. So a pass that was killed goes on where it was, and a changed file costs
its own shard. A film that cannot be read is counted and left out; nothing stands in its place.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cxrl.errors import CxrlError
from cxrl.evaluation.summary import JUDGE_BATCH, JudgeModels
from cxrl.image_sets.sets import ImageSet
from cxrl.images.png import to_uint8
from cxrl.images.read import read_image, resize
from cxrl.images.unreadable import UnreadableImage
from cxrl.metrics.alignment import alignment
from cxrl.storage.writing import replacing, write_tensors

FORMAT = 1
SHARD = 1024
THUMBNAIL = 64
MOST_NAMED = 5
_COLOURS = ("RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "P", "PA")


@dataclass(frozen=True)
class Scanned:
    """What is known of the N films of a set that could be read; arrays of one row a film.

    Attributes:
        source: The set, all films of it.
        rows: int64 [N], the place of every film in ``source``.
        paths: Of the N films.
        features: Name of the feature model → float32 [N, D], a memory map.
        thumbnails: uint8 [N, 64, 64], a memory map.
        labels: float32 [N, F] of ``findings``, 1, 0 or nan.
        findings: F names, those that the judges know.
        prompt_of: int64 [N], from 0; a film without a prompt is its own.
        psi: float32 [N, 5] pose.
        probability: float32 [N, F].
        consistency: float32 [N], cosine of film and text; nan without a text.
        digests: int64 [N], equal for films of equal pixels at the judged size.
        unreadable: Reason → (number, first few names).
        sizes: "HEIGHT×WIDTH" → number of films.
        num_colour: Films whose file holds colours.
    """

    source: ImageSet
    rows: np.ndarray
    paths: tuple[Path, ...]
    features: dict[str, np.ndarray]
    thumbnails: np.ndarray
    labels: np.ndarray
    findings: tuple[str, ...]
    prompt_of: np.ndarray
    psi: np.ndarray
    probability: np.ndarray
    consistency: np.ndarray
    digests: np.ndarray
    unreadable: dict[str, tuple[int, tuple[str, ...]]]
    sizes: dict[str, int]
    num_colour: int

    def __len__(self) -> int:
        return len(self.rows)


def scan(
    films: ImageSet,
    judges: JudgeModels,
    *,
    models: str,
    features: str,
    image_size: int,
    cache: Path,
    option: str,
    scanned: Callable[[int], None] = lambda count: None,
) -> Scanned:
    """Judge every film of a set once.

    Args:
        films: The set.
        judges: Models.
        models: What identifies them: their digests.
        features: The name of the judges' feature model.
        image_size: Pixels a side that every film is brought to (whole centre) before it is judged.
        cache: Folder of the shards, its owner's alone: they hold small pictures of the films.
        option: What named the set, for messages.
        scanned: Is told how many more films are done.

    Raises:
        CxrlError: Fewer than two films can be read, or a judge gives values that are not finite.
    """
    shards, notes = [], []
    digest = hashlib.sha256()
    for start in range(0, len(films), SHARD):
        places = range(start, min(start + SHARD, len(films)))
        key = _key(films, places, models, image_size)
        digest.update(key.encode())
        path = cache / f"{key}.safetensors"
        told = _notes(path)
        if told is None:
            tensors, told = _judge_shard(films, places, judges, image_size, option)
            write_tensors(path, tensors, metadata={"notes": json.dumps(told)}, private=True)
        shards.append((start, path))
        notes.append(told)
        scanned(len(places))
    count = sum(told["read"] for told in notes)
    unreadable: dict[str, tuple[int, tuple[str, ...]]] = {}
    for told in notes:
        for reason, names in told["unreadable"].items():
            before, first = unreadable.get(reason, (0, ()))
            unreadable[reason] = (before + len(names), (*first, *names)[:MOST_NAMED])
    if count < 2:
        why = "; ".join(f"{reason}: {n} ({', '.join(names)})" for reason, (n, names) in unreadable.items())
        raise CxrlError(f"{option}: {count} of {len(films)} films can be read, expected at least two: {why}")
    arrays = _assemble(shards, count, cache / digest.hexdigest()[:32])
    rows = np.asarray(arrays["rows"])
    index = dict.fromkeys(films.prompts[row] or f"\0{row}" for row in rows.tolist())
    index = {prompt: place for place, prompt in enumerate(index)}
    blank = (float("nan"),) * len(films)
    labels = np.array([films.labels.get(name, blank) for name in judges.findings], dtype=np.float32).T[rows]
    return Scanned(
        source=films,
        rows=rows,
        paths=tuple(films.paths[row] for row in rows.tolist()),
        features={features: arrays["features"]},
        thumbnails=arrays["thumbnails"],
        labels=labels,
        findings=tuple(judges.findings),
        prompt_of=np.array([index[films.prompts[row] or f"\0{row}"] for row in rows.tolist()]),
        psi=arrays["psi"],
        probability=arrays["probability"],
        consistency=arrays["consistency"],
        digests=arrays["digests"],
        unreadable=unreadable,
        sizes=dict(sum((Counter(told["sizes"]) for told in notes), Counter[str]()).most_common()),
        num_colour=sum(told["colour"] for told in notes),
    )


def _key(films: ImageSet, places: Sequence[int], models: str, image_size: int) -> str:
    content: list[Any] = [FORMAT, models, image_size, THUMBNAIL]
    for place in places:
        path = films.paths[place]
        try:
            stat = path.stat()
            content.append([str(path.absolute()), stat.st_size, stat.st_mtime_ns, films.texts[place]])
        except OSError:
            content.append([str(path.absolute()), films.texts[place]])
    return hashlib.sha256(json.dumps(content).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _notes(path: Path) -> dict[str, Any] | None:
    """What a shard says of its films; None where there is none that is whole."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {})["notes"])
    except (SafetensorError, OSError, ValueError, KeyError):
        return None


@torch.no_grad()
def _judge_shard(
    films: ImageSet, places: Sequence[int], judges: JudgeModels, image_size: int, option: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    told: dict[str, Any] = {"read": 0, "unreadable": {}, "sizes": {}, "colour": 0}
    parts: list[dict[str, Tensor]] = []
    for start in range(places[0], places[-1] + 1, JUDGE_BATCH):
        images, kept = [], []
        for place in range(start, min(start + JUDGE_BATCH, places[-1] + 1)):
            path = films.paths[place]
            try:
                whole = read_image(path)
            except UnreadableImage as error:
                told["unreadable"].setdefault(error.reason, []).append(path.name)
                continue
            size = f"{whole.shape[1]}×{whole.shape[2]}"
            told["sizes"][size] = told["sizes"].get(size, 0) + 1
            told["colour"] += _is_colour(path)
            images.append(resize(whole, (image_size, image_size)))
            kept.append(place)
        if kept:
            parts.append(_judge_batch(torch.stack(images), kept, films, judges, option))
    told["read"] = sum(len(part["rows"]) for part in parts)
    keys = parts[0] if parts else {}
    return {key: torch.cat([part[key] for part in parts]) for key in keys}, told


def _judge_batch(
    images: Tensor, kept: Sequence[int], films: ImageSet, judges: JudgeModels, option: str
) -> dict[str, Tensor]:
    small = F.interpolate(images, (THUMBNAIL, THUMBNAIL), mode="bilinear", antialias=True)
    values = {
        "psi": judges.posture(images.clone()).float().cpu(),
        "probability": judges.classify(images.clone()).float().cpu(),
        "features": judges.features(images.clone()).float().cpu(),
    }
    for name, value in values.items():
        bad = (~value.isfinite()).any(1).nonzero().flatten().tolist()
        if bad:
            raise CxrlError(
                f"{option}: a judge gives {name} that are not finite for {films.paths[kept[bad[0]]]}"
            )
    consistency = torch.full((len(kept),), torch.nan)
    told = [n for n, place in enumerate(kept) if films.texts[place]]
    if told:
        texts = judges.text_embeds([films.texts[kept[n]] for n in told]).cpu()
        consistency[told] = alignment(judges.image_embeds(images[told].clone()).cpu(), texts)
    digests = [int.from_bytes(hashlib.sha256(i.numpy().tobytes()).digest()[:7], "little") for i in images]
    return values | {
        "consistency": consistency,
        "rows": torch.tensor(kept),
        "digests": torch.tensor(digests),
        "thumbnails": torch.from_numpy(np.stack([to_uint8(i) for i in small])).reshape(
            -1, THUMBNAIL, THUMBNAIL
        ),
    }


def _is_colour(path: Path) -> bool:
    try:
        with Image.open(path) as file:
            return file.mode in _COLOURS
    except (OSError, ValueError, Image.DecompressionBombError):
        return False


def _assemble(shards: Sequence[tuple[int, Path]], count: int, folder: Path) -> dict[str, np.ndarray]:
    """Name → memory map of all shards one after the other."""
    arrays: dict[str, np.ndarray] = {}
    names: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
    for _, path in shards:
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118
                first = file.get_tensor(name)
                names.setdefault(name, (first.shape[1:], first.dtype))
        if names:
            break
    for name, (shape, dtype) in names.items():
        target = folder / f"{name}.npy"
        if not target.is_file():
            with replacing(target, private=True) as partial:
                whole = np.lib.format.open_memmap(partial, "w+", dtype, (count, *shape))
                place = 0
                for _, path in shards:
                    with safe_open(path, "np") as file:
                        if name in file.keys():  # noqa: SIM118
                            rows = file.get_tensor(name)
                            whole[place : place + len(rows)] = rows
                            place += len(rows)
                whole.flush()
                del whole
        arrays[name] = np.load(target, mmap_mode="r")
    return arrays
