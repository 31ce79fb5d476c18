"""The policy: the base's UNet with LoRA on its attention, and ACE after the prompt. Either can be off.

The anchor is the same weights with the adapters off and no ACE: one copy in memory, and it cannot drift. Only
``policy.train full`` needs a second UNet. Trainable weights are float32 whatever the network's dtype.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cxrl.config import PolicyConfig
from cxrl.errors import CxrlError
from cxrl.models.ace import init_ace
from cxrl.models.attention import PolicyAttention
from cxrl.models.base import BaseModel, load_base
from cxrl.storage.reading import check_weights, read_json, read_tensors

LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
LORA_FILE = "pytorch_lora_weights.safetensors"
ACE_FILE = "ace.safetensors"
UNET_FILE = "unet.safetensors"
ADAPTER_FILE = "adapter.json"
POLICY_FILE = "policy.json"
EMA_FILE = "ema.safetensors"
ACE = "ace"
"""Name of the ACE tensor among the trainable weights."""


class Policy:
    """A base with trainable weights.

    Attributes:
        base: The frozen parts.
        config: What is trainable.
        trainable: Name → float32 parameter; ``ace`` last, the rest by the UNet's names.
        ema: Name → averaged weights, the ones that are evaluated and saved.
    """

    def __init__(self, base: BaseModel, config: PolicyConfig, *, seed: int = 0) -> None:
        self.base, self.config = base, config
        self.fingerprint = base.fingerprint()
        base.unet.set_attn_processor(PolicyAttention())
        self._adapters: list[Any] = []
        self._anchor_unet: nn.Module | None = None
        self.trainable: dict[str, nn.Parameter] = {}
        if config.train == "lora":
            self._add_lora(seed)
        elif config.train == "full":
            self._anchor_unet = copy.deepcopy(base.unet)
            base.unet.float().requires_grad_(True)
            self.trainable.update(sorted(base.unet.named_parameters()))
        if config.num_ace_tokens:
            generator = torch.Generator().manual_seed(seed)
            self.trainable[ACE] = init_ace(base.pad_embedding(), config.num_ace_tokens, generator)
        self.ema = {name: p.detach().clone() for name, p in self.trainable.items()}
        self.num_ema_updates = 0

    def _add_lora(self, seed: int) -> None:
        from peft import LoraConfig
        from peft.tuners.tuners_utils import BaseTunerLayer

        unet = self.base.unet
        lora = LoraConfig(
            r=self.config.lora_rank,
            lora_alpha=self.config.lora_alpha,  # type: ignore[arg-type]  # peft divides, any float does
            target_modules=LORA_TARGETS,
            init_lora_weights="gaussian",
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            unet.add_adapter(lora)
        self._adapters = [m for m in unet.modules() if isinstance(m, BaseTunerLayer)]
        for name, p in sorted(unet.named_parameters()):
            if "lora_" in name:
                p.data = p.data.float()
                p.requires_grad_(True)
                self.trainable[name] = p

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def ace(self) -> Tensor | None:
        """float32 [n, D], or None."""
        return self.trainable.get(ACE)

    def predict(
        self,
        x_t: Tensor,
        timesteps: Tensor,
        prompt_embeds: Tensor,
        negative_embeds: Tensor | None = None,
        *,
        prompt_of: Tensor | None = None,
        anchor: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The network's output with and without the prompt, in one forward pass.

        Args:
            x_t: float32 [B, C, h, w].
            timesteps: int64 [B]; rows may be at different steps.
            prompt_embeds: [B, L, D], or [P, L, D] of distinct prompts with ``prompt_of``.
            negative_embeds: [L, D] of the unconditional branch; None is no guidance.
            prompt_of: int64 [B], the prompt of every row; keys and values are then computed once per prompt.
            anchor: Adapters off and no ACE.

        Returns:
            (conditional, unconditional or None), each [B, C, h, w] in the network's dtype.
        """
        embeds = prompt_embeds
        if prompt_of is None:
            prompt_of = torch.arange(len(x_t), device=x_t.device)
        if negative_embeds is not None:
            x_t, timesteps = torch.cat([x_t, x_t]), torch.cat([timesteps, timesteps])
            embeds = torch.cat([embeds, negative_embeds[None]])
            prompt_of = torch.cat([prompt_of, torch.full_like(prompt_of, len(prompt_embeds))])
        attention: dict[str, Any] = {"kv_index": prompt_of}
        if self.ace is not None and not anchor:
            attention["ace"] = self.ace.to(embeds.dtype)
        settings = {"cross_attention_kwargs": attention, "return_dict": False}
        with self._as_anchor() if anchor else contextlib.nullcontext(self.base.unet) as unet:
            if self.config.train == "full" and not anchor:
                enabled = self.base.dtype != torch.float32
                with torch.autocast(self.device.type, self.base.dtype, enabled=enabled):
                    output = unet(x_t, timesteps, embeds, **settings)[0]
            else:
                output = unet(x_t.to(self.base.dtype), timesteps, embeds, **settings)[0]
        if negative_embeds is None:
            return output, None
        conditional, unconditional = output.chunk(2)
        return conditional, unconditional

    @contextlib.contextmanager
    def _as_anchor(self) -> Iterator[nn.Module]:
        if self._anchor_unet is not None:
            yield self._anchor_unet
            return
        for layer in self._adapters:
            layer.enable_adapters(False)
        try:
            yield self.base.unet
        finally:
            for layer in self._adapters:
                layer.enable_adapters(True)

    def param_groups(
        self, lora_learning_rate: float, ace_learning_rate: float, weight_decay: float
    ) -> list[dict[str, Any]]:
        """AdamW's groups, ``lora`` (or ``unet``) and ``ace``; a group that is off is left out."""
        weights = [p for name, p in self.trainable.items() if name != ACE]
        ace = [p for name, p in self.trainable.items() if name == ACE]
        name = "unet" if self.config.train == "full" else "lora"
        groups: list[dict[str, Any]] = [
            {"name": name, "params": weights, "lr": lora_learning_rate},
            {"name": ACE, "params": ace, "lr": ace_learning_rate},
        ]
        return [group | {"weight_decay": weight_decay} for group in groups if group["params"]]

    @torch.no_grad()
    def update_ema(self) -> None:
        """Move the average towards the weights; call it after every optimizer step."""
        self.num_ema_updates += 1
        n = self.num_ema_updates
        # A young average would mostly hold the start: it follows faster until it has enough steps.
        decay = min(self.config.ema_decay, (1 + n) / (10 + n))
        for name, p in self.trainable.items():
            self.ema[name].lerp_(p, 1 - decay)

    @contextlib.contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Inside, the policy predicts with the averaged weights."""
        live = {name: p.data for name, p in self.trainable.items()}
        for name, p in self.trainable.items():
            p.data = self.ema[name]
        try:
            yield
        finally:
            for name, p in self.trainable.items():
                p.data = live[name]

    def weights(self) -> dict[str, Tensor]:
        """Name → trainable weights, detached, not copied."""
        return {name: p.detach() for name, p in self.trainable.items()}

    @torch.no_grad()
    def load_weights(self, weights: dict[str, Tensor], source: str) -> None:
        """Copy trainable weights in.

        Raises:
            CxrlError: Names or shapes are not this policy's; the message names ``source``.
        """
        check_weights(self.trainable, weights, source)
        for name, p in self.trainable.items():
            p.copy_(weights[name])

    def describe(self) -> dict[str, Any]:
        """What :func:`load_policy` needs besides weights; JSON."""
        return {
            "base": self.base.path,
            "base_fingerprint": self.fingerprint,
            "dtype": str(self.base.dtype).removeprefix("torch."),
            "policy": dataclasses.asdict(self.config),
        }

    def save_adapter(self, folder: Path) -> None:
        """Write the averaged weights where plain diffusers can read them.

        ``pytorch_lora_weights.safetensors`` loads with ``pipe.load_lora_weights(folder)``;
        ``ace.safetensors`` holds one tensor ``ace`` [n, D] to append to ``prompt_embeds``; ``adapter.json``
        says what they belong to. With ``policy.train full`` the UNet's weights are in ``unet.safetensors``.
        """
        from diffusers import StableDiffusionPipeline
        from peft.utils import get_peft_model_state_dict

        folder.mkdir(parents=True, exist_ok=True)
        unet = self.base.unet
        with self.ema_weights():
            if self.config.train == "lora":
                state = get_peft_model_state_dict(unet)
                metadata = unet.peft_config["default"].to_dict()
                metadata = {k: sorted(v) if isinstance(v, set) else v for k, v in metadata.items()}
                StableDiffusionPipeline.save_lora_weights(
                    folder,
                    unet_lora_layers={k: v.detach().cpu().contiguous() for k, v in state.items()},
                    unet_lora_adapter_metadata=metadata,
                )
                _order_metadata(folder / "pytorch_lora_weights.safetensors")
            elif self.config.train == "full":
                save_file(
                    {k: v.detach().cpu().contiguous() for k, v in unet.state_dict().items()},
                    folder / UNET_FILE,
                )
            if self.ace is not None:
                save_file({ACE: self.ace.detach().cpu().contiguous()}, folder / ACE_FILE)
        text = json.dumps(self.describe(), indent=2) + "\n"
        (folder / ADAPTER_FILE).write_text(text, encoding="utf-8")

    def load_adapter(self, folder: Path) -> None:
        """Read what :meth:`save_adapter` wrote into the weights and their average.

        Raises:
            CxrlError: A file is missing, unreadable or of another shape.
        """
        weights: dict[str, Tensor] = {}
        if self.config.train == "lora":
            for name, tensor in read_tensors(folder / LORA_FILE).items():
                part = name.removeprefix("unet.").removesuffix(".weight")
                weights[f"{part}.default.weight"] = tensor
        elif self.config.train == "full":
            weights.update(read_tensors(folder / UNET_FILE))
        if self.ace is not None:
            weights.update(read_tensors(folder / ACE_FILE))
        self.load_weights(weights, str(folder))
        self.ema = {name: p.detach().clone() for name, p in self.trainable.items()}


def _order_metadata(path: Path) -> None:
    """Sort a safetensors file's metadata, which is written in random order: equal weights, equal bytes."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def load_policy(
    run_dir: str | Path,
    *,
    checkpoint: str | None = None,
    device: torch.device | str = "cpu",
    allow_pickle: bool = False,
    offload: bool = False,
) -> Policy:
    """The policy of a run, with its averaged weights.

    Args:
        run_dir: A run directory.
        checkpoint: Name of a folder in ``checkpoints/``; by default the finished adapter, or the newest
            checkpoint while the run has not finished.
        device: Where the networks go.
        allow_pickle, offload: As in :func:`cxrl.models.base.load_base`.

    Raises:
        CxrlError: There is no run, a file is damaged, or the base is not the one it was trained from.
    """
    run_dir = Path(run_dir)
    folder = run_dir / "adapter"
    if checkpoint is not None:
        folder = run_dir / "checkpoints" / checkpoint
    elif not (folder / ADAPTER_FILE).is_file():
        saved = sorted((run_dir / "checkpoints").glob("step-*"))
        if not saved:
            raise CxrlError(f"{run_dir}: no adapter and no checkpoint there; expected the directory of a run")
        folder = saved[-1]
    is_adapter = checkpoint is None and folder.name == "adapter"
    about = read_json(folder / (ADAPTER_FILE if is_adapter else POLICY_FILE))
    try:
        config = PolicyConfig(**about["policy"])
        base = load_base(
            about["base"], dtype=about["dtype"], device=device, allow_pickle=allow_pickle, offload=offload
        )
        fingerprint = about["base_fingerprint"]
    except (KeyError, TypeError) as error:
        raise CxrlError(f"{folder}: its description misses or has an unknown {error}") from error
    policy = Policy(base, config)
    if policy.fingerprint != fingerprint:
        raise CxrlError(f"{folder}: was trained from another base than {base.path}, whose weights differ")
    if is_adapter:
        policy.load_adapter(folder)
    else:
        policy.load_weights(read_tensors(folder / EMA_FILE), str(folder / EMA_FILE))
        policy.ema = {name: p.detach().clone() for name, p in policy.trainable.items()}
    return policy
