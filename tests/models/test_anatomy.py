"""torchxrayvision's PSPNet, its real class with random weights in its real file."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from cxrl.data.prompts import PromptBatch, ReportPrompt
from cxrl.errors import CxrlError
from cxrl.models.anatomy import AnatomicalPosture
from cxrl.models.posture_geometry import STRUCTURES
from cxrl.models.weights import PSPNET, XRV_FILES, MissingFile, ModelChoice, file_sha256
from cxrl.models.xrv import import_xrv
from cxrl.rewards.posture import NOT_A_FILM, PostureReward


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random state in the file of the release: a data-parallel state dict."""
    import_xrv()
    from torchxrayvision.baseline_models.chestx_det.ptsemseg.pspnet import pspnet

    folder = tmp_path_factory.mktemp("cache")
    with torch.device("meta"):
        network = pspnet(len(STRUCTURES))
    rng = torch.Generator().manual_seed(0)
    state = {}
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            drawn = 0.02 * torch.randn(value.shape, generator=rng)
            state[f"module.{name}"] = drawn.abs() + 1.0 if name.endswith("running_var") else drawn
        else:
            state[f"module.{name}"] = torch.zeros(value.shape, dtype=value.dtype)
    torch.save(state, folder / XRV_FILES[PSPNET].file)
    return folder


@pytest.fixture(scope="module")
def choice(cache: Path) -> ModelChoice:
    digest = file_sha256(cache / XRV_FILES[PSPNET].file)
    return ModelChoice("rewards", "posture", PSPNET, Path(), cache=cache, sha256=digest, batch_size=1)


def test_the_structures_are_the_library_s() -> None:
    assert list(STRUCTURES) == import_xrv().baseline_models.chestx_det.PSPNet.targets


def test_masks_are_the_library_s_and_no_lungs_score_the_minimum(choice: ModelChoice, cache: Path) -> None:
    model = AnatomicalPosture(choice, "cpu")
    image = torch.rand(1, 1, 512, 512, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        library = import_xrv().baseline_models.chestx_det.PSPNet(cache_dir=str(cache))
        expected = library((2.0 * image - 1.0) * 1024.0)
        found = model.masks(image)
    torch.testing.assert_close(found.logit(), expected, rtol=1e-3, atol=1e-4)
    reward = PostureReward(Path(), torch.device("cpu"), choice)
    batch = PromptBatch((ReportPrompt(0, "Normal.", ()),), torch.zeros(1, dtype=torch.int64))
    assert float(reward.score(torch.full((1, 1, 64, 64), 0.5), batch)) == -NOT_A_FILM


def test_missing_weights_and_wrong_digests_are_named(choice: ModelChoice, tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"pspnet_chestxray_best_model_4\.pth is missing"):
        AnatomicalPosture(ModelChoice("eval", "posture", PSPNET, Path(), cache=tmp_path), "cpu")
    with pytest.raises(CxrlError, match=rf"expected {XRV_FILES[PSPNET].sha256}"):
        AnatomicalPosture(ModelChoice("eval", "posture", PSPNET, Path(), cache=choice.cache), "cpu")
