"""cxrl: reinforcement learning with comparative feedback for text-to-image models of chest radiographs.

    from cxrl import train, load_run

    run = train("smoke", run_dir="runs/a", settings={"train.num_epochs": 4})
    images = run.generate("Small left pleural effusion.", seeds=range(4))

Names are loaded on first use, so importing the package costs nothing. The commands are modules of the same
names as some of the functions: ``cxrl.train`` is the function, ``python -m cxrl.train`` the command.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from cxrl.version import __version__

__all__ = [
    "Config",
    "CxrlError",
    "Progress",
    "Run",
    "Trainer",
    "__version__",
    "evaluate",
    "generate",
    "load_policy",
    "load_run",
    "ops",
    "register_reward",
    "train",
]

if TYPE_CHECKING:
    from cxrl import ops
    from cxrl.api import Run, evaluate, generate, load_run, train
    from cxrl.config import Config
    from cxrl.errors import CxrlError
    from cxrl.rewards.base import register_reward
    from cxrl.rl.progress import Progress
    from cxrl.rl.reopen import load_policy
    from cxrl.rl.trainer import Trainer

_HOMES = {
    "Config": "cxrl.config",
    "CxrlError": "cxrl.errors",
    "Progress": "cxrl.rl.progress",
    "Run": "cxrl.api",
    "Trainer": "cxrl.rl.trainer",
    "evaluate": "cxrl.api",
    "generate": "cxrl.api",
    "load_policy": "cxrl.rl.reopen",
    "load_run": "cxrl.api",
    "register_reward": "cxrl.rewards.base",
    "train": "cxrl.api",
}


class _Package(ModuleType):
    """Importing the module of a command does not put it where the function of that name is."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        found = getattr(importlib.import_module(_HOMES[name]), name)
        setattr(sys.modules[__name__], name, found)
        return found
    if name == "ops":
        return importlib.import_module("cxrl.ops")
    raise AttributeError(f"module 'cxrl' has no attribute {name!r}; public names: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
