"""The model that a choice names, and judges that are not rewards."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cxrl.config import Config
from cxrl.errors import CxrlError
from cxrl.scorers.choice import ModelChoice, file_sha256, model_choices
from cxrl.scorers.phantom_network import Scorer
from cxrl.scorers.protocols import check_judges, load_consistency, load_diagnosis, load_posture
from cxrl.shipped import REWARDS


def choice(value: str, task: str = "diagnosis", **options: Any) -> ModelChoice:
    return dataclasses.replace(ModelChoice("rewards", task, value, REWARDS), **options)


def test_scorers_of_a_folder_and_by_file_are_the_same() -> None:
    images = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    loaders = {"posture": load_posture, "diagnosis": load_diagnosis, "consistency": load_consistency}
    for task, load in loaders.items():
        first, second = (
            load(choice("", task).open(), "cpu"),
            load(choice(str(REWARDS / f"{task}.safetensors"), task).open(), "cpu"),
        )
        assert isinstance(first, Scorer)
        assert isinstance(second, Scorer)
        assert torch.equal(first.features(images), second.features(images))


def test_a_model_of_another_task_is_refused() -> None:
    with pytest.raises(
        CxrlError, match=r"rewards\.diagnosis: .*posture\.safetensors is a model of posture, not"
    ):
        load_diagnosis(choice(str(REWARDS / "posture.safetensors")).open(), "cpu")


def test_a_pinned_scorer_is_checked() -> None:
    path = REWARDS / "diagnosis.safetensors"
    load_diagnosis(choice("", sha256=file_sha256(path)).open(), "cpu")
    with pytest.raises(CxrlError, match="has SHA-256"):
        load_diagnosis(choice("", sha256="0" * 64).open(), "cpu")


def test_a_judge_is_no_reward(tmp_path: Path) -> None:
    def check(reward: str, judge: str, task: str = "diagnosis") -> None:
        made = choice(reward, task, cache=tmp_path)
        check_judges({task: made}, {task: dataclasses.replace(made, section="eval", value=judge)})

    check("densenet121-res224-mimic_ch", "densenet121-res224-chex")
    check("a/clip", "b/clip", "consistency")
    file, copy = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    shutil.copy(REWARDS / "diagnosis.safetensors", file)
    shutil.copy(file, copy)
    for reward, judge, task in (
        ("densenet121-res224-chex", "densenet121-res224-chex", "diagnosis"),
        (f"densenet121-res224-chex:{file}", f"densenet121-res224-nih:{file}", "diagnosis"),
        (str(file), str(tmp_path / "." / "a.safetensors"), "diagnosis"),
        (str(file), str(copy), "diagnosis"),
        ("a/clip", "a/clip", "consistency"),
    ):
        with pytest.raises(
            CxrlError, match=rf"eval\.{task}: .* is also rewards\.{task}; a judge must be another"
        ):
            check(reward, judge, task)
    for section in ("rewards", "eval"):
        assert len(model_choices(Config(), section)) == 3
    check_judges(model_choices(Config(), "rewards"), model_choices(Config(), "eval"))
