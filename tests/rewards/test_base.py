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
    base.register_reward("mine")(lambda path, device: Given(torch.zeros(1)))
    assert base.own_rewards(["posture", "mine", "diagnosis"]) == ["mine"]


@pytest.mark.parametrize("name", [*base.BUILT_IN])
def test_a_reward_that_ships_is_not_replaced(registry: dict[str, base.Factory], name: str) -> None:
    before = dict(registry)
    with pytest.raises(CxrlError, match=f"register_reward: {name} is a reward that ships; choose another"):
        register_reward(name)(Wild)
    assert registry == before


@pytest.mark.parametrize("name", [5, None, "", "a b/..", "a,b", "1st", "é", "a" * 61, "a\n", True, Given])
def test_what_is_no_name_is_refused(registry: dict[str, base.Factory], name: object) -> None:
    with pytest.raises(CxrlError, match=r"register_reward: .* is no name; expected letters"):
        register_reward(name)  # type: ignore[arg-type]


def test_what_cannot_score_is_refused_where_it_enters(registry: dict[str, base.Factory]) -> None:
    class Silent:
        pass

    class Valued:
        score = 3

    for thing in (Silent, Valued, 5, None):
        with pytest.raises(CxrlError, match=r"register_reward: .* for 'mine' has no score\(images, batch\)"):
            register_reward("mine")(thing)  # type: ignore[type-var]
    assert "mine" not in registry
    for made in (5, None, Given, Silent()):
        register_reward("mine")(lambda path, device, made=made: made)
        with pytest.raises(CxrlError, match=r"reward 'mine' is .*, expected an object with score"):
            build_rewards(("mine",), "phantom")


def test_a_reward_that_raises_is_named(registry: dict[str, base.Factory]) -> None:
    class Broken:
        name = "mine"

        def score(self, images: Tensor, batch: PromptBatch) -> Tensor:
            raise KeyError("weights")

    with pytest.raises(CxrlError, match="reward 'mine' raised KeyError: 'weights'"):
        score_all({"mine": Broken()}, IMAGES, BATCH)
    register_reward("mine")(Broken)  # its __init__ takes nothing
    with pytest.raises(CxrlError, match=r"reward 'mine': Broken\(path, device\) raised TypeError: "):
        build_rewards(("mine",), "phantom")


def test_what_is_out_of_memory_says_so(registry: dict[str, base.Factory]) -> None:
    class Big:
        name = "big"

        def score(self, images: Tensor, batch: PromptBatch) -> Tensor:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    with pytest.raises(RuntimeError, match="out of memory"):
        score_all({"big": Big()}, IMAGES, BATCH)


class Wild:
    """Changes whatever it can reach."""

    name = "wild"

    def score(self, images: Tensor, batch: PromptBatch) -> Tensor:
        images.data.zero_()
        images.numpy()[:] = 7.0
        batch.prompt_of.zero_()
        batch.labels.zero_()
        return images.mean((1, 2, 3))


class Reused:
    """Returns one tensor, again and again."""

    name = "reused"
    given = torch.zeros(3)

    def score(self, images: Tensor, batch: PromptBatch) -> Tensor:
        self.given += 1.0
        return self.given


def test_a_reward_changes_its_own_copy_only() -> None:
    images = IMAGES.clone()
    batch = PromptBatch(PROMPTS, BATCH.prompt_of.clone())
    seen: list[Tensor] = []

    class Looks:
        name = "looks"

        def score(self, images: Tensor, batch: PromptBatch) -> Tensor:
            seen.extend((images, batch.prompt_of, batch.labels))
            return images.mean((1, 2, 3))

    reused = Reused()
    _, values = score_all({"wild": Wild(), "looks": Looks(), "one": reused, "other": reused}, images, batch)
    assert torch.equal(images, IMAGES)
    assert torch.equal(batch.prompt_of, BATCH.prompt_of)
    assert torch.equal(seen[0], IMAGES)
    assert torch.equal(seen[1], BATCH.prompt_of)
    assert torch.equal(seen[2], BATCH.labels)
    assert values[:, 0].tolist() == [7.0] * 3
    assert values[:, 2:].tolist() == [[1.0, 2.0]] * 3


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
