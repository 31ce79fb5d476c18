"""Names of everything that a run leaves on disk. Imports nothing of the project.

RUN/.cxrl-run.json              marker: the folder is a run's; locked while a process works on it
    config.yaml                 every setting, resolved
    provenance.json             every process that worked on it: command, version, commit, machine
    bounds.json                 anchor and real films by the judges, of the reports that choose
    metrics.jsonl               a line an epoch
    summary.json                anchor, policy and real films by the judges, of reports that chose nothing
    scores.csv                  every judged image by judges and rewards
    gallery.safetensors         a small picture a report: anchor, policy, real film of the phantom
    headroom.json               best of n images, by rewards and judges, where cxrl headroom was asked
    checkpoints/step-NNNNNN/    safetensors and JSON, after NNNNNN optimizer steps
    adapter/                    the finished policy
    samples/epoch-NNNNNN.png    grids of the reports that choose; result.png of those of the summary
    logs/                       of the trackers
"""

from __future__ import annotations

import re

MARKER = ".cxrl-run.json"
CONFIG, METRICS, SUMMARY = "config.yaml", "metrics.jsonl", "summary.json"
PROVENANCE, BOUNDS = "provenance.json", "bounds.json"
SCORES, GALLERY = "scores.csv", "gallery.safetensors"
HEADROOM = "headroom.json"
CHECKPOINTS, ADAPTER, SAMPLES, LOGS = "checkpoints", "adapter", "samples", "logs"
TENSORBOARD = "train"
"""Folder of its events in logs/: what accelerate calls the project."""
FILES = (MARKER, CONFIG, PROVENANCE, BOUNDS, METRICS, SUMMARY, SCORES, GALLERY, HEADROOM)
FOLDERS = (CHECKPOINTS, ADAPTER, SAMPLES, LOGS)

WEIGHTS_FILE, EMA_FILE, GOOD_FILE = "weights.safetensors", "ema.safetensors", "good.safetensors"
OPTIMIZER_FILE, BANK_FILE = "optimizer.safetensors", "bank.safetensors"
STATE_FILE, POLICY_FILE, MANIFEST = "state.json", "policy.json", "manifest.json"
CHECKPOINT_FILES = (
    WEIGHTS_FILE, EMA_FILE, GOOD_FILE, OPTIMIZER_FILE, BANK_FILE, STATE_FILE, POLICY_FILE, MANIFEST,
)  # fmt: skip

LORA_FILE, ACE_FILE, UNET_FILE = "pytorch_lora_weights.safetensors", "ace.safetensors", "unet.safetensors"
ADAPTER_FILE, CARD_FILE = "adapter.json", "README.md"
ADAPTER_FILES = (LORA_FILE, ACE_FILE, UNET_FILE, ADAPTER_FILE)
CARD_MARK = "- Made by cxrl"
"""In every model card that is written: a README.md without it is somebody else's."""

PARTIAL = ".partial-"
"""Prefix of a checkpoint that is being written or deleted."""

_LONGEST = 200  # bytes, of the 255 that a name may have

_STEP = re.compile(r"step-(\d+)", re.ASCII)
RESULT_GRID = "result.png"
_GRID = re.compile(r"epoch-(\d{6,})(-kept)?\.png", re.ASCII)  # -kept: of earlier versions
_TEMPORARY = re.compile(r"\..+\.(\d+)\.cxrl-tmp", re.ASCII | re.DOTALL)
_EVENTS = re.compile(r"events\.out\.tfevents\..*")


def step_name(step: int) -> str:
    """Folder of the checkpoint after ``step`` optimizer steps."""
    return f"step-{step:06d}"


def step_number(name: str) -> int | None:
    """The optimizer steps of a checkpoint's folder; None for any other name."""
    found = _STEP.fullmatch(name)
    return int(found[1]) if found and len(found[1]) < 19 and step_name(int(found[1])) == name else None


def grid_name(epoch: int) -> str:
    """The picture of the weights of an epoch."""
    return f"epoch-{epoch:06d}.png"


def is_grid(name: str) -> bool:
    """Whether it is a picture of an epoch, or of the result."""
    return name == RESULT_GRID or _GRID.fullmatch(name) is not None


def is_event_file(name: str) -> bool:
    """Whether TensorBoard's writer gives this name."""
    return _EVENTS.fullmatch(name) is not None


def temporary_name(name: str, pid: int) -> str:
    """What ``name``, cut to a length that file systems take, is called while process ``pid`` writes it."""
    kept = name.encode(errors="surrogateescape")[:_LONGEST].decode(errors="ignore")
    return f".{kept}.{pid}.cxrl-tmp"


def temporary_writer(name: str) -> int | None:
    """The process that writes a file of this name; None where :func:`temporary_name` does not give it."""
    found = _TEMPORARY.fullmatch(name)
    return int(found[1]) if found and len(found[1]) < 19 else None


def is_temporary(name: str) -> bool:
    """Whether :func:`temporary_name` gives this name."""
    return temporary_writer(name) is not None
