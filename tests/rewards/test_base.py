"""The registry, and the one place where scores are checked."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cxrl import register_reward
from cxrl.data.prompts import PromptBatch, ReportPrompt
from cxrl.errors import CxrlError
from cxrl.rewards import base
from cxrl.rewards.base import Reward, build_rewards, score_all
from cxrl.shipped import REWARDS

PROMPTS = (ReportPrompt(0, "Normal.", (1.0,)), ReportPrompt(1, "Large effusion.", (0.0,)))
BATCH = PromptBatch(PROMPTS, torch.tensor([0, 0, 1]))
IMAGES = torch.tensor([0.1, 0.2, 0.4]).view(3, 1, 1, 1).expand(3, 1, 4, 4)


class Given:
    """A reward that returns what it was made with."""

    name = "given"

    def __init__(self, score: object) -> None:
        self._score = score

    def score(self, images: Tensor, batch: PromptBatch) -> Tensor:
        return self._score  # type: ignore[return-value]


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, base.Factory]:
    """A copy of the registry, so that what a test registers is gone after it."""
    build_rewards((), "phantom")  # registers the built-in ones
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    return base._REGISTRY


def test_a_registered_reward_is_built_with_folder_and_device(
    registry: dict[str, base.Factory], tmp_path: Path
) -> None:
    @register_reward("mean")
    class Mean:
        name = "mean"

        def __init__(self, path: Path, device: torch.device) -> None:
            self.path, self.device = path, device

        def score(self, images: Tensor, batch: PromptBatch) -> Tensor:
            return images.mean((1, 2, 3))

    built = build_rewards(("mean",), str(tmp_path), "cpu")
    reward = built["mean"]
    assert isinstance(reward, Mean)
    assert isinstance(reward, Reward)
    assert (reward.path, reward.device) == (tmp_path, torch.device("cpu"))
    names, values = score_all(built, IMAGES, BATCH)
    assert names == ("mean",)
    assert torch.allclose(values, torch.tensor([[0.1], [0.2], [0.4]]))


def test_the_three_of_the_paper_are_known(registry: dict[str, base.Factory]) -> None:
    assert set(base.BUILT_IN) <= set(registry)


def test_which_rewards_are_the_user_s_own(registry: dict[str, base.Factory]) -> None:
    assert base.own_rewards(["posture", "diagnosis", "consistency"]) == []
    for name in ("mine", "posture"):
        base.register_reward(name)(lambda path, device: Given(torch.zeros(1)))
    assert base.own_rewards(["posture", "mine", "diagnosis"]) == ["posture", "mine"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [("postur", "did you mean posture?"), ("qqq", "known: consistency, diagnosis, posture")],
)
def test_an_unknown_reward_gets_the_nearest_name(
    registry: dict[str, base.Factory], name: str, hint: str
) -> None:
    with pytest.raises(CxrlError) as error:
        build_rewards((name,), "phantom")
    assert f"rewards.names: unknown reward {name!r}" in str(error.value)
    assert hint in str(error.value)


@pytest.mark.parametrize("name", base.BUILT_IN)
def test_missing_weights_are_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(CxrlError, match=rf"missing .*{name}\.safetensors \(`cxrl pretrain"):
        build_rewards((name,), str(tmp_path))


@pytest.mark.parametrize("name", base.BUILT_IN)
@pytest.mark.parametrize("keep", [0, 0.5, 0.999])
def test_truncated_weights_are_named(name: str, keep: float, tmp_path: Path) -> None:
    data = (REWARDS / f"{name}.safetensors").read_bytes()
    (tmp_path / f"{name}.safetensors").write_bytes(data[: int(keep * len(data))])
    with pytest.raises(CxrlError, match=rf"{name}\.safetensors cannot be read .* install the package again"):
        build_rewards((name,), str(tmp_path))


def test_columns_follow_the_order_of_the_rewards() -> None:
    one, two = Given(torch.tensor([1.0, 2.0, 3.0])), Given(torch.tensor([4.0, 5.0, 6.0], dtype=torch.float64))
    names, values = score_all({"b": two, "a": one}, IMAGES, BATCH)
    assert names == ("b", "a")
    assert values.dtype == torch.float32
    assert values.tolist() == [[4.0, 1.0], [5.0, 2.0], [6.0, 3.0]]


def test_scores_carry_no_gradient() -> None:
    weight = torch.ones(3, requires_grad=True)
    assert not score_all({"a": Given(weight * 2)}, IMAGES, BATCH)[1].requires_grad


@pytest.mark.parametrize(
    ("score", "got"),
    [
        (torch.zeros(2), "(2,)"),
        (torch.zeros(3, 1), "(3, 1)"),
        (torch.tensor(0.0), "()"),
        ([0.0, 0.0, 0.0], "list"),
        (None, "NoneType"),
    ],
)
def test_a_wrong_shape_names_the_reward(score: object, got: str) -> None:
    with pytest.raises(CxrlError) as error:
        score_all({"fine": Given(torch.zeros(3)), "odd": Given(score)}, IMAGES, BATCH)
    assert f"reward 'odd' returned {got}, expected a tensor of shape (3,)" in str(error.value)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_names_reward_and_sample(bad: float) -> None:
    score = torch.tensor([0.0, 1.0, bad])
    with pytest.raises(CxrlError) as error:
        score_all({"fine": Given(torch.zeros(3)), "odd": Given(score)}, IMAGES, BATCH)
    assert f"reward 'odd' is {bad} for sample 2 of 3 (prompt 1)" in str(error.value)
