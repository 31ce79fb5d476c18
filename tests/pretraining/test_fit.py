"""The supervised loop: a killed stage goes on to the same bits, and what cannot go on says why."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cxrl.errors import CxrlError
from cxrl.pretraining.fit import FitOptions, fit, learning_rate_at

OPTIONS = FitOptions(num_steps=9, learning_rate=1e-2, weight_decay=0.1, ema_decay=0.9)


class Net(nn.Module):
    """Whatever a stage may hold: the fast memory layout, running statistics, a frozen weight."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 1)
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.conv(x))).mean((2, 3))) * self.frozen


class Killed(Exception):
    """In place of a signal."""


def train(
    folder: Path,
    *,
    net: Net | None = None,
    options: FitOptions = OPTIONS,
    seed: int = 3,
    data: str = "",
    kill_at: int | None = None,
    nan_at: int | None = None,
) -> tuple[Net, list[int]]:
    """Fits a small regression and returns the steps made; trouble comes at ``kill_at`` or ``nan_at``."""
    net = net or Net()
    steps: list[int] = []

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        if step == kill_at:
            raise Killed
        steps.append(step)
        x = torch.randn(8, 2, 5, 5, generator=generator).to(memory_format=torch.channels_last)
        loss = F.mse_loss(net(x)[:, 0], x.mean((1, 2, 3)))
        return loss * math.nan if step == nan_at else loss

    quiet: list[str] = []
    fit("stage", net, loss_at, options, seed=seed, work_dir=folder, data=data, tell=quiet.append)
    return net, steps


@pytest.mark.parametrize("kill_at", [1, 5, 8])
def test_killed_and_resumed_is_never_killed(tmp_path: Path, kill_at: int) -> None:
    every_step = dataclasses.replace(OPTIONS, checkpoint_seconds=-1.0)
    expected, steps = train(tmp_path / "never", options=every_step)
    assert steps == list(range(9))
    with pytest.raises(Killed):
        train(tmp_path / "killed", options=every_step, kill_at=kill_at)
    # The process that goes on starts with other weights: all must come from the checkpoint.
    fresh = Net()
    nn.init.zeros_(fresh.conv.weight)
    resumed, steps = train(tmp_path / "killed", net=fresh, options=every_step)
    assert steps == list(range(kill_at, 9))
    state = expected.state_dict()
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_a_finished_stage_is_not_trained_again(tmp_path: Path) -> None:
    expected, _ = train(tmp_path)
    again, steps = train(tmp_path)
    assert steps == []
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), expected.parameters(), strict=True))


def test_it_learns_and_leaves_frozen_weights_alone(tmp_path: Path) -> None:
    net, _ = train(tmp_path, options=dataclasses.replace(OPTIONS, num_steps=60))
    assert not net.training
    assert float(net.frozen) == 1.0
    assert not torch.equal(net.conv.weight, Net().conv.weight)
    x = torch.randn(64, 2, 5, 5, generator=torch.Generator().manual_seed(1))
    target = x.mean((1, 2, 3))
    with torch.no_grad():
        assert float(F.mse_loss(net(x)[:, 0], target)) < float(F.mse_loss(Net().eval()(x)[:, 0], target))


def test_the_result_is_the_moving_average(tmp_path: Path) -> None:
    averaged, _ = train(tmp_path / "averaged")
    last, _ = train(tmp_path / "last", options=dataclasses.replace(OPTIONS, ema_decay=0.0))
    assert not torch.equal(averaged.head.weight, last.head.weight)


@pytest.mark.parametrize("keep", [0, 40, 0.5, -1], ids=["empty", "header", "half", "one_byte_short"])
def test_a_truncated_checkpoint_is_named(tmp_path: Path, keep: float) -> None:
    train(tmp_path)
    path = tmp_path / "stage.checkpoint"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if 0 < keep < 1 else int(keep)])
    with pytest.raises(CxrlError, match=r"stage\.checkpoint cannot be read .*delete it to start this stage"):
        train(tmp_path)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(CxrlError, match=r"stage\.checkpoint belongs to another model; delete it"):
        train(tmp_path, net=Net(width=7))


@pytest.mark.parametrize(
    ("setting", "changed"),
    [
        ("learning_rate", {"options": dataclasses.replace(OPTIONS, learning_rate=2e-2)}),
        ("seed", {"seed": 4}),
        ("data", {"data": "another table"}),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(
    tmp_path: Path, setting: str, changed: dict[str, Any]
) -> None:
    train(tmp_path)
    with pytest.raises(CxrlError, match=rf"stage\.checkpoint was written with other settings \({setting} "):
        train(tmp_path, **changed)


def test_more_steps_go_on_and_fewer_are_refused(tmp_path: Path) -> None:
    train(tmp_path)
    _, steps = train(tmp_path, options=dataclasses.replace(OPTIONS, num_steps=11))
    assert steps == [9, 10]
    with pytest.raises(CxrlError, match="has 11 steps, 9 are asked for; delete it"):
        train(tmp_path)


def test_a_loss_that_is_not_finite_stops_the_stage_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    options = dataclasses.replace(OPTIONS, checkpoint_seconds=-1.0)
    with pytest.raises(CxrlError, match="stage: the loss is nan at step 4; lower the learning rate"):
        train(tmp_path, options=options, nan_at=4)
    _, steps = train(tmp_path, options=options)
    assert steps == list(range(4, 9))


def test_a_disk_that_fills_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = dataclasses.replace(OPTIONS, checkpoint_seconds=-1.0)
    with pytest.raises(Killed):
        train(tmp_path, options=options, kill_at=3)
    before = (tmp_path / "stage.checkpoint").read_bytes()

    def full(tensors: object, path: Path, metadata: object = None) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", full)
        with pytest.raises(CxrlError, match=r"cannot write .*stage.checkpoint: No space left"):
            train(tmp_path, options=options)
    assert (tmp_path / "stage.checkpoint").read_bytes() == before
    expected, _ = train(tmp_path / "never", options=options)
    resumed, steps = train(tmp_path, options=options)
    assert steps[0] == 3
    assert torch.equal(resumed.conv.weight, expected.conv.weight)


def test_learning_rate_warms_up_and_decays() -> None:
    options = FitOptions(num_steps=200, learning_rate=1.0)
    rates = [learning_rate_at(step, options) for step in range(200)]
    assert rates[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0])
    assert max(rates) == rates[6] == 1.0
    assert all(a > b for a, b in itertools.pairwise(rates[6:]))
    assert rates[-1] == pytest.approx(0.02, abs=1e-3)
