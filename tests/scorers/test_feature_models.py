"""Features of other models: those of the libraries they come from, and files that are something else."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from cxrl.errors import CxrlError
from cxrl.scorers import feature_models
from cxrl.scorers.choice import file_sha256
from cxrl.scorers.feature_models import (
    DenseNetFeatures,
    FeatureModel,
    InceptionFeatures,
    RadDinoFeatures,
    open_feature_models,
    parse_features,
)

RAD_DINO_PROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    **dict.fromkeys(("do_resize", "do_center_crop", "do_convert_rgb", "do_rescale", "do_normalize"), True),
    "crop_size": {"height": 56, "width": 56},
    "image_mean": [0.5307] * 3,
    "image_std": [0.2583] * 3,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 56},
}
"""Of microsoft/rad-dino, at 56 pixels instead of 518."""


def write_rad_dino(folder: Path, kind: str = "dinov2", **changed: int) -> Path:
    """A random model of one layer in the format of microsoft/rad-dino."""
    sizes = {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 1, "mlp_ratio": 1}
    config = transformers.Dinov2Config(**{**sizes, "image_size": 56, "patch_size": 14, **changed})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.Dinov2Model(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(RAD_DINO_PROCESSOR))
    if kind != "dinov2":
        whole = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**whole, "model_type": kind}))
    return folder


def inception_state(classes: int = 1008) -> dict[str, Tensor]:
    """Random, of a spread that leaves a film's signal alive through all layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = torchvision.models.inception_v3(num_classes=classes, aux_logits=False, init_weights=False)
        for name, value in made.named_parameters():
            if name.endswith("conv.weight"):
                torch.nn.init.kaiming_normal_(value)
    return made.state_dict()


@pytest.fixture(scope="module")
def rad_dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rad_dino(tmp_path_factory.mktemp("models") / "rad-dino")


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights with the names and shapes of the FID's, in the format of its time."""
    path = tmp_path_factory.mktemp("models") / "inception.pth"
    torch.save(inception_state(), path, _use_new_zipfile_serialization=False)
    return path


def film(height: int, width: int, seed: int = 0) -> Tensor:
    """A smooth 8-bit film, float32 [1, H, W]."""
    coarse = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return (smooth[0] * 255).round() / 255


def picture(film: Tensor) -> Image.Image:
    return Image.fromarray((film[0] * 255).round().to(torch.uint8).numpy())


def features_of(model: FeatureModel, films: list[Tensor]) -> Tensor:
    return model.features(torch.stack([model.prepare(one) for one in films]))


def check_equal(found: Tensor, expected: Tensor) -> None:
    """Of two films: equal to a thousandth of what is between them."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3 * float((found[0] - found[1]).std()))


@pytest.mark.parametrize("shape", [(200, 160), (56, 56), (20, 31)])
def test_rad_dino_is_what_transformers_computes(rad_dino: Path, shape: tuple[int, int]) -> None:
    model = RadDinoFeatures(rad_dino)
    films = [film(*shape), film(*shape, seed=1)]
    processor = transformers.AutoImageProcessor.from_pretrained(rad_dino)
    given = processor(images=[picture(one).convert("RGB") for one in films], return_tensors="pt")
    with torch.no_grad():
        expected = transformers.Dinov2Model.from_pretrained(rad_dino)(**given).pooler_output
    found = features_of(model, films)
    assert found.shape == (2, model.num_features) == (2, 768)
    check_equal(found, expected)
    assert model.description == "RAD-DINO rad-dino, class token, 768 wide, 56 px"


def test_rad_dino_uses_the_folder_s_own_mean_and_spread(rad_dino: Path, tmp_path: Path) -> None:
    other = shutil.copytree(rad_dino, tmp_path / "other")
    changed = {**RAD_DINO_PROCESSOR, "image_mean": [0.0] * 3, "image_std": [0.5] * 3}
    (other / "preprocessor_config.json").write_text(json.dumps(changed))
    model = RadDinoFeatures(other)
    grey = torch.full((1, 70, 70), 128 / 255)
    assert float(model.prepare(grey).mean()) == pytest.approx(2 * 128 / 255, abs=1e-6)
    assert model.digest != RadDinoFeatures(rad_dino).digest


def test_inception_is_what_torch_fidelity_computes(inception: Path) -> None:
    from torch_fidelity import FeatureExtractorInceptionV3

    model = InceptionFeatures(inception, file_sha256(inception))
    theirs = FeatureExtractorInceptionV3("i", ["2048"], feature_extractor_weights_path=str(inception))
    films = [film(299, 299), film(299, 299, seed=1)]
    pixels = torch.stack([(one * 255).round().to(torch.uint8).expand(3, -1, -1) for one in films])
    found = features_of(model, films)
    assert found.shape == (2, model.num_features) == (2, 2048)
    check_equal(found, theirs(pixels)[0])
    assert model.prepare(film(400, 700)).shape == (1, 299, 299)


def test_densenet_is_what_torchxrayvision_computes(densenet: Path) -> None:
    from cxrl.scorers.xrv_densenet import import_xrv, read_state

    xrv = import_xrv()
    model = DenseNetFeatures(densenet, file_sha256(densenet))
    theirs = xrv.models.DenseNet().eval()
    opened = type("Opened", (), {"path": densenet, "sha256": file_sha256(densenet), "option": "o"})()
    theirs.load_state_dict(read_state(opened))
    films = [film(224, 224), film(224, 224, seed=1)]
    pixels = torch.stack([torch.from_numpy(xrv.utils.normalize((one * 255).numpy(), 255)) for one in films])
    with torch.no_grad():
        expected = theirs.features2(pixels)
    found = features_of(model, films)
    assert found.shape == (2, model.num_features) == (2, 1024)
    check_equal(found, expected)


def test_a_known_file_needs_no_pin_and_is_named(densenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = feature_models.XRV_FILES
    known = type(files["densenet121-res224-chex"])("f", None, file_sha256(densenet))
    monkeypatch.setitem(files, "densenet121-res224-chex", known)
    assert "densenet121-res224-chex" in DenseNetFeatures(densenet).description


def test_models_are_in_the_order_of_their_names(rad_dino: Path, densenet: Path) -> None:
    asked = parse_features((f"rad-dino={rad_dino}", "judge", f"densenet={densenet}"))
    opened = open_feature_models(asked, {"densenet": file_sha256(densenet)})
    assert list(opened) == ["rad-dino", "densenet"]
    assert [model.name for model in opened.values()] == list(opened)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (["rad-dinno=x"], "'rad-dinno' is no feature model.*rad-dino"),
        (["rad-dino"], "rad-dino needs a path, rad-dino=PATH"),
        (["rad-dino="], "rad-dino needs a path"),
        (["judge=x"], "judge takes no path"),
        (["densenet=a", "densenet=b"], "densenet is named twice"),
    ],
)
def test_names_that_mean_nothing_are_refused(entries: list[str], words: str) -> None:
    with pytest.raises(CxrlError, match=f"^--features: {words}"):
        parse_features(entries)


def refused(model: Callable[..., object], *args: object) -> str:
    with pytest.raises(CxrlError) as caught:
        model(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    for model, expected in (
        (DenseNetFeatures, "DenseNet-121"),
        (InceptionFeatures, "1008 classes"),
        (RadDinoFeatures, "folder of microsoft/rad-dino"),
    ):
        for path in (tmp_path / "absent", tmp_path):
            told = refused(model, path)
            assert str(path) in told
            assert expected in told


def test_another_model_in_the_place_of_rad_dino_is_refused(rad_dino: Path, tmp_path: Path) -> None:
    small = write_rad_dino(tmp_path / "small", hidden_size=48)
    assert "its hidden_size is 48; expected a folder of microsoft/rad-dino" in refused(RadDinoFeatures, small)
    other = write_rad_dino(tmp_path / "other", kind="vit")
    assert "its model_type is 'vit'" in refused(RadDinoFeatures, other)
    lacking = shutil.copytree(rad_dino, tmp_path / "lacking")
    state = load_file(lacking / "model.safetensors")
    name = next(iter(state))
    save_file({key: value for key, value in state.items() if key != name}, lacking / "model.safetensors")
    assert name in refused(RadDinoFeatures, lacking)
    (lacking / "preprocessor_config.json").write_text("{}")
    (lacking / "model.safetensors").write_bytes((rad_dino / "model.safetensors").read_bytes())
    assert "preprocessor_config.json has no size" in refused(RadDinoFeatures, lacking)
    (lacking / "config.json").write_text("no JSON")
    assert str(lacking) in refused(RadDinoFeatures, lacking)


def test_an_unknown_pickle_is_not_read_until_it_is_pinned(inception: Path, densenet: Path) -> None:
    for model, path in ((InceptionFeatures, inception), (DenseNetFeatures, densenet)):
        told = refused(model, path)
        assert f"--sha256 {model.name}={file_sha256(path)}" in told
        assert "expected 00" in refused(model, path, "00" * 32)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Call:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("ran",)

    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps(Call()))
    for model in (InceptionFeatures, DenseNetFeatures):
        assert "without running code" in refused(model, path, file_sha256(path))


def test_another_network_in_the_place_of_inception_is_refused(tmp_path: Path, densenet: Path) -> None:
    path = tmp_path / "imagenet.safetensors"
    save_file(inception_state(1000), path)
    assert "1000 classes, expected the Inception-v3 weights of the FID" in refused(InceptionFeatures, path)
    state = inception_state()
    name = "Mixed_7c.branch_pool.conv.weight"
    save_file(state | {name: state[name][:, :-1].contiguous()}, path)
    assert name in refused(InceptionFeatures, path)
    save_file(state | {name: torch.full_like(state[name], torch.nan)}, path)
    assert name in refused(InceptionFeatures, path)
    assert "0 classes" in refused(InceptionFeatures, densenet, file_sha256(densenet))
    save_file(state, path)
    told = refused(DenseNetFeatures, path)
    assert str(path) in told
    assert "expected the weights of torchxrayvision's DenseNet-121" in told


def test_without_torch_fidelity_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, inception: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    assert "pip install 'cxrl[inception]'" in refused(InceptionFeatures, inception)
