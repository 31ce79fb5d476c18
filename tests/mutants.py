"""Small changes of meaning, made one at a time: does a test notice? ``python tests/mutants.py [--only TEXT]``

Every mutant is one replacement in one file of the package, with the test files that must fail on it. The list
is of rewirings that leave the code running: another noise, another sign, a factor, a part left out. Not part of
the test suite: the run takes about half an hour on two cores. The result, caught and not, goes to
``tests/mutants.json``; a mutant that no test notices stands there with the reason.
"""
# ruff: noqa: E501  the list is a table

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).with_suffix(".json")
WIRING, STATE = "tests/rl/test_wiring.py", "tests/rl/test_run_state.py"


@dataclass(frozen=True)
class Mutant:
    """A change of meaning.

    Attributes:
        file: Below ``cxrl/``.
        old: Text that stands there exactly once.
        new: What takes its place.
        tests: Files of which one must fail, the likeliest first.
        accepted: Why no test can notice; empty for all others.
    """

    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    accepted: str = ""


def _in(file: str, tests: str, *changes: tuple[str, str]) -> list[Mutant]:
    return [Mutant(file, old, new, tuple(tests.split())) for old, new in changes]


MUTANTS: list[Mutant] = [
    *_in(
        "rl/anchor.py",
        f"{WIRING} tests/rl/test_anchor.py",
        ("noise = start_from(rollout.latents[:, 0], own)\n", "noise = own\n"),
        ('generator(self.config.seed, "anchor", epoch, device', 'generator(self.config.seed, "rollout", epoch, device'),
        ("self.sampler.images(rollout.batch, noise, anchor=True)", "self.sampler.images(rollout.batch, noise)"),
        ("images = self.sampler.images(new.slice(share.start, share.stop), noise, anchor=True)",
         "images = self.sampler.images(new.slice(share.start, share.stop), noise)"),
        ("return table[:, None], torch.arange(len(batch), device=device)", "return table[:, None].flip(0), torch.arange(len(batch), device=device)"),
        ("keys = [(p.prompt_id, m) for p in prompts for m in range(size)]", "keys = [(p.prompt_id, 0) for p in prompts for m in range(size)]"),
        ("if p.prompt_id not in self._rewards]", "]"),
    ),
    *_in(
        "rl/trainer.py",
        f"{WIRING} {STATE} tests/rl/test_trainer.py",
        ("if state.units is None:", "if True:"),
        ("center=c.center, scale", 'center="prompt", scale'),
        ("scale=c.scale, clip", 'scale="std", clip'),
        (", clip=c.advantage_clip\n", "\n"),
        ("rewards, anchors, anchor_of, config.rewards.weights,", "rewards, anchors, anchor_of, config.rewards.weights[::-1],"),
        ('generator(self.config.seed, "rollout", epoch,', 'generator(self.config.seed, "rollout", 0,'),
        ("seed=config.seed, epoch=state.epoch\n", "seed=config.seed, epoch=0\n"),
        ("policy.as_average(self.parts.limits.good if fell_back else policy.ema)", "policy.as_average(policy.ema)"),
        ("state.kept_epoch = state.epoch\n            last", "last"),
        ("while state.epoch < train.num_epochs and not limits.reason:", "while state.epoch < train.num_epochs:"),
        ("with self._kept_weights():\n            summary, policy", "with contextlib.nullcontext():\n            summary, policy"),
        ("if not (trained or limits.reason) and state.kept_epoch == state.epoch:", "if not (trained or limits.reason):"),
        ("summary, policy = self.parts.evaluator.summary()", "summary, policy = self.parts.selection.summary()"),
        ("or (problem and last and limits.good_epoch)", ""),
        ("before = read_json_lines(path) if path.exists() else []", "before = []"),
    ),
    *_in(
        "rl/scoring.py",
        f"{WIRING} tests/rl/test_trainer.py",
        ("return RewardTable(names, ", "return RewardTable(names[::-1], "),
    ),
    *_in(
        "evaluation/summary.py",
        "tests/evaluation/test_summary.py",
        ("_json((reached - floor) / (ceiling - floor))", "_json((reached - floor) / ceiling)"),
        ("(mid - low) / (high - low) if paired", "(mid - low) / high if paired"),
        ("torch.where(labels == 1, probability, 1 - probability)", "probability"),
        ("reference = reference if comparable and instead is None else None\n", ""),
        ("counts = resamples(len(instead), bootstrap, seed)", "counts = torch.ones(bootstrap, len(instead))"),
        ("return min(config.eval.num_images, config.eval", "return max(config.eval.num_images, config.eval"),
        ("return [_json(float(bound)) for bound in bounds]", "return [float(bound) for bound in bounds]"),
    ),
    *_in(
        "evaluation/real_films.py",
        "tests/evaluation/test_real_films.py",
        ("seed=config.seed + _SEED[split], size", "seed=_SEED[split], size"),
        ("shown[batch.prompts[n].prompt_id]", "shown[n]"),
        ("place[film.study] for film in kept", "n for n, film in enumerate(kept)"),
    ),
    *_in(
        "rl/push.py",
        "tests/rl/test_push.py",
        ("if load_yaml(run_dir / CONFIG).data.is_restricted:", "if False:"),
        ("allow_patterns=[path.name for path in files],", "allow_patterns=None,"),
    ),
    *_in(
        "rl/image_files.py",
        "tests/rl/test_image_files.py",
        ("evaluator.real is not None and evaluator.films.is_phantom", "evaluator.real is not None"),
        ("tensors = {side: thumbnails(sides[side].images[first])", "tensors = {side: thumbnails(sides[side].images[: len(first)])"),
    ),
    *_in(
        "rl/comparison.py",
        f"tests/rl/test_comparison.py {WIRING}",
        ("standard = (values - units.mean) / units.std", "standard = values - units.mean"),
        ("centred = values - group_mean(values, prompt_of)", "centred = values - values.mean(0)"),
        ("return math.sqrt(2 * math.pi)", "return math.sqrt(math.pi)"),
        ("return 4 * math.sqrt(temperature**2 + math.pi / 8)", "return 4.0"),
        ("(config.min_std if anchors.shape[1] > 1 else 1.0)", "config.min_std"),
        ("w * ~direct * form_scale", "w * form_scale"),
        ("return Comparison(score + compared, win_rate)", "return Comparison(compared, win_rate)"),
        ("temperature=config.temperature,\n    )", "temperature=1.0,\n    )"),
        ("<= set(c.without_anchor)", "< set(c.without_anchor)"),
    ),
    *_in(
        "rl/advantages.py",
        f"tests/rl/test_advantages.py {WIRING}",
        ('centred = s if center == "none" else s - group_mean(s, scope)', "centred = s - group_mean(s, scope)"),
        ("rms = group_mean(centred.square(), scope).sqrt()", "rms = group_mean(centred.abs(), scope)"),
        ('if center == "prompt" else torch.zeros_like(prompt_of)', "if True else torch.zeros_like(prompt_of)"),
        ("centred = torch.where(tied, torch.zeros_like(centred), centred)\n", ""),
        ("centred.clamp(-clip, clip)", "centred.clamp(-clip, 2 * clip)"),
    ),
    *_in(
        "rl/loss.py",
        "tests/rl/test_loss.py tests/rl/test_update.py",
        ("torch.maximum(-advantage * ratio, -advantage * clipped)", "torch.minimum(-advantage * ratio, -advantage * clipped)"),
        ("ratio.clamp(1 - clip_range, 1 + clip_range)", "ratio.clamp(1 - clip_range, 1 + 2 * clip_range)"),
        ("(c_e / sigma).square() / 2 *", "(c_e / sigma).square() *"),
        ("unconditional.float() + guidance * (", "unconditional.float() + (guidance + 1) * ("),
    ),
    *_in(
        "rl/update.py",
        f"tests/rl/test_update.py {WIRING}",
        ("approx_kl=self._mean(later, 3) / 2,", "approx_kl=self._mean(later, 3),"),
        ("clip_fraction=self._mean(later, 2),", "clip_fraction=self._mean(first, 2),"),
        ("(loss.sum() * (self.loss_scale / count)).backward()", "(loss.sum() * (self.loss_scale / len(rows))).backward()"),
        ("        self.policy.update_ema()\n", ""),
        ("active[share] = (advantages.cpu() != 0)", "active[share] = (advantages.cpu() > 0)"),
        ("steps = torch.rand(total, num_steps, generator=rng).argsort(1)[:, :kept]", "steps = torch.arange(num_steps).expand(total, -1)[:, :kept]"),
        ("self.rollout.latents[sample, index + 1], self.rollout.schedule.rows[index]", "self.rollout.latents[sample, index + 1], self.rollout.schedule.rows[index - 1]"),
        ("prompt_of=self.prompt_of[sample],", "prompt_of=self.prompt_of[sample] * 0,"),
        ("loss = loss + self.config.kl_weight * kl", "loss = loss + kl"),
        ("if self.config.on_ratio_mismatch == \"error\" or", "if False and"),
    ),
    *_in(
        "rl/rollout.py",
        f"tests/rl/test_rollout.py {WIRING} tests/rl/test_update.py",
        ("inputs = latents[part, step], eps[part], embeds, prompt_of[part]", "inputs = latents[part, step], eps[part], embeds, prompt_of[part] * 0"),
        ("Rollout(batch, latents, schedule, log_probs[:, schedule.policy_steps], images)", "Rollout(batch, latents, schedule, log_probs[:, : schedule.num_policy_steps].flip(1), images)"),
        ("base.encode_text([\"\"])[0] if self.guidance > 1 else None", "base.encode_text([\"\"])[0] * 0 if self.guidance > 1 else None"),
        ("base.scheduler_config, config.num_steps, config.eta, config.timestep_spacing", "base.scheduler_config, config.num_steps, 1.0, config.timestep_spacing"),
        ("            eps = noise()\n            x = torch.cat(", "            x = torch.cat("),
    ),
    *_in(
        "rl/evaluation.py",
        WIRING,
        ("rng = generator(self.config.seed, NOISE_PURPOSE[self.split], device", "rng = generator(self.config.seed + anchor, NOISE_PURPOSE, device"),
        (", self.sampler.policy.ema_weights():", ":"),
        ("noise, anchor=anchor)", "noise, anchor=False)"),
    ),
    *_in(
        "rl/schedule.py",
        "tests/rl/test_schedule.py",
        ("eta**2 * (1 - p) / (1 - a) * (1 - a / p)", "eta * (1 - p) / (1 - a) * (1 - a / p)"),
        ("torch.where(previous >= 0, alphas[previous.clamp(min=0)], scheduler.final_alpha_cumprod.double())", "alphas[previous.clamp(min=0)]"),
        ("d * a.sqrt() - (p * (1 - a)).sqrt()", "d * a.sqrt() + (p * (1 - a)).sqrt()"),
        ("c_x, c_e = d / (1 - a).sqrt(), p.sqrt() - d * (a / (1 - a)).sqrt()", "c_x, c_e = d / (1 - a).sqrt(), p.sqrt() - d * a / (1 - a).sqrt()"),
    ),
    *_in(
        "rl/limits.py",
        f"tests/rl/test_limits.py {STATE}",
        ("            self.strikes = 0\n            self.keep", "            self.keep"),
        ("diversity < share * reference", "diversity > share * reference"),
        ("if real is not None and math.isfinite(real.values[\"diversity\"]):", "if False:"),
        ("if floor < worst else (0.0, \"\")", "if True else (0.0, \"\")"),
        ("fid - floor > factor * (worst - floor)", "fid > factor * worst"),
        ("        if last:\n            return problem\n", ""),
        ("{\"eval\": told[\"eval\"]} | {name: told[\"data\"][name] for name in _CHOOSE}", "{\"eval\": told[\"eval\"]}"),
        ("laid_out_as(p, good[name])", "good[name]"),
        ("self.strikes >= self.config.patience", "self.strikes > self.config.patience"),
        ("{name: value.clone() for name, value in self.policy.ema.items()}", "dict(self.policy.ema)"),
        ("        if not self.changed:\n", "        if True:\n"),
    ),
    *_in(
        "data/sources.py",
        "tests/data/test_sources.py",
        ("own = prompts[border:] if split == \"selection\" else prompts[:border]", "own = prompts[:border]"),
        ("wanted = round(len(prompts) * result / (selection + result))", "wanted = 1"),
        ("return \"validate\" if any(film.text for film in index.split(\"validate\")) else data.eval_split", "return data.eval_split"),
    ),
    *_in(
        "data/phantom/films.py",
        "tests/data/test_sources.py",
        ("_film_rng(seed + _HELD_OUT.get(split, 0), index)", "_film_rng(seed, index)"),
        ("or (held_out and _side_of(text) != split)", ""),
    ),
    *_in(
        "evaluation/reference.py",
        "tests/evaluation/test_judges.py",
        ("return ordered[: min(kept, config.eval.num_reference)], ordered[kept:]", "return ordered[: min(kept, config.eval.num_reference)], ordered[: len(ordered) - kept]"),
        ("if len(ordered) >= num + others else len(ordered)", "if len(ordered) > others else len(ordered)"),
    ),
    *_in(
        "evaluation/parting.py",
        "tests/evaluation/test_parting.py tests/rl/test_trainer.py",
        ("was[0] > high and was[1] < low", "was[0] > high"),
        ("best = max(known[:-1]", "best = min(known[:-1]"),
        ("shares[0] - shares[1] > LARGEST_LAG", "shares[0] - shares[1] > 0"),
    ),
    *_in(
        "metrics/best_of.py",
        "tests/metrics/test_best_of.py",
        ("(total[better + equal] - total[better]) / equal", "total[better + equal] - total[better]"),
        ("math.comb(num - 1 - i, n - 1) / math.comb(num, n)", "math.comb(num - 1 - i, n - 1) / math.comb(num - 1, n - 1)"),
    ),
    *_in(
        "metrics/prdc.py",
        "tests/metrics/test_prdc.py",
        ("distance.kthvalue(k + 1, dim=1)", "distance.kthvalue(k, dim=1)"),
        ("is_recalled[rows] = (distance < of_generated[None]).any(1)", "is_recalled[rows] = in_real.any(1)"),
    ),
    *_in(
        "metrics/posture.py",
        "tests/metrics/test_posture.py",
        ("(square - mean.square()).sum(1)", "square.sum(1)"),
    ),
    *_in(
        "rl/headroom.py",
        "tests/rl/test_headroom.py",
        ("gain, most = picked - chance, own - chance", "gain, most = picked, own"),
        ("self.counts = torch.cat([every, resamples(num, bootstrap, seed)])", "self.counts = torch.cat([every, every.expand(bootstrap, -1)])"),
    ),
    *_in(
        "rl/build.py",
        "tests/rl/test_trainer.py",
        ("        _check_apart(*(chosen.prompts for chosen in sets))\n", ""),
    ),
    *_in(
        "rl/evaluation.py",
        WIRING,
        ("NOISE_PURPOSE[self.split]", "\"evaluation\""),
    ),
    *_in(
        "models/policy.py",
        STATE,
        ("laid_out_as(p, average[name])", "average[name]"),
    ),
    *_in(
        "rl/run_state.py",
        STATE,
        ("check_settings(field(state, \"settings\", dict, str(path)), self.config, path)", "pass"),
        ("if run_dir.run_id and state.get(\"run\") != run_dir.run_id:", "if False:"),
        ("if state.get(\"prompts\") != self._prompts:", "if False:"),
        ("self.units = RewardUnits.load_state(state, device)", "self.units = None"),
        ("parts.updater.load_state(state, str(path))", "parts.updater.num_steps = state.numbers[\"step\"]"),
        ("parts.anchors.bank.load_state(state, device, str(path))", "pass"),
    ),
    *_in(
        "models/policy.py",
        f"tests/models/test_policy.py {WIRING}",
        ("layer.enable_adapters(False)", "layer.enable_adapters(True)"),
        ("if self.ace is not None and not (anchor or self._ace_is_off):", "if self.ace is not None and not self._ace_is_off:"),
        ("decay = min(self.config.ema_decay, (1 + n) / (10 + n))", "decay = self.config.ema_decay"),
        ("self.ema[name].lerp_(p, 1 - decay)", "self.ema[name].lerp_(p, decay)"),
        ("return conditional, unconditional\n", "return unconditional, conditional\n"),
        ("torch.full_like(prompt_of, len(prompt_embeds))", "torch.full_like(prompt_of, 0)"),
    ),
    *_in(
        "models/ace.py",
        "tests/models/test_ace.py",
        ("INIT_NOISE = 0.02", "INIT_NOISE = 0.2"),
        ("INIT_NOISE * pad.std() * noise", "INIT_NOISE * noise"),
    ),
    *_in(
        "models/attention.py",
        "tests/models/test_attention.py tests/models/test_policy.py",
        ("alpha=layer.scaling[names[0]]", "alpha=1.0"),
        ("text, kv_index, ace = hidden_states, None, None", "text, kv_index, ace = hidden_states, None, ace"),
        ("scale=attn.scale)\n        else:", "scale=2 * attn.scale)\n        else:"),
    ),
    *_in(
        "ops/trajectory_log_prob.py",
        "tests/ops/test_trajectory_log_prob.py",
        ("squared_error = (x_prev - mean).square().flatten(1).mean(1)", "squared_error = (x_prev - mean).square().flatten(1).sum(1)"),
        ("prediction = unguided + guidance * (prediction - unguided)", "prediction = prediction + guidance * (prediction - unguided)"),
        ("- torch.log(sigma) - HALF_LOG_TWO_PI", "- HALF_LOG_TWO_PI"),
        ("return x_prev, torch.where(stochastic, log_prob, torch.zeros_like(log_prob))", "return x_prev, log_prob"),
    ),
    *_in(
        "ops/pairwise_comparison.py",
        "tests/ops/test_pairwise_comparison.py",
        ("+ 0.5 * (own == bank).to(rewards.dtype)", "+ (own == bank).to(rewards.dtype)"),
        ("std = anchors.std(1, correction=0)", "std = anchors.std(1)"),
        ("(rewards - anchors.mean(1)[prompt_of]) / std[prompt_of]", "(rewards - anchors.mean(1)[prompt]) / std[prompt].mean()"),
    ),
    *_in(
        "metrics/diversity.py",
        "tests/metrics/test_diversity.py",
        ("same = prompt_of[first] == prompt_of[second]", "same = prompt_of[first] >= prompt_of[second]"),
        ("term = luminance * contrast if scale == scales - 1 else contrast", "term = luminance * contrast"),
        ("rms.append((x - y).square().mean((1, 2, 3)).sqrt().cpu())", "rms.append((x - y).square().mean((1, 2, 3)).cpu())"),
        ("WINDOW, SIGMA = 11, 1.5", "WINDOW, SIGMA = 11, 2.5"),
    ),
    *_in(
        "metrics/distribution.py",
        "tests/metrics/test_distribution.py",
        ("trace = z.square().sum((1, 2)) + cov_y.trace() - 2.0 * cross", "trace = z.square().sum((1, 2)) + cov_y.trace() - cross"),
        ("within / (n * (n - 1)) - 2.0 * kernel_ab.mean()", "within / (n * n) - 2.0 * kernel_ab.mean()"),
        ("return (gap + mean).square().sum(1) + trace", "return gap.square().sum() + trace"),
    ),
    *_in(
        "metrics/classification.py",
        "tests/metrics/test_classification.py",
        ("beaten = below.cumsum(1) - 0.5 * below", "beaten = below.cumsum(1)"),
        ("labels == 1, labels == 0", "labels == 1, labels != 1"),
    ),
    *_in(
        "evaluation/summary.py",
        "tests/evaluation/test_summary.py",
        ('(replicates["fid"] - replicates["fid"].mean() + values["fid"])', 'replicates["fid"]'),
        ("texts[batch.prompt_of].cpu()", "texts[batch.prompt_of.flip(0)].cpu()"),
        ("paired = {key: self.policy.replicates[key] - self.anchor.replicates[key] for key in KEYS}", "paired = {key: self.anchor.replicates[key] - self.policy.replicates[key] for key in KEYS}"),
        ("torch.tensor([0.025, 0.975]", "torch.tensor([0.05, 0.95]"),
        ("drawn = torch.randint(num_prompts, (bootstrap, num_prompts)", "drawn = torch.randint(max(1, num_prompts // 2), (bootstrap, num_prompts)"),
    ),
    *_in(
        "evaluation/judges.py",
        "tests/evaluation/test_judges.py",
        ("model.features(images)], 1) / scale", "model.features(images)], 1)"),
    ),
    *_in(
        "rewards/diagnosis.py",
        "tests/rewards/test_diagnosis.py",
        ("mean(1.0 - probability, absent)", "mean(probability, absent)"),
        ("label_agreement(probability, labels) * validity", "label_agreement(probability, labels)"),
    ),
    *_in(
        "rewards/consistency.py",
        "tests/rewards/test_consistency.py",
        (" - (1.0 - validity)", ""),
        ("texts = texts[batch.prompt_of.to(texts.device)]", "texts = texts[batch.prompt_of.to(texts.device) * 0]"),
    ),
    *_in(
        "rewards/posture.py",
        "tests/rewards/test_posture.py",
        ("-misalignment(psi) - NOT_A_FILM", "misalignment(psi) - NOT_A_FILM"),
        ("NOT_A_FILM * (1.0 - validity)", "NOT_A_FILM * validity"),
    ),
    *_in(
        "rl/plain.py",
        "tests/rl/test_plain.py",
        ("min(sampler.eta, BELOW_ONE)", "sampler.eta"),
        ("ddim_scheduler(base.scheduler_config, sampler.timestep_spacing)", 'ddim_scheduler(base.scheduler_config, "trailing")'),
        ("policy.ema.get(ACE)", "policy.trainable.get(ACE)"),
        ("derive_seed(0, 'generate')", "derive_seed(0, 'rollout')"),
        ('embeds(""),\'] if guided', 'embeds("lung"),\'] if guided'),
        ("scheduler.config.steps_offset != 1", "False"),
    ),
    *_in(
        "models/policy.py",
        "tests/rl/test_plain.py tests/models/test_policy.py",
        ('down.float(), alpha=layer.scaling["default"]', "down.float()"),
        ("leaf).detach().float()", "leaf).float()"),
    ),
    *_in(
        "models/pipeline.py",
        "tests/models/test_pipeline.py tests/rl/test_plain.py",
        ("    text_encoder.float()\n", ""),
        ('    scheduler.save_pretrained(folder / "scheduler")\n', ""),
    ),
    *_in(
        "rl/batch_sizes.py",
        "tests/rl/test_batch_sizes.py",
        ("if need <= SHARE * memory:\n                break", "if need <= memory:\n                break"),
        ("ENOUGH = 4", "ENOUGH = 1"),
        ("1 if device.type == \"cuda\" else num_processes", "1"),
        ("micro or before.optim.micro_batch_size", "micro or 1"),
    ),
    *_in(
        "rl/step_memory.py",
        "tests/rl/test_cost.py",
        ("row = peaks[1] - peaks[0]", "row = peaks[0]"),
        ("self.now -= size", "pass"),
    ),
    *_in(
        "scorers/validity.py",
        "tests/scorers/test_validity.py",
        ("detail.flip(-1)", "detail"),
        ("best = torch.maximum(best, agreement.amax(1))", "best = agreement.amax(1)"),
        ("_TURNS = range(-12, 13, 3)", "_TURNS = range(0, 1)"),
        ("(flat, flat.flip(1))", "(flat,)"),
        ("for axis in (1, 2):", "for axis in (1,):"),
        ("layout * contrast * halves_validity(images)", "layout * contrast"),
        ("layout * contrast *", "layout *"),
    ),
    *_in(
        "scorers/phantom_network.py",
        "tests/scorers/test_phantom_network.py tests/pretraining/test_posture.py",
        ("validity if self.config.crop == 1.0 else validity * halves_validity(images)", "validity"),
    ),
    *_in(
        "storage/checkpoint.py",
        "tests/storage/test_checkpoint.py",
        ("for old in checkpoints(folder)[:-keep]:", "for old in checkpoints(folder)[: -keep - 1]:"),
        ("return [found[step] for step in sorted(found)]", "return [found[step] for step in sorted(found, key=str)]"),
        ("if path.name in CHECKPOINT_FILES or is_temporary(path.name):", "if True:"),
    ),
    *_in(
        "storage/writing.py",
        "tests/storage/test_writing.py tests/storage/test_checkpoint.py",
        ("0o600 if private else mode", "mode"),
        ("return not stat.S_ISREG(path.stat().st_mode)", "return False"),
        ("Path(os.path.realpath(path))\n            partial", "path\n            partial"),
    ),
    *_in(
        "storage/run_dir.py",
        f"tests/storage/test_run_dir.py {STATE}",
        ("fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_SH | fcntl.LOCK_NB"),
        ("            if layout.is_grid(path.name):\n                path.unlink()\n        logs", "            path.unlink()\n        logs"),
        ("kept = [line for line in lines if _epoch_of(line) < epochs]", "kept = [line for line in lines if _epoch_of(line) <= epochs]"),
        ("        if wrong:\n", "        if False:\n"),
    ),
    *_in(
        "metrics/copies.py",
        "tests/metrics/test_copies.py",
        ("for shown in (films, films.flip(-1)):", "for shown in (films, films):"),
        ("(found / _attenuation(films)).clamp_max(1.0)", "found.clamp_max(1.0)"),
        ("_NOISE_LEFT = ((1 + 9 + 9 + 1) / 64) ** 2", "_NOISE_LEFT = 0.25"),
        ("tried = place + step.clamp(", "tried = place - step.clamp("),
        ("values, kept = values.topk(min(count, values.shape[1]), 1)", "values, kept = values.topk(min(count, values.shape[1]), 1, largest=False)"),
    ),
    *_in(
        "image_sets/memorised.py",
        "tests/image_sets/test_memorised.py",
        ("np.flatnonzero(~np.isin(real.digests, training.digests))", "np.arange(len(real))"),
        ("closest = np.argsort(-match", "closest = np.argsort(match"),
        ("_compared(mine, theirs, higher_is_nearer=False)", "_compared(mine, theirs, higher_is_nearer=True)"),
        ("(mine > np.quantile(theirs, 1 - FALSE_ALARMS)).mean()", "(mine > np.quantile(baseline, 1 - FALSE_ALARMS)).mean()"),
    ),
    *_in(
        "image_sets/utility.py",
        "tests/image_sets/test_utility.py",
        ("return (loss * known).sum()", "return loss.sum()"),
        ('on_real = arm == "real" or', "on_real ="),
        ("(theirs if on_real else ours).batch", "(ours if on_real else theirs).batch"),
        ("(mean - real)[1:]", "mean[1:]"),
        ("order = np.argsort(positive", "order = np.argsort(-positive"),
        ("theta[:, 0, 0] = theta[:, 1, 1] = scale * turn.cos()", "theta[:, 0, 0], theta[:, 1, 1] = -scale, scale"),
    ),
    *_in(
        "rl/learning_rate.py",
        "tests/rl/test_learning_rate.py",
        ("(epoch + 1) / config.warmup_epochs", "epoch / config.warmup_epochs"),
        ("done = epoch / num_epochs", "done = (epoch + 1) / num_epochs"),
    ),
    *_in(
        "rl/update.py",
        "tests/rl/test_update.py tests/rl/test_trainer.py",
        ('group["lr"] = rate * share', 'group["lr"] = rate'),
        ("                self.weights[step],\n", ""),
        ("grads = norms[0] * (count / self.loss_scale)", "grads = norms[0]"),
    ),
    *_in(
        "rl/schedule.py",
        "tests/rl/test_update.py",
        ("(size * gain.pow(-exponent)).float()", "gain.pow(-exponent).float()"),
        ("gain = rows[:, 1].abs() / rows[:, 2]\n", "gain = rows[:, 1].abs()\n"),
    ),
    *_in(
        "storage/run_dir.py",
        "tests/storage/test_run_dir.py",
        ('() if config.optim.schedule == "constant" else ("train.num_epochs",)', "()"),
    ),
]  # fmt: skip


def check(mutant: Mutant) -> None:
    """Raise ValueError unless the change applies exactly once, and its tests exist."""
    text = (ROOT / "cxrl" / mutant.file).read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.file}: {text.count(mutant.old)} places with {mutant.old!r}, expected one")
    missing = [test for test in mutant.tests if not (ROOT / test).is_file()]
    if missing:
        raise ValueError(f"{mutant.file}: no {missing[0]}")


def tree(folder: Path, mutant: Mutant | None) -> None:
    """The package and the tests, with one change; what is large or compiled is linked."""
    for name in (
        "tests",
        "kernels",
        "examples",
        "pyproject.toml",
        "benchmarks",
        "README.md",
        "CONTRIBUTING.md",
    ):
        if (ROOT / name).exists():
            (folder / name).symlink_to(ROOT / name)
    shutil.copytree(
        ROOT / "cxrl", folder / "cxrl", ignore=shutil.ignore_patterns("assets", "*.so", "__pycache__")
    )
    for path in [ROOT / "cxrl" / "assets", *(ROOT / "cxrl").glob("*.so")]:
        (folder / "cxrl" / path.name).symlink_to(path)
    if mutant is not None:
        path = folder / "cxrl" / mutant.file
        path.write_text(path.read_text(encoding="utf-8").replace(mutant.old, mutant.new), encoding="utf-8")


def fails(mutant: Mutant | None, tests: tuple[str, ...]) -> str:
    """The first of the test files that fails on a changed tree; empty where all pass.

    Each runs in a fork of this process, which has imported the libraries but nothing of the package.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        tree(folder, mutant)
        for test in tests:
            child = os.fork()
            if child == 0:
                with contextlib.suppress(BaseException):
                    os._exit(_run(folder, test))
                os._exit(99)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if status:
                return test
    return ""


def _run(folder: Path, test: str) -> int:
    import pytest

    os.chdir(folder)
    sys.path[:0] = [str(folder), str(folder / "kernels")]
    os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{folder / 'kernels'}"
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # one of them minds that its module is there already
    options = ["-q", "-x", "-p", "pytest_timeout", "-p", "no:cacheprovider", "--rootdir", str(folder)]
    options += ["--deselect", SLOW]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return int(pytest.main([*options, "--basetemp", str(folder / "tmp"), str(folder / test)]))


SLOW = "tests/evaluation/test_summary.py::test_a_summary_of_256_images_is_quick"


def record(rows: list[dict[str, Any]]) -> None:
    """Put rows into the result, in place of earlier ones of the same mutants; those that are gone leave it."""
    order = [(m.file, m.old, m.new) for m in MUTANTS]
    before = json.loads(RESULT.read_text())["mutants"] if RESULT.exists() else []
    by_mutant = {(row["file"], row["old"], row["new"]): row for row in (*before, *rows)}
    kept = [by_mutant[key] for key in order if key in by_mutant]
    caught = sum(bool(row["caught_by"]) for row in kept)
    numbers = {"caught": caught, "tried": len(kept), "listed": len(order)}
    RESULT.write_text(json.dumps({**numbers, "mutants": kept}, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="mutants whose file or text holds this")
    parser.add_argument(
        "--part", default="1/1", help="K/N: every Nth mutant from the Kth on, for N processes"
    )
    parser.add_argument("--check", action="store_true", help="only see that every change applies")
    args = parser.parse_args()
    part, parts = map(int, args.part.split("/"))
    chosen = [m for m in MUTANTS if args.only in m.file or args.only in m.old or args.only in m.new]
    chosen = chosen[part - 1 :: parts]
    for mutant in chosen:
        check(mutant)
    if args.check:
        print(f"{len(chosen)} mutants apply")
        return 0
    import diffusers  # noqa: F401 in the parent, so that every fork has them
    import peft  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    sound: set[str] = set()
    rows: list[dict[str, Any]] = []
    for number, mutant in enumerate(chosen, 1):
        start = time.perf_counter()
        caught = fails(mutant, mutant.tests)
        if caught and caught not in sound:  # it must be the mutant that it fails on
            if fails(None, (caught,)):
                print(f"{caught} fails on the code as it is")
                return 2
            sound.add(caught)
        rows.append(
            {
                "file": mutant.file,
                "old": mutant.old,
                "new": mutant.new,
                "caught_by": caught,
                "accepted": mutant.accepted,
            }
        )
        record(rows[-1:])
        mark = "caught" if caught else "NOT CAUGHT"
        seconds = time.perf_counter() - start
        print(
            f"{number}/{len(chosen)} {mark} {seconds:.0f} s  {mutant.file}: {mutant.new.strip()[:70]!r}",
            flush=True,
        )
    print(f"caught {sum(bool(row['caught_by']) for row in rows)} of {len(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
