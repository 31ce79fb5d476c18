"""Which file an option means."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from cxrl.config import Config
from cxrl.errors import CxrlError
from cxrl.scorers.choice import TASKS, ModelChoice, file_sha256, model_choices, parse_digests, phantom_models
from cxrl.scorers.required import MissingFile


def choice(value: str, task: str = "diagnosis", **options: Any) -> ModelChoice:
    return dataclasses.replace(
        ModelChoice("rewards", task, value, Path("folder"), cache=Path("c")), **options
    )


def config(**sections: Any) -> Config:
    return Config.from_dict(sections)


@pytest.mark.parametrize(
    ("task", "value", "kind", "path"),
    [
        ("posture", "", "scorer", "folder/posture.safetensors"),
        ("posture", "mine.safetensors", "scorer", "mine.safetensors"),
        ("posture", "pspnet", "xrv", "c/pspnet_chestxray_best_model_4.pth"),
        ("posture", "pspnet:p.pth", "xrv", "p.pth"),
        ("diagnosis", "", "scorer", "folder/diagnosis.safetensors"),
        ("diagnosis", "densenet121-res224-nih:/x/a.pt", "xrv", "/x/a.pt"),
        ("diagnosis", "densenet121-res224-chex:a.safetensors", "xrv", "a.safetensors"),
        ("consistency", "", "scorer", "folder/consistency.safetensors"),
        ("consistency", "google/medsiglip-448", "transformers", "google/medsiglip-448"),
    ],
)
def test_what_an_option_means(task: str, value: str, kind: str, path: str) -> None:
    made = choice(value, task)
    assert (made.kind, made.path) == (kind, Path(path))


@pytest.mark.parametrize(
    ("task", "value", "message"),
    [
        (
            "diagnosis",
            "densenet121-res224-chx",
            r"rewards\.diagnosis: .*did you mean densenet121-res224-chex",
        ),
        ("diagnosis", "pspnet", r"'pspnet' is not a \.safetensors file"),
        ("posture", "psp", r"did you mean pspnet\?"),
        ("posture", "densenet121-res224-chex", "known: pspnet"),
    ],
)
def test_an_unknown_name_gets_the_nearest(task: str, value: str, message: str) -> None:
    with pytest.raises(CxrlError, match=message):
        choice(value, task).kind  # noqa: B018


def test_digests_are_parsed_and_checked() -> None:
    assert parse_digests(("diagnosis=" + "AB" * 32,), "eval") == {"diagnosis": "ab" * 32}
    for bad in ("ab" * 32, "diagnosis=abc", "fid=" + "ab" * 32, "diagnosis=" + "zz" * 32):
        with pytest.raises(CxrlError, match=r"eval\.sha256: .* is not TASK=DIGEST"):
            parse_digests((bad,), "eval")


def test_choices_follow_the_configuration(tmp_path: Path) -> None:
    made = config(
        rewards={
            "names": "posture,mine",
            "weights": "1,1",
            "posture": "pspnet",
            "batch_size": 5,
            "dtype": "bfloat16",
        },
        eval={
            "judges": str(tmp_path),
            "diagnosis": "densenet121-res224-chex",
            "sha256": "diagnosis=" + "0" * 64,
        },
        run={"xrv_cache": str(tmp_path / "cache")},
    )
    rewards, judges = model_choices(made, "rewards"), model_choices(made, "eval")
    assert set(rewards) == {"posture"}
    assert set(judges) == set(TASKS)
    assert (rewards["posture"].batch_size, rewards["posture"].dtype) == (5, "bfloat16")
    assert rewards["posture"].path.parent == tmp_path / "cache"
    assert judges["posture"].path == tmp_path / "posture.safetensors"
    assert judges["diagnosis"].expected_sha256 == "0" * 64


def test_opening_says_what_is_loaded_from(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"rewards\.diagnosis: missing .*diagnosis\.safetensors"):
        choice("", folder=tmp_path).open()
    path = tmp_path / "diagnosis.safetensors"
    path.write_bytes(b"abc")
    for made in (choice("", folder=tmp_path), choice(str(path), sha256=file_sha256(path))):
        opened = made.open()
        assert (opened.kind, opened.path, opened.files) == ("scorer", path, (path,))
        assert (opened.option, opened.task, opened.sha256) == ("rewards.diagnosis", "diagnosis", made.sha256)
    with pytest.raises(CxrlError, match="has SHA-256"):
        choice(str(path), sha256="0" * 64).open()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_only_a_pickle_needs_a_digest(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(b"abc")
    made = choice(f"densenet121-res224-nih:{path}")
    if suffix == ".pt":
        with pytest.raises(CxrlError, match="is a pickle and no SHA-256 is known for it"):
            made.open()
    else:
        assert made.open().sha256 == ""
    digest = file_sha256(path)
    assert dataclasses.replace(made, sha256=digest).open().sha256 == digest
    with pytest.raises(CxrlError, match="has SHA-256"):
        dataclasses.replace(made, sha256="0" * 64).open()


def test_models_of_the_phantom_are_named_where_the_films_are_others(tmp_path: Path) -> None:
    assert phantom_models(Config()) == []
    made = config(
        data={"source": "prompts", "root": "x.txt"},
        rewards={"names": "posture", "weights": "1", "posture": "pspnet"},
        eval={"diagnosis": "densenet121-res224-chex", "consistency": "a/b"},
    )
    assert phantom_models(made) == [
        "eval.posture: models of the phantom, which mean nothing on films (docs/rewards.md)"
    ]


def test_a_user_without_a_home_must_say_where_the_files_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    named = model_choices(config(eval={"diagnosis": "densenet121-res224-all"}), "eval")["diagnosis"]
    with pytest.raises(CxrlError, match=r"diagnosis: ~/.torchxrayvision.* no home; .*--run.xrv-cache DIR"):
        named.required()
    assert dataclasses.replace(named, value="densenet121-res224-all:own.pt").path == Path("own.pt")
