"""What of restricted data leaves a run: nothing but numbers, and no file that others can read."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cxrl.config import Config
from cxrl.rl.progress import Progress
from cxrl.rl.trainer import Trainer

TEXTS = (
    "no acute",
    "heart normal",
    "left effusion",
    "lung enlarged",
    "heart size",
    "is normal",
    "lung",
    "left",
)
# Short words of the tiny tokenizer; none occurs in names of metrics.
SECRETS = (b"no acute", b"heart normal", b"left effusion", b"lung enlarged", b"heart size")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class Said(Progress):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


@pytest.fixture
def mimic_run(
    mimic: Any, tmp_path: Path, make_config: Callable[..., Config], fakes: dict[str, Any]
) -> tuple[Trainer, Said]:
    """A trainer on a MIMIC-shaped tree, with every tracker call recorded by the test."""
    tree = mimic.write_mimic_tree(tmp_path / "tree", texts=[*TEXTS, "heart", "normal"])
    config = make_config(
        data={"source": "mimic_cxr", "root": str(tree.root), "cache": "none"},
        run={"trackers": ["tensorboard"]},
        train={"num_epochs": 2},
    )
    fakes["judges"].findings = ("Edema", "Fracture")
    said = Said()
    rest = {"rewards": fakes["rewards"], "judges": fakes["judges"], "progress": said}
    return Trainer(config, tmp_path / "run", **rest), said


def test_trackers_get_numbers_and_nothing_else(
    mimic_run: tuple[Trainer, Said], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import Accelerator

    calls: list[tuple[str, Any, Any]] = []
    for name in ("log", "init_trackers", "log_images"):
        original = getattr(Accelerator, name, None)

        def spy(self: Any, *args: Any, name: str = name, original: Any = original, **kwargs: Any) -> Any:
            calls.append((name, args, kwargs))
            return original(self, *args, **kwargs)

        monkeypatch.setattr(Accelerator, name, spy, raising=False)
    trainer, said = mimic_run
    trainer.run()
    assert {name for name, _, _ in calls} == {"log", "init_trackers"}
    for name, args, kwargs in calls:
        if name == "init_trackers":
            assert (args, kwargs) == (("train",), {"init_kwargs": {}})
            continue
        (numbers,) = args
        assert all(type(value) is float for value in numbers.values())
        assert set(kwargs) == {"step"}
    everything = repr(calls).encode() + b"".join(
        p.read_bytes() for p in (tmp_path / "run" / "logs").rglob("*") if p.is_file()
    )
    assert b"reward" in everything
    assert not [text for text in SECRETS if text in everything]
    assert mode(tmp_path / "run") == 0o700
    inside = list((tmp_path / "run").rglob("*"))
    assert len(inside) > 20
    assert not [p for p in inside if mode(p) & 0o077], "a file may be moved out of the folder"
    (tmp_path / "after").touch()
    assert mode(tmp_path / "after") & 0o044, "the caller's own files are as before"
    assert not [m for m in said.messages for text in SECRETS if text.decode() in m], (
        "a terminal may be logged"
    )
    assert said.messages[0].startswith("8 training reports")


def test_a_mimic_run_is_judged_on_known_labels(mimic_run: tuple[Trainer, Said]) -> None:
    summary = mimic_run[0].run()
    # One held-out report with Fracture 0 and Edema blank: no class has both, so there is no AUROC.
    assert summary["policy"]["auroc"] is None
    assert summary["policy"]["auroc_per_finding"] == {"Edema": None, "Fracture": None}
    assert summary["policy"]["posture"] is not None
