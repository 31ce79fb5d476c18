"""Batch sizes by the memory that is there, where a configuration leaves them open.

Rows that go through the networks at once change a result by rounding alone, so they may follow the machine.
What is chosen stands in the run's ``config.yaml``, and a run that is resumed keeps it.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import torch

from cxrl.config import Config
from cxrl.models.base_files import find_base
from cxrl.presets import load_yaml
from cxrl.rl.cost import estimate, footprint, size_text

SHARE = 0.6
"""Of the memory, for networks, optimizer and activations: the rest is for reward models and judges, and for
what kernels and allocators take."""
ROWS = (8, 4, 2, 1)
"""What is tried. More than eight rows at 512 pixels keep a GPU no busier."""
ENOUGH = 4
"""Rows from which gradient checkpointing, a third more time, is not worth the memory."""


def is_open(config: Config) -> bool:
    """Whether a batch size is left to :func:`fit_to_memory`."""
    return config.optim.micro_batch_size == 0 or config.sampler.batch_size == 0


def keep_batch_sizes(config: Config, saved: Path) -> Config:
    """The configuration of a run that goes on, with the run's own sizes where it leaves them open.

    Args:
        config: The new one.
        saved: The run's ``config.yaml``, where it has one.

    Raises:
        CxrlError: The file is damaged.
    """
    if not is_open(config) or not saved.is_file():
        return config
    before, micro = load_yaml(saved), config.optim.micro_batch_size
    return _changed(
        config,
        micro or before.optim.micro_batch_size,
        config.sampler.batch_size or before.sampler.batch_size,
        (config if micro else before).model.gradient_checkpointing,
    )


def fill_batch_sizes(config: Config, device: torch.device, num_processes: int = 1) -> tuple[Config, str]:
    """As :func:`fit_to_memory`, once the base is seen to be one that can be loaded. It is downloaded where it
    is a hub id that is not on this machine.

    Raises:
        CxrlError: The base cannot be had or loaded.
    """
    if is_open(config):
        find_base(config.model.path, config.model.allow_pickle)
    return fit_to_memory(config, device, num_processes)


def fit_to_memory(
    config: Config, device: torch.device, num_processes: int = 1, memory: int | None = None
) -> tuple[Config, str]:
    """Fill in ``optim.micro_batch_size`` and ``sampler.batch_size`` where they are 0.

    Args:
        config: With ``model.path`` on this machine. ``model.gradient_checkpointing`` stays on where it is on,
            and is switched on where few rows fit without it.
        device: Where it runs.
        num_processes: That share the memory of a CPU.
        memory: Bytes; None is this machine's.

    Returns:
        The configuration, and what to tell about it; "" where nothing was open.

    Raises:
        CxrlError: A configuration file of the base is damaged.
    """
    if not is_open(config):
        return config, ""
    memory = memory or machine_memory(device) // (1 if device.type == "cuda" else num_processes)
    given, chosen, need = config.optim.micro_batch_size, config, 0
    for checkpointing in (True,) if config.model.gradient_checkpointing else (False, True):
        found = footprint(_changed(config, 1, 1, checkpointing), device)
        if found is None:
            raise ValueError(f"model.path {config.model.path} is not on this machine")
        for rows in (given,) if given else ROWS:
            chosen = _changed(config, rows, config.sampler.batch_size or rows, checkpointing)
            cost = estimate(chosen, found, rate=1.0)
            need = cost.bytes_weights + cost.bytes_activations
            if need <= SHARE * memory:
                break
        if given or (need <= SHARE * memory and chosen.optim.micro_batch_size >= ENOUGH):
            break
    rows, kept = chosen.optim.micro_batch_size, chosen.model.gradient_checkpointing
    short = need > SHARE * memory
    told = (
        f"{'warning: ' if short else ''}{rows} rows at once{' with gradient checkpointing' if kept else ''}, "
        f"about {size_text(need)} beside reward models and judges, of {size_text(memory)} of the "
        f"{'GPU' if device.type == 'cuda' else 'machine'}"
        f"{': it may not be enough' if short else ''} (--optim.micro-batch-size chooses otherwise)"
    )
    return chosen, told


def _changed(config: Config, micro: int, batch: int, checkpointing: bool) -> Config:
    return dataclasses.replace(
        config,
        optim=dataclasses.replace(config.optim, micro_batch_size=micro),
        sampler=dataclasses.replace(config.sampler, batch_size=batch),
        model=dataclasses.replace(config.model, gradient_checkpointing=checkpointing),
    )


def machine_memory(device: torch.device) -> int:
    """Bytes of a GPU; of the machine, or of what a container may take of it."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else ""
    return min(found, int(text)) if text.isdigit() else found
