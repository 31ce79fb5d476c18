"""torchxrayvision's PSPNet, its real class with random weights in its real file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from cxrl.data.phantom.films import corpus
from cxrl.data.prompts import PromptBatch, ReportPrompt
from cxrl.errors import CxrlError
from cxrl.rewards.posture import NOT_A_FILM, PostureReward
from cxrl.scorers.choice import ModelChoice, file_sha256
from cxrl.scorers.posture_geometry import STRUCTURES
from cxrl.scorers.required import MissingFile
from cxrl.scorers.validity import film_validity
from cxrl.scorers.xrv_densenet import import_xrv
from cxrl.scorers.xrv_pspnet import AnatomicalPosture
from cxrl.scorers.xrv_release import PSPNET, XRV_FILES


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random state in the file of the release: a data-parallel state dict. Every tensor is
    one number, expanded, so that the file is small.
    """
    import_xrv()
    from torchxrayvision.baseline_models.chestx_det.ptsemseg.pspnet import pspnet

    folder = tmp_path_factory.mktemp("cache")
    with torch.device("meta"):
        network = pspnet(len(STRUCTURES))
    rng = torch.Generator().manual_seed(0)
    state = {
        f"module.{name}": torch.rand((), generator=rng).to(value.dtype).expand(value.shape)
        for name, value in network.state_dict().items()
    }
    torch.save(state, folder / XRV_FILES[PSPNET].file)
    return folder


@pytest.fixture(scope="module")
def choice(cache: Path) -> ModelChoice:
    digest = file_sha256(cache / XRV_FILES[PSPNET].file)
    return ModelChoice("rewards", "posture", PSPNET, Path(), cache=cache, sha256=digest, batch_size=1)


def test_a_damaged_tensor_is_named(cache: Path, choice: ModelChoice, tmp_path: Path) -> None:
    path = tmp_path / XRV_FILES[PSPNET].file
    state = torch.load(cache / XRV_FILES[PSPNET].file, weights_only=True)
    name = "classification.weight"
    bad = torch.tensor(torch.nan).expand(state[f"module.{name}"].shape)
    without = {n: t for n, t in state.items() if n != f"module.{name}"}
    for tensors, words in (
        (without, f"has no tensor {name}"),
        ({**state, f"module.{name}": bad}, f"has a tensor {name} that holds nan"),
    ):
        torch.save(tensors, path)
        made = dataclasses.replace(choice, cache=tmp_path, sha256=file_sha256(path))
        with pytest.raises(CxrlError, match=f"^rewards.posture: .* it {words}"):
            AnatomicalPosture(made.open(), "cpu")


def test_the_structures_are_the_library_s() -> None:
    assert list(STRUCTURES) == import_xrv().baseline_models.chestx_det.PSPNet.targets


class Recorder(torch.nn.Module):
    """In the network's place: keeps its input and returns given logits."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits, self.inputs = logits, torch.empty(0)
        self.classification = torch.nn.Conv2d(1, 1, 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.inputs = pixels
        return self.logits.expand(len(pixels), *self.logits.shape[1:])


@pytest.mark.parametrize("shape", [(512, 512), (64, 64)])
def test_weights_and_input_are_those_of_the_library(
    choice: ModelChoice, cache: Path, shape: tuple[int, int]
) -> None:
    model = AnatomicalPosture(choice.open(), "cpu")
    library = import_xrv().baseline_models.chestx_det.PSPNet(cache_dir=str(cache))
    expected = library.model.state_dict()
    found = model._network.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert not model._network.training
    given, logits = Recorder(torch.zeros(1, 14, 8, 8)), torch.randn(1, 14, 8, 8)
    library.model, model._network = given, Recorder(logits)
    image = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(0))
    library((2.0 * image - 1.0) * 1024.0)
    assert torch.equal(model.masks(image), logits.sigmoid().expand(2, -1, -1, -1))
    torch.testing.assert_close(model._network.inputs, given.inputs, rtol=1e-4, atol=1e-4)


def test_only_a_film_with_lungs_scores(choice: ModelChoice) -> None:
    reward = PostureReward(Path(), torch.device("cpu"), choice)
    film = corpus(8, seed=8102).pixels()
    film = film[film_validity(film) == 1.0][:1]
    images = torch.cat([film, torch.full_like(film, 0.5), 1.0 - film])
    batch = PromptBatch((ReportPrompt(0, "Normal.", ()),), torch.zeros(3, dtype=torch.int64))
    lungs = torch.full((1, 14, 100, 100), -9.0)
    lungs[:, 5, 10:90, 7:47], lungs[:, 4, 10:90, 53:93] = 9.0, 9.0
    reward.model._network = Recorder(lungs)  # type: ignore[attr-defined]
    score = reward.score(images, batch)
    assert float(score[0]) > -0.1
    assert bool((score[1:] <= -NOT_A_FILM).all())
    reward.model._network = Recorder(torch.full((1, 14, 100, 100), -9.0))  # type: ignore[attr-defined]
    assert torch.equal(reward.score(images, batch), torch.full((3,), -NOT_A_FILM))


def test_missing_weights_and_wrong_digests_are_named(choice: ModelChoice, tmp_path: Path) -> None:
    with pytest.raises(
        MissingFile,
        match=r"missing the weights pspnet of torchxrayvision: .*pspnet_chestxray_best_model_4\.pth",
    ):
        AnatomicalPosture(ModelChoice("eval", "posture", PSPNET, Path(), cache=tmp_path).open(), "cpu")
    with pytest.raises(CxrlError, match=rf"expected {XRV_FILES[PSPNET].sha256}"):
        AnatomicalPosture(ModelChoice("eval", "posture", PSPNET, Path(), cache=choice.cache).open(), "cpu")
