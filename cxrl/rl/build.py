"""The parts of a run, made from its configuration. Everything that can be refused is refused here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cxrl.config import Config
from cxrl.data.equal_texts import same_text
from cxrl.data.prompts import ReportPrompt
from cxrl.data.sources import load_prompts, message, part, readable
from cxrl.errors import CxrlError
from cxrl.evaluation.judges import build_judges, open_judges
from cxrl.evaluation.summary import JudgeModels
from cxrl.models.base import load_base
from cxrl.models.policy import Policy
from cxrl.rewards.base import Reward, build_rewards, check_labels, own_rewards
from cxrl.rl.anchor import Anchors
from cxrl.rl.engine import Engine
from cxrl.rl.evaluation import Evaluator
from cxrl.rl.given import check_judges, check_prompt_lists, check_rewards
from cxrl.rl.limits import Limits
from cxrl.rl.rollout import Sampler
from cxrl.rl.scoring import Scorer
from cxrl.rl.seeding import derive_seed
from cxrl.rl.update import Updater
from cxrl.scorers.choice import open_models, phantom_models
from cxrl.scorers.digests import scorer_digests

Prompts = tuple[Sequence[ReportPrompt], ...]
"""Reports of the caller's own: (training, held-out), or (training, selection, held-out)."""
SPLITS = ("train", "selection", "eval")


@dataclass(frozen=True)
class Parts:
    """What a run works with.

    Attributes:
        prompts: Training reports.
        scorer: The rewards, in the order of ``config.rewards.names``.
        policy: What learns; its base is the anchor.
        sampler: Draws with it.
        updater: Teaches it.
        anchors: Draw what its images are compared with.
        selection: Judges it while it trains; its reports choose.
        evaluator: Judges the result, on reports that chose nothing.
        limits: Stop it.
        digests: Option → digest of the files that a reward or judge was made of.
        notes: What the user should know of the reports and models.
    """

    prompts: tuple[ReportPrompt, ...]
    scorer: Scorer
    policy: Policy
    sampler: Sampler
    updater: Updater
    anchors: Anchors
    selection: Evaluator
    evaluator: Evaluator
    limits: Limits
    digests: Mapping[str, str]
    notes: tuple[str, ...]


def build(
    config: Config,
    engine: Engine,
    *,
    rewards: Mapping[str, Reward] | None = None,
    judges: JudgeModels | None = None,
    prompts: Prompts | None = None,
) -> Parts:
    """Load and make everything; write nothing but caches.

    Args:
        config: All settings.
        engine: The processes.
        rewards: Name → model, in place of the ones that ``config.rewards`` names.
        judges: In place of ``config.eval.judges``.
        prompts: (training, held-out) or (training, selection, held-out) in place of ``config.data``. Of two
            the held-out ones are divided: ``data.selection_num_prompts`` of ``data.eval_num_prompts`` and
            these choose.

    Raises:
        CxrlError: A model or a report cannot be had, or they do not fit the configuration; what is given is
            not what is expected.
    """
    names = config.rewards.names
    if rewards is not None:
        check_rewards(rewards, names)
    if judges is not None:
        check_judges(judges)
    if prompts is not None:
        check_prompt_lists(prompts)
    model = config.model
    base = load_base(
        model.path,
        dtype=model.dtype,
        device=engine.device,
        allow_pickle=model.allow_pickle,
        offload=model.offload,
        gradient_checkpointing=model.gradient_checkpointing,
    )
    if prompts is None:
        sets = [load_prompts(config, base, split) for split in SPLITS]
    else:
        sets = [readable(p, base, config.data.on_long_prompt) for p in prompts]
        if len(sets) == 2:
            sets[1:] = [part(sets[1], config.data, split, "prompts") for split in SPLITS[1:]]
        _check_apart(*(chosen.prompts for chosen in sets))
    notes = [message(config.data, split, s) for split, s in zip(SPLITS, sets, strict=True)]
    training, choosing, held_out = (chosen.prompts for chosen in sets)
    _check_epoch(config, len(training), engine.world)
    own = own_rewards(names) if rewards is None else names
    of_rewards = open_models(config, "rewards", without=own)
    made = rewards or build_rewards(names, config.rewards.path, engine.device, of_rewards)
    made = {name: made[name] for name in names}
    check_labels(made, training)
    of_judges = {} if judges is not None else open_judges(config)
    judged_by = build_judges(config, base.image_size, engine.device, of_judges) if judges is None else judges
    if rewards is None and judges is None:
        notes += [f"warning: {line}" for line in phantom_models(config)]
    policy = Policy(base, config.policy, seed=derive_seed(config.seed, "policy"))
    sampler, scorer = Sampler(policy, config.sampler), Scorer(made, engine)

    def judge(split: str, reports: Sequence[ReportPrompt]) -> Evaluator:
        return Evaluator(
            sampler,
            reports,
            judged_by,
            config,
            engine,
            split=split,
            scorer=scorer,
            own_prompts=prompts is not None,
        )

    return Parts(
        prompts=training,
        scorer=scorer,
        policy=policy,
        sampler=sampler,
        updater=Updater(sampler, config.optim, engine, num_epochs=config.train.num_epochs),
        anchors=Anchors(sampler, config, engine),
        selection=judge("selection", choosing),
        evaluator=judge("eval", held_out),
        limits=Limits(config, policy),
        digests=scorer_digests((*of_rewards.values(), *of_judges.values()), own),
        notes=tuple(note for note in notes if note),
    )


def prompts_digest(prompts: Sequence[ReportPrompt]) -> str:
    """Hex digest of reports with their labels, which a resumed run must find as they were."""
    digest = hashlib.sha256()
    for p in prompts:
        digest.update(f"{p.prompt_id}\0{p.text}\0{p.labels}\0{p.findings}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()


def _check_apart(*sets: Sequence[ReportPrompt]) -> None:
    """Raises CxrlError where a text is in two of the caller's sets."""
    seen: dict[str, int] = {}
    for number, reports in enumerate(sets):
        for prompt in reports:
            if seen.setdefault(same_text(prompt.text), number) != number:
                raise CxrlError(
                    f"prompts: the text of prompt {prompt.prompt_id} is in {SPLITS[number]} and in "
                    f"{SPLITS[seen[same_text(prompt.text)]]}; a report trains, chooses or is judged"
                )


def _check_epoch(config: Config, num_prompts: int, num_processes: int) -> None:
    per_epoch = config.train.prompts_per_epoch
    if per_epoch > num_prompts:
        raise CxrlError(f"train.prompts_per_epoch: {per_epoch}, but there are {num_prompts} prompts")
    num = per_epoch * config.train.samples_per_prompt
    if num < num_processes:
        raise CxrlError(f"{num} samples an epoch for {num_processes} processes; raise train.*_per_*")
