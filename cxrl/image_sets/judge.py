"""A set of generated films judged against real ones: all of them, by finding, by subgroup."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from cxrl.data.rows import listed
from cxrl.evaluation.judges import Judges, assemble_judges
from cxrl.findings import CHEXPERT_FINDINGS
from cxrl.image_sets.measure import measure
from cxrl.image_sets.memorised import closest_pairs, memorised
from cxrl.image_sets.scan import MOST_NAMED, Scanned, scan
from cxrl.image_sets.sets import ImageSet
from cxrl.image_sets.utility import learnable, utility
from cxrl.images.png import BANNER, save_grid
from cxrl.scorers.choice import TASKS, ModelChoice, file_sha256, parse_digests
from cxrl.scorers.feature_models import JUDGE, PINNED, FeatureModel, open_feature_models, parse_features
from cxrl.shipped import JUDGES, PHANTOM, folder_of

FEWEST = 10
"""Films with a finding or of a subgroup below which its numbers would mean nothing."""


@dataclass(frozen=True)
class Panel:
    """The judges, and what names them.

    Attributes:
        judges: The models.
        digest: Of all that decides what they say.
        features: The name of the judges' own features.
        described: For scores.json.
        extractors: Name → model of features, in the order of the results, None for the judges' own.
    """

    judges: Judges
    digest: str
    features: str
    described: dict[str, Any]
    extractors: Mapping[str, FeatureModel | None] = field(default_factory=dict)

    @property
    def by_name(self) -> Mapping[str, FeatureModel | None]:
        """``extractors``, and without any the judges' own."""
        return self.extractors or {self.features: None}


def open_panel(
    folder: str = PHANTOM,
    values: dict[str, str] | None = None,
    sha256: Sequence[str] = (),
    features: Sequence[str] = (JUDGE,),
) -> Panel:
    """The judges of a folder of ``cxrl pretrain``, each replaced by what ``values`` names for its task.

    Args:
        folder: Of the judges.
        values: Task → model.
        sha256: ``TASK=HEX``, also of a feature model that is one file.
        features: Models of features, ``judge`` or ``NAME=PATH``; the first is that of the main table.

    Raises:
        CxrlError: A file is missing, damaged or not the expected one.
    """
    pins = [entry for entry in sha256 if entry.partition("=")[0] in PINNED]
    digests = parse_digests([entry for entry in sha256 if entry not in pins], "eval", PINNED)
    where = folder_of(folder, JUDGES)
    asked = parse_features(features)
    others = open_feature_models(asked, parse_digests(pins, "eval", PINNED))
    opened = {
        task: ModelChoice(
            "eval", task, (values or {}).get(task, ""), where, sha256=digests.get(task, "")
        ).open()
        for task in TASKS
    }
    judges = assemble_judges(opened, "cpu")
    files = [file for model in opened.values() for file in model.files]
    if not opened["diagnosis"].value:
        files += [where / "reference.safetensors", where / "posture.safetensors"]
    described = {task: judges.description[task] for task in TASKS}
    digest = ",".join(file_sha256(file) for file in files)
    own = judges.description["features"]
    extractors = {own if name == JUDGE else name: others.get(name) for name in asked}
    return Panel(judges, digest, own, described, extractors)


def judge_sets(
    generated: ImageSet,
    real: ImageSet,
    panel: Panel,
    *,
    cache: Path,
    image_size: int,
    seed: int,
    bootstrap: int,
    per_finding: bool = False,
    subgroups: Sequence[str] = (),
    train: ImageSet | None = None,
    pairs: Path | None = None,
    utility_steps: int = 0,
    scanned: Callable[[int], None] = lambda count: None,
    searched: Callable[[int], None] = lambda count: None,
    trained: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """The content of ``scores.json``.

    Args:
        generated: What is judged.
        real: What it is compared with.
        panel: The judges.
        cache: Folder of the scans.
        image_size: Pixels a side that all films are brought to.
        seed: Of resamples, halves, subsets and pairs.
        bootstrap: Resamples for intervals.
        per_finding: All numbers for the films of every finding too.
        subgroups: Columns of both sets, all numbers for every value.
        train: What the generator was trained on, to look for copies.
        pairs: Where to write a picture of the films that are nearest to training films.
        utility_steps: Of classifiers that learn from generated and from training films; 0 for none.
        scanned: Is told how many more films are done.
        searched: Is told for how many more the nearest training film is known.
        trained: Is told how many more steps of classifiers are done.

    Raises:
        CxrlError: Fewer than two films of a set can be read, or none of the real ones is held out.
    """

    def seen(films: ImageSet, option: str) -> Scanned:
        return scan(
            films,
            panel.judges,
            models=panel.digest,
            features=panel.by_name,
            image_size=image_size,
            cache=cache,
            option=option,
            scanned=scanned,
        )

    ours, theirs = seen(generated, "--generated"), seen(real, "--real")
    told_of = {"--generated": ours, "--real": theirs}
    copies = use = None
    if train is not None:
        training = told_of["--train"] = seen(train, "--train")
        if utility_steps:
            learnable(told_of)  # before the hour that the copies may take
        copies, places = memorised(ours, training, theirs, seed=seed, done=searched)
        if pairs is not None:
            pictures = closest_pairs(copies, places, ours, training)
            save_grid(pairs, *pictures, banner=f"{BANNER}; training films below", private=True)
        if utility_steps:
            settings = {"num_steps": utility_steps, "seed": seed, "bootstrap": bootstrap}
            use = utility(ours, training, theirs, cache=cache, trained=trained, **settings)
    ask = {"seed": seed, "bootstrap": bootstrap}
    every, all_real = np.arange(len(ours)), np.arange(len(theirs))
    halves = np.random.default_rng(seed).permutation(len(theirs))
    reference, apart = np.sort(halves[: len(halves) // 2]), halves[len(halves) // 2 :]
    number = min(len(ours), len(apart))
    some = np.sort(np.random.default_rng(seed).choice(len(ours), number, replace=False))
    return {
        "judges": panel.described,
        "features": next(iter(panel.by_name)),
        "feature_models": {name: _feature_model(model) for name, model in panel.by_name.items()},
        "image_size": image_size,
        "seed": seed,
        "bootstrap": bootstrap,
        "sets": {option[2:]: _described(films) for option, films in told_of.items()},
        "warnings": _warnings(told_of),
        "generated": measure(ours, every, theirs, all_real, **ask),
        "real": measure(theirs, all_real, None, all_real, **ask),
        "equal_numbers": {
            "num_images": number,
            "num_reference": len(reference),
            "generated": measure(ours, some, theirs, reference, **ask),
            "real": measure(theirs, np.sort(apart[:number]), theirs, reference, **ask),
        },
        "per_finding": _per_finding(ours, theirs, ask) if per_finding else None,
        "subgroups": {name: _per_value(name, ours, theirs, ask) for name in subgroups} or None,
        "memorisation": copies,
        "utility": use,
    }


def _feature_model(model: FeatureModel | None) -> dict[str, Any] | None:
    """For scores.json; None for the judges' own, which ``judges`` names."""
    if model is None:
        return None
    keys = ("description", "num_features", "digest")
    return {key: getattr(model, key) for key in keys}


def _part(
    ours: Scanned, mine: np.ndarray, theirs: Scanned, others: np.ndarray, ask: dict[str, int]
) -> dict[str, Any]:
    counts = {"num_generated": len(mine), "num_real": len(others)}
    fewest = min(len(mine), len(others))
    if fewest < FEWEST:
        return counts | {"undefined": f"{fewest} films of a side, at least {FEWEST} are needed"}
    return counts | measure(ours, mine, theirs, others, **ask)


def _per_finding(ours: Scanned, theirs: Scanned, ask: dict[str, int]) -> list[dict[str, Any]]:
    """Rarest of the real films first."""
    found = []
    for name in CHEXPERT_FINDINGS:
        if name in ours.source.labels and name in theirs.source.labels:
            mine, others = (
                np.flatnonzero(np.array(s.source.labels[name])[s.rows] == 1) for s in (ours, theirs)
            )
            found.append({"finding": name} | _part(ours, mine, theirs, others, ask))
    return sorted(found, key=lambda part: (part["num_real"], part["finding"]))


def _per_value(name: str, ours: Scanned, theirs: Scanned, ask: dict[str, int]) -> list[dict[str, Any]]:
    mine, others = (np.array(s.source.groups[name])[s.rows] for s in (ours, theirs))
    found = []
    for value in sorted({*mine.tolist(), *others.tolist()}):
        rows = np.flatnonzero(mine == value), np.flatnonzero(others == value)
        found.append({"value": value} | _part(ours, rows[0], theirs, rows[1], ask))
    return found


def _described(films: Scanned) -> dict[str, Any]:
    source = films.source
    return {
        "name": source.name,
        "num_files": len(source),
        "num_images": len(films),
        "num_prompts": len(np.unique(films.prompt_of)),
        "sizes": films.sizes,
        "num_colour": films.num_colour,
        "unreadable": {r: {"count": n, "first": list(names)} for r, (n, names) in films.unreadable.items()},
        "labels": list(source.labels),
        "labels_not_judged": [name for name in source.labels if name not in films.findings],
        "columns_not_read": list(source.unread),
    }


def _warnings(sets: dict[str, Scanned]) -> list[str]:
    """What should be known before a number is believed; ``sets`` by the option that named them."""
    found = []
    for option, films in sets.items():
        for reason, (count, names) in films.unreadable.items():
            more = ", …" if count > len(names) else ""
            found.append(f"{option}: {count} left out, {reason}: {', '.join(names)}{more}")
        if len(films.sizes) > 1:
            sizes = ", ".join(f"{size} ({count})" for size, count in list(films.sizes.items())[:MOST_NAMED])
            found.append(f"{option}: {len(films.sizes)} sizes of films: {sizes}")
        if 0 < films.num_colour < len(films):
            found.append(f"{option}: {films.num_colour} of {len(films)} files hold colours, the others grey")
        digests = films.digests.tolist()
        twice = {digest: count for digest, count in Counter(digests).items() if count > 1}
        if twice:
            first = films.paths[digests.index(next(iter(twice)))].name
            found.append(f"{option}: {sum(twice.values())} films show {len(twice)} pictures, first {first}")
        unjudged = [name for name in films.source.labels if name not in films.findings]
        if unjudged:
            found.append(f"{option}: no judge knows {', '.join(unjudged)}: no AUROC of these")
        if films.source.unread:
            found.append(f"{option}: columns not read: {listed(films.source.unread)}")
    for (one, mine), (other, theirs) in combinations(sets.items(), 2):
        shared = len(set(mine.digests.tolist()) & set(theirs.digests.tolist()))
        if shared:
            found.append(f"{shared} pictures are in {one} and {other}, pixel for pixel")
    return found
