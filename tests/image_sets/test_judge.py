"""Two sets judged against each other."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cxrl.errors import CxrlError
from cxrl.findings import PHANTOM_FINDINGS
from cxrl.image_sets.judge import Panel, judge_sets, open_panel
from cxrl.image_sets.measure import KEYS
from cxrl.image_sets.sets import open_set
from cxrl.scorers.choice import file_sha256


def judged(generated: Path, real: Path, panel: Panel, **more: Any) -> dict[str, Any]:
    groups = more.get("subgroups", ())
    sets = open_set(generated, "--generated", groups), open_set(real, "--real", groups)
    ask = {"cache": generated.parent / "scan", "image_size": 64, "seed": 0, "bootstrap": 5}
    return judge_sets(*sets, panel, **(ask | more))


def test_real_films_stand_beside_at_equal_numbers(tables: tuple[Path, Path], panel: Panel) -> None:
    scores = judged(*tables, panel)
    equal = scores["equal_numbers"]
    assert (equal["num_images"], equal["num_reference"]) == (16, 16)
    assert equal["real"]["num_images"] == equal["generated"]["num_images"] == 16
    assert equal["real"]["values"]["fid"] is not None
    assert scores["per_finding"] is scores["subgroups"] is None
    assert scores["warnings"] == [f"--{side}: columns not read: sex" for side in ("generated", "real")]


def test_films_by_finding_are_rarest_first(tables: tuple[Path, Path], panel: Panel) -> None:
    parts = judged(*tables, panel, per_finding=True)["per_finding"]
    assert {part["finding"] for part in parts} == set(PHANTOM_FINDINGS)
    counts = [part["num_real"] for part in parts]
    assert counts == sorted(counts)
    for part in parts:
        assert ("values" in part) == (min(part["num_real"], part["num_generated"]) >= 10)
        assert ("undefined" in part) or part["num_images"] == part["num_generated"]


def test_every_value_of_a_subgroup_is_judged(tables: tuple[Path, Path], panel: Panel) -> None:
    parts = judged(*tables, panel, subgroups=("sex",))["subgroups"]["sex"]
    assert [(part["value"], part["num_generated"], part["num_real"]) for part in parts] == [
        ("F", 12, 16),
        ("M", 12, 16),
    ]


def test_one_picture_for_all_seeds_is_told(tables: tuple[Path, Path], panel: Panel) -> None:
    folder = tables[0].parent
    for n in range(1, 6):
        shutil.copy(folder / "00.png", folder / f"{n:02}.png")
    assert "--generated: 6 films show 1 pictures, first 00.png" in judged(*tables, panel)["warnings"]


def test_what_is_odd_about_the_sets_is_told(tables: tuple[Path, Path], panel: Panel) -> None:
    generated, real = (table.parent for table in tables)
    shutil.copy(real / "00.png", generated / "00.png")
    Image.open(generated / "01.png").convert("RGB").resize((80, 80)).save(generated / "01.png")
    (generated / "02.png").write_bytes(b"")
    told = "\n".join(judged(generated, real, panel)["warnings"])
    for words in (
        "1 left out",
        "02.png",
        "2 sizes of films: 64×64 (22), 80×80 (1)",
        "1 of 23 files hold colours",
    ):
        assert words in told
    assert "1 pictures are in --generated and --real" in told


def test_the_phantoms_judges(tables: tuple[Path, Path]) -> None:
    scores = judged(*tables, open_panel())
    assert all(scores["generated"]["values"][key] is not None for key in KEYS)
    assert scores["generated"]["values"]["auroc"] > 0.9
    assert scores["judges"] == dict.fromkeys(("posture", "diagnosis", "consistency"), "phantom")


def test_features_of_a_release_are_named(tables: tuple[Path, Path], densenet: Path) -> None:
    name = f"densenet121-res224-chex:{densenet}"
    panel = open_panel(values={"diagnosis": name}, sha256=(f"diagnosis={file_sha256(densenet)}",))
    assert panel.features == f"last hidden layer of {name}"
    assert panel.digest != open_panel().digest
    with pytest.raises(CxrlError, match="SHA-256"):
        open_panel(values={"diagnosis": name})
