from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cxrl.data.phantom import films as phantom
from cxrl.data.phantom.films import POSE_SD, Films, corpus, films_for
from cxrl.data.phantom.reports import Finding
from cxrl.findings import PHANTOM_FINDINGS

NUM_STILL = 6


def still(finding: Finding | None) -> torch.Tensor:
    """float32 [6, 64, 64]: six films in canonical pose, all with the finding or all without any.

    Anatomy is drawn before the findings, so both show the same six chests, apart from quantum noise.
    """
    shown = () if finding is None else (finding,)
    return corpus(NUM_STILL, seed=11, pose_scale=0.0, findings=[shown] * NUM_STILL).pixels()[:, 0]


def resampled(images: torch.Tensor, psi: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Films [N, 1, H, W] on ``affine_grid(M)``, and which pixels [N, 1, H, W] lie on the film."""
    log_sx, log_sy, tx, ty, theta = psi.unbind(1)
    sx, sy, cos, sin = log_sx.exp(), log_sy.exp(), theta.cos(), theta.sin()
    rows = [torch.stack([sx * cos, -sy * sin, tx], 1), torch.stack([sx * sin, sy * cos, ty], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    inside = (grid.abs() < 1 - 1 / images.shape[-1]).all(-1).unsqueeze(1)
    return F.grid_sample(images, grid, mode="bicubic", align_corners=False), inside


def test_a_film_is_fixed_by_seed_and_index_alone() -> None:
    films = corpus(21, seed=5, flawed=True)
    again = corpus(21, seed=5, flawed=True)
    assert torch.equal(films.images, again.images)
    assert films.texts == again.texts
    for index in (0, 15, 16, 20):  # both sides of a chunk's border
        alone = corpus(1, seed=5, flawed=True, start=index)
        assert torch.equal(alone.images[0], films.images[index])
        assert torch.equal(alone.psi[0], films.psi[index])
        assert torch.equal(alone.labels[0], films.labels[index])
        assert torch.equal(alone.report_labels[0], films.report_labels[index])
        assert (alone.texts[0], alone.contents[0]) == (films.texts[index], films.contents[index])
    assert not torch.equal(corpus(21, seed=6, flawed=True).images, films.images)


def test_the_chunk_size_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    films = corpus(7, seed=2)
    monkeypatch.setattr(phantom, "_CHUNK", 3)
    assert torch.equal(corpus(7, seed=2).images, films.images)


def test_no_global_random_state_is_used() -> None:
    state = torch.random.get_rng_state()
    np.random.seed(1)  # noqa: NPY002 the global state is the point
    first = np.random.rand()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    corpus(2, seed=0)
    assert np.random.rand() == first  # noqa: NPY002
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("size", [32, 64, 96])
def test_films_are_grey_images_with_contrast_at_any_size(size: int) -> None:
    films = corpus(3, seed=1, size=size)
    assert films.images.dtype == torch.uint8
    assert tuple(films.images.shape) == (3, 1, size, size)
    pixels = films.pixels()
    assert pixels.dtype == torch.float32
    assert 0.0 <= float(pixels.min()) <= float(pixels.max()) <= 1.0
    assert float(pixels.flatten(1).std(1).min()) > 0.15
    assert (tuple(films.psi.shape), films.psi.dtype) == ((3, 5), torch.float32)


def test_an_empty_corpus_has_the_right_shapes() -> None:
    films = corpus(0, seed=0)
    assert len(films) == 0
    assert tuple(films.labels.shape) == (0, len(PHANTOM_FINDINGS))


def test_resampling_a_film_by_its_pose_gives_the_canonical_film() -> None:
    posed = corpus(12, seed=8, pose_scale=1.0)
    canonical = corpus(12, seed=8, pose_scale=0.0)
    assert posed.contents == canonical.contents
    assert not canonical.psi.any()

    def error(psi: torch.Tensor) -> torch.Tensor:
        aligned, inside = resampled(posed.pixels(), psi)
        return ((aligned - canonical.pixels()).square() * inside).sum((1, 2, 3)) / inside.sum((1, 2, 3))

    right, untouched = error(posed.psi), error(torch.zeros(12, 5))
    assert float(right.max().sqrt()) < 0.05  # two interpolated edges and quantum noise
    assert bool((right < 0.25 * untouched).all())
    for column in range(5):  # every component has the sign and the unit that the text gives
        wrong = posed.psi.clone()
        wrong[:, column] *= -1
        assert float(error(wrong).mean()) > 1.5 * float(right.mean()), column


def test_pose_spread_is_the_stated_one() -> None:
    clean, flawed = corpus(400, seed=0, size=16), corpus(400, seed=0, size=16, flawed=True)
    # The standard deviation of 400 normal numbers is off by 3.5 % (1 sd).
    natural, wide = clean.psi.numpy() / POSE_SD, flawed.psi.numpy() / POSE_SD
    assert np.allclose(natural.std(0), 1.0, atol=0.14)
    assert np.allclose(wide.std(0), 2.0, atol=0.28)
    assert np.abs(natural.mean(0)).max() < 4 / np.sqrt(400)


# Where a film of the patient's right side lies: the left half of the picture. (rows, columns) of 64.
RIGHT, LEFT, BOTH = slice(4, 32), slice(32, 60), slice(4, 60)
UPPER, LOWER, ALL = slice(8, 34), slice(30, 56), slice(8, 56)  # a patch in the upper zone reaches 33


@pytest.mark.parametrize(
    ("finding", "rows", "columns", "sign"),
    [
        (Finding("Cardiomegaly", size="severe"), LOWER, slice(18, 56), 1),
        (Finding("Cardiomegaly", size="mild"), LOWER, slice(18, 56), 1),
        (Finding("Pleural Effusion", side="right", size="small"), LOWER, RIGHT, 1),
        (Finding("Pleural Effusion", side="left", size="large"), LOWER, LEFT, 1),
        (Finding("Pneumothorax", side="right", size="large"), ALL, RIGHT, -1),
        (Finding("Pneumothorax", side="left", size="small"), ALL, LEFT, -1),
        (Finding("Consolidation", side="right", zone="upper"), UPPER, RIGHT, 1),
        (Finding("Consolidation", side="left", zone="lower"), LOWER, LEFT, 1),
        (Finding("Edema", size="mild"), ALL, BOTH, 1),
        (Finding("Edema", size="severe"), ALL, BOTH, 1),
        (Finding("Lung Lesion", side="right", zone="lower"), LOWER, RIGHT, 1),
        (Finding("Lung Lesion", side="left", zone="upper"), UPPER, LEFT, 1),
    ],
    ids=lambda value: "-".join(filter(None, vars(value).values())) if isinstance(value, Finding) else "",
)
def test_a_finding_changes_the_film_where_it_should(
    finding: Finding, rows: slice, columns: slice, sign: int
) -> None:
    change = still(finding) - still(None)
    # Three standard deviations of the difference of two films' noise.
    seen = torch.where(change.abs() > 0.045, change, 0.0)
    place = torch.zeros(64, 64, dtype=torch.bool)
    place[rows, columns] = True
    for film in seen:
        assert int((film[place] != 0).sum()) >= 12, "too small to be seen"
        within, outside = float(film[place].abs().sum()), float(film[~place].abs().sum())
        assert within > 9 * outside
        darker, brighter = float((-film).clamp(min=0).sum()), float(film.clamp(min=0).sum())
        assert brighter > 3 * darker if sign > 0 else darker > 0.5 * brighter


def test_both_sides_fill_with_a_bilateral_effusion() -> None:
    change = still(Finding("Pleural Effusion", side="bilateral", size="large")) - still(None)
    for half in (change[:, LOWER, :32], change[:, LOWER, 32:]):
        assert bool((half.clamp(min=0).mean((1, 2)) > 0.02).all())


@pytest.mark.parametrize(
    ("name", "sizes", "side", "sign"),
    [
        ("Cardiomegaly", ("mild", "severe"), "", 1),
        ("Pleural Effusion", ("small", "large"), "left", 1),
        ("Pneumothorax", ("small", "large"), "right", -1),
        ("Edema", ("mild", "severe"), "", 1),
    ],
)
def test_a_larger_finding_changes_more(name: str, sizes: tuple[str, str], side: str, sign: int) -> None:
    small, large = (
        (sign * (still(Finding(name, side=side, size=size)) - still(None))).clamp(min=0).mean((1, 2))
        for size in sizes
    )
    assert bool((large > 1.25 * small).all()), (large / small).tolist()


def test_clean_reports_tell_what_the_film_shows() -> None:
    films = corpus(60, seed=4, size=16)
    assert torch.equal(films.labels, films.report_labels)


def share_of(films: Films, chosen: torch.Tensor) -> tuple[float, float]:
    """A share of the films, and 3.5 of its standard deviations."""
    share = float(chosen.float().mean())
    return share, 3.5 * np.sqrt(share * (1 - share) / len(films))


def test_a_share_of_the_flawed_reports_misses_one_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phantom, "OTHER_FILM_SHARE", 0.0)
    films = corpus(1000, seed=9, size=8, flawed=True)
    fewer = films.labels[:, 1:].sum(1) - films.report_labels[:, 1:].sum(1)
    assert set(fewer.tolist()) == {0.0, 1.0}
    assert bool((films.report_labels[:, 1:] <= films.labels[:, 1:]).all())
    share, margin = share_of(films, fewer == 1)
    # The 22 % of films that show nothing have nothing to miss.
    assert abs(share - phantom.MISSED_FINDING_SHARE * 0.78) < margin


def test_a_share_of_the_flawed_reports_describes_another_film(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phantom, "MISSED_FINDING_SHARE", 0.0)
    films = corpus(1000, seed=9, size=8, flawed=True)
    share, margin = share_of(films, (films.labels != films.report_labels).any(1))
    # Two films show the same findings by chance: none, one of 6, two of 15 or three of 20.
    same = 0.22**2 + 0.45**2 / 6 + 0.25**2 / 15 + 0.08**2 / 20
    assert abs(share - phantom.OTHER_FILM_SHARE * (1 - same)) < margin


def test_films_for_reports_show_another_case_in_the_stated_share() -> None:
    case = (Finding("Consolidation", side="right", zone="upper"),)
    films = films_for([case] * 600, seed=3, size=8)
    same = sum(content == "Consolidation right  upper" for content in films.contents) / 600
    # 3.5 standard deviations of a share of 600; a redrawn film is the same case hardly ever.
    other = phantom.OTHER_FILM_SHARE
    assert abs(same - (1 - other)) < 3.5 * np.sqrt(other * (1 - other) / 600)


def test_equal_contents_are_equal_cases() -> None:
    one = (Finding("Edema", size="mild"), Finding("Lung Lesion", side="left", zone="upper"))
    other = (Finding("Edema", size="mild"), Finding("Lung Lesion", side="right", zone="upper"))
    films = corpus(3, seed=0, size=8, findings=[one, one, other])
    assert films.contents[0] == films.contents[1] != films.contents[2]
