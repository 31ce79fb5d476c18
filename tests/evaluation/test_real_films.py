"""The ceiling: real films of the reports that are judged, and nothing that is not comparable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cxrl.config import Config
from cxrl.data.phantom.films import POSE_SD, corpus, phantom_prompts
from cxrl.data.prompts import PromptBatch
from cxrl.data.sources import load_prompts
from cxrl.evaluation.judges import load_judges
from cxrl.evaluation.real_films import real_films
from cxrl.evaluation.summary import evaluation_batch
from cxrl.presets import load_preset


class Reader:
    """A tokenizer with room for everything."""

    max_tokens = 1000

    def num_tokens(self, text: str) -> int:
        return 1


def batch_of(config: Config, num_images: int, each: int) -> PromptBatch:
    return evaluation_batch(load_prompts(config, Reader(), "eval").prompts, num_images, each)


def test_the_phantom_renders_what_the_reports_say_in_natural_pose() -> None:
    config = load_preset("phantom")
    batch = batch_of(config, 64, 2)
    films = real_films(config, batch, (64, 64))
    assert films.images.shape == (64, 1, 64, 64)
    assert films.is_phantom
    assert films.batch is batch
    assert "64 films of the phantom" in films.told
    judges = load_judges()
    probability = judges.classify(films.images)
    labels = batch.labels_of(judges.findings)
    assert float(((probability > 0.5) == labels.bool()).float().mean()) > 0.97, "what is asked for is there"
    spread = judges.posture(films.images).std(0)
    assert bool((spread < 1.5 * torch.tensor(POSE_SD)).all()), "not the flawed corpus's"
    again = real_films(config, batch, (64, 64))
    assert torch.equal(again.images, films.images)
    reseeded = Config.from_dict({"seed": 5}, config)
    other = real_films(reseeded, batch_of(reseeded, 4, 2), (64, 64))
    assert not torch.equal(other.images, films.images[:4])
    pairs = films.images.flatten(1)
    assert not torch.equal(pairs[0], pairs[1]), "two films of a report are two films"


def test_every_seed_has_films_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only other reports: another patient under the same words."""
    seeds = []

    def spy(*args: Any, seed: int, **options: Any) -> Any:
        seeds.append(seed)
        return corpus(*args, seed=seed, **options)

    monkeypatch.setattr("cxrl.data.phantom.films.corpus", spy)
    for seed in (0, 1):
        config = Config.from_dict({"seed": seed}, load_preset("phantom"))
        real_films(config, batch_of(config, 2, 2), (64, 64))
    assert len(set(seeds)) == 2
    assert not {0, 1} & set(seeds), "nor those that prompts or models are made of"


def test_prompts_that_were_left_out_do_not_shift_the_others() -> None:
    config = load_preset("phantom")
    prompts = phantom_prompts(6, seed=0, split="eval")
    whole = real_films(config, PromptBatch.repeat(prompts, 1), (64, 64))
    last = real_films(config, PromptBatch.repeat(prompts[3:], 1), (64, 64))
    judges = load_judges()
    torch.testing.assert_close(
        (judges.classify(whole.images[3:]) > 0.5).float(), (judges.classify(last.images) > 0.5).float()
    )


def test_large_or_oblong_phantoms_are_not_rendered() -> None:
    config = load_preset("phantom")
    batch = batch_of(config, 4, 2)
    for size in ((512, 512), (64, 32)):
        films = real_films(config, batch, size)
        assert len(films) == 0
        assert films.told.startswith("the phantom is not rendered at")


def test_a_table_has_the_films_of_its_reports(tmp_path: Path) -> None:
    lines = ["image,text,split,id"]
    for n in range(6):
        stripes = np.tile(np.uint8([[30 * n, 30 * n + 40]]), (20, 10))
        Image.fromarray(stripes).save(tmp_path / f"{n}.png")
        lines.append(f"{n}.png,Finding number {n}.,test,s{n}")
    (tmp_path / "4.png").write_bytes(b"broken")
    others = ["0.png,Training report.,train,s9", "1.png,It chooses.,validate,s8"]
    (tmp_path / "t.csv").write_text("\n".join([*lines, *others]) + "\n")
    data = {"source": "table", "root": str(tmp_path / "t.csv"), "eval_num_prompts": 6, "cache": "none"}
    config = Config.from_dict({"data": data})
    batch = batch_of(config, 12, 2)
    films = real_films(config, batch, (16, 16))
    assert len(films) == 5, "one a report, and one cannot be read"
    assert not films.is_phantom
    assert films.told == "5 films of 6 reports of split test"
    for image, text in zip(films.images, films.batch.texts, strict=True):
        n = int(text.split()[2].rstrip("."))
        assert abs(float(image.mean()) - (30 * n + 20) / 255) < 0.02, "the film of that report"
    reports = Config.from_dict({"data": {"source": "openi"}})
    none = real_films(reports, batch, (16, 16))
    assert len(none) == 0
    assert none.told == "data.source openi has no real films here"
