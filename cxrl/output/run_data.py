"""What a run left on the disk, read and checked: the report page works on these records alone.

Every file but the configuration may be missing: a run that has not finished, or that an older version wrote,
has a page too. One that is damaged is refused and named.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cxrl.config import Config
from cxrl.errors import CxrlError
from cxrl.images.raster import read_raster
from cxrl.metrics.names import KEYS, PSI
from cxrl.presets import load_yaml
from cxrl.presets.strict_yaml import read_yaml
from cxrl.storage.layout import (
    BOUNDS,
    CONFIG,
    GALLERY,
    HEADROOM,
    METRICS,
    PROVENANCE,
    SAMPLES,
    SCORES,
    SUMMARY,
    is_grid,
)
from cxrl.storage.reading import read_json, read_json_lines, read_tensors

T = TypeVar("T")
Number = float | None
_DAMAGE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
SIDES = ("anchor", "policy", "real")
TASKS = ("posture", "diagnosis", "consistency")
NAMED = ("reward", "reward_std", "win_rate", "seconds", "grad_norm", "eval", "eval_reward")
PLAIN = ("kl", "clip_fraction", "ratio_max_dev", "diversity", "loss", "advantage_std")
"""What the page draws of an epoch: numbers by name, and numbers."""
_MOST_EPOCHS = 10**9
_FIRST = KEYS[:6]
"""What every version wrote of a side."""


@dataclass(frozen=True)
class Side:
    """The judges' scores of one side.

    Attributes:
        values: Of every key; None where undefined.
        ci: [low, high] of every key, None without.
        auroc: Finding → AUROC.
        auroc_ci: Finding → interval.
        reward: Reward model → mean over the same images.
        reward_ci: Reward model → interval.
    """

    values: dict[str, Number]
    ci: dict[str, tuple[Number, Number]]
    auroc: dict[str, Number] = field(default_factory=dict)
    auroc_ci: dict[str, tuple[Number, Number]] = field(default_factory=dict)
    reward: dict[str, Number] = field(default_factory=dict)
    reward_ci: dict[str, tuple[Number, Number]] = field(default_factory=dict)


@dataclass(frozen=True)
class Point:
    """An evaluation: epoch 0 is the anchor."""

    epoch: int
    side: Side


@dataclass(frozen=True)
class Image:
    """A line of scores.csv: text and numbers by the names of its columns."""

    number: int
    prompt: str
    text: str
    scores: dict[str, Number]

    def findings(self) -> list[str]:
        """What its report names."""
        return [n.removeprefix("label_") for n, v in self.scores.items() if n.startswith("label_") and v == 1]


@dataclass(frozen=True)
class RunData:
    """A run.

    Attributes:
        path: Its directory.
        name: What the page calls it.
        missing: Files that it does not have.
        config: Its settings; None where this version of cxrl does not know them.
        config_problem: Why not, else "".
        config_text: As they are written.
        records: The lines of metrics.jsonl.
        anchor, policy, real: By the judges, at the end; None where they are not known.
        floor, ceiling: Anchor and real films as the epochs were judged, by the reports that choose.
        change, gap: Policy minus anchor; share of the way to real films. None before the end.
        told: What summary or bounds say of judges and films, as text by name.
        points: Every evaluation, the anchor first.
        headroom: The sides of headroom.json, as they are.
        scores: Side → images.
        gallery: Side → uint8 [P, h, w]; and ``image`` [P], their numbers in ``scores``.
        sessions: The processes that worked on it.
        grids: Name and bytes of samples/*.png, each content once.
        end: epochs, kept_epoch, stopped_early, num_images, num_reports, num_selection_reports, seed,
            wall_seconds, where known.
    """

    path: Path
    name: str
    missing: frozenset[str]
    config: Config | None
    config_problem: str
    config_text: str
    records: list[dict[str, Any]]
    anchor: Side | None
    policy: Side | None
    real: Side | None
    floor: Side | None
    ceiling: Side | None
    change: Side | None
    gap: Side | None
    told: dict[str, str]
    points: list[Point]
    headroom: list[dict[str, Any]]
    scores: dict[str, list[Image]]
    gallery: dict[str, Any]
    sessions: list[dict[str, Any]]
    grids: list[tuple[str, bytes]]
    end: dict[str, Any]

    @property
    def restricted(self) -> bool:
        """Whether its data set may not be passed on; a configuration that cannot be read counts as such."""
        return self.config is None or self.config.data.is_restricted


def is_restricted(run_dir: Path) -> bool:
    """As :attr:`RunData.restricted`."""
    config, _ = _config(run_dir)
    return config is None or config.data.is_restricted


def read_run(run_dir: Path) -> RunData:
    """Everything that a run left.

    Raises:
        CxrlError: There is no run there, or a file is damaged; it is named.
    """
    path = run_dir / CONFIG
    if not path.is_file():
        raise CxrlError(f"{run_dir} is not a run of cxrl train: it has no {CONFIG}; see --run")
    config, problem = _config(run_dir)
    files = (METRICS, BOUNDS, SUMMARY, SCORES, GALLERY, PROVENANCE)
    records = _checked(run_dir / METRICS, _records)
    bounds = _json(run_dir / BOUNDS, _bounds)
    summary = _json(run_dir / SUMMARY, _summary, " (cxrl evaluate writes a new one)")
    provenance = _json(run_dir / PROVENANCE, _sessions)
    scores = _checked(run_dir / SCORES, _scores) if (run_dir / SCORES).is_file() else {}
    gallery = _checked(run_dir / GALLERY, _gallery) if (run_dir / GALLERY).is_file() else {}
    room = _json(run_dir / HEADROOM, _headroom, " (cxrl headroom writes a new one)")
    _fit(gallery, scores, run_dir)
    sides = {**(bounds or {}), **(summary or {})}
    of_epochs = bounds or sides
    return RunData(
        path=run_dir,
        name=run_dir.resolve().name,
        missing=frozenset(name for name in files if not (run_dir / name).exists()),
        config=config,
        config_problem=problem,
        config_text=path.read_text(encoding="utf-8", errors="replace"),
        records=records,
        anchor=sides.get("anchor"),
        policy=sides.get("policy"),
        real=sides.get("real"),
        floor=of_epochs.get("anchor"),
        ceiling=of_epochs.get("real"),
        change=sides.get("change"),
        gap=sides.get("gap"),
        told={**(bounds or {}).get("told", {}), **(summary or {}).get("told", {})},
        points=_points(records, of_epochs.get("anchor")),
        headroom=room or [],
        scores=scores,
        gallery=gallery,
        sessions=provenance or [],
        grids=_grids(run_dir / SAMPLES),
        end=(summary or {}).get("end", {}),
    )


def _config(run_dir: Path) -> tuple[Config | None, str]:
    """The settings, or why this version does not know them. Raises CxrlError where the file is damaged."""
    read_yaml(run_dir / CONFIG)
    try:
        return load_yaml(run_dir / CONFIG), ""
    except CxrlError as error:
        return None, str(error)


def _checked(path: Path, read: Callable[[Path], T], hint: str = "") -> T:
    try:
        return read(path)
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:80]
        if isinstance(error, KeyError):
            reason = f"it has no {reason}, which every run of this version writes"
        raise CxrlError(f"{path} is damaged ({reason}){hint}") from None


def _json(path: Path, parse: Callable[[dict[str, Any]], T], hint: str = "") -> T | None:
    return _checked(path, lambda p: parse(read_json(p)), hint) if path.exists() else None


def number(value: Any) -> Number:
    """A number that can be drawn, or None. Raises ValueError for anything else."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{str(value)[:30]!r} is not a number")
    if abs(value) > 1e300:  # no float has more, and an int may
        raise ValueError("a number is too large")
    return None if math.isnan(value) else float(value)


def _named(values: Any) -> dict[str, Number]:
    if values is not None and not isinstance(values, Mapping):
        raise ValueError(f"{str(values)[:30]!r} is not a mapping of numbers")
    return {str(name): number(value) for name, value in (values or {}).items()}


def _interval(value: Any) -> tuple[Number, Number]:
    if value is None:
        return None, None
    low, high = value
    return number(low), number(high)


def _intervals(data: Any) -> dict[str, tuple[Number, Number]]:
    return {str(name): _interval(value) for name, value in dict(data or {}).items()}


def _side(data: Mapping[str, Any]) -> Side:
    return Side(
        values={key: number(data[key] if key in _FIRST else data.get(key)) for key in KEYS},
        ci={key: _interval(dict(data.get("ci") or {}).get(key)) for key in KEYS},
        auroc=_named(data.get("auroc_per_finding")),
        auroc_ci=_intervals(data.get("ci_per_finding")),
        reward=_named(data.get("reward")),
        reward_ci=_intervals(data.get("reward_ci")),
    )


def _sides(data: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: _side(data[name]) for name in names if data.get(name) is not None}


def _bounds(data: dict[str, Any]) -> dict[str, Any]:
    told = {"real films": str(data["real_films"])} | _judges(data["judges"])
    return {**_sides(data, ("anchor", "real")), "told": told}


def _summary(data: dict[str, Any]) -> dict[str, Any]:
    for side in ("anchor", "policy", "change"):
        dict(data[side])
    counts = ["epochs", "kept_epoch", "num_images", "seed", "wall_seconds"]
    counts += ["num_reports", "num_selection_reports"]
    end: dict[str, Any] = {name: number(data.get(name)) for name in counts}
    end["stopped_early"] = str(data.get("stopped_early") or "")
    sides = _sides(data, (*SIDES, "change", "gap"))
    return {**sides, "told": _judges(data["judges"]), "end": end}


def _judges(data: Mapping[str, Any]) -> dict[str, str]:
    by_task = {task: str(data.get(task) or data["name"]) for task in TASKS}
    if len(set(by_task.values())) == 1:
        told = {"judges": by_task["posture"]}
    else:
        told = {f"judge of {task}": name for task, name in by_task.items()}
    for name, words in (("features", "Fréchet features"), ("reference", "Fréchet reference")):
        if data.get(name):
            told[words] = str(data[name])
    if data.get("no_fid"):
        told["no Fréchet distance"] = str(data["no_fid"])
    if data.get("real_films"):
        told["real films"] = str(data["real_films"])
    return told


def _sessions(data: dict[str, Any]) -> list[dict[str, Any]]:
    sessions = []
    for session in list(data["sessions"]):
        flat = {name: str(session[name]) for name in ("started", "command", "version", "commit")}
        machine = {str(k): _words(v) for k, v in dict(session["machine"]).items()}
        packages = {str(k): str(v) for k, v in dict(session["packages"]).items()}
        sessions.append({**flat, "machine": machine, "packages": packages})
    return sessions


def _words(value: Any) -> str:
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)


def _headroom(data: dict[str, Any]) -> list[dict[str, Any]]:
    sides = []
    for side in list(data["sides"]):
        best = {
            str(rule): {str(key): [_pick(row) for row in rows] for key, rows in dict(of_rule).items()}
            for rule, of_rule in dict(side["best"]).items()
        }
        counts = {name: number(side[name]) for name in ("num_samples", "num_reports")}
        verdicts = [str(line) for line in list(side["verdicts"])]
        sides.append(
            {
                "of": str(side["of"]),
                **counts,
                "best": best,
                "real": _named(side["real"]),
                "verdicts": verdicts,
            }
        )
    return sides


def _pick(row: Mapping[str, Any]) -> tuple[Number, Number, Number, Number]:
    return number(row["n"]), number(row["value"]), *_interval(row.get("ci"))


def _records(path: Path) -> list[dict[str, Any]]:
    records = read_json_lines(path)
    for line, record in enumerate(records, 1):
        try:
            epoch = number(record["epoch"])
            if epoch is None or not epoch.is_integer() or not 0 <= epoch < _MOST_EPOCHS:
                raise ValueError("no epoch")
            for name in NAMED:
                _named(record.get(name))
            for name in PLAIN:
                number(record.get(name))
            for name in ("eval_ci", "eval_reward_ci"):
                _intervals(record.get(name))
        except _DAMAGE:
            raise CxrlError(f"{path} is damaged at line {line}; remove the line") from None
    return records


def _points(records: Sequence[Mapping[str, Any]], anchor: Side | None) -> list[Point]:
    points = [] if anchor is None else [Point(0, anchor)]
    for record in records:
        if isinstance(record.get("eval"), Mapping):
            values = {key: number(record["eval"].get(key)) for key in KEYS}
            ci = {key: _interval(dict(record.get("eval_ci") or {}).get(key)) for key in KEYS}
            rewards = _named(record.get("eval_reward")), _intervals(record.get("eval_reward_ci"))
            side = Side(values, ci, reward=rewards[0], reward_ci=rewards[1])
            points.append(Point(int(record["epoch"]) + 1, side))
    return points


def _scores(path: Path) -> dict[str, list[Image]]:
    csv.field_size_limit(2**20)
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline=""), strict=True))
    except csv.Error as error:
        raise ValueError(str(error)) from None
    result: dict[str, list[Image]] = {}
    for row in rows:
        if None in row or None in row.values() or row["side"] not in SIDES:
            raise ValueError("a line has other cells than the header")
        scores = {
            name: number(float(value)) if value else None
            for name, value in row.items()
            if name not in ("side", "image", "prompt", "text")
        }
        if not {*TASKS, *PSI} <= scores.keys():
            raise ValueError("a column is missing")
        images = result.setdefault(row["side"], [])
        if int(row["image"]) != len(images):
            raise ValueError("images are not in order")
        images.append(Image(len(images), row["prompt"], row["text"], scores))
    return result


def _gallery(path: Path) -> dict[str, Any]:
    import torch

    tensors = read_tensors(path)
    image = tensors["image"]
    if image.dtype != torch.int64 or image.ndim != 1 or (len(image) and int(image.min()) < 0):
        raise ValueError("image is no list of numbers")
    for side in ("anchor", "policy"):
        if tensors[side].shape != tensors["anchor"].shape:
            raise ValueError("sides differ in shape")
    for name, tensor in tensors.items():
        if name == "image":
            continue
        if name not in SIDES or tensor.dtype != torch.uint8 or tensor.ndim != 3 or len(tensor) != len(image):
            raise ValueError(f"{name[:30]} is no list of pictures")
        if not 1 <= min(tensor.shape[1:]) <= max(tensor.shape[1:]) <= 256:
            raise ValueError(f"{name[:30]} has pictures of {tuple(tensor.shape[1:])}")
    return dict(tensors)


def _fit(gallery: Mapping[str, Any], scores: Mapping[str, Sequence[Image]], run_dir: Path) -> None:
    """Raises CxrlError where the gallery has images that the scores do not have."""
    if gallery and scores:
        for side in ("anchor", "policy"):
            beyond = [n for n in gallery["image"].tolist() if n >= len(scores.get(side, ()))]
            if beyond:
                raise CxrlError(
                    f"{run_dir / GALLERY} or {run_dir / SCORES} is damaged (no scores of image {beyond[0]} "
                    f"of {side})"
                )


def _grids(folder: Path) -> list[tuple[str, bytes]]:
    """In the order of epochs; a content that was seen before is left out."""
    seen, grids = set(), []
    for path in sorted(folder.glob("*.png")):
        if is_grid(path.name) and path.is_file():
            data = path.read_bytes()
            read_raster(path, data, None)  # decodes it, or says that it cannot
            if data not in seen:
                seen.add(data)
                grids.append((path.stem, data))
    return grids
