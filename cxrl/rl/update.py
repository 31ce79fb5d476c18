"""The update: AdamW on the PPO-clip loss over (sample, timestep) rows, with the timesteps batched.

A pass shuffles all rows of all samples and cuts them into ``optim.minibatches`` optimizer steps. A step's
loss is the sum over its rows divided by their number, whatever the pieces (``micro_batch_size``,
``gradient_accumulation``) and processes they are computed in. Rows whose advantage is 0 add exactly nothing
and are not computed, unless a KL weight gives them a gradient; they still count in the number.

Before the first step of an epoch the policy is the one that sampled: its importance ratio must be 1.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cxrl.config import OptimConfig
from cxrl.errors import CxrlError
from cxrl.ops import trajectory_log_prob
from cxrl.rl.engine import Engine
from cxrl.rl.learning_rate import rate_share
from cxrl.rl.loss import ppo_loss, step_kl
from cxrl.rl.records import Rollout, UpdateStats
from cxrl.rl.rollout import Sampler
from cxrl.storage.checkpoint import State
from cxrl.storage.layout import OPTIMIZER_FILE
from cxrl.storage.reading import check_weights, field, laid_out_as

NUM_PROBE_ROWS = 16
"""Rows on which the KL to the anchor is watched when it is not in the loss."""

FP16_LOSS_SCALE = 2.0**16
"""Gradients of a mean over rows and pixels underflow in float16 without it."""


@dataclass
class _Sums:
    """Sums over rows, on the device: nothing is read back before a step is complete."""

    rows: int
    values: Tensor  # [5]: loss, ratio, rows outside the clip range, (log ratio)², KL
    max_dev: Tensor
    by_step: Tensor  # [3, T_p]: rows, rows outside the clip range, norms of the gradient at the output


class Updater:
    """The optimizer and what it optimises.

    Attributes:
        optimizer: AdamW with one group for LoRA (or the UNet) and one for ACE.
        num_steps: Optimizer steps since the start of the run.
    """

    def __init__(self, sampler: Sampler, config: OptimConfig, engine: Engine, *, num_epochs: int) -> None:
        """``num_epochs`` of the run, over which the learning rates fall."""
        self.sampler, self.config, self.engine = sampler, config, engine
        self.num_epochs = num_epochs
        self.policy = sampler.policy
        groups = self.policy.param_groups(
            config.lora_learning_rate, config.ace_learning_rate, config.weight_decay
        )
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        self.num_steps = 0
        fp16 = self.policy.base.dtype == torch.float16
        self._loss_scale = FP16_LOSS_SCALE if fp16 else 1.0

    def state(self) -> State:
        """AdamW's, by the weights' names: ``<name>/exp_avg``, ``<name>/exp_avg_sq``, ``<name>/step``."""
        tensors = {
            f"{name}/{key}": value
            for name, p in self.policy.trainable.items()
            for key, value in self.optimizer.state.get(p, {}).items()
        }
        return State({OPTIMIZER_FILE: tensors}, {"step": self.num_steps})

    def load_state(self, state: State, source: str) -> None:
        """Take what :meth:`state` gave. Raises CxrlError, naming ``source``, where it is of other weights."""
        tensors, parameters = state.tensors[OPTIMIZER_FILE], self.policy.trainable
        moments = {n.removesuffix("/exp_avg"): t for n, t in tensors.items() if n.endswith("/exp_avg")}
        if moments:
            check_weights(parameters, moments, f"{source}/{OPTIMIZER_FILE}")
        self.optimizer.state.clear()
        for key, value in tensors.items():
            name, _, entry = key.rpartition("/")
            p = parameters[name]
            own = value.shape == p.shape  # not the count of steps
            self.optimizer.state[p][entry] = laid_out_as(p, value) if own else value.to(p.device)
        self.num_steps = field(state.numbers, "step", int, source)

    def update(
        self, rollout: Rollout, advantages: Tensor, total: int, *, epoch: int, rng: torch.Generator
    ) -> UpdateStats:
        """All optimizer steps of an epoch.

        Args:
            rollout: This process's share of the samples.
            advantages: float32 [N] of that share.
            total: Samples of all processes.
            epoch: Decides the learning rates.
            rng: On the CPU; decides which rows form a step, alike in every process.

        Raises:
            CxrlError: The importance ratio is off before the first step, or a loss or gradient is not finite.
        """
        share = rate_share(self.config, epoch, self.num_epochs)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * share
        embeds = self.sampler.prompt_embeds(rollout.batch.prompts)
        pass_ = _Pass(self, rollout, advantages, embeds)
        kl, probe = pass_.probe()
        norms: dict[str, float] = {}
        losses, first, later = 0.0, None, pass_.nothing(probe.max_dev)
        plan = self._plan(advantages, total, rollout.schedule.num_policy_steps, rng)
        for index, (rows, count) in enumerate(plan):
            sums = pass_.accumulate(rows, count)
            if index == 0:
                first = sums if sums.rows else probe
                if not self._ratio_is_one(first, epoch):
                    for planned, _ in reversed(plan):
                        pass_.rescore(planned)
                    self.optimizer.zero_grad()
                    sums = pass_.accumulate(rows, count)
            else:
                later.rows += sums.rows
                later.values += sums.values
                later.by_step += sums.by_step
            losses += self._step(sums, count, epoch, norms)
        assert first is not None
        ratio = self._mean(first, 1)
        if self.config.kl_weight > 0:
            kl = self._mean(first, 4)
        return UpdateStats(
            loss=losses / len(plan),
            ratio_mean=ratio,
            ratio_max_dev=float(self.engine.max(first.max_dev)),
            clip_fraction=self._mean(later, 2),
            approx_kl=self._mean(later, 3) / 2,
            kl=kl,
            grad_norm={name: value / len(plan) for name, value in norms.items()},
            by_step=self._by_step(first, later),
            learning_rate={group["name"]: group["lr"] for group in self.optimizer.param_groups},
            num_steps=len(plan),
            num_rows=int(self.engine.sum(torch.tensor([sum(len(r) for r, _ in plan)], device=embeds.device))),
        )

    def work(self, advantages: Tensor) -> int:
        """About how many rows of this process's share :meth:`update` computes."""
        active = int((advantages != 0).sum()) if self.config.kl_weight == 0 else len(advantages)
        num_steps = math.ceil(self.config.timestep_fraction * self.sampler.schedule.num_policy_steps)
        return active * num_steps * self.config.num_inner_epochs

    def _plan(
        self, advantages: Tensor, total: int, num_steps: int, rng: torch.Generator
    ) -> list[tuple[Tensor, int]]:
        """(rows of this process int64 [R, 2] as (sample, step of the policy), rows of all) per optimizer
        step."""
        share = self.engine.share(total)
        active = torch.zeros(total, dtype=torch.bool)
        active[share] = (advantages.cpu() != 0) | (self.config.kl_weight > 0)
        kept = math.ceil(self.config.timestep_fraction * num_steps)
        plan = []
        for _ in range(self.config.num_inner_epochs):
            steps = torch.rand(total, num_steps, generator=rng).argsort(1)[:, :kept]
            samples = torch.arange(total)[:, None].expand_as(steps)
            rows = torch.stack([samples.flatten(), steps.flatten()], 1)
            rows = rows[torch.randperm(len(rows), generator=rng)]
            for part in rows.tensor_split(self.config.minibatches):
                own = part[active[part[:, 0]]] - torch.tensor([share.start, 0])
                plan.append((own, len(part)))
        return plan

    def _ratio_is_one(self, sums: _Sums, epoch: int) -> bool:
        """Whether sampling and training score alike; an error unless told to go on."""
        worst = float(self.engine.max(sums.max_dev))
        if worst <= self.config.ratio_tolerance:
            return True
        message = (
            f"importance ratio off by {worst:.2e} before the first step of epoch {epoch} "
            f"(optim.ratio_tolerance {self.config.ratio_tolerance:.1e}): training scores differently than "
            "sampling did. Remedies: the same batch shape (optim.micro_batch_size = sampler.batch_size), "
            "model.dtype float32, or optim.on_ratio_mismatch warn, which goes on with old log-probabilities "
            "re-scored in the training configuration"
        )
        if self.config.on_ratio_mismatch == "error" or not math.isfinite(worst):
            raise CxrlError(message)
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        return False

    def _step(self, sums: _Sums, count: int, epoch: int, norms: dict[str, float]) -> float:
        """One optimizer step from accumulated gradients. Returns its loss."""
        values = self.engine.sum(sums.values) / count
        where = f"epoch {epoch}, optimizer step {self.num_steps + 1}"
        if not bool(values.isfinite().all()):
            names = ("loss", "importance ratio", "clip fraction", "log-probability", "KL to the anchor")
            bad = [n for n, v in zip(names, values.tolist(), strict=True) if not math.isfinite(v)]
            raise CxrlError(
                f"{where}: not finite: {', '.join(bad)}; lower optim.lora_learning_rate and ace_learning_rate"
            )
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.engine.sum_gradients(params)
        for group in self.optimizer.param_groups:
            if self._loss_scale != 1:
                for p in group["params"]:
                    p.grad.div_(self._loss_scale)
            norm = float(torch.nn.utils.clip_grad_norm_(group["params"], self.config.max_grad_norm))
            if not math.isfinite(norm):
                raise CxrlError(
                    f"{where}: gradient of {group['name']} is {norm}; lower its learning rate, or use "
                    "model.dtype float32 or bfloat16"
                )
            norms[group["name"]] = norms.get(group["name"], 0.0) + norm
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.policy.update_ema()
        self.num_steps += 1
        return float(values[0])

    def _by_step(self, first: _Sums, later: _Sums) -> dict[str, list[float]]:
        """Clip fraction after the first optimizer step, and mean gradient, of every step of the policy."""
        rows, clipped, _ = self.engine.sum(later.by_step)
        all_rows, _, norms = self.engine.sum(first.by_step + later.by_step)
        return {
            "clip_fraction": (clipped / rows.clamp_min(1)).tolist(),
            "output_grad": (norms / all_rows.clamp_min(1)).tolist(),
        }

    def _mean(self, sums: _Sums, column: int) -> float:
        total = torch.cat([sums.values[column : column + 1], sums.values.new_tensor([sums.rows])])
        value, rows = self.engine.sum(total).tolist()
        return value / rows if rows else 0.0


class _Pass:
    """Forward and backward over rows of one rollout."""

    def __init__(self, updater: Updater, rollout: Rollout, advantages: Tensor, embeds: Tensor) -> None:
        self.config, self.policy = updater.config, updater.policy
        self.sampler, self.loss_scale = updater.sampler, updater._loss_scale
        self.rollout, self.advantages, self.embeds = rollout, advantages, embeds
        self.prompt_of = rollout.batch.prompt_of.to(embeds.device)
        self.old_log_probs = rollout.log_probs
        self.weights = rollout.schedule.step_weights(updater.config.step_weight)

    def nothing(self, max_dev: Tensor) -> _Sums:
        """No rows yet."""
        device, num_steps = self.advantages.device, self.rollout.schedule.num_policy_steps
        return _Sums(0, torch.zeros(5, device=device), max_dev, torch.zeros(3, num_steps, device=device))

    def accumulate(self, rows: Tensor, count: int) -> _Sums:
        """Add the gradient of the mean over ``count`` rows, of which these are this process's."""
        device = self.advantages.device
        result = self.nothing(torch.zeros((), device=device))
        result.rows = len(rows)
        for part in self._pieces(rows):
            sample, step = part.to(device).unbind(1)
            log_prob, output, table_rows = self._score(sample, step)
            norms: list[Tensor] = []
            output[0].register_hook(
                lambda grad, norms=norms: norms.append(grad.flatten(1).float().norm(dim=1))
            )
            loss, ratio = ppo_loss(
                log_prob,
                self.old_log_probs[sample, step],
                self.advantages[sample],
                self.config.clip_range,
                self.weights[step],
            )
            kl = torch.zeros_like(loss)
            if self.config.kl_weight > 0:
                kl = step_kl(output, self._anchor(sample, step), self.sampler.guidance, table_rows)
                loss = loss + self.config.kl_weight * kl
            (loss.sum() * (self.loss_scale / count)).backward()
            with torch.no_grad():
                dev = (ratio - 1).abs()
                log_ratio = log_prob - self.old_log_probs[sample, step]
                sums = [loss, ratio, (dev > self.config.clip_range).float(), log_ratio.square(), kl]
                result.values += torch.stack([s.sum() for s in sums])
                result.max_dev = torch.maximum(result.max_dev, dev.max())
                grads = norms[0] * (count / self.loss_scale)
                by_row = torch.stack([torch.ones_like(dev), (dev > self.config.clip_range).float(), grads])
                result.by_step.index_add_(1, step, by_row)
            self.sampler.progress.advance(len(part))
        return result

    @torch.no_grad()
    def probe(self) -> tuple[float, _Sums]:
        """KL to the anchor and ratio on a few rows spread over samples and steps."""
        num_steps = self.rollout.schedule.num_policy_steps
        num = min(NUM_PROBE_ROWS, len(self.advantages) * num_steps)
        flat = torch.linspace(0, len(self.advantages) * num_steps - 1, num, device=self.embeds.device).long()
        ratios, kls = [], []
        for part in torch.stack([flat // num_steps, flat % num_steps], 1).split(self.config.micro_batch_size):
            sample, step = part.unbind(1)
            log_prob, output, table_rows = self._score(sample, step)
            ratios.append(torch.exp(self.weights[step] * (log_prob - self.old_log_probs[sample, step])))
            kls.append(step_kl(output, self._anchor(sample, step), self.sampler.guidance, table_rows))
        ratio = torch.cat(ratios)
        values = torch.zeros(5, device=ratio.device)
        values[1] = ratio.sum()
        sums = self.nothing((ratio - 1).abs().max())
        sums.rows, sums.values = num, values
        return float(torch.cat(kls).mean()), sums

    @torch.no_grad()
    def rescore(self, rows: Tensor) -> None:
        """Replace the old log-probabilities by those that training computes for the same steps."""
        self.old_log_probs = self.old_log_probs.clone()
        for part in self._pieces(rows):
            sample, step = part.to(self.embeds.device).unbind(1)
            self.old_log_probs[sample, step] = self._score(sample, step)[0]

    def _pieces(self, rows: Tensor) -> Sequence[Tensor]:
        size = min(self.config.micro_batch_size, -(-len(rows) // self.config.gradient_accumulation))
        return rows.split(max(size, 1)) if len(rows) else ()

    def _predict(
        self, sample: Tensor, step: Tensor, x_t: Tensor, *, anchor: bool
    ) -> tuple[Tensor, Tensor | None]:
        schedule = self.rollout.schedule
        return self.policy.predict(
            x_t,
            schedule.timesteps[schedule.policy_steps[step]],
            self.embeds,
            self.sampler.negative_embeds,
            prompt_of=self.prompt_of[sample],
            anchor=anchor,
        )

    def _score(self, sample: Tensor, step: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor | None], Tensor]:
        """Log-probability [B] of the stored steps under the policy, its output, and the table rows."""
        index = self.rollout.schedule.policy_steps[step]
        x_t = self.rollout.latents[sample, index]
        output = self._predict(sample, step, x_t, anchor=False)
        x_prev, table_rows = self.rollout.latents[sample, index + 1], self.rollout.schedule.rows[index]
        log_prob = trajectory_log_prob(*output, self.sampler.guidance, x_t, x_prev, table_rows)
        return log_prob, output, table_rows

    @torch.no_grad()
    def _anchor(self, sample: Tensor, step: Tensor) -> tuple[Tensor, Tensor | None]:
        x_t = self.rollout.latents[sample, self.rollout.schedule.policy_steps[step]]
        return self._predict(sample, step, x_t, anchor=True)
