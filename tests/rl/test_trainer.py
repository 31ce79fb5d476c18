"""A whole run on the tiny pipeline: it learns, leaves what it should, and stops with a cause."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import cxrl.storage.checkpoint as checkpoint_module
from cxrl.config import Config, PolicyConfig
from cxrl.data.prompts import PromptBatch, ReportPrompt
from cxrl.errors import CxrlError
from cxrl.models.base import load_base
from cxrl.models.policy import Policy
from cxrl.output.figures import partings_of
from cxrl.output.run_data import read_run
from cxrl.rl.limits import Limits
from cxrl.rl.progress import Progress
from cxrl.rl.reopen import load_policy
from cxrl.rl.rollout import sample_images
from cxrl.rl.seeding import derive_seed
from cxrl.rl.trainer import Trainer
from cxrl.storage.checkpoint import checkpoints, load_checkpoint

Make = Callable[..., Config]


class Recorder(Progress):
    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.messages: list[str] = []

    def epoch(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def message(self, text: str) -> None:
        self.messages.append(text)


def flat(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in record.items():
        result |= flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result


@pytest.mark.parametrize(("policy", "least"), [({"train": "full"}, 8.0), ({"lora_alpha": 64.0}, 3.0)])
def test_a_trivial_reward_is_learnt(
    make_config: Make, fakes: dict[str, Any], tmp_path: Path, policy: dict[str, Any], least: float
) -> None:
    config = make_config(
        rewards={"names": ["posture"], "weights": [1.0]},
        train={"num_epochs": 8, "prompts_per_epoch": 4, "samples_per_prompt": 8}
        | {"eval_every": 0, "checkpoint_every": 8},
        optim={"minibatches": 4, "micro_batch_size": 64, "clip_range": 0.01}
        | {"lora_learning_rate": 0.005, "ace_learning_rate": 0.02},
        comparison={"form": "direct"},
        policy={"ema_decay": 0.5, **policy},
        sampler={"batch_size": 64},
    )
    trainer = Trainer(config, tmp_path / "run", **fakes)
    summary = trainer.run()
    assert summary["num_images"] == 4
    # Same prompts, same x_T, same noise: the trained policy's image is the brighter one, by many standard
    # errors of the paired difference. (A random UNet's attention reaches little of the image, so LoRA less.)
    prompts, base = fakes["prompts"][1], load_base(config.model.path)
    batch = PromptBatch.repeat(prompts, 16)
    policy_after = load_policy(tmp_path / "run")
    after, before = (
        sample_images(policy_after, config.sampler, batch, seed=1, anchor=anchor).mean((1, 2, 3))
        for anchor in (False, True)
    )
    gain = after - before
    assert float(gain.mean() / gain.std() * len(batch) ** 0.5) > least
    # The anchor is unchanged, and is the policy with its adapters off: bit for bit.
    x, t = torch.randn(3, *base.latent_shape), torch.tensor([0, 40, 99])
    embeds = base.encode_text([p.text for p in prompts[:3]])
    with torch.no_grad():
        expected = Policy(base, PolicyConfig(train="none")).predict(x, t, embeds, anchor=True)[0]
        for trained in (policy_after, trainer.parts.policy):
            assert torch.equal(trained.predict(x, t, embeds, anchor=True)[0], expected)
            assert not torch.allclose(trained.predict(x, t, embeds)[0], expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"comparison": {"form": "win"}, "policy": {"num_ace_tokens": 0}},
        {"comparison": {"form": "bradley_terry", "center": "batch"}, "policy": {"train": "none"}},
        {"comparison": {"anchor": "one_to_one", "center": "none"}, "sampler": {"guidance_scale": 2.0}},
        {"policy": {"train": "full"}, "optim": {"kl_weight": 0.1, "num_inner_epochs": 2}},
    ],
    ids=["win", "bradley_terry-ace_only", "one_to_one-guidance", "full-kl"],
)
def test_every_choice_runs_is_finite_and_moves(
    make_config: Make, fakes: dict[str, Any], tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = make_config(train={"num_epochs": 2, "eval_every": 0}, **changes)
    recorder = Recorder()
    Trainer(config, tmp_path / "run", progress=recorder, **fakes).run()
    numbers = [v for record in recorder.records for v in flat(record).values() if isinstance(v, int | float)]
    assert torch.tensor(numbers, dtype=torch.float64).isfinite().all()
    assert all(r["ratio_max_dev"] < 1e-5 and r["loss"] != 0 for r in recorder.records)
    policy = load_policy(tmp_path / "run")
    start = Policy(load_base(config.model.path), config.policy, seed=derive_seed(config.seed, "policy"))
    moved = [not torch.equal(p, start.trainable[n]) for n, p in policy.trainable.items()]
    assert sum(moved) > len(moved) // 2
    trained = load_checkpoint(checkpoints(tmp_path / "run" / "checkpoints")[-1])
    assert set(policy.trainable) == set(trained.tensors["weights.safetensors"])
    assert all(torch.equal(p, trained.tensors["ema.safetensors"][n]) for n, p in policy.trainable.items())
    expected = {"adapter.json", "README.md"} | {
        "lora": {"pytorch_lora_weights.safetensors"},
        "full": {"unet.safetensors"},
        "none": set(),
    }[config.policy.train]
    expected |= {"ace.safetensors"} if config.policy.num_ace_tokens else set()
    assert {p.name for p in (tmp_path / "run" / "adapter").iterdir()} == expected


def test_the_run_directory(make_config: Make, fakes: dict[str, Any], tmp_path: Path) -> None:
    config = make_config(run={"trackers": ["tensorboard"]}, train={"keep_checkpoints": 2})
    run, recorder = tmp_path / "run", Recorder()
    summary = Trainer(config, run, progress=recorder, **fakes).run()
    folders = {"checkpoints", "adapter", "samples", "logs"}
    assert {p.name for p in run.iterdir()} == {
        ".cxrl-run.json",
        "config.yaml",
        "provenance.json",
        "bounds.json",
        "metrics.jsonl",
        "summary.json",
        "scores.csv",
        "gallery.safetensors",
        *folders,
    }
    assert [p.name for p in checkpoints(run / "checkpoints")] == ["step-000004", "step-000006"]
    assert sorted(p.name for p in (run / "samples").iterdir()) == [
        "epoch-000002.png",
        "epoch-000003.png",
        "result.png",
    ]
    assert list((run / "logs").rglob("events.out.tfevents.*"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines == recorder.records
    assert [(line["epoch"], line["step"]) for line in lines] == [(0, 2), (1, 4), (2, 6)]
    assert "eval" not in lines[0]
    assert lines[1]["eval"].keys() == lines[2]["eval"].keys() >= {"posture", "auroc", "fid", "diversity"}
    assert set(lines[0]["reward"]) == set(lines[0]["win_rate"]) == {"posture", "diagnosis"}
    assert all(line["ratio_max_dev"] < 1e-5 and line["diversity"] > 0 for line in lines)
    assert json.loads((run / "summary.json").read_text()) == summary
    assert {"anchor", "policy", "seed", "wall_seconds", "num_images", "judges"} <= set(summary)
    assert not [p for p in run.rglob("*") if p.suffix in (".pt", ".pth", ".bin", ".pkl", ".ckpt")]


def test_a_second_run_is_refused_resumed_or_overwrites(
    make_config: Make, fakes: dict[str, Any], tmp_path: Path
) -> None:
    run, config = tmp_path / "run", make_config(train={"num_epochs": 1})
    first = Trainer(config, run, **fakes).run()
    mine = run / "notes.txt"
    mine.write_text("keep")
    with pytest.raises(CxrlError, match=r"already holds a run; .*--resume.*--overwrite"):
        Trainer(config, run, **fakes).run()
    with pytest.raises(CxrlError, match="contradict"):
        Trainer(config, run, resume=True, overwrite=True, **fakes).run()
    with pytest.raises(CxrlError, match=r"optim.clip_range: 0.01.*was started with 0.0001"):
        Trainer(make_config(optim={"clip_range": 0.01}), run, resume=True, **fakes).run()
    recorder = Recorder()
    again = Trainer(config, run, resume=True, progress=recorder, **fakes).run()  # finished: judged again
    assert recorder.records == []
    assert again["policy"] == first["policy"]
    longer = make_config(train={"num_epochs": 2})
    Trainer(longer, run, resume=True, progress=recorder, **fakes).run()
    assert [r["epoch"] for r in recorder.records] == [1]
    over = Trainer(config, run, overwrite=True, **fakes).run()
    assert over["policy"] == first["policy"]
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 1
    assert mine.read_text() == "keep"


def test_rates_that_fall_go_on_falling_when_resumed(
    make_config: Make, fakes: dict[str, Any], tmp_path: Path
) -> None:
    config = make_config(
        train={"num_epochs": 4, "checkpoint_every": 1}, optim={"schedule": "linear", "warmup_epochs": 2}
    )
    whole, part = Recorder(), Recorder()
    Trainer(config, tmp_path / "whole", progress=whole, **fakes).run()
    rates = [record["learning_rate"]["lora"] / config.optim.lora_learning_rate for record in whole.records]
    assert rates == pytest.approx([0.5, 0.75, 0.5, 0.25])
    assert [r["learning_rate"]["ace"] / config.optim.ace_learning_rate for r in whole.records] == rates

    class Killed(Exception):
        pass

    def kill(record: dict[str, Any]) -> None:
        if record["epoch"] == 2:
            raise Killed

    part.epoch = kill  # type: ignore[method-assign]
    with pytest.raises(CxrlError, match="Killed"):
        Trainer(config, tmp_path / "part", progress=part, **fakes).run()
    rest = Recorder()
    Trainer(config, tmp_path / "part", resume=True, progress=rest, **fakes).run()
    assert rest.records[-1]["learning_rate"] == whole.records[-1]["learning_rate"]
    assert rest.records[-1]["loss"] == whole.records[-1]["loss"]


class Spoiled:
    """A reward that goes wrong at its nth call."""

    name = "posture"

    def __init__(self, wrong: Callable[[Tensor], Tensor], nth: int) -> None:
        self.wrong, self.nth, self.calls = wrong, nth, 0

    def score(self, images: Tensor, batch: PromptBatch) -> Tensor:
        self.calls += 1
        score = images.mean((1, 2, 3))
        return self.wrong(score) if self.calls == self.nth else score


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda s: s.index_fill(0, torch.tensor([5]), float("nan")), r"reward 'posture' is nan for sample 5"),
        (lambda s: s[:, None], r"reward 'posture' returned \(8, 1\), expected .* \(8,\)"),
    ],
)
def test_a_bad_reward_stops_the_run_and_the_checkpoint_stays(
    make_config: Make, fakes: dict[str, Any], tmp_path: Path, wrong: Any, message: str
) -> None:
    config = make_config(comparison={"form": "direct"})
    fakes["rewards"]["posture"] = Spoiled(wrong, 3)  # the anchor, the first epoch, the second
    with pytest.raises(CxrlError, match=message):
        Trainer(config, tmp_path / "run", **fakes).run()
    saved = checkpoints(tmp_path / "run" / "checkpoints")
    assert [p.name for p in saved] == ["step-000002"]
    load_checkpoint(saved[0])


def test_a_diverged_policy_is_named(make_config: Make, fakes: dict[str, Any], tmp_path: Path) -> None:
    trainer = Trainer(make_config(), tmp_path / "run", **fakes)
    with torch.no_grad():
        trainer.parts.policy.trainable["ace"][0, 0] = float("nan")
    with pytest.raises(CxrlError, match=r"epoch 0: latents of sample 0 \(prompt \d\) are not finite"):
        trainer.run()


def test_a_full_disk_during_a_save(
    make_config: Make, fakes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = checkpoint_module.write_tensors, 0

    def full(*args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 7:  # in the middle of the second checkpoint
            raise OSError(28, "No space left on device")
        save(*args, **kwargs)

    monkeypatch.setattr(checkpoint_module, "write_tensors", full)
    run = tmp_path / "run"
    with pytest.raises(CxrlError, match=r"step-000004: No space left.*step-000002 is intact"):
        Trainer(make_config(), run, **fakes).run()
    monkeypatch.undo()
    resumed = Trainer(make_config(), run, resume=True, **fakes).run()
    whole = Trainer(make_config(), tmp_path / "whole", **fakes).run()
    assert resumed["policy"] == whole["policy"]


def test_a_damaged_checkpoint_on_resume(make_config: Make, fakes: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    Trainer(make_config(train={"num_epochs": 1}), run, **fakes).run()
    victim = run / "checkpoints" / "step-000002" / "optimizer.safetensors"
    victim.write_bytes(victim.read_bytes()[:100])
    with pytest.raises(CxrlError, match=r"cannot read .*optimizer.safetensors: 100 bytes.*delete"):
        Trainer(make_config(train={"num_epochs": 1}), run, resume=True, **fakes).run()


def test_early_stop_keeps_the_last_good_weights(
    make_config: Make, fakes: dict[str, Any], tmp_path: Path
) -> None:
    config = make_config(
        train={"num_epochs": 9, "eval_every": 1, "patience": 2, "early_stop_fid": 1e-9},
        policy={"ema_decay": 0.0},
    )
    recorder = Recorder()
    trainer = Trainer(config, tmp_path / "run", progress=recorder, **fakes)
    start = {n: v.clone() for n, v in trainer.parts.policy.ema.items()}
    summary = trainer.run()
    assert [r["epoch"] for r in recorder.records] == [0, 1]
    assert "train.early_stop_fid" in summary["stopped_early"]
    assert [m for m in recorder.messages if "warning: epoch 1: Fréchet distance" in m]
    policy = load_policy(tmp_path / "run")
    assert all(torch.equal(p, start[n]) for n, p in policy.trainable.items())
    again = Trainer(config, tmp_path / "run", resume=True, **fakes).run()  # stopped stays stopped
    assert again["policy"] == summary["policy"]
    assert again["epochs"] == 2


def test_a_run_that_ends_beyond_its_limits_keeps_the_last_good_weights(
    make_config: Make, fakes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = iter(["", "diversity is low"])
    monkeypatch.setattr(Limits, "problems", lambda *_: next(problems))
    recorder = Recorder()
    config = make_config(train={"num_epochs": 2, "eval_every": 1}, policy={"ema_decay": 0.0})
    summary = Trainer(config, tmp_path / "run", progress=recorder, **fakes).run()
    assert (summary["epochs"], summary["kept_epoch"], summary["stopped_early"]) == (2, 1, "")
    assert "the weights of epoch 1, the last within limits, are kept" in recorder.messages
    monkeypatch.undo()
    limits = {"early_stop_diversity": 0.0, "early_stop_fid": 0.0}
    one = make_config(train={"num_epochs": 1, "eval_every": 1, **limits}, policy={"ema_decay": 0.0})
    short = Trainer(one, tmp_path / "short", **fakes).run()
    assert short["kept_epoch"] == 1
    assert short["policy"] == summary["policy"]
    kept, wanted = load_policy(tmp_path / "run"), load_policy(tmp_path / "short")
    assert all(torch.equal(p, wanted.trainable[n]) for n, p in kept.trainable.items())
    again = Trainer(config, tmp_path / "run", resume=True, **fakes).run()
    assert (again["policy"], again["kept_epoch"]) == (summary["policy"], 1)


def test_a_reward_that_its_judge_does_not_follow_is_told_also_after_a_resume(
    make_config: Make, fakes: dict[str, Any], tmp_path: Path
) -> None:
    """The judge's posture falls as an image gets brighter, and brightness is the reward."""

    def config(epochs: int) -> Config:
        return make_config(
            rewards={"names": ["posture"], "weights": [1.0]},
            policy={"train": "full", "ema_decay": 0.0},
            train={"num_epochs": epochs, "prompts_per_epoch": 4, "samples_per_prompt": 8, "eval_every": 2},
            optim={"minibatches": 4, "micro_batch_size": 64, "clip_range": 0.01}
            | {"lora_learning_rate": 0.005, "ace_learning_rate": 0.02},
            comparison={"form": "direct", "without_anchor": []},
            eval={"bootstrap": 50},
        )

    fakes["rewards"] = {"posture": fakes["rewards"]["posture"]}
    held_out = fakes["prompts"][1]
    fakes["prompts"] = (fakes["prompts"][0], held_out[:3], held_out[3:])
    whole, first, rest = Recorder(), Recorder(), Recorder()
    Trainer(config(6), tmp_path / "whole", progress=whole, **fakes).run()
    Trainer(config(4), tmp_path / "run", progress=first, **fakes).run()
    Trainer(config(6), tmp_path / "run", progress=rest, resume=True, **fakes).run()
    told = [m for m in whole.messages if "the reward posture and its judge part" in m]
    assert any(m.startswith("warning: epoch 6: ") and "since the anchor" in m for m in told), whole.messages
    assert [m for r in (first, rest) for m in r.messages if m.startswith("warning: epoch")] == told
    assert [
        f"warning: epoch {epoch}: {parting}" for epoch, parting in partings_of(read_run(tmp_path / "run"))
    ] == told


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (1, r"prompts: 1 lists; expected \(training, held-out\) or \(training, selection, held-out\)"),
        (4, "prompts: 4 lists; expected"),
        ("one", "prompts: it has 1 held-out report, expected one for the result and another"),
        ("shared", "the text of prompt 0 is in eval and in train"),
        ("choosing", "the text of prompt 0 is in eval and in selection"),
    ],
)
def test_sets_of_reports_that_are_none(
    make_config: Make, fakes: dict[str, Any], tmp_path: Path, sets: int | str, message: str
) -> None:
    training, held_out = fakes["prompts"]
    fakes["prompts"] = {
        1: (training,),
        4: (training, held_out[:1], held_out[1:2], held_out[2:]),
        "one": (training, held_out[:1]),
        "shared": (training, held_out[:1], training[:1]),
        "choosing": (training, [ReportPrompt(5, held_out[0].text.upper() + ".", (1.0, 0.0))], held_out[:1]),
    }[sets]
    with pytest.raises(CxrlError, match=message):
        Trainer(make_config(), tmp_path / "run", **fakes)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "prompt list is empty"),
        ([ReportPrompt(0, "lung " * 40, (1.0, 0.0))], "all 1 prompts are longer than the 16 tokens"),
        ([ReportPrompt(0, "a", (1.0, 0.0)), ReportPrompt(0, "b", (1.0, 0.0))], "share a prompt_id"),
        ([ReportPrompt(0, "a", (1.0, 0.0))], "train.prompts_per_epoch: 2, but there are 1"),
    ],
)
def test_bad_prompts(
    make_config: Make, fakes: dict[str, Any], tmp_path: Path, prompts: list[ReportPrompt], message: str
) -> None:
    fakes["prompts"] = (prompts, fakes["prompts"][1])
    with pytest.raises(CxrlError, match=message):
        Trainer(make_config(), tmp_path / "run", **fakes).run()


def test_a_long_prompt_is_dropped_or_told(make_config: Make, fakes: dict[str, Any], tmp_path: Path) -> None:
    long = ReportPrompt(99, "lung " * 40, (1.0, 0.0))
    fakes["prompts"] = ([long, *fakes["prompts"][0]], fakes["prompts"][1])
    with pytest.raises(CxrlError, match=r"prompt 99 has \d+ tokens, the text encoder reads 16"):
        Trainer(make_config(data={"on_long_prompt": "error"}), tmp_path / "a", **fakes).run()
    trainer = Trainer(make_config(train={"num_epochs": 1}), tmp_path / "b", **fakes)
    trainer.run()
    assert [p.prompt_id for p in trainer.parts.prompts] == list(range(8))


def test_a_run_directory_that_cannot_be_written(
    make_config: Make, fakes: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CxrlError, match=r"--run-dir: cannot write .*run: .*file is no folder"):
        Trainer(make_config(), tmp_path / "file" / "run", **fakes).run()
