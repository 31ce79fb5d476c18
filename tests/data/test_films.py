"""Films of an index as one tensor."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from cxrl.data.films import read_films
from cxrl.data.index import FilmRecord, Tally
from cxrl.data.phantom.films import corpus


def test_films_that_cannot_be_read_are_counted_and_left_out(tmp_path: Path) -> None:
    Image.fromarray(corpus(1, seed=3).images[0, 0].numpy()).save(tmp_path / "good.png")
    Image.new("L", (8, 8)).save(tmp_path / "blank.png")
    names = ("good.png", "blank.png", "none.png", "")
    films = [FilmRecord(i, f"f{i}", "p", "train", "PA", name, "x", ()) for i, name in enumerate(names)]
    tally = Tally()
    images, kept = read_films(films, tmp_path, 16, tally=tally)
    assert tuple(images.shape) == (1, 1, 16, 16)
    assert kept == films[:1]
    assert {reason: c.first for reason, c in tally.counts().items()} == {
        "image missing": ("f2", "f3"),
        "image blank": ("f1",),
    }
    images, kept = read_films(films[1:], tmp_path, (8, 16), tally=Tally())
    assert (tuple(images.shape), kept) == ((0, 1, 8, 16), [])
