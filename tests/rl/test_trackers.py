"""Trackers get the settings and, unless data are restricted, the grids; reports never as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cxrl.rl.engine import Engine
from cxrl.rl.trainer import Trainer


def events(run: Path) -> EventAccumulator:
    found = EventAccumulator(str(run / "logs" / "train"))
    found.Reload()
    return found


@pytest.mark.parametrize("restricted", ["no", "yes"])
def test_tensorboard_shows_settings_and_grids(
    make_config: Any, fakes: dict[str, Any], tmp_path: Path, restricted: str
) -> None:
    config = make_config(run={"trackers": ["tensorboard"]}, data={"restricted": restricted, "num_prompts": 8})
    Trainer(config, tmp_path / "run", **fakes).run()
    found = events(tmp_path / "run")
    (text,) = found.Tensors("config/text_summary")
    table = text.tensor_proto.string_val[0].decode()
    assert "| optim.minibatches | 2 |" in table
    assert found.Tags()["images"] == ([] if restricted == "yes" else ["samples", "result"])
    if restricted == "no":
        assert [image.step for image in found.Images("samples")] == [2, 3]
        assert found.Images("samples")[0].width > 200
    assert {"reward/posture", "eval/posture", "eval_reward/posture"} <= set(found.Tags()["scalars"])
    for report in fakes["prompts"][0]:
        assert report.text not in table


class Tracker:
    """One of the others, as accelerate wraps them."""

    def __init__(self, name: str) -> None:
        self.name, self.told = name, list[Any]()

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.told.append(values)

    def log_images(self, values: dict[str, Any], step: int) -> None:
        self.told.append((values, step))


def test_other_trackers_get_plain_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(tmp_path)
    trackers = [Tracker(name) for name in ("wandb", "swanlab", "aim", "clearml", "mlflow")]
    monkeypatch.setattr(engine.accelerator, "init_trackers", lambda *_, **__: None)
    monkeypatch.setattr(engine.accelerator, "trackers", trackers)
    engine.start_trackers(0, {"rewards.names": ["a", "b"], "seed": 3}, resumed=False)
    picture = np.zeros((4, 5), dtype=np.uint8)
    engine.log_picture("samples", picture, 7)
    for tracker in trackers:
        assert tracker.told[0] == {"rewards.names": "a,b", "seed": 3}
        if tracker.name == "mlflow":
            assert len(tracker.told) == 1, "it takes no pictures"
            continue
        (values, step) = tracker.told[1]
        shown = values["samples"]
        assert step == 7
        assert (shown[0] if tracker.name in ("wandb", "swanlab") else shown) is picture
