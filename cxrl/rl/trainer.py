"""The trainer: the one place that knows the order of the stages.

    PromptBatch → Rollout → RewardTable → Comparison → Advantages → UpdateStats

and, around an epoch: evaluation by judges, the line in metrics.jsonl, the checkpoint. Shapes: N samples of
all processes, of which this one holds a share; K rewards; M anchor images a prompt.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cxrl.config import Config
from cxrl.data.prompts import PromptBatch, ReportPrompt
from cxrl.data.sources import load_prompts, message, readable
from cxrl.errors import CxrlError
from cxrl.evaluation.judges import build_judges
from cxrl.evaluation.summary import JudgeModels, Summary
from cxrl.models.base import load_base
from cxrl.models.policy import Policy
from cxrl.rewards.base import Reward, build_rewards, check_labels, score_all
from cxrl.rl.advantages import advantages
from cxrl.rl.anchor import AnchorBank, bank_batch, bank_noise
from cxrl.rl.comparison import RewardUnits, compare, reward_units
from cxrl.rl.engine import Engine
from cxrl.rl.epoch_prompts import epoch_prompts
from cxrl.rl.evaluation import Evaluator, Limits
from cxrl.rl.progress import Reporter, epoch_record
from cxrl.rl.records import RewardTable, Rollout
from cxrl.rl.rollout import Sampler, batch_noise, start_from
from cxrl.rl.run_state import load_run, save_adapter, save_run, save_summary
from cxrl.rl.seeding import derive_seed, generator, seed_globals
from cxrl.rl.update import Updater
from cxrl.scorers.choice import model_choices, phantom_models
from cxrl.storage.privacy import owner_only
from cxrl.storage.run_dir import RunDir


class Trainer:
    """One run.

    Attributes:
        epoch: Epochs completed.
        units: Fixed scale of the rewards, from the first rollout on.
    """

    def __init__(
        self,
        config: Config,
        run_dir: str | Path,
        *,
        resume: bool = False,
        overwrite: bool = False,
        rewards: Mapping[str, Reward] | None = None,
        judges: JudgeModels | None = None,
        prompts: tuple[Sequence[ReportPrompt], Sequence[ReportPrompt]] | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        """Nothing is loaded or written before :meth:`run`.

        Args:
            config: All settings.
            run_dir: Where everything is written.
            resume: Go on from the last checkpoint; from the beginning where there is none yet.
            overwrite: Delete the run that the directory holds.
            rewards: Name → model, in place of the ones that ``config.rewards`` names.
            judges: In place of ``config.eval.judges``.
            prompts: (training, held-out) in place of ``config.data``.
            reporter: Told about every epoch.
        """
        self.config, self.run_dir = config, RunDir(run_dir)
        self.resume, self.overwrite = resume, overwrite
        self._rewards, self._judges, self._prompts = rewards, judges, prompts
        self.reporter = reporter or Reporter()
        self.epoch = 0
        self.units: RewardUnits | None = None
        self.seconds_before = 0.0

    def run(self) -> dict[str, Any]:
        """Train to the end.

        Returns:
            The content of ``summary.json``.

        Raises:
            CxrlError: Whatever a user can cause; the last checkpoint stays intact.
        """
        self._started = time.perf_counter()
        with owner_only(self.config.data.is_restricted):
            return self._run()

    def _run(self) -> dict[str, Any]:
        run = self.config.run
        self.engine = Engine(self.run_dir.path, run.trackers, timeout=run.process_timeout)
        if self.engine.is_main:
            self.run_dir.claim(self.config, resume=self.resume, overwrite=self.overwrite)
        self.engine.wait()
        self._build()
        if self.resume:
            load_run(self)
        if self.engine.is_main:
            self.run_dir.truncate_metrics(self.epoch)
        self.engine.start_trackers()
        try:
            result = self._train()
        except BaseException:
            self.engine.abandon()
            raise
        self.engine.finish()
        return result

    def wall_seconds(self) -> float:
        """Time spent on the run, with what came before a resume."""
        return self.seconds_before + time.perf_counter() - self._started

    def _build(self) -> None:
        config = self.config
        model = config.model
        base = load_base(
            model.path,
            dtype=model.dtype,
            device=self.engine.device,
            allow_pickle=model.allow_pickle,
            offload=model.offload,
            gradient_checkpointing=model.gradient_checkpointing,
        )
        if self._prompts is None:
            sets = [load_prompts(config, base, split) for split in ("train", "eval")]
        else:
            sets = [readable(p, base, config.data.on_long_prompt) for p in self._prompts]
        self.prompts, held_out = (chosen.prompts for chosen in sets)
        for split, chosen in zip(("train", "eval"), sets, strict=True):
            line = message(config.data, split, chosen)
            if line and self.engine.is_main:
                self.reporter.message(line)
        per_epoch = config.train.prompts_per_epoch
        if per_epoch > len(self.prompts):
            raise CxrlError(
                f"train.prompts_per_epoch: {per_epoch}, but there are {len(self.prompts)} prompts"
            )
        num = per_epoch * config.train.samples_per_prompt
        if num < self.engine.world:
            raise CxrlError(f"{num} samples an epoch for {self.engine.world} processes; raise train.*_per_*")
        device, names = self.engine.device, config.rewards.names
        rewards = self._rewards or build_rewards(
            names, config.rewards.path, device, model_choices(config, "rewards")
        )
        self.rewards = {name: rewards[name] for name in names}
        check_labels(self.rewards, self.prompts)
        judges = self._judges or build_judges(config, base.image_size, device)
        if self.engine.is_main and not (self._rewards or self._judges):
            for line in phantom_models(config):
                self.reporter.message(f"warning: {line}")
        self.policy = Policy(base, config.policy, seed=derive_seed(config.seed, "policy"))
        self.sampler = Sampler(self.policy, config.sampler)
        self.updater = Updater(self.sampler, config.optim, self.engine)
        self.evaluator = Evaluator(self.sampler, held_out, judges, config, self.engine)
        self.bank = AnchorBank(config.rewards.names, config.comparison.bank_size)
        self.limits = Limits(config.train)
        self.good_ema = {name: value.clone() for name, value in self.policy.ema.items()}
        self.good_epoch = 0  # whose average good_ema is; 0 before any evaluation was within limits
        self.ema_epoch = 0  # whose average policy.ema is: behind epoch once good_ema has been put back

    def _train(self) -> dict[str, Any]:
        train = self.config.train
        summary: Summary | None = None
        if self.epoch == 0:
            self.reporter.message("judging the anchor")
        self.evaluator.anchor  # noqa: B018 drawn now, so that the first epochs' times are their own
        while self.epoch < train.num_epochs and not self.limits.reason:
            record = self._train_epoch()
            self.epoch += 1
            self.ema_epoch = self.epoch
            last = self.epoch == train.num_epochs
            if last:
                summary = self._evaluate_at_end(record)
            elif train.eval_every and self.epoch % train.eval_every == 0:
                self._evaluate(record)
            done, wall = self.epoch / train.num_epochs, self.wall_seconds()
            record |= {"wall_seconds": wall, "eta_seconds": wall * (1 - done) / done}
            if self.engine.is_main:
                self.run_dir.append_metrics(record)
            self.engine.log(_flat_numbers(record), self.epoch)
            self.reporter.epoch(record)
            if last or self.limits.reason or self.epoch % train.checkpoint_every == 0:
                save_run(self)
        if summary is None:
            summary = self._evaluate_at_end({})
        return self._finish(summary)

    def _train_epoch(self) -> dict[str, Any]:
        config, epoch = self.config, self.epoch
        seed_globals(config.seed, epoch)
        clock = _Clock()
        prompts = epoch_prompts(self.prompts, config.train.prompts_per_epoch, seed=config.seed, epoch=epoch)
        batch = PromptBatch.repeat(prompts, config.train.samples_per_prompt)
        rollout = self._rollout(batch)
        clock.lap("rollout")
        rewards = self._score(batch, rollout.images, len(batch))
        clock.lap("reward")
        anchors, anchor_of = self._anchors(batch, rollout)
        clock.lap("anchor")
        group = batch.group.to(self.engine.device)
        if self.units is None:
            self.units = reward_units(rewards, group)
        comparison = compare(
            rewards, anchors, anchor_of, config.rewards.weights, self.units, config.comparison
        )
        c = config.comparison
        advantage = advantages(comparison.score, group, center=c.center, scale=c.scale, clip=c.advantage_clip)
        stats = self.updater.update(
            rollout,
            advantage.values[self.engine.share(len(batch))],
            len(batch),
            epoch=epoch,
            rng=generator(config.seed, "rows", epoch),
        )
        clock.lap("update")
        return epoch_record(
            epoch, self.updater.num_steps, rollout, rewards, group, comparison, advantage, stats
        ) | {"bank_prompts": len(self.bank), "seconds": clock.seconds}

    def _rollout(self, batch: PromptBatch) -> Rollout:
        share = self.engine.share(len(batch))
        rng = generator(self.config.seed, "rollout", self.epoch, device=self.engine.device)
        shape = self.policy.base.latent_shape
        noise = batch_noise(rng, shape, len(batch), share.start, share.stop)
        rollout = self.sampler.rollout(batch.slice(share.start, share.stop), noise)
        finite = rollout.latents.flatten(1).isfinite().all(1)
        if not bool(finite.all()):
            bad = int((~finite).nonzero()[0])
            prompt = batch.prompts[int(rollout.batch.group[bad])]
            raise CxrlError(
                f"epoch {self.epoch}: latents of sample {share.start + bad} (prompt {prompt.prompt_id}) are "
                "not finite: the policy has diverged; lower the learning rates or raise optim.kl_weight"
            )
        return rollout

    def _score(self, batch: PromptBatch, images: Tensor, total: int) -> RewardTable:
        """Rewards of all samples [total, K], of which ``images`` are this process's share."""
        names = self.config.rewards.names
        share = self.engine.share(total)
        values = torch.zeros(0, len(names), device=self.engine.device)
        if len(images):
            scored, values = score_all(self.rewards, images, batch.slice(share.start, share.stop))
            values = values[:, [scored.index(name) for name in names]].float().to(self.engine.device)
        return RewardTable(names, self.engine.gather(values, total))

    def _anchors(self, batch: PromptBatch, rollout: Rollout) -> tuple[Tensor | None, Tensor]:
        """Rewards of anchor images [P, M, K], and which of them each of the N samples is compared with."""
        c, device = self.config.comparison, self.engine.device
        group = batch.group.to(device)
        if c.form == "direct" or set(self.config.rewards.names) <= set(c.without_anchor):
            return None, group
        if c.anchor == "one_to_one":
            share = self.engine.share(len(batch))
            rng = generator(self.config.seed, "anchor", self.epoch, device=device)
            shape = self.policy.base.latent_shape
            # The anchor shares x_T, a part of the state, and draws its own step noise.
            own = batch_noise(rng, shape, len(batch), share.start, share.stop)
            noise = start_from(rollout.latents[:, 0], own)
            images = self.sampler.images(rollout.batch, noise, anchor=True)
            return self._score(batch, images, len(batch)).values[:, None], torch.arange(
                len(batch), device=device
            )
        missing = self.bank.missing(batch.prompts)
        if missing:
            new = bank_batch(missing, c.bank_size)
            share = self.engine.share(len(new))
            noise = bank_noise(
                self.config.seed,
                missing,
                c.bank_size,
                self.policy.base.latent_shape,
                device,
                share.start,
                share.stop,
            )
            images = self.sampler.images(new.slice(share.start, share.stop), noise, anchor=True)
            self.bank.add(missing, self._score(new, images, len(new)).values)
        return self.bank.table(batch.prompts), group

    def _evaluate(self, record: dict[str, Any]) -> None:
        """Judge the policy, write a grid, and count strikes."""
        result, images = self.evaluator.evaluate()
        record["eval"] = dict(result.values)
        self._grid(images)
        problem = self.limits.check(self.evaluator.anchor, result)
        if not problem:
            self.good_ema = {name: value.clone() for name, value in self.policy.ema.items()}
            self.good_epoch = self.epoch
            return
        self.reporter.message(f"warning: epoch {self.epoch}: {problem}")
        if self.limits.reason:
            self._keep_good()

    def _keep_good(self) -> None:
        self.policy.ema = {name: value.clone() for name, value in self.good_ema.items()}
        self.ema_epoch = self.good_epoch
        which = f"of epoch {self.good_epoch}, the last within limits," if self.good_epoch else "of the start"
        self.reporter.message(f"the weights {which} are kept")

    def _evaluate_at_end(self, record: dict[str, Any]) -> Summary:
        """The summary; of the last weights within limits, if there were such and the final ones are not."""
        summary = self.evaluator.summary()
        record["eval"] = dict(summary.policy.values)
        self._grid(summary.images)
        problem = Limits(self.config.train).check(summary.anchor, summary.policy)
        if problem:
            self.reporter.message(f"warning: at the end: {problem}")
        if problem and self.good_epoch and self.ema_epoch == self.epoch:
            self._keep_good()
            summary = self.evaluator.summary()
            self._grid(summary.images)
        return summary

    def _grid(self, images: Tensor) -> None:
        if self.engine.is_main:
            self.evaluator.save_grid(self.run_dir.samples / f"epoch-{self.epoch:06d}.png", images)

    def _finish(self, summary: Summary) -> dict[str, Any]:
        result = summary.to_dict(wall_seconds=self.wall_seconds())
        result |= {"epochs": self.epoch, "kept_epoch": self.ema_epoch, "stopped_early": self.limits.reason}
        if self.engine.is_main:
            save_adapter(self.run_dir, self.policy)
            save_summary(self.run_dir, result)
        self.engine.wait()
        return result


class _Clock:
    """Seconds of the stages of an epoch."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._last = now


def _flat_numbers(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    result: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            result |= _flat_numbers(value, f"{prefix}{key}/")
        else:
            result[f"{prefix}{key}"] = float(value)
    return result
