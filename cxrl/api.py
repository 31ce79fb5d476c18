"""The method as calls: they return results and raise :class:`cxrl.errors.CxrlError`.

    train → Run → generate, evaluate

What the command line takes as ``--train.num-epochs 4`` is ``settings={"train.num_epochs": 4}`` here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cxrl.cli import DEFAULT_PRESET, absolute
from cxrl.config import MAX_SEED, Config
from cxrl.errors import CxrlError, shown
from cxrl.models.policy import Policy
from cxrl.options import check_effect, is_text
from cxrl.presets import load_preset, load_yaml, presets
from cxrl.rl.drawing import check_prompts, draw
from cxrl.rl.engine import Engine
from cxrl.rl.given import listed, whole_numbers
from cxrl.rl.progress import Progress, checked
from cxrl.rl.reopen import evaluate_run, open_run
from cxrl.rl.trainer import Trainer
from cxrl.storage.layout import CONFIG, METRICS, SUMMARY
from cxrl.storage.reading import read_json, read_json_lines

if TYPE_CHECKING:
    from cxrl.evaluation.summary import JudgeModels
    from cxrl.rewards.base import Reward
    from cxrl.rl.build import Prompts


class Run:
    """A run on the disk, finished or not. What is read is read when it is asked for.

    Attributes:
        path: Its directory.
    """

    def __init__(self, path: str | Path) -> None:
        """
        Args:
            path: The directory of a run.

        Raises:
            CxrlError: There is none.
        """
        self.path = _path(path, "run")
        if not (self.path / CONFIG).is_file():
            raise CxrlError(f"{self.path} is not a run of cxrl train: it has no {CONFIG}")

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def config(self) -> Config:
        """Its settings. Raises CxrlError where they do not load."""
        return load_yaml(self.path / CONFIG)

    @property
    def summary(self) -> dict[str, Any] | None:
        """The content of ``summary.json``: anchor, policy and real films by the judges; None before the end.

        Raises:
            CxrlError: It is damaged.
        """
        path = self.path / SUMMARY
        return read_json(path) if path.exists() else None

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """An entry an epoch, the lines of ``metrics.jsonl``. Raises CxrlError where one is damaged."""
        return read_json_lines(self.path / METRICS)

    @cached_property
    def _opened(self) -> tuple[Config, Policy]:
        return open_run(self.path, Engine(self.path))

    def policy(self) -> Policy:
        """The policy with its averaged weights; its base is the anchor. Loaded once.

        Raises:
            CxrlError: A file is missing or damaged, or the base is another one.
        """
        return self._opened[1]

    def generate(
        self, prompts: str | Sequence[str], *, seeds: Sequence[int] = (0,), anchor: bool = False
    ) -> Tensor:
        """Draw every report once a seed.

        Args:
            prompts: One report or several.
            seeds: One an image; policy and anchor of one seed start from the same x_T.
            anchor: Draw with the anchor.

        Returns:
            float32 [P, S, 1, H, W] in [0, 1], on the CPU. Synthetic, not for diagnosis; say so where you save
            them (:func:`cxrl.images.png.save_png` does).

        Raises:
            CxrlError: A report is empty or too long, a seed is none, or the run cannot be opened.
        """
        texts = [prompts] if isinstance(prompts, str) else listed(prompts, "prompts", "a report or several")
        numbers = whole_numbers(seeds, "seeds", MAX_SEED)
        if not numbers:
            raise CxrlError("seeds: there are none; expected one for each image of a report")
        _check_flag(anchor, "anchor")
        config, policy = self._opened
        check_prompts(policy, texts)
        images = [image.cpu() for image in draw(policy, config.sampler, texts, seeds=numbers, anchor=anchor)]
        return torch.stack(images).unflatten(0, (len(texts), len(numbers)))

    def evaluate(self, *, num_images: int | None = None, progress: Progress | None = None) -> dict[str, Any]:
        """Judge it again. Arguments and result as :func:`evaluate`."""
        return evaluate_run(self.path, num_images=num_images, progress=checked(progress))


def train(
    config: Config | str | Path | None = None,
    run_dir: str | Path | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    rewards: Mapping[str, Reward] | None = None,
    judges: JudgeModels | None = None,
    prompts: Prompts | None = None,
    progress: Progress | None = None,
) -> Run:
    """Fine-tune a base by comparative feedback, to the end.

    Args:
        config: A preset's name, a YAML file, or a configuration; "phantom" if it is left out. With ``resume``
            the run's own is taken.
        run_dir: Where everything is written; by default ``run.dir``, else ``runs/PRESET``.
        settings: Full name → value, put over the configuration: ``{"train.num_epochs": 4}``.
        resume: Go on from the last checkpoint.
        overwrite: Delete the run that the directory holds.
        rewards: Name → model, in place of the configuration's; the names are ``rewards.names``.
        judges: In place of the configuration's.
        prompts: (training, selection, held-out) reports in place of ``config.data``; of (training, held-out)
            some held-out ones choose, and are not of the result.
        progress: Is told of every epoch, evaluation and checkpoint.

    Raises:
        CxrlError: Whatever a user can cause; the last checkpoint stays intact.
    """
    _check_flag(resume, "resume")
    _check_flag(overwrite, "overwrite")
    told = checked(progress)
    values = {} if settings is None else _checked_settings(settings)
    folder = None if run_dir is None else _path(run_dir, "run_dir")
    start = _configuration(config, folder, resume)
    changed = Config.from_dict(_nested(values), start)
    check_effect(changed, start, dict.fromkeys(values, ""))
    resolved = absolute(changed)
    if prompts is None:
        resolved.data.check_root()
    where = Path(folder or resolved.run.dir or f"runs/{resolved.preset}")
    resolved = Config.from_dict({"run": {"dir": str(where)}}, resolved)
    Trainer(
        resolved,
        where,
        resume=resume,
        overwrite=overwrite,
        rewards=rewards,
        judges=judges,
        prompts=prompts,
        progress=told,
    ).run()
    return Run(where)


def load_run(run_dir: str | Path) -> Run:
    """A run that was trained before. Raises CxrlError where there is none."""
    return Run(run_dir)


def generate(
    run: Run | str | Path,
    prompts: str | Sequence[str],
    *,
    seeds: Sequence[int] = (0,),
    anchor: bool = False,
) -> Tensor:
    """Images of reports by a run's policy or its anchor; arguments and result as :meth:`Run.generate`."""
    return _run(run).generate(prompts, seeds=seeds, anchor=anchor)


def evaluate(
    run: Run | str | Path, *, num_images: int | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Judge a run again by models that gave no reward.

    Args:
        run: A run, or its directory.
        num_images: Of each side; by default the run's own number, which gives the run's own scores.
        progress: Is told how far it is.

    Returns:
        The content of ``summary.json``.

    Raises:
        CxrlError: There is no run, or a file of it or of the judges is missing or damaged.
    """
    return _run(run).evaluate(num_images=num_images, progress=progress)


def _run(run: Run | str | Path) -> Run:
    return run if isinstance(run, Run) else Run(run)


def _path(value: Any, name: str) -> Path:
    """Raises CxrlError where it is none."""
    if not isinstance(value, str | Path) or not str(value).strip() or not is_text(str(value)):
        raise CxrlError(f"{name}: {shown(value)} is no path; expected that of a folder, a text or a Path")
    return Path(value)


def _check_flag(value: Any, name: str) -> None:
    if not isinstance(value, bool):
        raise CxrlError(f"{name}: {shown(value)} is none of True and False")


def _checked_settings(settings: Any) -> Mapping[str, Any]:
    if not isinstance(settings, Mapping):
        raise CxrlError(f"settings: {shown(settings)} is no mapping; expected {{'train.num_epochs': 4}}")
    for name in settings:
        if not isinstance(name, str):
            raise CxrlError(f"settings: {shown(name)} is no name of an option; expected 'section.field'")
    return settings


def _configuration(config: Config | str | Path | None, run_dir: Path | None, resume: bool) -> Config:
    if resume:
        if config is not None:
            raise CxrlError("resume takes the run's own config.yaml; leave config out, and use settings")
        return Run(run_dir or Path("runs", DEFAULT_PRESET)).config
    if isinstance(config, Config):
        return config
    if not isinstance(config, str | Path | None):
        raise CxrlError(f"config: {shown(config)}; expected a preset's name, a YAML file or a cxrl.Config")
    name = DEFAULT_PRESET if config is None else str(config)
    if name in presets() or not name.endswith((".yaml", ".yml")):
        return load_preset(name)
    return load_yaml(name)


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """``section.field`` → value as sections."""
    result: dict[str, Any] = {}
    for name, value in settings.items():
        section, _, key = name.partition(".")
        if key:
            result.setdefault(section, {})[key] = value
        else:
            result[section] = value
    return result
