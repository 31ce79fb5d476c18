"""Drawing by hand: the same noise for both sides, scores by both kinds of models, files that are marked."""

from __future__ import annotations

import dataclasses
import math
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
import torch
from PIL import Image

from cxrl.demo import main
from cxrl.errors import CxrlError
from cxrl.images.png import SYNTHETIC
from cxrl.models.policy import Policy
from cxrl.output.playground import Playground, Wish
from cxrl.rl.reopen import take_weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def playground(smoke_run: Path) -> Playground:
    return Playground(smoke_run)


@pytest.fixture
def wish(playground: Playground) -> Callable[..., Wish]:
    return lambda **changes: dataclasses.replace(playground.default(), **changes)


def test_three_sides_of_a_listed_report(playground: Playground, wish: Callable[..., Wish]) -> None:
    shown = playground.draw(wish(num_images=2, seed=5))
    assert [(one.side, one.seed) for one in shown] == [
        *(("anchor", 5), ("anchor", 6), ("policy", 5), ("policy", 6), ("real", 0), ("real", 1))
    ]
    for one in shown:
        assert one.image.shape == (1, 64, 64)
        assert set(one.judged) == set(one.rewarded) == {"posture", "diagnosis", "consistency"}
        assert all(math.isfinite(v) for v in (*one.judged.values(), *one.rewarded.values()))
    alone = playground.draw(wish(seed=6))
    assert torch.allclose(alone[0].image, shown[1].image, atol=1e-4), "an image depends on its seed alone"
    assert not torch.equal(shown[0].image, shown[2].image), "the policy has learned"
    assert float((shown[0].image - shown[2].image).abs().mean()) < 0.1, "from the same noise"


def test_a_report_of_ones_own_has_no_diagnosis(playground: Playground, wish: Callable[..., Wish]) -> None:
    anchor, policy = playground.draw(wish(report="Small left pleural effusion, my own words."))
    assert (anchor.side, policy.side) == ("anchor", "policy")
    for one in (anchor, policy):
        assert math.isnan(one.judged["diagnosis"])
        assert math.isnan(one.rewarded["diagnosis"])
        assert math.isfinite(one.rewarded["consistency"])


def test_without_ace_and_with_other_steps(playground: Playground, wish: Callable[..., Wish]) -> None:
    with_ace, without = (playground.draw(wish(ace=ace)) for ace in (True, False))
    assert torch.equal(with_ace[0].image, without[0].image), "the anchor never has it"
    assert not torch.equal(with_ace[1].image, without[1].image)
    assert playground.note(wish()) == ""
    assert playground.note(wish(ace=False, num_steps=5)) == (
        "Not as it was trained: steps 5 (trained with 3), without ACE."
    )
    other = playground.draw(wish(num_steps=5, guidance_scale=1.0))
    assert not torch.equal(other[0].image, with_ace[0].image)


def test_weights_of_an_earlier_epoch(playground: Playground, wish: Callable[..., Wish]) -> None:
    names = list(playground.weights)
    assert names == ["result, epoch 2", "checkpoint, epoch 2", "checkpoint, epoch 1"]
    result, last, first = (playground.draw(wish(weights=name))[1].image for name in names)
    assert torch.equal(result, last)
    assert not torch.equal(result, first)
    assert torch.equal(playground.draw(wish())[1].image, result), "and back"
    with pytest.raises(CxrlError, match="there are no weights 'x'; expected one of result, epoch 2"):
        playground.draw(wish(weights="x"))


def test_weights_of_another_base_are_refused(playground: Playground, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a run that was made anew under an open page."""
    monkeypatch.setattr(playground.policy, "fingerprint", {**playground.policy.fingerprint, "unet": "0" * 64})
    for folder in playground.weights.values():
        with pytest.raises(CxrlError, match="unet"):
            take_weights(playground.policy, folder)


def test_what_cannot_be_drawn_is_told(playground: Playground, wish: Callable[..., Wish]) -> None:
    for changes, words in (
        ({"report": "  "}, "the prompt is empty"),
        ({"report": "long " * 500}, "tokens, the text encoder reads"),
        ({"num_images": 5}, "expected 1 to 4"),
        ({"num_steps": 0}, "sampler.num_steps"),
    ):
        with pytest.raises(CxrlError, match=words):
            playground.draw(wish(**changes))
    playground.draw(wish())


def test_files_say_that_they_are_synthetic(
    playground: Playground, wish: Callable[..., Wish], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = wish(seed=3)
    shown = playground.draw(asked)[:2]
    png = playground.save(shown, asked, tmp_path)
    assert [path.name for path in png] == ["anchor-000003.png", "policy-000003.png"]
    with Image.open(png[0]) as image:
        assert image.text["Synthetic"] == SYNTHETIC  # type: ignore[attr-defined]
        assert image.text["Prompt"] == asked.report  # type: ignore[attr-defined]
        assert image.text["Weights"] == asked.weights  # type: ignore[attr-defined]
        assert "Note" not in image.text  # type: ignore[attr-defined]
    (other,) = playground.save(shown[:1], wish(ace=False), tmp_path)
    with Image.open(other) as image:
        assert image.text["Note"] == "Not as it was trained: without ACE."  # type: ignore[attr-defined]
    dicom = pydicom.dcmread(playground.save(shown, asked, tmp_path, dicom=True)[1])
    assert dicom.SyntheticData == "YES"
    monkeypatch.setattr(playground, "restricted", True)
    (tmp_path / "restricted").mkdir()
    (path,) = playground.save(shown[:1], asked, tmp_path / "restricted")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with Image.open(path) as image:
        assert "Prompt" not in image.text  # type: ignore[attr-defined]


def test_without_a_run_it_says_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([]) == 2
    assert "cxrl train makes it" in capsys.readouterr().err
    assert main(["--run", "elsewhere"]) == 2
    assert "elsewhere is not a run" in capsys.readouterr().err


def test_without_gradio_it_says_how_to_get_it(
    smoke_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["--run", str(smoke_run)]) == 2
    assert "pip install 'cxrl[demo]'" in capsys.readouterr().err


def test_without_ace_is_the_policy_without_its_tokens(playground: Playground) -> None:
    policy: Policy = playground.policy
    base = policy.base
    x = torch.randn(1, *base.latent_shape)
    inputs: tuple[Any, ...] = (x, torch.tensor([500]), base.encode_text(["left effusion"]))
    with torch.no_grad():
        full = policy.predict(*inputs)[0]
        with policy.without_ace():
            off = policy.predict(*inputs)[0]
            anchor = policy.predict(*inputs, anchor=True)[0]
        assert not torch.equal(full, off)
        assert torch.equal(policy.predict(*inputs, anchor=True)[0], anchor)
        assert torch.equal(policy.predict(*inputs)[0], full)
