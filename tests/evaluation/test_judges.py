"""The judges, those that ship and those for real films, behind one class; and their reference."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from cxrl.config import Config
from cxrl.data.phantom.films import corpus
from cxrl.data.prompts import ReportPrompt
from cxrl.errors import CxrlError
from cxrl.evaluation.judges import Judges, build_judges, load_judges
from cxrl.evaluation.reference import reference_features
from cxrl.evaluation.summary import Summary, describe_judges, evaluate_images, evaluation_batch
from cxrl.images.png import to_uint8
from cxrl.scorers.choice import ModelChoice, file_sha256, open_models
from cxrl.scorers.phantom_network import load_scorer
from cxrl.shipped import JUDGES, REWARDS

CHEX = "densenet121-res224-chex"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve phantoms with reports: six to train, six held out, one of those damaged."""
    folder = tmp_path_factory.mktemp("films")
    films = corpus(12, seed=11)
    lines = ["image,text,split"]
    for i, image in enumerate(films.pixels()):
        Image.fromarray(to_uint8(image)).save(folder / f"{i}.png")
        lines.append(f'{i}.png,"{films.texts[i]} {i}",{"train" if i < 6 else "test"}')
    (folder / "7.png").write_bytes(b"not an image")
    (folder / "films.csv").write_text("\n".join(lines) + "\n")
    return folder / "films.csv"


@pytest.fixture
def config(table: Path, densenet: Path, make_image_text: Callable[..., Path], tmp_path: Path) -> Config:
    return Config.from_dict(
        {
            "data": {"source": "table", "root": str(table), "cache": str(tmp_path / "cache" / "index")},
            "eval": {
                "diagnosis": f"{CHEX}:{densenet}",
                "consistency": str(make_image_text("siglip")),
                "sha256": f"diagnosis={file_sha256(densenet)}",
            },
        }
    )


def changed(config: Config, **sections: Any) -> Config:
    return Config.from_dict(sections, config)


def test_the_judges_that_ship_are_the_scorers_of_their_folder() -> None:
    judges, images = load_judges(), corpus(3, seed=12).pixels()
    posture, diagnosis, pair = (
        load_scorer(JUDGES / f"{t}.safetensors") for t in ("posture", "diagnosis", "consistency")
    )
    with torch.no_grad():
        assert torch.equal(judges.posture(images), posture(images)[0])
        assert torch.equal(judges.classify(images), diagnosis(images)[0].sigmoid())
        assert torch.equal(judges.image_embeds(images), pair.image_embeds(images))
        assert torch.equal(judges.text_embeds(["No edema."]), pair.text_embeds(["No edema."]))
    assert judges.reference is not None
    assert judges.features(images).shape == (3, judges.reference.shape[1]) == (3, 128)
    # Both halves in units of their spread on clean films, so that neither drowns the other.
    with torch.no_grad():
        halves = torch.cat([diagnosis.features(images), posture.features(images)], 1)
    scale = load_file(JUDGES / "reference.safetensors")["scale"]
    torch.testing.assert_close(judges.features(images), halves / scale)
    spread = judges.reference - judges.reference.mean(0)
    for half in spread.split(64, 1):
        assert float(half.square().mean().sqrt()) == pytest.approx(1.0, rel=0.01)
    built = build_judges(Config(), (64, 64))
    assert built.reference is not None
    assert torch.equal(built.features(images), judges.features(images))
    assert torch.equal(built.reference, judges.reference)


def test_another_posture_judge_leaves_the_features_as_they_are() -> None:
    path = REWARDS / "posture.safetensors"
    made = Config.from_dict(
        {"rewards": {"names": "diagnosis", "weights": "1"}, "eval": {"posture": str(path)}}
    )
    images = corpus(2, seed=12).pixels()
    judges, shipped = build_judges(made, (64, 64)), load_judges()
    assert torch.equal(judges.features(images), shipped.features(images))
    assert not torch.equal(judges.posture(images), shipped.posture(images))


def test_real_films_are_the_reference(config: Config, table: Path) -> None:
    judges = build_judges(config, (64, 64))
    assert judges.reference is not None
    assert judges.reference.shape == (5, 1024)
    assert len(judges.findings) == 11
    assert judges.description["reference"] == "5 real films of split test of table"
    assert judges.description["features"] == f"last hidden layer of {config.eval.diagnosis}"
    images = corpus(12, seed=11).pixels()[8:9]
    distance = (judges.features(images) - judges.reference).norm(dim=1)
    # The film is among its own split's: 8 bits are all that separates them.
    assert float(distance.min()) < 0.02 * float(distance.max())


def test_the_reference_is_computed_once(
    config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = ModelChoice("eval", "diagnosis", str(JUDGES / "diagnosis.safetensors"), Path()).open()
    calls = []

    def features(images: Tensor) -> Tensor:
        calls.append(len(images))
        return images.flatten(1)[:, :3]

    def found(changes: Config = config, size: tuple[int, int] = (16, 16)) -> Tensor:
        result = reference_features(changes, model, features, size)
        assert result.features is not None
        assert result.apart is None, "of five films none can stand apart"
        assert set(result.told) == {"reference"}
        return result.features

    first = found()
    assert calls == [5]
    assert torch.equal(found(), first)
    assert calls == [5]
    (file,) = (tmp_path / "cache" / "features").iterdir()
    assert file.stat().st_mode & 0o077 == 0
    file.write_bytes(b"damaged")
    assert torch.equal(found(), first)
    found(size=(32, 32))
    found(changed(config, eval={"num_reference": 3}))
    found(changed(config, data={"cache": "none"}))
    assert calls == [5, 5, 5, calls[3], 5]
    assert calls[3] in (2, 3)


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"eval": {"reference": "none"}}, "eval.reference is none"),
        ({"data": {"source": "openi", "root": ""}}, "data.source openi has no real films"),
        (
            {"data": {"source": "prompts"}},
            "data.source prompts has no real films; name a folder with eval.reference",
        ),
    ],
)
def test_without_films_there_is_no_distance_and_a_reason(
    config: Config, sections: dict[str, Any], reason: str
) -> None:
    made = changed(config, **sections)
    model = open_models(made, "eval")["diagnosis"]
    found = reference_features(made, model, lambda images: images, (8, 8))
    assert found.features is None
    assert found.apart is None
    assert reason in found.told["no_fid"]


@pytest.mark.parametrize(
    ("num_images", "num_reference", "sizes"),
    [(2, 2048, (8, 2)), (5, 2048, (6, 5)), (6, 2048, (11, None)), (3, 4, (4, 3))],  # one cannot be read
)
def test_films_stand_apart_from_the_reference_where_there_are_enough(
    config: Config, table: Path, num_images: int, num_reference: int, sizes: tuple[int, int | None]
) -> None:
    model = ModelChoice("eval", "diagnosis", str(JUDGES / "diagnosis.safetensors"), Path()).open()
    judged = {"reference": str(table.parent), "num_images": num_images, "num_reference": num_reference}
    made = changed(config, data={"source": "prompts", "cache": "none"}, eval=judged)
    found = reference_features(made, model, lambda images: images.flatten(1), (8, 8))
    assert found.features is not None
    assert (len(found.features), None if found.apart is None else len(found.apart)) == sizes
    if found.apart is not None:
        assert float(torch.cdist(found.features, found.apart).min()) > 0, "no film is on both sides"


def test_a_folder_of_films_is_a_reference(config: Config, table: Path, tmp_path: Path) -> None:
    model = ModelChoice("eval", "diagnosis", str(JUDGES / "diagnosis.safetensors"), Path()).open()
    made = changed(config, data={"source": "prompts"}, eval={"reference": str(table.parent)})
    found = reference_features(made, model, lambda images: images.flatten(1), (8, 8))
    assert found.features is not None
    assert found.features.shape == (11, 64)
    assert found.told == {"reference": "11 real films of the folder eval.reference"}
    for bad in (tmp_path / "nowhere", JUDGES):
        with pytest.raises(CxrlError, match=r"eval\.reference: .* is no folder with \.png"):
            reference_features(changed(made, eval={"reference": str(bad)}), model, lambda i: i, (8, 8))
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "a.png").write_bytes(b"")
    with pytest.raises(CxrlError, match=r"0 of 1 real films can be read \(image corrupt or truncated 1"):
        reference_features(
            changed(made, eval={"reference": str(tmp_path / "few")}), model, lambda i: i, (8, 8)
        )


def test_the_summary_names_models_features_and_the_missing_distance(config: Config) -> None:
    judges = build_judges(changed(config, eval={"reference": "none"}), (64, 64))
    prompts = [
        ReportPrompt(i, text, (float(i == 0), float("nan")), ("No Finding", "Pleural Effusion"))
        for i, text in enumerate(("no acute .", "left pleural effusion ."))
    ]
    images = corpus(2, seed=13).pixels()

    batch = evaluation_batch(prompts, 2, 1)
    anchor, policy = (
        evaluate_images(x, batch, judges, seed=0, bootstrap=20) for x in (images, images.flip(0))
    )
    told = describe_judges(judges, "x")
    summary = Summary(anchor, policy, batch, images, 0, told).to_dict(wall_seconds=1.0)
    for side in ("anchor", "policy", "change"):
        assert summary[side]["fid"] is None
        assert summary[side]["ci"]["fid"] == [None, None]
        assert summary[side]["posture"] is not None
    assert told["diagnosis"] == config.eval.diagnosis
    assert told["consistency"] == config.eval.consistency
    assert told["feature_dim"] is None
    assert told["no_fid"] == "eval.reference is none"
    assert len(told["findings"]) == 11
    json.dumps(summary, allow_nan=False)


def test_a_judge_that_rewards_is_refused(config: Config) -> None:
    made = changed(config, rewards={"diagnosis": config.eval.diagnosis})
    with pytest.raises(CxrlError, match=r"is also rewards\.diagnosis; a judge must be another model"):
        build_judges(made, (64, 64))


def test_damaged_judges_are_named(tmp_path: Path) -> None:
    with pytest.raises(CxrlError, match=r"eval\.posture: missing a model .*posture\.safetensors"):
        load_judges(str(tmp_path))
    for file in JUDGES.iterdir():
        if file.stem != "reference":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(CxrlError, match=r"reference\.safetensors cannot be read"):
        load_judges(str(tmp_path))


def test_a_damaged_reference_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "judges"
    shutil.copytree(JUDGES, folder)
    path = folder / "reference.safetensors"
    whole = load_file(path)
    features, scale = whole["features"], whole["scale"]
    bad, zero = features.clone(), scale.clone()
    bad[-1, -1], zero[3] = torch.nan, 0.0
    narrow, short = features[:, :64].contiguous(), scale[:64].clone()
    for other_features, other_scale, words in (
        (features, None, "it has no tensor scale"),
        (None, scale, "it has no tensor features"),
        (narrow, scale, "it has a tensor features of shape (2000, 64), expected (2000, 128)"),
        (features, short, "it has a tensor scale of shape (64,), expected (128,)"),
        (bad, scale, "it has a tensor features that holds nan"),
        (features[:1].clone(), scale, "it has features of 1 films, expected at least two"),
        (features, zero, "it has a scale that is not above zero"),
    ):
        tensors = {"features": other_features, "scale": other_scale}
        save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
        with pytest.raises(CxrlError) as told:
            load_judges(str(folder))
        assert str(told.value).startswith(f"{path} cannot be read ({words}")
    save_file(whole, path)
    load_judges(str(folder))


def test_a_judge_with_a_weight_that_is_no_number_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "judges"
    shutil.copytree(JUDGES, folder)
    path = folder / "diagnosis.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors["head.bias"][0] = torch.nan
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(CxrlError, match=r"diagnosis\.safetensors .*has a tensor head\.bias that holds nan"):
        load_judges(str(folder))


def test_what_the_summary_asks_for_is_there() -> None:
    names = ("findings", "reference", "posture", "classify", "image_embeds", "text_embeds", "features")
    judges = load_judges()
    assert isinstance(judges, Judges)
    assert all(hasattr(judges, name) for name in names)
