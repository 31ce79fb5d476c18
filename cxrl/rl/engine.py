"""Devices and processes, carried by ``accelerate``; one process is the plain case of the same code.

Work is split by sample: process r of R owns a contiguous share of the N samples. Random numbers are drawn
for all N by everyone, rewards are gathered, and gradients are summed over rows that were divided by the
whole count, so R processes take the same step as one, to rounding. No wrapper around the network: what is
reduced is one flat vector of the trainable weights' gradients, so a process whose rows all have zero
advantage cannot hang the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from cxrl.errors import CxrlError, unknown_name


class Engine:
    """The processes of a run.

    Attributes:
        device: Of this process.
        is_main: Whether this process writes files.
    """

    def __init__(self, run_dir: Path, trackers: Sequence[str] = ()) -> None:
        from accelerate import Accelerator
        from accelerate.utils import ProjectConfiguration

        _check_trackers(trackers)
        project = ProjectConfiguration(project_dir=str(run_dir), logging_dir=str(run_dir / "logs"))
        # model.dtype is the one knob of precision: accelerate's own stays off.
        self.accelerator = Accelerator(
            mixed_precision="no", log_with=list(trackers) or None, project_config=project
        )
        self.device: torch.device = self.accelerator.device
        self.is_main: bool = self.accelerator.is_main_process
        self.rank: int = self.accelerator.process_index
        self.world: int = self.accelerator.num_processes

    def share(self, total: int) -> slice:
        """This process's part of ``total`` items; parts differ by at most one."""
        return slice(total * self.rank // self.world, total * (self.rank + 1) // self.world)

    def gather(self, local: Tensor, total: int) -> Tensor:
        """Rows of all processes in order: [share, ...] → [total, ...]."""
        if self.world == 1:
            return local
        largest = -(-total // self.world)
        padded = local.new_zeros(largest, *local.shape[1:])
        padded[: len(local)] = local
        parts = self.accelerator.gather(padded).split(largest)
        sizes = [total * (r + 1) // self.world - total * r // self.world for r in range(self.world)]
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def sum(self, local: Tensor) -> Tensor:
        """Elementwise sum over the processes."""
        return local if self.world == 1 else self.accelerator.reduce(local.clone(), "sum")

    def max(self, local: Tensor) -> Tensor:
        """Elementwise maximum over the processes."""
        return local if self.world == 1 else self.accelerator.gather(local[None]).amax(0)

    def sum_gradients(self, params: list[nn.Parameter]) -> None:
        """Sum gradients over the processes; a missing one counts as zero."""
        for p in params:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        if self.world == 1:
            return
        grads = [p.grad for p in params if p.grad is not None]
        flat = self.sum(torch.cat([g.flatten() for g in grads]))
        for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(part.view_as(grad))

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            self.accelerator.wait_for_everyone()

    def start_trackers(self) -> None:
        """Open the trackers; they get numbers, never reports or images."""
        self.accelerator.init_trackers("train")

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.accelerator.log(numbers, step=step)

    def finish(self) -> None:
        self.accelerator.end_training()


def _check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that do not exist or whose package is missing; accelerate would leave them out."""
    from accelerate.tracking import get_available_trackers
    from accelerate.utils import LoggerType

    known = [str(kind.value) for kind in LoggerType if kind.value != "all"]
    available = {str(kind.value) for kind in get_available_trackers()}
    for name in names:
        if name not in known:
            raise unknown_name("run.trackers", name, known)
        if name not in available:
            raise CxrlError(f"run.trackers: {name} is not installed; pip install it, or use none")
