"""The posture regressor without pose labels, on phantom films in place of real ones."""

from __future__ import annotations

import csv
import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cxrl import pretrain
from cxrl.data.phantom.films import corpus
from cxrl.data.phantom.thorax import FIELD_OF_VIEW, canonical_grid
from cxrl.data.prompts import PromptBatch, ReportPrompt
from cxrl.errors import CxrlError
from cxrl.pretraining import posture
from cxrl.pretraining.fit import FitOptions
from cxrl.pretraining.posture import (
    COMPONENTS,
    CROP,
    MAX_WARP,
    PostureFilms,
    compose,
    evaluate,
    fit_posture,
    inverse_matrix,
    is_inside,
    load_films,
    pretrain_posture,
    r_squared,
    random_psi,
    recover,
    split_by_patient,
    warp,
)
from cxrl.rewards.posture import PostureReward
from cxrl.scorers.phantom_network import Scorer, load_scorer, save_scorer
from cxrl.scorers.validity import halves_validity

PSI = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0], [0.2, -0.1, 0.1, -0.2, 0.3], [-0.1, 0.1, -0.2, 0.1, -0.3]])


def write(path: Path, pixels: Tensor) -> None:
    """A grey PNG of [1, H, W] in [0, 1]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[0].mul(255.0).round().to(torch.uint8).numpy()).save(path)


def write_table(path: Path, rows: list[dict[str, str]]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def films() -> Tensor:
    """float32 [60, 1, 64, 64]."""
    return corpus(60, seed=8301).pixels()


@pytest.fixture(scope="module")
def table(films: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of all films, two a patient."""
    folder = tmp_path_factory.mktemp("films")
    for i, film in enumerate(films):
        write(folder / "images" / f"{i}.png", film)
    rows = [{"image": f"images/{i}.png", "patient": f"p{i // 2}"} for i in range(len(films))]
    return write_table(folder / "films.csv", rows)


@pytest.fixture(scope="module")
def loaded(table: Path) -> PostureFilms:
    return load_films(table)


def matrix(psi: Tensor) -> Tensor:
    """M(psi) [N, 3, 3], as cxrl.data.phantom.thorax writes it."""
    rows = []
    for log_sx, log_sy, tx, ty, theta in psi.tolist():
        cos, sin, sx, sy = math.cos(theta), math.sin(theta), math.exp(log_sx), math.exp(log_sy)
        rows.append([[sx * cos, -sy * sin, tx], [sx * sin, sy * cos, ty], [0.0, 0.0, 1.0]])
    return torch.tensor(rows)


def dot(x: int, y: int, size: int = 65) -> Tensor:
    image = torch.zeros(1, 1, size, size)
    image[0, 0, y - 1 : y + 2, x - 1 : x + 2] = 1.0
    return image


def brightest(image: Tensor) -> tuple[float, float]:
    """(x, y) of the centre of mass."""
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in image.shape[-2:]), indexing="ij")
    return float((image[0, 0] * x).sum() / image.sum()), float((image[0, 0] * y).sum() / image.sum())


def test_the_inverse_matrix_is_the_inverse_of_the_pose() -> None:
    product = inverse_matrix(PSI) @ matrix(PSI)
    assert torch.allclose(product, torch.eye(3)[:2].expand(3, 2, 3), atol=1e-6)


def test_poses_mean_what_the_phantom_means_by_them() -> None:
    u, v = canonical_grid(PSI.numpy(), 16)
    axis = (torch.arange(16) + 0.5) / 8.0 - 1.0
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    here = torch.stack([x, y, torch.ones_like(x)]).flatten(1)
    there = (inverse_matrix(PSI) @ here).reshape(3, 2, 16, 16)
    assert np.allclose(there[:, 0] * FIELD_OF_VIEW, u, atol=1e-5)
    assert np.allclose(there[:, 1] * FIELD_OF_VIEW - 0.09, v, atol=1e-5)


@pytest.mark.parametrize(
    ("psi", "expected"),
    [
        ((0.0, 0.0, 0.0, 0.0, 0.0), (42, 32)),
        ((0.0, 0.0, 0.4, 0.0, 0.0), (55, 32)),
        ((0.0, 0.0, 0.0, -0.4, 0.0), (42, 19)),
        ((math.log(2.0), 0.0, 0.0, 0.0, 0.0), (52, 32)),
        ((0.0, math.log(2.0), 0.0, 0.0, 0.0), (42, 32)),
        ((0.0, 0.0, 0.0, 0.0, math.pi / 2), (32, 42)),
        ((math.log(2.0), 0.0, 0.2, 0.0, math.pi / 2), (38.5, 52)),
    ],
)
def test_a_point_goes_where_the_pose_says(psi: tuple[float, ...], expected: tuple[float, float]) -> None:
    moved = warp(dot(42, 32), torch.tensor([psi]), 65)  # ten pixels right of the centre
    assert brightest(moved) == pytest.approx(expected, abs=0.05)


def test_no_warp_is_the_film_itself(films: Tensor) -> None:
    assert torch.allclose(warp(films[:3], torch.zeros(3, 5), 64), films[:3], atol=1e-5)


def test_poses_on_top_of_each_other() -> None:
    alike = torch.tensor([[0.2, 0.2, 0.1, -0.2, 0.3]]).expand(3, 5)
    assert torch.allclose(matrix(compose(alike, PSI)), matrix(alike) @ matrix(PSI), atol=1e-6)
    assert torch.allclose(compose(PSI, torch.zeros(3, 5)), PSI)
    assert torch.allclose(compose(torch.zeros(3, 5), PSI), PSI)


@pytest.mark.parametrize(
    ("psi", "expected"),
    [
        ((0.0, 0.0, 0.0, 0.0, 0.0), True),
        ((math.log(CROP) + 0.01, 0.0, 0.0, 0.0, 0.0), True),
        ((math.log(CROP) - 0.01, 0.0, 0.0, 0.0, 0.0), False),
        ((0.0, 0.0, 0.99 - CROP, 0.0, 0.0), True),
        ((0.0, 0.0, 0.0, CROP - 1.01, 0.0), False),
        ((0.0, 0.0, 0.0, 0.0, 0.44), True),  # CROP (cos + sin) is 0.997
        ((0.0, 0.0, 0.0, 0.0, -0.46), False),  # and 1.005
        ((0.3, 0.3, 0.0, 0.0, -0.46), True),
    ],
)
def test_which_warps_stay_inside_the_film(psi: tuple[float, ...], expected: bool) -> None:
    assert bool(is_inside(torch.tensor([psi]))) is expected


def test_no_warp_that_is_drawn_shows_more_than_the_film() -> None:
    psi = random_psi(500, torch.Generator().manual_seed(0))
    assert psi.shape == (500, 5)
    assert bool((psi.abs() <= MAX_WARP).all())
    assert bool((psi.std(0) > 0.3 * MAX_WARP).all())
    assert bool((psi.mean(0).abs() < 0.1 * MAX_WARP).all())  # as much zooming out as in
    seen = warp(torch.ones(500, 1, 128, 128), psi, 128)[:, :, 16:112, 16:112]  # the central 0.75
    assert float(seen.min()) > 0.999
    assert torch.equal(psi, random_psi(500, torch.Generator().manual_seed(0)))


def test_no_patient_is_on_both_sides() -> None:
    patients = [f"p{i % 23}" for i in range(100)]
    seen: list[int] = []
    for fold in range(5):
        train, held_out = split_by_patient(patients, fold)
        assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(100))
        assert not {patients[i] for i in train.tolist()} & {patients[i] for i in held_out.tolist()}
        seen += held_out.tolist()
    assert sorted(seen) == list(range(100))
    # The order of the films does not matter.
    assert {patients[i] for i in split_by_patient(patients)[1].tolist()} == {
        patients[::-1][i] for i in split_by_patient(patients[::-1])[1].tolist()
    }


def test_one_patient_cannot_be_split() -> None:
    with pytest.raises(CxrlError, match="all films are of one patient, expected at least two"):
        split_by_patient(["a"] * 20)


def test_a_table_with_views_patients_and_a_broken_film(films: Tensor, tmp_path: Path) -> None:
    for i in range(12):
        write(tmp_path / f"{i}.png", films[i])
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:300])
    views = ["AP", "pa ", "LATERAL", "", "LL", *["AP"] * 7]
    rows = [{"image": f"{i}.png", "patient": f"p{i // 2}", "view": views[i]} for i in range(12)]
    rows.append({"image": "absent.png", "patient": "p9", "view": "PA"})
    found = load_films(write_table(tmp_path / "t.csv", rows))
    assert found.names == tuple(f"{i}.png" for i in (0, 1, 5, 6, 7, 8, 9, 10, 11))
    assert found.patients[:3] == ("p0", "p0", "p2")
    assert found.by_patient
    assert [Path(line.split(":")[0]).name for line in found.unreadable] == ["3.png", "absent.png"]
    assert found.unreadable[0].endswith("image corrupt or truncated")
    assert found.unreadable[1].endswith("image missing")
    assert found.images.dtype == torch.uint8
    assert tuple(found.images.shape) == (9, 1, 128, 128)
    assert torch.allclose(found.pixels()[:, :, ::2, ::2], films[[0, 1, *range(5, 12)]], atol=0.25)


def test_a_folder_finds_patients_by_their_folders(films: Tensor, tmp_path: Path) -> None:
    for i in range(8):
        write(tmp_path / "files" / "p10" / f"p1000000{i // 2}" / f"s{i}" / "film.png", films[i])
    (tmp_path / "files" / "notes.txt").write_text("no film")
    found = load_films(tmp_path)
    assert found.by_patient
    assert found.patients == tuple(f"p1000000{i // 2}" for i in range(8))
    write(tmp_path / "loose.png", films[8])
    found = load_films(tmp_path)
    assert not found.by_patient
    assert found.patients[-1] == "loose.png"


def test_too_many_films_are_thinned_out_evenly(table: Path, loaded: PostureFilms) -> None:
    assert len(loaded) == 60
    assert load_films(table, max_films=10).names == loaded.names[::6]


def test_bad_data_is_refused_in_one_line(films: Tensor, tmp_path: Path) -> None:
    with pytest.raises(CxrlError, match=r"nowhere does not exist, expected a folder or a table"):
        load_films(tmp_path / "nowhere")
    with pytest.raises(CxrlError, match=r"0 readable frontal films, expected at least 8$"):
        load_films(tmp_path)
    for i in range(7):
        write(tmp_path / f"{i}.png", films[i])
    (tmp_path / "8.png").write_bytes(b"")
    with pytest.raises(
        CxrlError, match=r"7 readable frontal films, .* first problem: .*8\.png: image corrupt"
    ):
        load_films(tmp_path)
    path = write_table(tmp_path / "t.csv", [{"file": "1.png"}])
    with pytest.raises(CxrlError, match=r"t\.csv has no column image; found file"):
        load_films(path)


def test_r_squared_of_known_estimates() -> None:
    truth = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    truth -= truth.mean(0)
    estimate = truth * torch.tensor([1.0, 0.5, 0.0, -1.0, 1.0]) + torch.tensor([0.0, 0.0, 0.0, 0.0, 100.0])
    r2 = r_squared(estimate, truth)
    assert tuple(r2) == COMPONENTS
    assert list(r2.values())[:4] == pytest.approx([1.0, 0.75, 0.0, -3.0], abs=1e-5)
    assert r2["rotation"] < -1000.0


class Oracle(Scorer):
    """Knows where the one bright spot of a film is; tells it as the shift."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        at = torch.tensor([brightest(image[None]) for image in images]) / 32.0 - 1.0
        zero = torch.zeros(len(images), 1)
        return torch.cat([zero, zero, at, zero], 1), zero[:, 0]


def test_a_perfect_reader_of_shifts_has_r2_one_for_them_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    shift = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0])

    def shifts(num: int, generator: torch.Generator) -> Tensor:
        return random_psi(num, generator) * shift

    monkeypatch.setattr(posture, "random_psi", shifts)
    psi, estimate, unwarped = recover(Oracle(), torch.cat([dot(32, 32), dot(37, 30)]), 8)
    assert psi.shape == estimate.shape == unwarped.shape == (16, 5)
    assert torch.allclose(unwarped[8:, 2:4], torch.tensor([5 / 32, -2 / 32]).expand(8, 2), atol=1e-3)
    assert torch.allclose(estimate - unwarped, psi, atol=0.03)


def test_a_killed_training_goes_on_to_the_same_bits(
    loaded: PostureFilms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posture, "FitOptions", functools.partial(FitOptions, checkpoint_seconds=-1.0))
    train, _ = split_by_patient(loaded.patients)
    quiet: list[str] = []

    def run(folder: str) -> Scorer:
        return fit_posture(loaded, train, num_steps=4, work_dir=tmp_path / folder, tell=quiet.append)

    expected, make, calls = run("never").state_dict(), posture.decoys, iter(range(100))

    def killed(images: Tensor, generator: torch.Generator) -> Tensor:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return make(images, generator)

    with monkeypatch.context() as patch:
        patch.setattr(posture, "decoys", killed)
        with pytest.raises(KeyboardInterrupt):
            run("killed")
    state = run("killed").state_dict()
    assert "posture: continues at step 2 of 4" in quiet
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    with pytest.raises(CxrlError, match="written with other settings"):
        fit_posture(loaded, train[1:], num_steps=4, work_dir=tmp_path / "killed", tell=quiet.append)


def test_the_command_writes_a_reward(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rewards" / "posture.safetensors"
    argv = ["--preset", "posture", "--data", str(table), "--out", str(out), "--steps", "2", "--seed", "3"]
    assert pretrain.main(argv) == 0
    printed = capsys.readouterr().out
    assert "48 films to train on, 12 of other patients held out" in printed
    assert "posture: step 2/2" in printed
    result = json.loads(printed[printed.index("{") :])
    assert (result["num_films"], result["num_patients"], result["num_held_out_films"]) == (60, 30, 12)
    assert set(result["r2_change"]) == set(COMPONENTS)
    assert (out.parent / "posture.safetensors.work" / "posture.checkpoint").is_file()
    config = load_scorer(out).config
    assert (config.task, config.num_outputs, config.crop) == ("posture", 5, CROP)
    first = out.read_bytes()
    assert pretrain.main(argv) == 0  # the finished work goes on to the same file
    assert out.read_bytes() == first
    assert bool(scores(out.parent, load_films(table).pixels()[:4]).isfinite().all())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--preset", "posture", "--out", "a.safetensors"], "--preset posture needs --data"),
        (["--preset", "posture", "--data", "x", "--out", "a"], "a is no file named *.safetensors"),
        (["--preset", "posture", "--data", "x", "--out", "a.safetensors"], "x does not exist"),
        (
            ["--preset", "posture", "--data", "x", "--out", "a.safetensors", "--batch-size", "4"],
            "--batch-size goes with fine-tuning, not with --preset posture",
        ),
        (
            ["--preset", "smoke", "--data", "x", "--out", "a"],
            "--data goes with posture, not with --preset smoke",
        ),
        (["--preset", "smoke", "--steps", "3", "--out", "a"], "--steps goes with posture or fine-tuning"),
        (["--base", "x", "--table", "y", "--data", "z", "--out", "a"], "--data goes with posture, not with"),
        (["--preset", "postur", "--out", "a"], "did you mean posture?"),
    ],
)
def test_options_that_do_not_go_together(
    argv: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert pretrain.main(argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_problems_are_told(films: Tensor, tmp_path: Path) -> None:
    for i in range(9):
        write(tmp_path / "films" / f"{i}.png", films[i])
    for i in range(7):
        (tmp_path / "films" / f"x{i}.png").write_bytes(b"no image")
    lines: list[str] = []
    pretrain_posture(
        tmp_path / "films", tmp_path / "p.safetensors", tmp_path / "w", num_steps=1, tell=lines.append
    )
    assert sum("left out: " in line for line in lines) == 6
    assert "left out: 2 more" in lines
    assert any("a folder does not tell views" in line for line in lines)
    assert any("each of them counts as a patient of its own" in line for line in lines)


def scores(folder: Path, images: Tensor) -> Tensor:
    """The reward's scores by the file in ``folder``."""
    batch = PromptBatch((ReportPrompt(0, "", ()),), torch.zeros(len(images), dtype=torch.long))
    with torch.no_grad():
        return PostureReward(folder, torch.device("cpu")).score(images, batch)


@pytest.mark.slow
def test_after_a_brief_training_it_reads_warps_of_films_it_did_not_see(
    loaded: PostureFilms, tmp_path: Path
) -> None:
    train, held_out = split_by_patient(loaded.patients)

    def trained(num_steps: int) -> Scorer:
        return fit_posture(loaded, train, num_steps=num_steps, work_dir=tmp_path, tell=lambda _: None)

    before = evaluate(trained(1), loaded, held_out)
    scorer = trained(150)
    after = evaluate(scorer, loaded, held_out)
    assert min(after["r2_change"].values()) > 0.5, after
    assert all(after["r2_change"][name] > before["r2_change"][name] for name in COMPONENTS), (before, after)
    assert after["validity"] > 0.9 > 0.3 > after["decoy_validity"], after
    save_scorer(scorer, tmp_path / "posture.safetensors")
    images = corpus(48, seed=8302, pose_scale=0.0).pixels()
    # A phantom in its canonical pose can be as like its mirror image as no real film is.
    images = images[halves_validity(images) == 1.0][:24]
    for rotation in (0.25, -0.25):
        turned = warp(images, torch.tensor([[0.0, 0.0, 0.0, 0.0, rotation]]).expand(24, 5), 64)
        assert float(scores(tmp_path, turned).mean()) < float(scores(tmp_path, images).mean()) - 0.1
    flat = torch.full((4, 1, 64, 64), 0.5)
    assert float(scores(tmp_path, flat).max()) < float(scores(tmp_path, images).min())
