"""The trainer: the one place that knows the order of the stages.

    PromptBatch → Rollout → RewardTable → Comparison → Advantages → UpdateStats

and, around an epoch: evaluation by judges, the line in metrics.jsonl, the checkpoint. Shapes: N samples of
all processes, of which this one holds a share; K rewards; M anchor images a prompt.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cxrl.config import Config
from cxrl.data.prompts import PromptBatch
from cxrl.errors import CxrlError
from cxrl.evaluation.parting import Scored, partings
from cxrl.evaluation.summary import JudgeModels, Summary
from cxrl.images.png import read_grey
from cxrl.machine import session
from cxrl.models.adapter import save_adapter
from cxrl.rewards.base import Reward
from cxrl.rl.advantages import advantages
from cxrl.rl.batch_sizes import fill_batch_sizes, keep_batch_sizes, machine_memory
from cxrl.rl.build import Prompts, build
from cxrl.rl.comparison import compare, reward_units
from cxrl.rl.engine import Engine
from cxrl.rl.epoch_prompts import epoch_prompts
from cxrl.rl.epoch_record import epoch_record, flat_numbers
from cxrl.rl.evaluation import Evaluator, Judged
from cxrl.rl.image_files import save_judged
from cxrl.rl.model_card import model_card
from cxrl.rl.progress import Progress, checked
from cxrl.rl.records import Rollout
from cxrl.rl.rollout import batch_noise
from cxrl.rl.run_state import RunState
from cxrl.rl.seeding import generator, seed_globals
from cxrl.storage.layout import BOUNDS, CONFIG, METRICS, RESULT_GRID, SUMMARY, grid_name
from cxrl.storage.privacy import owner_only
from cxrl.storage.reading import read_json_lines
from cxrl.storage.run_dir import RunDir, flat
from cxrl.storage.writing import write_json


class Trainer:
    """One run.

    Attributes:
        parts: What it works with.
        state: Where it is.
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
        prompts: Prompts | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Everything is loaded and checked; the run directory is not touched before :meth:`run`.

        Args:
            config: All settings.
            run_dir: Where everything is written.
            resume: Go on from the last checkpoint; from the beginning where there is none yet.
            overwrite: Delete the run that the directory holds.
            rewards, judges, prompts: In place of the configuration's, see :func:`cxrl.rl.build.build`.
            progress: Told about every epoch.

        Raises:
            CxrlError: Whatever a user can cause.
        """
        self.config, self.run_dir = config, RunDir(run_dir)
        self.resume, self.overwrite = resume, overwrite
        self.progress = checked(progress)
        with owner_only(config.data.is_restricted):
            self.engine = Engine(self.run_dir.path, config.run.trackers, timeout=config.run.process_timeout)
            if resume:
                config = keep_batch_sizes(config, self.run_dir.path / CONFIG)
            if self.engine.is_main:
                self.run_dir.check(config, resume=resume, overwrite=overwrite)
            self.config, self._fitted = fill_batch_sizes(config, self.engine.device, self.engine.world)
            self.parts = build(self.config, self.engine, rewards=rewards, judges=judges, prompts=prompts)
        p = self.parts
        for part in (p.sampler, p.scorer, p.selection, p.evaluator):
            part.progress = self.progress
        self.state = RunState(self.config, self.parts, self.engine)
        self._bounds: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        """Train to the end.

        Returns:
            The content of ``summary.json``.

        Raises:
            CxrlError: Whatever a user can cause; the last checkpoint stays intact.
        """
        with owner_only(self.config.data.is_restricted), self._running():
            return self._train()

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """Inside, the run directory is this run's, and the trackers are open."""
        if self.engine.is_main:
            self.run_dir.claim(self.config, resume=self.resume, overwrite=self.overwrite)
            for note in filter(None, (*self.parts.notes, self._fitted)):
                self.progress.message(note)
        try:
            self.engine.wait()
            if self.resume:
                path = self.state.load(self.run_dir)
                if path is None and self.run_dir.has_result():
                    raise CxrlError(
                        f"{self.run_dir.path} holds a finished run without checkpoints, so nothing to go on "
                        "from; --overwrite starts again, another --run-dir keeps it"
                    )
                where = f"resuming after epoch {self.state.epoch} from {path}"
                nothing = f"no checkpoint in {self.run_dir.path}: starting from the beginning"
                for line in (where if path else nothing, *self.state.notes):
                    self.progress.message(line)
            if self.engine.is_main:
                self.run_dir.write_config(self.config)
                self.run_dir.add_session(session(machine_memory(self.engine.device)))
                for line in self.run_dir.roll_back(self.state.epoch):
                    self.progress.message(line)
            self.engine.start_trackers(self.state.epoch, flat(self.config.to_dict()), resumed=self.resume)
            try:
                yield
            except BaseException:
                self.engine.abandon()
                raise
            self.engine.finish()
        finally:
            self.run_dir.release()

    def _train(self) -> dict[str, Any]:
        train, state, limits = self.config.train, self.state, self.parts.limits
        if limits.reason:
            self.progress.message(f"stopped after epoch {state.epoch}: {limits.reason}; change it to go on")
        elif state.epoch >= train.num_epochs:
            self.progress.message(f"all {train.num_epochs} epochs are done; --train.num-epochs for more")
        self._judge_anchor()
        trained = False
        while state.epoch < train.num_epochs and not limits.reason:
            record, trained = self._train_epoch(), True
            state.epoch += 1
            state.kept_epoch = state.epoch
            last, started = state.epoch == train.num_epochs, time.perf_counter()
            if last or (train.eval_every and state.epoch % train.eval_every == 0):
                self._judge(record, last)
                record["seconds"]["judging"] = time.perf_counter() - started
            done, wall = state.epoch / train.num_epochs, state.wall_seconds()
            record |= {"wall_seconds": wall, "eta_seconds": wall * (1 - done) / done}
            if self.engine.is_main:
                self.run_dir.append_metrics(record)
            self.engine.log(flat_numbers(record), state.epoch)
            self.progress.epoch(record)
            if last or limits.reason or state.epoch % train.checkpoint_every == 0:
                self.progress.checkpoint(state.save(self.run_dir))
        if not (trained or limits.reason) and state.kept_epoch == state.epoch:
            self._judge({}, last=True)  # resumed with other limits or fewer epochs, it may keep other weights
        with self._kept_weights():
            summary, policy = self.parts.evaluator.summary()
        return self._finish(summary, policy)

    def _train_epoch(self) -> dict[str, Any]:
        config, parts, state = self.config, self.parts, self.state
        seed_globals(config.seed, state.epoch)
        clock = _Clock(self.progress)
        prompts = epoch_prompts(
            parts.prompts, config.train.prompts_per_epoch, seed=config.seed, epoch=state.epoch
        )
        batch = PromptBatch.repeat(prompts, config.train.samples_per_prompt)
        share = self.engine.share(len(batch))
        rows = (share.stop - share.start) * len(parts.sampler.schedule)
        with clock.stage("rollout", rows):
            rollout = self._rollout(batch)
        with clock.stage("reward", parts.scorer.work(batch)):
            rewards = parts.scorer(batch, rollout.images)
        with clock.stage("anchor", parts.anchors.work(batch)):
            anchors, anchor_of = parts.anchors.rewards(rollout, batch, state.epoch, parts.scorer)
        prompt_of = batch.prompt_of.to(self.engine.device)
        if state.units is None:
            state.units = reward_units(rewards, prompt_of)
        comparison = compare(
            rewards, anchors, anchor_of, config.rewards.weights, state.units, config.comparison
        )
        c = config.comparison
        advantage = advantages(
            comparison.score, prompt_of, center=c.center, scale=c.scale, clip=c.advantage_clip
        )
        with clock.stage("update", parts.updater.work(advantage.values[share])):
            stats = parts.updater.update(
                rollout,
                advantage.values[share],
                len(batch),
                epoch=state.epoch,
                rng=generator(config.seed, "rows", state.epoch),
            )
        return epoch_record(
            state.epoch, parts.updater.num_steps, rollout, rewards, prompt_of, comparison, advantage, stats
        ) | {"bank_prompts": len(parts.anchors.bank), "seconds": clock.seconds}

    def _rollout(self, batch: PromptBatch) -> Rollout:
        share, epoch, sampler = self.engine.share(len(batch)), self.state.epoch, self.parts.sampler
        rng = generator(self.config.seed, "rollout", epoch, device=self.engine.device)
        shape = self.parts.policy.base.latent_shape
        noise = batch_noise(rng, shape, len(batch), share.start, share.stop)
        rollout = sampler.rollout(batch.slice(share.start, share.stop), noise)
        finite = rollout.latents.flatten(1).isfinite().all(1)
        if not bool(finite.all()):
            bad = int((~finite).nonzero()[0])
            prompt = batch.prompts[int(rollout.batch.prompt_of[bad])]
            raise CxrlError(
                f"epoch {epoch}: latents of sample {share.start + bad} (prompt {prompt.prompt_id}) are "
                "not finite: the policy has diverged; lower the learning rates or raise optim.kl_weight"
            )
        return rollout

    def _judge_anchor(self) -> None:
        """The floor and the ceiling of the epochs: now, so that their times are their own."""
        self._bounds = bounds = self.parts.selection.bounds()
        if self.engine.is_main:
            write_json(self.run_dir.path / BOUNDS, bounds)
        self.progress.evaluation(0, bounds)

    def _judge(self, record: dict[str, Any], last: bool) -> None:
        """Judge the policy by the reports that choose, write a grid, and count strikes: after some of them
        in a row, or at the end after one, the last weights within limits are kept, if there were any.
        """
        state, limits, selection = self.state, self.parts.limits, self.parts.selection
        result = selection.evaluate()
        record |= result.record(self.config.seed)
        self._grid(selection, grid_name(state.epoch), result.images)
        self.progress.evaluation(state.epoch, record)
        bounds = selection.anchor.evaluation, selection.real.evaluation if selection.real else None
        problem = limits.check(bounds[0], result.evaluation, bounds[1], state.epoch, last=last)
        if problem:
            self.progress.message(f"warning: epoch {state.epoch}: {problem}")
        self._tell_partings(record)
        if limits.reason or (problem and last and limits.good_epoch):
            self._fall_back()

    def _tell_partings(self, record: Mapping[str, Any]) -> None:
        """Warn where a reward rises and its judge does not."""
        if not (self.engine.is_main and "epoch" in record):
            return
        path, real = self.run_dir.path / METRICS, self._bounds["real"]
        before = read_json_lines(path) if path.exists() else []
        judged = [r for r in (*before, record) if "eval" in r]
        history = [Scored.of_bounds(self._bounds["anchor"]), *map(Scored.of_record, judged)]
        for parting in partings(history, None if real is None else Scored.of_bounds(real)):
            self.progress.message(f"warning: epoch {self.state.epoch}: {parting}")

    def _fall_back(self) -> None:
        """Keep the last weights within limits."""
        epoch = self.state.kept_epoch = self.parts.limits.good_epoch
        which = f"of epoch {epoch}, the last within limits," if epoch else "of the start"
        self.progress.message(f"the weights {which} are kept")

    @contextlib.contextmanager
    def _kept_weights(self) -> Iterator[None]:
        """Inside, the policy's average is the one that is kept."""
        state, policy = self.state, self.parts.policy
        fell_back = state.kept_epoch != state.epoch
        with policy.as_average(self.parts.limits.good if fell_back else policy.ema):
            yield

    def _grid(self, evaluator: Evaluator, name: str, images: Tensor) -> None:
        if self.engine.is_main:
            path = self.run_dir.samples / name
            evaluator.save_grid(path, images)
            if not self.config.data.is_restricted:  # its captions quote reports
                tag = "result" if evaluator.split == "eval" else "samples"
                self.engine.log_picture(tag, read_grey(path), self.state.epoch)

    def _finish(self, summary: Summary, policy: Judged) -> dict[str, Any]:
        state, s, evaluator = self.state, self.config.sampler, self.parts.evaluator
        result = summary.to_dict(wall_seconds=state.wall_seconds()) | state.describe()
        choosing = {"num_selection_reports": len(self.parts.selection.batch.prompts)}
        result |= choosing
        self._grid(evaluator, RESULT_GRID, policy.images)
        sampler = {
            "num_steps": s.num_steps,
            "eta": s.eta,
            "guidance_scale": s.guidance_scale,
            "timestep_spacing": s.timestep_spacing,
        }
        if self.engine.is_main:
            about = {**state.describe(), **choosing, "step": self.parts.updater.num_steps, "sampler": sampler}
            about["models"] = dict(self.parts.digests)
            card = model_card(self.config, result, self.parts.policy.fingerprint)
            with self._kept_weights():
                save_adapter(self.parts.policy, self.run_dir.adapter, about, card)
            save_judged(self.run_dir.path, evaluator, policy)
            write_json(self.run_dir.path / SUMMARY, result, hint="make room and use --resume")
        self.engine.wait()
        return result


class _Clock:
    """Seconds of the stages of an epoch."""

    def __init__(self, progress: Progress) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress

    @contextlib.contextmanager
    def stage(self, name: str, work: int) -> Iterator[None]:
        started = time.perf_counter()
        with self._progress.stage(name, work):
            yield
        self.seconds[name] = time.perf_counter() - started
