"""What options ask of each other: when one has an effect at all, and which do not go together.

``cxrl.config`` names one of these beside the option that it is about. They read a whole configuration. What
depends on the machine is no condition: ``model.offload`` does something on a GPU, ``run.process_timeout``
where there are several processes, and neither is an error elsewhere.
"""

from __future__ import annotations

from typing import Any

from cxrl.errors import CxrlError, nearest, shown
from cxrl.options import Needs, needs
from cxrl.shipped import is_shipped

TASKS = ("posture", "diagnosis", "consistency")
"""What rewards and judges of this package do."""


def _is_xrv(task: str, value: str) -> bool:
    """Whether a model is one of torchxrayvision's, as NAME or NAME:FILE."""
    return value.startswith({"posture": ("pspnet",), "diagnosis": ("densenet121-",)}.get(task, ()))


def _is_network(task: str, value: str) -> bool:
    """Whether a model is none of cxrl pretrain, which take all images at once, in float32."""
    return _is_xrv(task, value) or (value != "" and not value.endswith(".safetensors"))


def _reward_models(config: Any) -> dict[str, str]:
    """Task → model, of the built-in rewards in use."""
    return {task: getattr(config.rewards, task) for task in TASKS if task in config.rewards.names}


def _judge_models(config: Any) -> dict[str, str]:
    return {task: getattr(config.eval, task) for task in TASKS}


def _has_columns(config: Any) -> bool:
    data = config.data
    return data.source == "table" or (data.source == "prompts" and not data.root.lower().endswith(".txt"))


def _is_compared(config: Any) -> bool:
    return bool(set(config.rewards.names) - set(config.comparison.without_anchor))


def _has_films(config: Any) -> bool:
    """Whether real films are there for the Fréchet distance of a judge that is not the phantom's."""
    reference = config.eval.reference
    return reference != "none" if reference else config.data.has_films


# The base and the data

OWN_BASE = Needs(
    "a model.path other than phantom", lambda config: not is_shipped(config.model.path), ("model.path",)
)
REPORTS = needs("data.source", "mimic_cxr", "openi", "table", "prompts")
MIMIC = needs("data.source", "mimic_cxr")
LABEL_COLUMNS = Needs(
    "data.source table, or prompts with a table", _has_columns, ("data.source", "data.root")
)
UNCERTAIN = Needs(
    f"data.source mimic_cxr or {LABEL_COLUMNS.words.removeprefix('data.source ')}",
    lambda config: config.data.source == "mimic_cxr" or _has_columns(config),
    ("data.source", "data.root"),
)
VIEWS = Needs(
    f"data.source mimic_cxr, openi or {LABEL_COLUMNS.words.removeprefix('data.source ')}",
    lambda config: config.data.source in ("mimic_cxr", "openi") or _has_columns(config),
    ("data.source", "data.root"),
)
CACHED = Needs(
    "a data.source that is read from files",
    lambda config: (
        config.data.source != "phantom"
        or (config.eval.diagnosis != "" and config.eval.reference not in ("", "none"))
    ),
    ("data.source",),
)

# The policy

LORA = needs("policy.train", "lora")
UNET = needs("policy.train", "lora", "full")
ACE = Needs(
    "policy.num_ace_tokens above 0",
    lambda config: config.policy.num_ace_tokens > 0,
    ("policy.num_ace_tokens",),
)

# Rewards and judges


def reward_in_use(task: str) -> Needs:
    return Needs(
        f"rewards.names with {task} in it", lambda config: task in config.rewards.names, ("rewards.names",)
    )


_REWARDS, _JUDGES = (tuple(f"{section}.{task}" for task in TASKS) for section in ("rewards", "eval"))
REWARD_FOLDER = Needs(
    f"one of {', '.join(_REWARDS)} empty",
    lambda config: not all(_reward_models(config).values()) or bool(set(config.rewards.names) - set(TASKS)),
    _REWARDS,
)
REWARD_NETWORK = Needs(
    f"a model that cxrl.pretrain did not make as one of {', '.join(_REWARDS)} in use",
    lambda config: any(_is_network(*model) for model in _reward_models(config).items()),
    _REWARDS,
)
REWARD_DIGESTS = Needs(
    "all their tasks in rewards.names",
    lambda config: {entry.partition("=")[0] for entry in config.rewards.sha256} <= set(config.rewards.names),
    ("rewards.names",),
)
JUDGE_FOLDER = Needs(
    f"one of {', '.join(_JUDGES)} empty", lambda config: not all(_judge_models(config).values()), _JUDGES
)
JUDGE_NETWORK = Needs(
    f"a model that cxrl.pretrain did not make as one of {', '.join(_JUDGES)}",
    lambda config: any(_is_network(*model) for model in _judge_models(config).items()),
    _JUDGES,
)
OWN_CLASSIFIER = Needs(
    "an eval.diagnosis of your own (the phantom's judge has its own films)",
    lambda config: config.eval.diagnosis != "",
    ("eval.diagnosis",),
)
FILMS = Needs("real films as data.root or eval.reference", _has_films, ("data.source", "eval.reference"))
DISTANCE = Needs(
    FILMS.words,
    lambda config: config.eval.diagnosis == "" or config.train.early_stop_fid == 0 or _has_films(config),
    FILMS.named,
)
XRV = Needs(
    "a name of torchxrayvision without a file as a reward in use or a judge",
    lambda config: any(
        _is_xrv(task, value) and ":" not in value
        for models in (_reward_models(config), _judge_models(config))
        for task, value in models.items()
    ),
    tuple(name for name in (*_REWARDS, *_JUDGES) if "consistency" not in name),
)

# The comparison and the loop

ANCHOR = needs("comparison.form", "difference", "win", "bradley_terry")
IN_USE = Needs(
    "all of them in rewards.names",
    lambda config: set(config.comparison.without_anchor) <= set(config.rewards.names),
    ("rewards.names",),
)
COMPARED = Needs(
    "fewer of rewards.names in comparison.without_anchor",
    lambda config: config.comparison.form == "direct" or _is_compared(config),
    ("comparison.without_anchor",),
)
BANK = needs("comparison.anchor", "bank")
SPREAD = (
    needs("comparison.form", "difference", "bradley_terry"),
    Needs(
        "comparison.bank_size above 1",
        lambda config: config.comparison.bank_size > 1,
        ("comparison.bank_size",),
    ),
)
BRADLEY_TERRY = needs("comparison.form", "bradley_terry")
FALLING_RATES = needs("optim.schedule", "linear", "cosine")
LIMITS = Needs(
    "one of train.early_stop_diversity, train.early_stop_fid above 0",
    lambda config: config.train.early_stop_diversity > 0 or config.train.early_stop_fid > 0,
    ("train.early_stop_diversity", "train.early_stop_fid"),
)


def check_together(config: Any) -> None:
    """Raise CxrlError where the fields of a configuration do not fit each other."""
    data, policy, comparison = config.data, config.policy, config.comparison
    names, weights, rewards = config.rewards.names, config.rewards.weights, ",".join(config.rewards.names)
    per_prompt, prompts = config.train.samples_per_prompt, config.train.prompts_per_epoch
    rows = prompts * per_prompt * config.sampler.num_steps
    _require(names, f"rewards.names: {rewards!r} is empty")
    _require(
        len(weights) == len(names),
        f"rewards.weights: {len(weights)} weights for rewards {rewards}; one per name",
    )
    _require(any(weights), "rewards.weights: all 0, nothing to learn; expected at least one > 0")
    for name in comparison.without_anchor:
        known = {*names, *TASKS}
        _require(
            name in known,
            f"comparison.without_anchor: {name!r} is no reward; {nearest(name, known)} (see rewards.names)",
        )
    for section, entries in (("rewards", config.rewards.sha256), ("eval", config.eval.sha256)):
        tasks = [entry.partition("=")[0] for entry in entries]
        for task in tasks:
            _require(
                tasks.count(task) == 1, f"{section}.sha256: {shown(task)} has two digests; leave one out"
            )
    _require(
        policy.train != "none" or policy.num_ace_tokens,
        "policy.train none with policy.num_ace_tokens 0 leaves nothing to train; change one of them",
    )
    _require(
        comparison.center != "prompt" or per_prompt >= 2,
        f"train.samples_per_prompt: {per_prompt}, but comparison.center prompt needs at least 2",
    )
    _require(
        prompts <= data.num_prompts,
        f"train.prompts_per_epoch: {prompts} is more than data.num_prompts ({data.num_prompts})",
    )
    _require(
        prompts * per_prompt <= MAX_IMAGES,
        f"train.samples_per_prompt: {prompts} prompts of {per_prompt} samples are {prompts * per_prompt} "
        f"images an epoch, expected at most {MAX_IMAGES} (change it or --train.prompts-per-epoch)",
    )
    _require(data.views, "data.views is empty; expected at least one, such as PA,AP")
    _require(
        data.check_images == "none" or data.has_films,
        f"data.check_images: {data.check_images}, but data.source {data.source} "
        f"{'has no data.root' if data.source == 'openi' else 'has no image files'}; use none",
    )
    _require(
        config.optim.minibatches <= rows,
        f"optim.minibatches: {config.optim.minibatches} exceeds the epoch's {rows} (sample, step) pairs",
    )


MAX_IMAGES = 100_000
"""Images held at once: an epoch's, or a side's when it is judged. At 512 pixels as many fill 100 GB."""


def _require(claim: object, message: str) -> None:
    if not claim:
        raise CxrlError(message)
