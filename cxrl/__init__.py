"""cxrl: reinforcement learning with comparative feedback for text-to-image models of chest radiographs.

The public surface is ``Config, train, generate, evaluate, load_policy, register_reward`` and :mod:`cxrl.ops`.
Names are loaded on first use, so importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cxrl.version import __version__

__all__ = ["Config", "__version__", "evaluate", "generate", "load_policy", "ops", "register_reward", "train"]

if TYPE_CHECKING:
    from cxrl import evaluate, generate, ops, train
    from cxrl.config import Config
    from cxrl.rewards.base import register_reward
    from cxrl.rl.reopen import load_policy

_ATTRIBUTES = {
    "Config": "cxrl.config",
    "load_policy": "cxrl.rl.reopen",
    "register_reward": "cxrl.rewards.base",
}
_MODULES = ("evaluate", "generate", "ops", "train")


def __getattr__(name: str) -> Any:
    if name in _ATTRIBUTES:
        return getattr(importlib.import_module(_ATTRIBUTES[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"cxrl.{name}")
    raise AttributeError(f"module 'cxrl' has no attribute {name!r}; public names: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
