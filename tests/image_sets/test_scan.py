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
