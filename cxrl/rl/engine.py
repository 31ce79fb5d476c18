"""Devices and processes, carried by ``accelerate``; one process is the plain case of the same code.

Work is split by sample: process r of R owns a contiguous share of the N samples. Random numbers are drawn
for all N by everyone, rewards are gathered, and gradients are summed over rows that were divided by the
whole count, so R processes take the same step as one, to rounding. No wrapper around the network: what is
reduced is the trainable weights' gradients as flat vectors, so a process whose rows all have zero advantage
cannot hang the others. Every process holds all weights: sharded ones (FSDP, DeepSpeed) are refused.

A process that ends, or that does not answer for ``timeout``, ends the others with an error.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cxrl.errors import CxrlError, unknown_name
from cxrl.storage.layout import LOGS, TENSORBOARD

DEFAULT_TIMEOUT = 600.0
BUCKET = 2**25
"""Elements of the flat vectors that gradients are summed in: 128 MiB, whatever the size of the network."""
_SHARDED = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")
_WITHOUT_EFFECT = {
    "ACCELERATE_MIXED_PRECISION": ("no", "model.dtype"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("1", "optim.gradient_accumulation"),
}
"""Environment variable that accelerate's launcher sets from its configuration: (harmless value, ours)."""
_OF_PICTURES = {"wandb": True, "swanlab": True, "aim": False, "clearml": False}
"""Trackers of accelerate that take arrays, and whether in a list."""


class Engine:
    """The processes of a run.

    Attributes:
        device: Of this process.
        is_main: Whether this process writes files.
    """

    def __init__(
        self, run_dir: Path, trackers: Sequence[str] = (), *, timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        """Join the processes that a launcher started; without one, be the only one.

        Args:
            run_dir: For the trackers' logs.
            trackers: Of accelerate.
            timeout: Seconds that a process waits for the others.

        Raises:
            CxrlError: A tracker that cannot be had, sharded weights, or processes that do not come together.
        """
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration

        _check_trackers(trackers)
        _check_launcher()
        self.timeout = timeout
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        project = ProjectConfiguration(project_dir=str(run_dir), logging_dir=str(run_dir / LOGS))
        # model.dtype is the one knob of precision: accelerate's own stays off. Without a GPU it joins
        # processes only when told so; its own launcher does, torchrun does not.
        launched = self.world
        with self._together("starting"):
            self.accelerator = Accelerator(
                cpu=launched > 1 and not torch.accelerator.is_available(),
                mixed_precision="no",
                log_with=list(trackers) or None,
                project_config=project,
                kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=timeout))],
            )
        self.device: torch.device = self.accelerator.device
        self.is_main: bool = self.accelerator.is_main_process
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        _check_joined(launched, self.world)

    @contextlib.contextmanager
    def _together(self, what: str) -> Iterator[None]:
        """Inside, all processes do the same. The backends raise RuntimeError when one is lost."""
        try:
            yield
        except RuntimeError as error:
            if self.world == 1:
                raise
            reason = " ".join(str(error).split())[:200]
            raise CxrlError(
                f"process {self.rank} of {self.world} lost another while {what}: its own message says "
                f"why; without one it was killed or silent for {self.timeout:g} s (run.process_timeout). "
                f"The last checkpoint is intact: go on with --resume ({reason})"
            ) from error

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
        with self._together("gathering"):
            parts = self.accelerator.gather(padded).split(largest)
        sizes = [total * (r + 1) // self.world - total * r // self.world for r in range(self.world)]
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def sum(self, local: Tensor) -> Tensor:
        """Elementwise sum over the processes."""
        if self.world == 1:
            return local
        with self._together("summing"):
            return self.accelerator.reduce(local.clone(), "sum")

    def max(self, local: Tensor) -> Tensor:
        """Elementwise maximum over the processes."""
        if self.world == 1:
            return local
        with self._together("comparing"):
            return self.accelerator.gather(local[None]).amax(0)

    def sum_gradients(self, params: list[nn.Parameter]) -> None:
        """Sum gradients over the processes; a missing one counts as zero."""
        for p in params:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        if self.world == 1:
            return
        grads = [p.grad for p in params if p.grad is not None]
        for bucket in _buckets(grads):
            flat = self.sum(torch.cat([g.flatten() for g in bucket]))
            for grad, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                grad.copy_(part.view_as(grad))

    def check_same(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise CxrlError, in every process, unless all hold the same bits of these float32 tensors."""
        if self.world == 1 or not tensors:
            return
        sums = [t.detach().contiguous().view(torch.int32).sum(dtype=torch.int64) for t in tensors.values()]
        mine = torch.stack(sums).to(self.device)
        differ = self.max(mine) != -self.max(-mine)
        if bool(differ.any()):
            name = list(tensors)[int(differ.nonzero()[0])]
            raise CxrlError(
                f"the processes disagree on {int(differ.sum())} of {len(tensors)} weights, the first {name}; "
                "they must run the same software on the same kind of device. The last checkpoint is intact"
            )

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            with self._together("waiting"):
                self.accelerator.wait_for_everyone()

    def start_trackers(self, epoch: int, config: Mapping[str, Any], *, resumed: bool) -> None:
        """Open the trackers; they get the settings and numbers, never reports.

        Args:
            epoch: Epochs completed.
            config: Full name → value of every setting.
            resumed: TensorBoard forgets what it was told of later epochs: they come again.
        """
        forget = {"tensorboard": {"purge_step": epoch + 1}} if resumed else {}
        self.accelerator.init_trackers(TENSORBOARD, init_kwargs=forget)
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":  # its own way leaves a folder named after the time
                table = "\n".join(f"| {name} | {value} |" for name, value in config.items())
                tracker.writer.add_text("config", f"| setting | value |\n|---|---|\n{table}", epoch)
            else:
                tracker.store_init_configuration({name: _plain(value) for name, value in config.items()})

    def log_picture(self, name: str, picture: Any, step: int) -> None:
        """Show the trackers that can a picture, uint8 [H, W]."""
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.writer.add_image(name, picture, step, dataformats="HW")
            elif tracker.name in _OF_PICTURES:
                tracker.log_images({name: [picture] if _OF_PICTURES[tracker.name] else picture}, step=step)

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.accelerator.log(numbers, step=step)

    def finish(self) -> None:
        """Close the trackers and part from the other processes."""
        self.accelerator.end_training()

    def abandon(self) -> None:
        """Close the trackers after an error; the others notice when this process ends."""
        for tracker in self.accelerator.trackers:
            tracker.finish()


def _plain(value: Any) -> Any:
    """A setting as every tracker takes it."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


def _buckets(grads: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of together at most BUCKET elements; a larger one is alone."""
    bucket: list[Tensor] = []
    for grad in grads:
        if bucket and sum(g.numel() for g in bucket) + grad.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(grad)
    if bucket:
        yield bucket


def _check_joined(launched: int, joined: int) -> None:
    """Refuse processes that each believe to be alone: all would write the same run directory."""
    if launched != joined:
        raise CxrlError(
            f"the launcher started {launched} processes (WORLD_SIZE), but {joined} came together; start them "
            "with accelerate launch or torchrun, see docs/multi-gpu.md"
        )


def _check_launcher() -> None:
    """Refuse what this engine does not do, and say what has no effect here."""
    for name in _SHARDED:
        if os.environ.get(name, "").lower() == "true":
            raise CxrlError(
                f"{name} is set, but every process holds all weights; configure accelerate for plain "
                "multi-GPU (distributed_type MULTI_GPU), see docs/multi-gpu.md"
            )
    for name, (harmless, ours) in _WITHOUT_EFFECT.items():
        value = os.environ.get(name, harmless)
        if value != harmless and os.environ.get("RANK", "0") == "0":
            warnings.warn(f"{name}={value} has no effect here; use --{ours.replace('_', '-')}", stacklevel=3)


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
