"""One pass over films: what is kept, left out, and gone on with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cxrl.errors import CxrlError
from cxrl.image_sets import scan as scanning
from cxrl.image_sets.scan import Scanned, scan
from cxrl.image_sets.sets import open_set


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "SHARD", 8)


def scan_of(path: Path, pixels: Any, **changed: Any) -> Scanned:
    ask = {
        "models": "m",
        "features": {"pixels": None},
        "image_size": 64,
        "cache": path.parent / "scan",
        "option": "--real",
    }
    return scan(open_set(path, "--real"), pixels, **(ask | changed))


def test_arrays_have_a_row_a_film(tables: tuple[Path, Path], pixels: Any) -> None:
    found = scan_of(tables[0], pixels)
    assert len(found) == len(found.paths) == 24
    assert found.features["pixels"].shape == (24, 4)
    assert found.thumbnails.shape == (24, 64, 64)
    assert found.thumbnails.dtype == np.uint8
    assert isinstance(found.thumbnails, np.memmap)
    assert found.labels.shape == (24, 7)
    assert np.array_equal(found.thumbnails[9], np.asarray(Image.open(found.paths[9])))
    assert found.sizes == {"64×64": 24}


def test_a_film_that_cannot_be_read_is_left_out_and_named(tables: tuple[Path, Path], pixels: Any) -> None:
    folder = tables[0].parent
    (folder / "03.png").write_bytes(b"no picture")
    Image.new("L", (64, 64), 128).save(folder / "10.png")
    (folder / "20.png").unlink()
    found = scan_of(tables[0], pixels)
    assert found.rows.tolist() == [n for n in range(24) if n not in (3, 10, 20)]
    assert sorted(names for _, names in found.unreadable.values()) == [("03.png",), ("10.png",), ("20.png",)]
    assert found.thumbnails.max((1, 2)).min() > 0  # nothing black in their places


def test_a_second_pass_judges_nothing_and_a_changed_file_its_shard(
    tables: tuple[Path, Path], pixels: Any
) -> None:
    first = scan_of(tables[0], pixels)
    assert pixels.seen == 24
    again = scan_of(tables[0], pixels)
    assert pixels.seen == 24
    assert np.array_equal(first.psi, again.psi)
    other = np.asarray(Image.open(first.paths[0]))[::-1]
    Image.fromarray(other).save(first.paths[0])
    os.utime(first.paths[0], ns=(1, 1))
    assert np.array_equal(scan_of(tables[0], pixels).thumbnails[0], other)
    assert pixels.seen == 24 + 8
    scan_of(tables[0], pixels, models="others")
    assert pixels.seen == 24 + 8 + 24


def test_what_was_killed_goes_on_where_it_was(tables: tuple[Path, Path], pixels: Any) -> None:
    def killed(count: int) -> None:
        if pixels.seen == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan_of(tables[0], pixels, scanned=killed)
    found = scan_of(tables[0], pixels)
    assert pixels.seen == 24
    whole = scan_of(tables[0], pixels, cache=tables[0].parent / "elsewhere")
    assert np.array_equal(found.psi, whole.psi)


def test_a_damaged_shard_is_made_anew(tables: tuple[Path, Path], pixels: Any) -> None:
    scan_of(tables[0], pixels)
    next((tables[0].parent / "scan").glob("*.safetensors")).write_bytes(b"cut")
    scan_of(tables[0], pixels)
    assert pixels.seen == 24 + 8


def test_sizes_and_colours_are_counted(tables: tuple[Path, Path], pixels: Any) -> None:
    folder = tables[0].parent
    picture = Image.open(folder / "00.png").convert("RGB").resize((80, 90))
    picture.save(folder / "00.png")
    found = scan_of(tables[0], pixels)
    assert found.sizes == {"64×64": 23, "90×80": 1}
    assert found.num_colour == 1


def test_one_readable_film_is_refused(tmp_path: Path, pixels: Any) -> None:
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(b"")
    with pytest.raises(CxrlError, match=r"--real: 0 of 3 films can be read.*a\.png, b\.png"):
        scan(
            open_set(tmp_path, "--real"), pixels, models="m", features={"p": None}, image_size=64,
            cache=tmp_path / "scan", option="--real",
        )  # fmt: skip


def test_a_judge_that_is_not_finite_is_refused(tables: tuple[Path, Path], pixels: Any) -> None:
    pixels.features = lambda images: torch.full((len(images), 4), torch.nan)
    with pytest.raises(CxrlError, match=r"features that are not finite for .*00\.png"):
        scan_of(tables[0], pixels)


def test_a_feature_model_sees_films_as_they_were_read(
    tables: tuple[Path, Path], pixels: Any, corner: Any
) -> None:
    first = tables[0].parent / "00.png"
    large = Image.open(first).resize((300, 200))
    large.save(first)
    found = scan_of(tables[0], pixels, features={"corner": corner, "pixels": None})
    assert list(found.features) == ["corner", "pixels"]
    assert corner.shapes == {(1, 200, 300), (1, 64, 64)}
    for row in (0, 9, 23):
        film = np.asarray(Image.open(found.paths[row]))[-2:, -2:].ravel() / 255
        assert found.features["corner"][row] == pytest.approx(film, abs=1e-6)


def test_one_more_feature_model_judges_nothing_again(
    tables: tuple[Path, Path], pixels: Any, corner: Any
) -> None:
    before = scan_of(tables[0], pixels)
    both = {"pixels": None, "corner": corner}
    found = scan_of(tables[0], pixels, features=both)
    assert (pixels.seen, corner.seen) == (24, 24)
    assert np.array_equal(before.features["pixels"], found.features["pixels"])
    scan_of(tables[0], pixels, features=both)
    scan_of(tables[0], pixels, features={"corner": corner})
    assert (pixels.seen, corner.seen) == (24, 24)
    scan_of(tables[0], pixels, features=both, models="others")
    assert (pixels.seen, corner.seen) == (48, 24)
    other = type(corner)("another file")
    scan_of(tables[0], pixels, features={"corner": other})
    assert (pixels.seen, other.seen) == (48, 24)


def test_size_and_texts_are_the_judges_alone(tables: tuple[Path, Path], pixels: Any, corner: Any) -> None:
    both = {"pixels": None, "corner": corner}
    scan_of(tables[0], pixels, features=both)
    scan_of(tables[0], pixels, features=both, image_size=48)
    tables[0].write_text(tables[0].read_text().replace(",F,", ",X,").replace('"', '"New. ', 1))
    scan_of(tables[0], pixels, features=both)
    assert (pixels.seen, corner.seen) == (24 + 24 + 8, 24)


def test_films_are_opened_once_for_all_models(
    tables: tuple[Path, Path], pixels: Any, corner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, read = [], scanning.read_image
    monkeypatch.setattr(scanning, "read_image", lambda path: (opened.append(path), read(path))[1])
    scan_of(tables[0], pixels, features={"pixels": None, "corner": corner})
    assert len(opened) == len(set(opened)) == 24


def test_a_film_that_only_one_of_the_models_could_read_is_read_again_by_all(
    tables: tuple[Path, Path], pixels: Any, corner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = scanning.read_image

    def locked(path: Path) -> Any:
        return read(path if path.name != "03.png" else path.with_name("absent.png"))

    with monkeypatch.context() as patch:
        patch.setattr(scanning, "read_image", locked)
        assert len(scan_of(tables[0], pixels)) == 23
    found = scan_of(tables[0], pixels, features={"pixels": None, "corner": corner})
    assert len(found) == len(found.features["corner"]) == len(found.features["pixels"]) == 24
    assert found.unreadable == {}


def test_features_that_are_not_finite_name_model_and_film(
    tables: tuple[Path, Path], pixels: Any, corner: Any
) -> None:
    corner.features = lambda prepared: torch.full((len(prepared), 4), torch.inf)
    with pytest.raises(CxrlError, match=r"features of corner that are not finite for .*00\.png"):
        scan_of(tables[0], pixels, features={"pixels": None, "corner": corner})
