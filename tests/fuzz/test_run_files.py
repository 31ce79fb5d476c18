"""Damaged files of a run, an adapter, a model: whoever reads them gets what was written, or a CxrlError.

Every input is a mutation of a file that a real run wrote: bytes flipped, cut, doubled, swapped for what
breaks parsers. The seed is fixed. An error names the file, and nothing else is ever raised.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPTextModel

from cxrl.config import Config, PolicyConfig
from cxrl.data.prompts import ReportPrompt
from cxrl.errors import CxrlError
from cxrl.models.adapter import load_adapter, read_description
from cxrl.models.base import load_base
from cxrl.models.base_files import load_tokenizer
from cxrl.models.loading import check_network
from cxrl.models.policy import Policy
from cxrl.output.page import runs_page
from cxrl.rl.trainer import Trainer
from cxrl.scorers.phantom_network import Scorer, ScorerConfig, load_scorer, save_scorer
from cxrl.storage.checkpoint import checkpoints, load_checkpoint
from cxrl.storage.run_dir import RunDir

VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 10**400, 1e308, -0.0, "", "x" * 5000, "\0", "\ud800", [], {}, [[]], {"a": {}}, "../x",
    "</title></script><script>x()</script>\"'><img src=x onerror=x()>",
)  # fmt: skip
BYTES = (b"", b"\0", b"\xff\xfe", b"[" * 3000, b"{" * 3000, b"NaN", b"1e999", b'"', b"\xed\xa0\x80", b"\n")


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A mutation of a file; for JSON, half of the time one value is replaced by another."""
    kind = rng.randrange(8)
    if kind < 4:
        try:
            lines = data.splitlines() if data.count(b"\n{") else [data]
            k = rng.randrange(len(lines))
            tree = json.loads(lines[k])
            _replace(tree, rng)
            lines[k] = json.dumps(tree).encode("utf-8", "surrogatepass")
            return b"\n".join(lines)
        except (ValueError, UnicodeDecodeError):
            kind = 4 + rng.randrange(4)
    place = rng.randrange(len(data) + 1)
    if kind == 4:
        return data[:place]
    if kind == 5 and data:
        place = min(place, len(data) - 1)
        return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
    if kind == 6:
        return data[:place] + rng.choice(BYTES) + data[place:]
    return data[:place] + data[rng.randrange(len(data) + 1) :]


def _replace(tree: Any, rng: random.Random) -> None:
    """Put another value, or none, at a random place below the root."""
    while True:
        keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(tree[key], dict | list) and tree[key] and rng.random() < 0.6:
            tree = tree[key]
            continue
        if rng.random() < 0.2:
            del tree[key]
        else:
            tree[key] = rng.choice(VALUES)
        return


def refusal(read: Callable[[], Any], content: bytes) -> str | None:
    """The message of the CxrlError that reading ended in; None where there was none."""
    try:
        read()
    except CxrlError as error:
        return str(error)
    except Exception as error:  # the input that did it belongs into the message
        raise AssertionError(f"{content[:2000]!r}") from error
    return None


def survive(
    path: Path, read: Callable[[], Any], rng: random.Random, times: int, names: Path | None = None
) -> int:
    """Damage a file again and again; how often reading it was refused. It is as it was afterwards."""
    sound, refused = path.read_bytes(), 0
    try:
        for _ in range(times):
            content = damaged(sound, rng)
            path.write_bytes(content)
            message = refusal(read, content)
            refused += message is not None
            assert message is None or (str(names or path) in message and "\n" not in message), content[:300]
    finally:
        path.write_bytes(sound)
    return refused


class Bright:
    name = "posture"

    def score(self, images: torch.Tensor, batch: Any) -> torch.Tensor:
        return images.mean((1, 2, 3))


class Judges:
    findings = ("a",)
    reference = None

    def posture(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((1, 2, 3))[:, None].expand(-1, 5)

    def classify(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((1, 2, 3))[:, None]

    def image_embeds(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :4] + 1e-3

    def text_embeds(self, texts: list[str]) -> torch.Tensor:
        return torch.ones(len(texts), 4)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :4]


@pytest.fixture(scope="module")
def run(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    config = Config.from_dict(
        {
            "model": {"path": str(tiny_pipeline)},
            "data": {"num_prompts": 2},
            "sampler": {"num_steps": 2},
            "policy": {"lora_rank": 1, "num_ace_tokens": 1},
            "rewards": {"names": ["posture"], "weights": [1]},
            "comparison": {"bank_size": 2},
            "optim": {"minibatches": 1},
            "train": {"num_epochs": 2, "prompts_per_epoch": 2, "samples_per_prompt": 2, "eval_every": 1},
            "eval": {"num_images": 2, "samples_per_prompt": 2, "bootstrap": 0, "grid_prompts": 1},
            "run": {"trackers": []},
        }
    )
    texts = ("lung", "heart"), ("left lung",), ("left heart", "no lung")
    prompts = tuple([ReportPrompt(i, text, (float(i),)) for i, text in enumerate(each)] for each in texts)
    Trainer(config, folder, rewards={"posture": Bright()}, judges=Judges(), prompts=prompts).run()
    return folder


@pytest.mark.parametrize(
    "name",
    [
        *("metrics.jsonl", "summary.json", "bounds.json", "provenance.json", "config.yaml"),
        *("scores.csv", "gallery.safetensors", "samples/epoch-000001.png"),
    ],
)
def test_the_report_of_a_damaged_run(run: Path, name: str, page_reader: Any) -> None:
    path = run / name

    def read() -> None:
        tags = page_reader.Reader(runs_page([run])).tags  # every tag is closed
        assert [tag for tag, _ in tags].count("script") == 1
        assert not any(attribute.startswith("on") for _, found in tags for attribute in found)
        assert all(str(a["src"]).startswith("data:image/png;base64,") for tag, a in tags if tag == "img")

    assert survive(path, read, random.Random(f"report {name}"), 300) > 30


def test_damaged_checkpoints(run: Path) -> None:
    path = checkpoints(run / "checkpoints")[-1]
    for file in sorted(path.iterdir()):
        times = 120 if file.suffix == ".json" else 40
        refused = survive(file, lambda: load_checkpoint(path), random.Random(file.name), times, path)
        assert refused > 0.8 * times, "a manifest notices every change of a file"


def test_damaged_adapters(run: Path, tiny_pipeline: Path) -> None:
    policy = Policy(load_base(tiny_pipeline), PolicyConfig(lora_rank=1, num_ace_tokens=1))
    folder = run / "adapter"

    def read() -> None:
        read_description(folder)
        load_adapter(policy, folder)

    for file in sorted(folder.iterdir()):
        times = 200 if file.suffix == ".json" else 60
        refused = survive(file, read, random.Random(file.name), times, folder)
        if file.name == "README.md":
            assert refused == 0, "a card for people, who may edit it"
        else:
            assert refused > 0.8 * times


@pytest.mark.parametrize("name", [".cxrl-run.json", "metrics.jsonl", "summary.json", "adapter/adapter.json"])
def test_a_run_directory_with_damaged_files(run: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    config, before = Config(), set(copy.rglob("*"))

    def claim() -> None:
        owner = RunDir(copy)
        with pytest.raises(CxrlError) as error:
            owner.claim(config, resume=False, overwrite=False)
        assert str(copy) in str(error.value)

    survive(copy / name, claim, random.Random(f"claim {name}"), 60)
    assert set(copy.rglob("*")) == before


def test_damaged_scorers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "posture.safetensors"
    save_scorer(Scorer(ScorerConfig("posture", "resnet", 2, 16, 5)), path)
    rng, sound = random.Random("scorer"), path.read_bytes()
    header = 8 + int.from_bytes(sound[:8], "little")
    for _ in range(150):
        cut = damaged(sound[8:header], rng)
        path.write_bytes(len(cut).to_bytes(8, "little") + cut + sound[header:])
        assert str(path) in (refusal(lambda: load_scorer(path), cut) or str(path))
    path.write_bytes(sound)
    assert survive(path, lambda: load_scorer(path), rng, 60) > 10


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_damaged_networks(tiny_pipeline: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(tiny_pipeline / "text_encoder", tmp_path / "text_encoder")

    def read() -> None:
        check_network(CLIPTextModel, folder, str(folder)).check_values()

    assert survive(folder / name, read, random.Random(f"network {name}"), 60, folder) > 20


@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.json", "vocab.json", "merges.txt"])
def test_damaged_tokenizers(tiny_pipeline: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(tiny_pipeline, tmp_path / "base")
    path = folder / "tokenizer" / name
    if not path.is_file():
        pytest.skip("a tokenizer without that file")

    def read() -> None:
        load_tokenizer(folder).num_tokens("no acute")

    survive(path, read, random.Random(f"tokenizer {name}"), 60, folder)
