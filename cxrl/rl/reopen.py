"""Runs opened again, finished or not: their policy, and judging it."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import torch

from cxrl.config import Config, PolicyConfig
from cxrl.data.sources import load_prompts
from cxrl.errors import CxrlError
from cxrl.evaluation.judges import build_judges, open_judges
from cxrl.models.adapter import load_adapter, read_description
from cxrl.models.base import load_base
from cxrl.models.fingerprint import check_fingerprint
from cxrl.models.policy import Policy
from cxrl.presets import load_yaml
from cxrl.rl.batch_sizes import fill_batch_sizes
from cxrl.rl.engine import Engine
from cxrl.rl.evaluation import Evaluator
from cxrl.rl.progress import Progress
from cxrl.rl.rollout import Sampler
from cxrl.scorers.digests import changed, scorer_digests
from cxrl.storage.checkpoint import Checkpoint, checkpoints, load_checkpoint
from cxrl.storage.layout import (
    ADAPTER,
    ADAPTER_FILE,
    CHECKPOINTS,
    CONFIG,
    EMA_FILE,
    GOOD_FILE,
    STATE_FILE,
)
from cxrl.storage.reading import field, read_json


def open_run(run_dir: Path, engine: Engine) -> tuple[Config, Policy]:
    """The configuration of a run and its policy with averaged weights, on the engine's device.

    Raises:
        CxrlError: There is no run there, or a file of it is missing or damaged.
    """
    if not (run_dir / CONFIG).is_file():
        raise CxrlError(f"{run_dir} is not a run of cxrl train: it has no {CONFIG}; see --run")
    config, _ = fill_batch_sizes(load_yaml(run_dir / CONFIG), engine.device)
    model = config.model
    _check_sampler(config, run_dir)
    policy = load_policy(
        run_dir, device=engine.device, allow_pickle=model.allow_pickle, offload=model.offload
    )
    return config, policy


def _recorded(folder: Path) -> dict[str, Any]:
    """What an adapter, or a checkpoint in the same words, says of its training: ``epochs``, ``kept_epoch``,
    ``stopped_early``, ``sampler``, ``models``.
    """
    if folder.name == ADAPTER:
        return read_description(folder)
    path = folder / STATE_FILE
    state = read_json(path)
    settings = field(state, "settings", dict, str(path))
    sampler = {n.removeprefix("sampler."): v for n, v in settings.items() if n.startswith("sampler.")}
    sampler.pop("batch_size", None)
    return state | {"epochs": field(state, "epoch", int, str(path)), "sampler": sampler}


def _check_sampler(config: Config, run_dir: Path) -> None:
    """Refuse a configuration that would draw other pixels than the run was trained on."""
    folder = _newest(run_dir)
    for name, value in _recorded(folder).get("sampler", {}).items():
        found = getattr(config.sampler, name, None)
        if found != value:
            raise CxrlError(
                f"sampler.{name}: {found!r} in {CONFIG}, but {folder} was trained with {value!r}; put it back"
            )


def load_policy(
    run_dir: str | Path,
    *,
    checkpoint: str | None = None,
    device: torch.device | str = "cpu",
    allow_pickle: bool = False,
    offload: bool = False,
) -> Policy:
    """The policy of a run, with its averaged weights.

    Args:
        run_dir: A run directory.
        checkpoint: Name of a folder in ``checkpoints/``; by default the newest of adapter and checkpoints.
        device: Where the networks go.
        allow_pickle, offload: As in :func:`cxrl.models.base.load_base`.

    Raises:
        CxrlError: There is no run, a file is damaged, or the base is not the one it was trained from.
    """
    folder = _newest(Path(run_dir)) if checkpoint is None else Path(run_dir) / CHECKPOINTS / checkpoint
    saved = None if folder.name == ADAPTER else load_checkpoint(folder, [EMA_FILE, GOOD_FILE])
    about = read_description(folder) if saved is None else saved.policy
    try:
        config = PolicyConfig(**about["policy"])
        base = load_base(
            about["base"], dtype=about["dtype"], device=device, allow_pickle=allow_pickle, offload=offload
        )
        fingerprint = about["base_fingerprint"]
    except (KeyError, TypeError) as error:
        raise CxrlError(f"{folder}: its description misses or has an unknown {error}") from error
    check_fingerprint(fingerprint, base.fingerprint(), str(folder), base.path)
    policy = Policy(base, config)
    take_weights(policy, folder, saved)
    return policy


def take_weights(policy: Policy, folder: Path, saved: Checkpoint | None = None) -> None:
    """Put the averaged weights of an adapter or of a checkpoint of the same run into a policy.

    Args:
        policy: Of that run.
        folder: The adapter's or the checkpoint's.
        saved: The checkpoint, where it has been read.

    Raises:
        CxrlError: A file is missing, damaged or another policy's.
    """
    if saved is None and folder.name != ADAPTER:
        saved = load_checkpoint(folder, [EMA_FILE, GOOD_FILE])
    about = read_description(folder) if saved is None else saved.policy
    check_fingerprint(about.get("base_fingerprint"), policy.fingerprint, str(folder), policy.base.path)
    if saved is None:
        load_adapter(policy, folder)
        return
    fell_back = saved.state.get("kept_epoch") != saved.state.get("epoch")
    name = GOOD_FILE if fell_back else EMA_FILE
    policy.load_weights(dict(saved.tensors[name]), str(folder / name))
    policy.ema = {name: p.detach().clone() for name, p in policy.trainable.items()}


def saved_weights(run_dir: Path) -> dict[str, Path]:
    """Name → folder of every set of weights that a run holds, first what :func:`load_policy` takes."""
    adapter, found = run_dir / ADAPTER, {}
    if (adapter / ADAPTER_FILE).is_file():
        found[f"result, epoch {read_description(adapter).get('kept_epoch')}"] = adapter
    for path in reversed(checkpoints(run_dir / CHECKPOINTS)):
        state = read_json(path / STATE_FILE)
        found[f"checkpoint, epoch {field(state, 'epoch', int, str(path))}"] = path
    first = _newest(run_dir)
    return dict(sorted(found.items(), key=lambda item: item[1] != first))


def _newest(run_dir: Path) -> Path:
    """The adapter, or the newest checkpoint where the run has gone on since or has not finished."""
    adapter, saved = run_dir / ADAPTER, checkpoints(run_dir / CHECKPOINTS)
    if not (adapter / ADAPTER_FILE).is_file():
        if not saved:
            raise CxrlError(f"{run_dir}: no adapter and no checkpoint there; expected the directory of a run")
        return saved[-1]
    if not saved:
        return adapter
    path = saved[-1] / STATE_FILE
    newer = field(read_json(path), "epoch", int, str(path)) > read_description(adapter).get("epochs", 0)
    return saved[-1] if newer else adapter


def evaluate_run(
    run_dir: Path, *, num_images: int | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Judge a run again, as the end of its training does: the content of ``summary.json``. Warns where the
    judges are not the ones that judged it then.

    Args:
        run_dir: A run of ``cxrl train``.
        num_images: Of each side; by default the run's own number, which gives the run's own scores.
        progress: Is told how far it is.

    Raises:
        CxrlError: There is no run there, or a file of it or of the judges is missing or damaged.
    """
    started = time.perf_counter()
    engine = Engine(run_dir)
    config, policy = open_run(run_dir, engine)
    if num_images is not None:
        config = Config.from_dict({"eval": {"num_images": num_images}}, config)
    recorded, models = _recorded(_newest(run_dir)), open_judges(config)
    judged = {name: d for name, d in recorded.get("models", {}).items() if name.startswith("eval.")}
    if others := changed(judged, scorer_digests(models.values())):
        warnings.warn(f"other judges than judged this run before: {', '.join(others)}", stacklevel=2)
    judges = build_judges(config, policy.base.image_size, engine.device, models)
    prompts = load_prompts(config, policy.base, "eval").prompts
    sampler = Sampler(policy, config.sampler)
    evaluator = Evaluator(sampler, prompts, judges, config, engine)
    sampler.progress = evaluator.progress = progress or Progress()
    summary, _ = evaluator.summary()
    result = summary.to_dict(wall_seconds=time.perf_counter() - started)
    told = ("epochs", "kept_epoch", "stopped_early", "num_selection_reports")
    return result | {name: recorded.get(name) for name in told}
