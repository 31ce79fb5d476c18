"""What rewards and judges were made of: a digest of the files of each, to be compared when a run goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cxrl.errors import CxrlError
from cxrl.scorers.choice import OpenedModel, file_sha256

UNKNOWN = "unknown"
"""In place of a digest, for a reward that the user registered: code has none."""


def scorer_digests(models: Iterable[OpenedModel], own_rewards: Iterable[str] = ()) -> dict[str, str]:
    """Option → SHA-256 of what the option names.

    Args:
        models: Of :func:`cxrl.scorers.choice.open_models`, rewards and judges.
        own_rewards: Names of rewards that the user registered, see :func:`cxrl.rewards.base.own_rewards`.

    Returns:
        "rewards.diagnosis" → hex digest, and so on: that of the file; for a folder or hub id that of the
        names and digests of its weights, configuration and tokenizer; UNKNOWN for a reward of the user's own.
        "eval.judges" is that of what else the judges that cxrl.pretrain made compare with.

    Raises:
        CxrlError: A file cannot be read.
    """
    found = {}
    for model in models:
        found[model.option] = _digest(model.files, model.option, is_folder=model.kind == "transformers")
        if model.option == "eval.diagnosis" and not model.value:
            beside = [model.folder / name for name in ("posture.safetensors", "reference.safetensors")]
            found["eval.judges"] = _digest(beside, "eval.judges", is_folder=True)
    return found | {f"rewards.{name}": UNKNOWN for name in own_rewards}


def changed(before: Mapping[str, Any], now: Mapping[str, str]) -> list[str]:
    """The options whose digests differ, sorted."""
    return [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]


def _digest(paths: Sequence[Path], option: str, *, is_folder: bool) -> str:
    try:
        digests = {path.name: file_sha256(path) for path in paths}
    except OSError as error:
        raise CxrlError(f"{option}: cannot read {error.filename}: {error.strerror}") from None
    if not is_folder:
        return next(iter(digests.values()))
    text = "".join(f"{name}\0{digest}\n" for name, digest in digests.items())
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
