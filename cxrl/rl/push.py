"""The adapter of a run to the hub: its own files and nothing else, and never where data are restricted."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from cxrl.errors import CxrlError, shown
from cxrl.models.adapter import read_description
from cxrl.presets import load_yaml
from cxrl.storage.layout import ADAPTER, ADAPTER_FILE, CARD_FILE, CONFIG
from cxrl.storage.run_dir import is_card


def files_to_push(run_dir: Path) -> list[Path]:
    """What :func:`push_run` would upload.

    Raises:
        CxrlError: There is no finished run there, its files are damaged, or its data are restricted.
    """
    if not (run_dir / CONFIG).is_file():
        raise CxrlError(f"{run_dir} is not a run of cxrl train: it has no {CONFIG}; see --run")
    if load_yaml(run_dir / CONFIG).data.is_restricted:
        raise CxrlError(
            f"{run_dir} was trained on restricted data (data.restricted), which may not be passed on: "
            "nothing is uploaded; ask the owner of the data, and upload by hand what they allow"
        )
    folder = run_dir / ADAPTER
    if not (folder / ADAPTER_FILE).is_file():
        raise CxrlError(f"{folder}: there is no adapter; the run has not finished (cxrl train --resume)")
    about = read_description(folder)
    if Path(str(about.get("base"))).is_absolute():
        warnings.warn(f"{ADAPTER_FILE} names the base by its path, {about['base']}", stacklevel=2)
    if not is_card(folder / CARD_FILE):
        raise CxrlError(f"{folder}: there is no model card of cxrl ({CARD_FILE}), which must go with it")
    return [folder / name for name in (*about["files"], ADAPTER_FILE, CARD_FILE)]


def check_repository(repo: str) -> None:
    """Raise CxrlError unless a name is that of a repository of the hub, ``OWNER/NAME``."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise CxrlError(f"--to: {shown(repo)} is no repository; expected OWNER/NAME") from None
    if repo.count("/") != 1:
        raise CxrlError(f"--to: {shown(repo)} is no repository; expected OWNER/NAME")


def push_run(run_dir: Path, repo: str, *, private: bool = False) -> str:
    """Create the repository where it is not there, and upload.

    Args:
        run_dir: A finished run.
        repo: ``OWNER/NAME``.
        private: For a repository that is made.

    Returns:
        Its address.

    Raises:
        CxrlError: As :func:`files_to_push`; a bad name, no token, no network.
    """
    from huggingface_hub import HfApi

    check_repository(repo)
    files = files_to_push(run_dir)
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise CxrlError("HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it")
    try:
        api = HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=run_dir / ADAPTER,
            allow_patterns=[path.name for path in files],
            commit_message="A policy of cxrl",
        )
    except Exception as error:  # of the hub's client, of what it sends with, of the network
        reason = " ".join(str(error).split())[:200]
        raise CxrlError(
            f"--to: {repo} cannot be written ({reason}); log in with `hf auth login`, or look at the network"
        ) from None
    return f"https://huggingface.co/{repo}"
