"""What rewards and judges were made of: another byte in any file that counts is another digest."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest

from cxrl.config import Config
from cxrl.errors import CxrlError
from cxrl.scorers.choice import ModelChoice, file_sha256, open_models
from cxrl.scorers.digests import UNKNOWN, scorer_digests
from cxrl.shipped import JUDGES, REWARDS


def digests(choices: list[ModelChoice]) -> dict[str, str]:
    return scorer_digests(choice.open() for choice in choices)


def test_what_ships() -> None:
    config = Config()
    models = [m for section in ("rewards", "eval") for m in open_models(config, section).values()]
    found = scorer_digests(models)
    tasks = ("posture", "diagnosis", "consistency")
    assert set(found) == {
        "eval.judges",
        *(f"{section}.{task}" for section in ("rewards", "eval") for task in tasks),
    }
    for task in tasks:
        assert found[f"rewards.{task}"] == file_sha256(REWARDS / f"{task}.safetensors")
    assert len(set(found.values())) == 7
    assert all(len(digest) == 64 for digest in found.values())


def test_a_reward_of_the_user_s_own_is_unknown() -> None:
    made = Config.from_dict({"rewards": {"names": "posture,mine", "weights": "1,1"}})
    found = scorer_digests(open_models(made, "rewards").values(), ["mine"])
    assert set(found) == {"rewards.posture", "rewards.mine"}
    assert found["rewards.mine"] == UNKNOWN


def test_files_that_judges_compare_with_count(tmp_path: Path) -> None:
    folder = tmp_path / "judges"
    shutil.copytree(JUDGES, folder)
    choices = [ModelChoice("eval", task, "", folder) for task in ("posture", "diagnosis", "consistency")]
    whole = digests(choices)
    for name, changed in (
        ("reference", {"eval.judges"}),
        ("posture", {"eval.posture", "eval.judges"}),
        ("diagnosis", {"eval.diagnosis"}),
    ):
        path = folder / f"{name}.safetensors"
        before = path.read_bytes()
        path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        found = digests(choices)
        assert {option for option in whole if found[option] != whole[option]} == changed
        path.write_bytes(before)
    assert digests(choices) == whole
    (folder / "reference.safetensors").unlink()
    with pytest.raises(CxrlError, match=r"eval\.judges: cannot read .*reference\.safetensors: No such file"):
        digests(choices)


def test_every_file_of_a_folder_that_decides_counts(
    make_image_text: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(make_image_text("clip"), folder)
    choice = ModelChoice("rewards", "consistency", str(folder), Path())
    whole = digests([choice])["rewards.consistency"]
    names = [path.name for path in choice.files]
    assert {"model.safetensors", "config.json", "tokenizer.json", "preprocessor_config.json"} <= set(names)
    for path in choice.files:
        before = path.read_bytes()
        path.write_bytes(before + b" ")
        assert digests([choice])["rewards.consistency"] != whole, path.name
        path.write_bytes(before)
    (folder / "README.md").write_text("not read by the model")
    (folder / "pytorch_model.bin").write_bytes(b"not read either")
    assert digests([choice])["rewards.consistency"] == whole
    # The same files under a hub id, where huggingface_hub keeps them.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repo = tmp_path / "hub" / "models--some--clip"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0123abcd")
    shutil.copytree(folder, repo / "snapshots" / "0123abcd")
    of_hub = dataclasses.replace(choice, value="some/clip")
    assert digests([of_hub])["rewards.consistency"] == whole
    edited = json.loads((repo / "snapshots" / "0123abcd" / "config.json").read_text())
    (repo / "snapshots" / "0123abcd" / "config.json").write_text(
        json.dumps({**edited, "logit_scale_init_value": 1.0})
    )
    assert digests([of_hub])["rewards.consistency"] != whole
