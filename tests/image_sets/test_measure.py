"""The numbers, against independent implementations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prdc import compute_prdc
from scipy.linalg import sqrtm
from sklearn.metrics import roc_auc_score

from cxrl.image_sets.measure import DISTANCES, KEYS, measure
from cxrl.image_sets.scan import Scanned, scan
from cxrl.image_sets.sets import ImageSet, open_set
from cxrl.metrics.classification import ranked_auroc


def made(number: int, seed: int, *, prompts: int | None = None, labels: bool = True) -> Scanned:
    generator = np.random.default_rng(seed)
    paths = tuple(Path(f"{n}.png") for n in range(number))
    known = {"Edema": (1.0, 0.0) * (number // 2)} if labels else {}
    return Scanned(
        source=ImageSet("made", paths, ("",) * number, ("",) * number, known),
        rows=np.arange(number),
        paths=paths,
        features={"f": generator.normal(size=(number, 8)).astype(np.float32) + 0.1 * seed},
        thumbnails=generator.integers(0, 256, (number, 64, 64), dtype=np.uint8),
        labels=np.array([[1.0], [0.0]] * (number // 2), dtype=np.float32),
        findings=("Edema",),
        prompt_of=np.arange(number) if prompts is None else np.arange(number) % prompts,
        psi=generator.normal(size=(number, 5)).astype(np.float32),
        probability=generator.uniform(size=(number, 1)).astype(np.float32).round(1),
        consistency=np.full(number, np.nan, dtype=np.float32),
        digests=np.arange(number),
        unreadable={},
        sizes={},
        num_colour=0,
    )


def numbers(a: Scanned, b: Scanned | None, bootstrap: int = 20) -> dict[str, Any]:
    return measure(a, np.arange(len(a)), b, np.arange(len(b or ())), seed=0, bootstrap=bootstrap)


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    cov_x, cov_y = np.cov(x.T), np.cov(y.T)
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cov_x + cov_y - 2 * sqrtm(cov_x @ cov_y).real)


def test_frechet_distance_is_that_of_the_formula() -> None:
    a, b = made(60, 1), made(80, 2)
    x, y = (s.features["f"].astype(np.float64) for s in (a, b))
    assert numbers(a, b)["values"]["fid"] == pytest.approx(frechet(x, y), rel=1e-5)


def test_neighbours_are_those_of_the_package() -> None:
    a, b = made(60, 1), made(60, 2)
    expected = compute_prdc(b.features["f"].astype(float), a.features["f"].astype(float), nearest_k=5)
    found = numbers(a, b)
    assert found["prdc_images"] == 60
    for key, value in expected.items():
        assert found["values"][key] == pytest.approx(value, abs=1e-6)
        low, high = found["ci"][key]
        assert low <= value <= high


def test_subsets_of_the_kernel_distance_are_smaller_than_the_set() -> None:
    found = numbers(made(60, 1), made(40, 2))
    assert found["kid_subset"] == 20
    assert found["kid_sd"] > 0


def test_auroc_is_sklearns() -> None:
    films = made(40, 3)
    scores, labels = torch.from_numpy(films.probability), torch.from_numpy(films.labels.copy())
    labels[5:9] = torch.nan
    weights = torch.randint(0, 3, (6, 40), generator=torch.Generator().manual_seed(0)).double()
    found = ranked_auroc(scores[:, 0], labels[:, 0], weights.split(4))
    known = ~labels[:, 0].isnan()
    for value, w in zip(found, weights, strict=True):
        expected = roc_auc_score(labels[known, 0], scores[known, 0], sample_weight=w[known])
        assert float(value) == pytest.approx(expected)
    plain = ranked_auroc(scores[:, 0], labels[:, 0], [torch.ones(1, 40)])
    assert float(plain) == pytest.approx(roc_auc_score(labels[known, 0], scores[known, 0]))


def test_bytes_do_not_wrap_in_differences() -> None:
    films = made(2, 1, prompts=1)
    films.thumbnails[0], films.thumbnails[1] = 1, 2
    films.thumbnails[:, 0, 0] = 255
    near = numbers(films, None)["values"]["diversity"]
    films.thumbnails[0], films.thumbnails[1] = 2, 1  # 1 − 2 is 255 in bytes
    assert near < 0.005
    assert numbers(films, None)["values"]["diversity"] < 0.005


def test_pairs_of_a_prompt_are_bounded_and_the_same_each_time() -> None:
    films = made(40, 1, prompts=2)
    assert numbers(films, None)["values"] == numbers(films, None)["values"]


def test_what_cannot_be_computed_says_why() -> None:
    found = numbers(made(4, 1, labels=False), made(4, 2))
    reasons = found["undefined"]
    assert set(reasons) == {
        *("precision", "recall", "density", "coverage", "auroc", "consistency", "ms_ssim", "diversity")
    }
    assert "more than k = 5" in reasons["precision"]
    assert reasons["auroc"] == "the set has no column of labels"
    one = measure(made(4, 1), np.array([0]), None, np.array([]), seed=0, bootstrap=3)
    assert set(one["undefined"]) == set(KEYS)


def test_without_resamples_there_are_no_intervals() -> None:
    found = numbers(made(60, 1), made(60, 2), bootstrap=0)
    assert found["values"]["fid"] > 0
    assert all(ci == [None, None] for ci in found["ci"].values())


def test_of_a_scan(tables: tuple[Path, Path], pixels: Any, tmp_path: Path) -> None:
    scans = [
        scan(
            open_set(path, "--real"), pixels, models="m", features={"f": None}, image_size=64,
            cache=tmp_path / "s", option="--real",
        )
        for path in tables
    ]  # fmt: skip
    found = numbers(*scans)
    assert found["num_images"] == 24
    assert all(found["values"][key] is not None for key in KEYS)


def test_every_model_of_features_has_its_own_distances() -> None:
    a, b = made(60, 1), made(60, 2)
    alone = numbers(a, b)
    for films, seed in ((a, 5), (b, 6)):
        wide = np.random.default_rng(seed).normal(size=(60, 90)).astype(np.float32)
        films.features["wide"] = wide + np.float32(0.1 * seed)
    both = numbers(a, b)
    other = both["other_features"]["wide"]
    assert (both["values"], both["ci"]) == (alone["values"], alone["ci"])
    x, y = (s.features["wide"].astype(float) for s in (a, b))
    assert other["values"]["fid"] == pytest.approx(frechet(x, y), rel=1e-5)
    expected = compute_prdc(y, x, nearest_k=5)
    assert {key: other["values"][key] for key in expected} == pytest.approx(expected)
    assert set(other["values"]) == set(DISTANCES)
    low, high = other["ci"]["fid"]
    assert low <= other["values"]["fid"] <= high


@pytest.mark.parametrize("bound", ["MOST_RESAMPLED", "MOST_WIDE"])
def test_without_resamples_the_distance_is_the_same(monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    a, b = made(60, 1), made(80, 2)
    resampled = numbers(a, b)
    monkeypatch.setattr(f"cxrl.image_sets.measure.{bound}", 5)
    found = numbers(a, b)
    assert found["values"]["fid"] == pytest.approx(resampled["values"]["fid"], rel=1e-6)
    assert found["ci"]["fid"] == [None, None]
    assert None not in resampled["ci"]["fid"]
