"""torchxrayvision's classifier: the same numbers as the library gives, for tensors of any size."""

from __future__ import annotations

import dataclasses
import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cxrl.errors import CxrlError
from cxrl.findings import CHEXPERT_FINDINGS
from cxrl.scorers.choice import ModelChoice, file_sha256
from cxrl.scorers.pickles import read_pickled_state
from cxrl.scorers.required import MissingFile
from cxrl.scorers.xrv_densenet import XrvClassifier, import_xrv, operating_point, put_weights, square
from cxrl.scorers.xrv_release import PSPNET, XRV_FILES, XRV_URL

CHEX = "densenet121-res224-chex"


def choice(path: Path, name: str = CHEX, **options: object) -> ModelChoice:
    made = ModelChoice(
        "rewards", "diagnosis", f"{name}:{path}", Path(), sha256=file_sha256(path), batch_size=3
    )
    return dataclasses.replace(made, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def classifier(densenet: Path) -> XrvClassifier:
    return XrvClassifier(choice(densenet).open(), "cpu")


def test_the_table_of_files_is_that_of_the_library() -> None:
    urls = import_xrv().models.model_urls
    names = {name for name in urls if name.startswith("densenet121-")}
    assert names == set(XRV_FILES) - {PSPNET}
    for name in names:
        assert urls[name]["weights_url"] == XRV_URL + XRV_FILES[name].file
    for known in XRV_FILES.values():
        assert len(known.sha256) in (0, 64)
    source = Path(import_xrv().baseline_models.chestx_det.__file__).read_text()
    assert XRV_URL + XRV_FILES[PSPNET].file in source


@pytest.mark.parametrize("name", [n for n in XRV_FILES if n != PSPNET])
def test_probabilities_are_the_library_s(name: str, densenet: Path) -> None:
    models = import_xrv().models
    found = XrvClassifier(choice(densenet, name).open(), "cpu")
    info = models.model_urls[name]
    network = models.DenseNet()
    network.load_state_dict(read_pickled_state(densenet, sha256=file_sha256(densenet), option="x"))
    network.op_threshs = torch.tensor(info["op_threshs"])
    network.eval()
    images = torch.rand(2, 1, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network((2.0 * images - 1.0) * 1024.0)
        features = network.features2((2.0 * images - 1.0) * 1024.0)
    slots = [i for i, label in enumerate(info["labels"]) if label]
    assert [f.replace("Pleural Effusion", "Effusion") for f in found.findings] == [
        info["labels"][i] for i in slots
    ]
    probability, validity = found.diagnose(images)
    torch.testing.assert_close(probability, expected[:, slots], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.features(images), features, rtol=1e-4, atol=1e-4)
    assert validity.shape == (2,)


def test_chexpert_and_mimic_weights_know_eleven_findings(classifier: XrvClassifier) -> None:
    assert len(classifier.findings) == 11
    assert set(classifier.findings) < set(CHEXPERT_FINDINGS)


def test_an_operating_point_becomes_one_half() -> None:
    points = torch.tensor([0.1, 0.5, 0.9])
    assert torch.allclose(operating_point(points[None], points), torch.full((1, 3), 0.5))
    p = torch.linspace(0, 1, 101)[:, None].expand(-1, 3)
    bent = operating_point(p, points)
    assert bool((bent.diff(dim=0) > 0).all())
    assert torch.allclose(bent[:, 1], p[:, 1], atol=1e-6)
    known = import_xrv().models.op_norm(p.clone(), points)
    torch.testing.assert_close(bent, known)


@pytest.mark.parametrize("shape", [(40, 64), (64, 41), (300, 300), (224, 224)])
def test_images_of_any_size_are_cropped_and_resized(shape: tuple[int, int]) -> None:
    images = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(1))
    found = square(images, 224)
    assert found.shape == (2, 1, 224, 224)
    crop = import_xrv().datasets.XRayCenterCrop()(images[0].numpy())
    if min(shape) == 224:
        assert torch.equal(found[0], torch.from_numpy(crop))
    resized = import_xrv().datasets.XRayResizer(224)(crop)
    # scikit-image smooths with a Gaussian before it shrinks, torch averages over the pixel's area.
    assert float((found[0, 0] - torch.from_numpy(resized[0])).abs().mean()) < (
        0.06 if min(shape) > 224 else 0.02
    )


def test_the_batch_size_does_not_matter(densenet: Path, classifier: XrvClassifier) -> None:
    images = torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(2))
    other = XrvClassifier(choice(densenet, batch_size=4).open(), "cpu")
    torch.testing.assert_close(
        other.diagnose(images)[0], classifier.diagnose(images)[0], rtol=1e-4, atol=1e-5
    )


def test_bfloat16_stays_near(densenet: Path, classifier: XrvClassifier) -> None:
    images = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(3))
    found = XrvClassifier(choice(densenet, dtype="bfloat16").open(), "cpu").diagnose(images)[0]
    assert found.dtype == torch.float32
    # A random network's logits are of the order of 1; bfloat16 has 8 bits and there are 121 layers.
    assert float((found - classifier.diagnose(images)[0]).abs().max()) < 0.1


def test_safetensors_need_no_digest(densenet: Path, classifier: XrvClassifier, tmp_path: Path) -> None:
    state = read_pickled_state(densenet, sha256=file_sha256(densenet), option="x")
    path = tmp_path / "d.safetensors"
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    images = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(4))
    found = XrvClassifier(choice(path, sha256="").open(), "cpu")
    assert torch.equal(found.diagnose(images)[0], classifier.diagnose(images)[0])
    with pytest.raises(CxrlError, match="has SHA-256"):
        XrvClassifier(choice(path, sha256="0" * 64).open(), "cpu")


def test_missing_weights_say_where_they_come_from(tmp_path: Path) -> None:
    made = ModelChoice("eval", "diagnosis", CHEX, Path(), cache=tmp_path / "cache")
    with pytest.raises(MissingFile) as caught:
        XrvClassifier(made.open(), "cpu")
    text, known = str(caught.value), XRV_FILES[CHEX]
    for part in (
        XRV_URL + known.file,
        f"{known.size:,} bytes",
        known.sha256,
        str(tmp_path / "cache"),
        "eval.diagn",
    ):
        assert part in text
    assert not (tmp_path / "cache").exists(), "nothing is downloaded or made"
    unknown = dataclasses.replace(made, value="densenet121-res224-nih")
    with pytest.raises(
        MissingFile, match=r"no SHA-256 is known: pin yours with --eval\.sha256 diagnosis=HEX"
    ):
        XrvClassifier(unknown.open(), "cpu")


def test_weights_are_found_in_the_cache(write_densenet: Callable[..., Path]) -> None:
    path = write_densenet(5, name=XRV_FILES[CHEX].file)
    made = ModelChoice("eval", "diagnosis", CHEX, Path(), cache=path.parent, sha256=file_sha256(path))
    assert len(XrvClassifier(made.open(), "cpu").findings) == 11
    with pytest.raises(CxrlError, match=f"expected {XRV_FILES[CHEX].sha256}"):
        XrvClassifier(dataclasses.replace(made, sha256="").open(), "cpu")


def test_another_network_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(CxrlError, match=r"other\.pt holds another network"):
        XrvClassifier(choice(tmp_path / "other.pt").open(), "cpu")


def test_a_damaged_tensor_is_named(densenet: Path, tmp_path: Path) -> None:
    state = read_pickled_state(densenet, sha256=file_sha256(densenet), option="x")
    path = tmp_path / "d.safetensors"
    made = ModelChoice("rewards", "diagnosis", f"{CHEX}:{path}", Path())
    with torch.device("meta"):
        network = import_xrv().models.DenseNet()
    floating = [name for name, tensor in state.items() if tensor.is_floating_point()]
    for name in (floating[0], floating[len(floating) // 2], floating[-1]):
        others = {n: t for n, t in state.items() if n != name}
        bad = {value: state[name].clone() for value in (torch.nan, torch.inf)}
        for value, tensor in bad.items():
            tensor.view(-1)[-1] = value
        for tensors, words in (
            (others, f"has no tensor {name}"),
            ({**others, f"other.{name}": state[name]}, f"has no tensor {name}, but one named other.{name}"),
            ({**state, f"other.{name}": state[name]}, f"has a tensor other.{name}, for which"),
            ({**state, name: torch.zeros(3, 5)}, f"has a tensor {name} of shape (3, 5), expected ("),
            ({**state, name: bad[torch.nan]}, f"has a tensor {name} that holds nan"),
            ({**state, name: bad[torch.inf]}, f"has a tensor {name} that holds inf"),
        ):
            with pytest.raises(CxrlError) as told:
                put_weights(network, tensors, made, torch.device("cpu"))
            start = f"rewards.diagnosis: {made.path} holds another network, or is damaged: it {words}"
            assert str(told.value).startswith(start)
    save_file(
        {name: t.contiguous() for name, t in {**state, floating[-1]: bad[torch.nan]}.items()}, made.path
    )
    with pytest.raises(CxrlError, match=f"it has a tensor {floating[-1]} that holds nan"):
        XrvClassifier(made.open(), "cpu")


def test_a_value_too_large_for_the_dtype_is_named(densenet: Path, tmp_path: Path) -> None:
    state = read_pickled_state(densenet, sha256=file_sha256(densenet), option="x")
    state["classifier.bias"] = torch.full_like(state["classifier.bias"], 1e6)
    made = choice(densenet, dtype="float16")
    with torch.device("meta"):
        network = import_xrv().models.DenseNet()
    with pytest.raises(CxrlError, match=r"classifier\.bias that holds inf in float16; see --rewards\.dtype"):
        put_weights(network, state, made, torch.device("cpu"))


def test_loading_draws_no_random_numbers_and_leaves_warnings_on(densenet: Path) -> None:
    before = torch.random.get_rng_state()
    XrvClassifier(choice(densenet).open(), "cpu")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert "torchxrayvision" in sys.modules
    with pytest.warns(UserWarning, match="heard"):
        warnings.warn("heard", stacklevel=1)


def test_scores_are_finite_for_any_image(classifier: XrvClassifier) -> None:
    images = torch.stack([torch.zeros(1, 16, 16), torch.ones(1, 16, 16), torch.rand(1, 16, 16)])
    probability, validity = classifier.diagnose(images)
    assert bool(torch.isfinite(probability).all())
    assert not math.isnan(float(validity.sum()))
