"""The policy: the base's UNet with LoRA on its attention, and ACE after the prompt. Either can be off.

The anchor is the same weights with the adapters off and no ACE: one copy in memory, and it cannot drift. Only
``policy.train full`` needs a second UNet. Trainable weights are float32 whatever the network's dtype.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from cxrl.config import PolicyConfig
from cxrl.models.ace import init_ace
from cxrl.models.attention import PolicyAttention
from cxrl.models.base import BaseModel
from cxrl.storage.checkpoint import State
from cxrl.storage.layout import EMA_FILE, WEIGHTS_FILE
from cxrl.storage.reading import check_weights, field, laid_out_as

LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
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
        self._ace_is_off = False
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
        if self.ace is not None and not (anchor or self._ace_is_off):
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

    @contextlib.contextmanager
    def without_ace(self) -> Iterator[None]:
        """Inside, the policy predicts without its tokens: what LoRA alone has learned beside them."""
        self._ace_is_off = True
        try:
            yield
        finally:
            self._ace_is_off = False

    @contextlib.contextmanager
    def as_average(self, weights: dict[str, Tensor]) -> Iterator[None]:
        """Inside, these weights are the averaged ones."""
        own, self.ema = self.ema, weights
        try:
            yield
        finally:
            self.ema = own

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

    def state(self) -> State:
        """Weights and their average, for a checkpoint."""
        files = {WEIGHTS_FILE: self.weights(), EMA_FILE: self.ema}
        return State(files, {"ema_updates": self.num_ema_updates})

    def load_state(self, state: State, source: str) -> None:
        """Take what :meth:`state` gave. Raises CxrlError, naming ``source``, where it is another policy's."""
        average = dict(state.tensors[EMA_FILE])
        check_weights(self.trainable, average, f"{source}/{EMA_FILE}")
        self.load_weights(dict(state.tensors[WEIGHTS_FILE]), f"{source}/{WEIGHTS_FILE}")
        self.ema = {name: laid_out_as(p, average[name]) for name, p in self.trainable.items()}
        self.num_ema_updates = field(state.numbers, "ema_updates", int, source)

    @torch.no_grad()
    def merged_unet(self) -> Any:
        """A UNet of diffusers, float32 on the CPU, with the averaged weights and LoRA merged into them."""
        from diffusers import UNet2DConditionModel

        unet = UNet2DConditionModel.from_config(self.base.unet.config)
        modules, state = dict(self.base.unet.named_modules()), {}
        with self.ema_weights():
            for name in unet.state_dict():
                path, _, leaf = name.rpartition(".")
                layer = modules[path]
                value = getattr(getattr(layer, "base_layer", layer), leaf).detach().float()
                if leaf == "weight" and layer in self._adapters:
                    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
                    value = torch.addmm(value, up.float(), down.float(), alpha=layer.scaling["default"])
                state[name] = value.cpu()
        unet.load_state_dict(state)
        return unet.eval()

    def describe(self) -> dict[str, Any]:
        """What :func:`cxrl.rl.reopen.load_policy` needs besides weights; JSON."""
        return {
            "base": self.base.path,
            "base_fingerprint": self.fingerprint,
            "dtype": str(self.base.dtype).removeprefix("torch."),
            "policy": dataclasses.asdict(self.config),
        }
