"""One pass over a set of films: what the judges say of each, kept shard by shard so that it can go on.

A shard is named by the digest of all that decides it: the files with size and time of change, their texts,
the models, the size of the images. So a pass that was killed goes on where it was, and a changed file costs
its own shard. A film that cannot be read is counted and left out; nothing stands in its place.

The judges see every film at one size. A model of features beside theirs sees the film as it was read, at its
own size, and has shards of its own: one more model judges nothing again. A film is read once for all that
do not know it yet.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
from cxrl.scorers.feature_models import FeatureModel
from cxrl.storage.writing import replacing, write_tensors

FORMAT = 1
SHARD = 1024
THUMBNAIL = 64
MOST_NAMED = 5
_JUDGES = ""
"""In place of a model's name."""
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
    features: Mapping[str, FeatureModel | None],
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
        features: Name → model of features; None is the judges' own.
        image_size: Pixels a side that every film is brought to (whole centre) before it is judged.
        cache: Folder of the shards, its owner's alone: they hold small pictures of the films.
        option: What named the set, for messages.
        scanned: Is told how many more films are done.

    Raises:
        CxrlError: Fewer than two films can be read, or a judge gives values that are not finite.
    """
    others = {name: model for name, model in features.items() if model is not None}
    shards: dict[str, list[Path]] = {name: [] for name in (_JUDGES, *others)}
    notes: list[dict[str, Any]] = []
    for start in range(0, len(films), SHARD):
        places = range(start, min(start + SHARD, len(films)))
        keys = {_JUDGES: _key(films, places, models, image_size)}
        keys |= {name: _key(films, places, model.digest) for name, model in others.items()}
        paths = {name: cache / f"{key}.safetensors" for name, key in keys.items()}
        known: dict[str, Any] = {name: _notes(path) for name, path in paths.items()}
        lacking = [name for name, told in known.items() if told is None]
        while lacking:
            wanted = {name: others[name] for name in lacking if name != _JUDGES}
            shard = _Shard(films, judges if _JUDGES in lacking else None, wanted, image_size, option)
            for name, tensors in shard.judge(places).items():
                notes_of = {"notes": json.dumps(shard.told)}
                write_tensors(paths[name], tensors, metadata=notes_of, private=True)
                known[name] = shard.told
            # What could be read at one time and not at another is read again, by all.
            differ = any(told != shard.told for told in known.values())
            lacking = list(paths) if differ else []
        for name, path in paths.items():
            shards[name].append(path)
        notes.append(known[_JUDGES])
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
    arrays = _assemble(shards[_JUDGES], count, cache)
    rows = np.asarray(arrays["rows"])
    index = dict.fromkeys(films.prompts[row] or f"\0{row}" for row in rows.tolist())
    index = {prompt: place for place, prompt in enumerate(index)}
    blank = (float("nan"),) * len(films)
    labels = np.array([films.labels.get(name, blank) for name in judges.findings], dtype=np.float32).T[rows]
    return Scanned(
        source=films,
        rows=rows,
        paths=tuple(films.paths[row] for row in rows.tolist()),
        features={
            name: _assemble(shards[name], count, cache)["features"] if name in others else arrays["features"]
            for name in features
        },
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


def _key(films: ImageSet, places: Sequence[int], models: str, image_size: int | None = None) -> str:
    """Of a shard of the judges; without ``image_size`` of a feature model, which reads no text."""
    content: list[Any] = [FORMAT, models, image_size, THUMBNAIL]
    for place in places:
        path = films.paths[place]
        text = [] if image_size is None else [films.texts[place]]
        try:
            stat = path.stat()
            content.append([str(path.absolute()), stat.st_size, stat.st_mtime_ns, *text])
        except OSError:
            content.append([str(path.absolute()), *text])
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


class _Shard:
    """The films of a shard, read once for the judges (or None) and for the models that do not know them.

    Attributes:
        told: How many could be read, which could not, sizes, colours.
    """

    def __init__(
        self,
        films: ImageSet,
        judges: JudgeModels | None,
        models: Mapping[str, FeatureModel],
        image_size: int,
        option: str,
    ) -> None:
        self._films, self._judges, self._models = films, judges, models
        self._image_size, self._option = image_size, option
        self.told: dict[str, Any] = {"read": 0, "unreadable": {}, "sizes": {}, "colour": 0}
        self._waiting: dict[str, list[tuple[int, Tensor]]] = {name: [] for name in (_JUDGES, *models)}
        self._parts: dict[str, list[dict[str, Tensor]]] = {name: [] for name in models}
        if judges is not None:
            self._parts[_JUDGES] = []

    @torch.no_grad()
    def judge(self, places: Sequence[int]) -> dict[str, dict[str, Tensor]]:
        """_JUDGES and the names of the models → tensors by name."""
        for place in places:
            path = self._films.paths[place]
            try:
                whole = read_image(path)
            except UnreadableImage as error:
                self.told["unreadable"].setdefault(error.reason, []).append(path.name)
                continue
            size = f"{whole.shape[1]}×{whole.shape[2]}"
            self.told["read"] += 1
            self.told["sizes"][size] = self.told["sizes"].get(size, 0) + 1
            self.told["colour"] += _is_colour(path)
            if self._judges is not None:
                image = resize(whole, (self._image_size, self._image_size))
                self._wait(_JUDGES, place, image, JUDGE_BATCH)
            for name, model in self._models.items():
                self._wait(name, place, model.prepare(whole), model.batch_size)
        for name in self._waiting:
            self._see(name)
        return {
            name: {key: torch.cat([part[key] for part in parts]) for key in (parts[0] if parts else {})}
            for name, parts in self._parts.items()
        }

    def _wait(self, name: str, place: int, image: Tensor, most: int) -> None:
        self._waiting[name].append((place, image))
        if len(self._waiting[name]) == most:
            self._see(name)

    def _see(self, name: str) -> None:
        waiting = self._waiting[name]
        if not waiting:
            return
        kept, images = [place for place, _ in waiting], torch.stack([image for _, image in waiting])
        waiting.clear()
        if name != _JUDGES:
            features = self._models[name].features(images).float().cpu()
            _check_finite({f"features of {name}": features}, kept, self._films, self._option)
            found = {"features": features}
        else:
            assert self._judges is not None
            found = _judge_batch(images, kept, self._films, self._judges, self._option)
        self._parts[name].append(found)


def _judge_batch(
    images: Tensor, kept: Sequence[int], films: ImageSet, judges: JudgeModels, option: str
) -> dict[str, Tensor]:
    small = F.interpolate(images, (THUMBNAIL, THUMBNAIL), mode="bilinear", antialias=True)
    values = {
        "psi": judges.posture(images.clone()).float().cpu(),
        "probability": judges.classify(images.clone()).float().cpu(),
        "features": judges.features(images.clone()).float().cpu(),
    }
    _check_finite(values, kept, films, option)
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


def _check_finite(values: Mapping[str, Tensor], kept: Sequence[int], films: ImageSet, option: str) -> None:
    for name, value in values.items():
        bad = (~value.isfinite()).any(1).nonzero().flatten().tolist()
        if bad:
            raise CxrlError(
                f"{option}: a judge gives {name} that are not finite for {films.paths[kept[bad[0]]]}"
            )


def _is_colour(path: Path) -> bool:
    try:
        with Image.open(path) as file:
            return file.mode in _COLOURS
    except (OSError, ValueError, Image.DecompressionBombError):
        return False


def _assemble(shards: Sequence[Path], count: int, cache: Path) -> dict[str, np.ndarray]:
    """Name → memory map of all shards one after the other; made anew where a shard was."""
    folder = cache / hashlib.sha256("".join(path.stem for path in shards).encode()).hexdigest()[:32]
    arrays: dict[str, np.ndarray] = {}
    names: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
    for path in shards:
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118
                first = file.get_tensor(name)
                names.setdefault(name, (first.shape[1:], first.dtype))
        if names:
            break
    for name, (shape, dtype) in names.items():
        target = folder / f"{name}.npy"
        if not target.is_file() or len(np.load(target, mmap_mode="r")) != count:
            with replacing(target, private=True) as partial:
                whole = np.lib.format.open_memmap(partial, "w+", dtype, (count, *shape))
                place = 0
                for path in shards:
                    with safe_open(path, "np") as file:
                        if name in file.keys():  # noqa: SIM118
                            rows = file.get_tensor(name)
                            whole[place : place + len(rows)] = rows
                            place += len(rows)
                whole.flush()
                del whole
        arrays[name] = np.load(target, mmap_mode="r")
    return arrays
