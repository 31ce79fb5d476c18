"""A base with the shapes of Stable Diffusion 1.5 trains on a CPU within 12 GiB; benchmarks/full_size.py."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "full_size.py"


def benchmark() -> Any:
    spec = importlib.util.spec_from_file_location("full_size", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(result: dict[str, Any]) -> None:
    build, train = result["build"], result["train"]
    # Of Stable Diffusion 1.5: 859,520,964 in the UNet, 83,653,863 and 123,060,480 in the others.
    assert build["weights"] == {"unet": 859520964, "vae": 83653863, "text_encoder": 123060480}
    assert train["image_shape"] == [2, 1, 512, 512]
    assert train["images_are_finite"]
    assert train["optimizer_steps"] == 2
    assert train["ratio_max_dev"] <= 1e-5
    assert train["share_of_weights_moved"] == 1.0
    assert max(build["peak_gib"], train["peak_gib"]) <= 12.0


@pytest.mark.full_size
@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_two_steps_at_512_pixels() -> None:
    check(benchmark().measure())


def test_the_committed_numbers_are_those_of_a_run_that_passes() -> None:
    check(json.loads(benchmark().RESULT.read_text()))
