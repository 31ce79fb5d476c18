"""The configuration: every knob with its default, unit, range and reason, in one place.

A section is a frozen dataclass; a field is declared with :func:`cxrl.options.option`, whose metadata drive
``--help`` and validation. The files in ``cxrl/presets`` only override. A value is refused where it enters;
upper limits of counts are where a typing error is likelier than a wish.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import yaml

import cxrl.conditions as only
from cxrl.conditions import MAX_IMAGES
from cxrl.errors import CxrlError
from cxrl.options import Section, field_types, option, override
from cxrl.shipped import PHANTOM

MAX_EPOCHS, MAX_SEED = 1_000_000, 2**31 - 1
TRACKERS = ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb")


@dataclass(frozen=True)
class ModelConfig(Section):
    section: ClassVar[str] = "model"
    help: ClassVar[str] = "the diffusion model that is fine-tuned"

    path: str = option(
        PHANTOM,
        "base and anchor: 'phantom' ships with cxrl; else a StableDiffusionPipeline folder or hub id",
    )
    dtype: str = option(
        "float32",
        "precision of the networks; latents and log-probabilities stay float32",
        choices=("float32", "bfloat16", "float16"),
    )
    allow_pickle: bool = option(
        False, "read pickled weights too; a pickle can run code: only files you trust", only_if=only.OWN_BASE
    )
    offload: bool = option(
        False, "on a GPU: keep text encoder and autoencoder in the CPU's memory while they are not in use"
    )
    gradient_checkpointing: bool = option(
        False, "compute the UNet's activations twice and keep few: less memory, a third more time"
    )


@dataclass(frozen=True)
class DataConfig(Section):
    section: ClassVar[str] = "data"
    help: ClassVar[str] = "the reports that are drawn"

    source: str = option(
        "phantom",
        "procedural films; MIMIC-CXR; Open-I; a CSV, TSV, JSONL or Parquet table; or reports (docs/data.md)",
        choices=("phantom", "mimic_cxr", "openi", "table", "prompts"),
    )
    root: str = option(
        "",
        "mimic_cxr: folder of MIMIC-CXR-JPG; openi: of the films, may be empty; table, prompts: the file",
        only_if=only.REPORTS,
    )
    reports: str = option(
        "", "folder with files/, or mimic-cxr-reports.zip; empty means data.root", only_if=only.MIMIC
    )
    num_prompts: int = option(
        256, "training reports; the anchor bank grows with it", unit="prompts", low=1, high=1_000_000
    )
    selection_num_prompts: int = option(
        16,
        "held-out reports that choose: judged while a run trains, they stop it and say which epoch is kept",
        unit="prompts",
        low=1,
        high=MAX_IMAGES,
    )
    eval_num_prompts: int = option(
        64,
        "held-out reports of the summary, which choose nothing; intervals resample them: few are wide",
        unit="prompts",
        low=1,
        high=MAX_IMAGES,
    )
    eval_split: str = option(
        "test",
        "where the summary's reports come from; those that choose are of validate, never the same texts",
        choices=("validate", "test"),
        only_if=only.REPORTS,
    )
    on_long_prompt: str = option(
        "drop", "what to do with a report that the tokenizer would cut", choices=("drop", "error")
    )
    views: tuple[str, ...] = option(
        ("PA", "AP"),
        "views that are used; the default is frontal films; a film without a view is dropped",
        only_if=only.VIEWS,
    )
    placeholders: str = option(
        "drop_sentence",
        "de-identification's ___ and XXXX: a sentence with a hole asks for nothing that can be drawn",
        choices=("keep", "drop_sentence", "drop_report"),
        only_if=only.REPORTS,
    )
    comparisons: str = option(
        "drop_sentence",
        "sentences that compare with an earlier film, which one image cannot show",
        choices=("keep", "drop_sentence", "drop_report"),
        only_if=only.REPORTS,
    )
    label_set: str = option("chexpert", "whose labels", choices=("chexpert", "negbio"), only_if=only.MIMIC)
    label_columns: tuple[str, ...] = option(
        (),
        "columns with labels; none means those named like CheXpert's 14 findings",
        only_if=only.LABEL_COLUMNS,
    )
    uncertain_labels: str = option(
        "mask",
        "what -1 means: unknown, or present; a blank is always unknown",
        choices=("mask", "positive"),
        only_if=only.UNCERTAIN,
    )
    image_format: str = option(
        "jpg", ".jpg of MIMIC-CXR-JPG or .dcm of MIMIC-CXR", choices=("jpg", "dicom"), only_if=only.MIMIC
    )
    check_images: str = option(
        "none",
        "drop films whose file is missing, or cannot be decoded (hours for MIMIC); training reads no film",
        choices=("none", "exist", "decode"),
    )
    cache: str = option(
        "",
        "folder of the index, which holds report texts; empty means ~/.cache/cxrl/index; none builds anew",
        only_if=only.CACHED,
    )
    restricted: str = option(
        "auto",
        "run directories for their owner alone (mode 0700); auto: yes for mimic_cxr",
        choices=("auto", "yes", "no"),
    )

    def check_root(self) -> None:
        """Raise CxrlError if the source needs ``root`` and has none: a preset cannot know where data is."""
        if not self.root and self.source not in ("phantom", "openi"):
            raise CxrlError(
                f"data.root is empty, but data.source {self.source} needs it (change --data.root)"
            )

    @property
    def has_films(self) -> bool:
        """Whether the source has files of real films."""
        return self.source not in ("phantom", "prompts") and self.root != ""

    @property
    def is_restricted(self) -> bool:
        """Whether the data set may not be passed on."""
        return self.restricted == "yes" or (self.restricted == "auto" and self.source == "mimic_cxr")


@dataclass(frozen=True)
class SamplerConfig(Section):
    section: ClassVar[str] = "sampler"
    help: ClassVar[str] = "DDIM; the same in sampling, in training and for the anchor"

    num_steps: int = option(8, "denoising steps; cost is linear in it", unit="steps", low=1, high=1000)
    eta: float = option(
        1.0, "step noise relative to DDPM's; 0 leaves no policy to optimise", above=0.0, high=1.0
    )
    guidance_scale: float = option(
        1.0, "classifier-free guidance, also in training; 1 is off and half the cost", low=1.0, high=50.0
    )
    timestep_spacing: str = option(
        "trailing",
        "which training steps are visited; 'trailing' starts at pure noise",
        choices=("trailing", "leading", "linspace"),
    )
    batch_size: int = option(
        96,
        "images sampled at once; memory is linear in it; 0: as many as optim.micro_batch_size",
        unit="images",
        low=0,
        high=MAX_IMAGES,
    )


@dataclass(frozen=True)
class PolicyConfig(Section):
    section: ClassVar[str] = "policy"
    help: ClassVar[str] = "what learns: LoRA on attention, and ACE, tokens appended to the prompt"

    train: str = option(
        "lora", "weights of the UNet that learn; 'none' leaves ACE alone", choices=("lora", "full", "none")
    )
    lora_rank: int = option(
        8, "rank of the update of each attention projection", low=1, high=1024, only_if=only.LORA
    )
    lora_alpha: float = option(
        8.0, "the update is scaled by lora_alpha / lora_rank", above=0.0, high=1e6, only_if=only.LORA
    )
    num_ace_tokens: int = option(
        4, "adaptive condition embeddings after the prompt; 0 is off", unit="tokens", low=0, high=256
    )
    ema_decay: float = option(
        0.95,
        "decay of the averaged weights, which are evaluated and saved; 0 takes the last",
        low=0.0,
        high=0.99999,
    )


@dataclass(frozen=True)
class RewardsConfig(Section):
    section: ClassVar[str] = "rewards"
    help: ClassVar[str] = "what an image is scored for"

    names: tuple[str, ...] = option(
        ("posture", "diagnosis", "consistency"), "rewards in use, comma separated"
    )
    weights: tuple[float, ...] = option(
        (1.0, 1.0, 1.0), "one per name, applied after the comparison", low=0.0, high=1000.0
    )
    path: str = option(
        PHANTOM, "folder of the reward models; 'phantom' is the one that ships", only_if=only.REWARD_FOLDER
    )
    posture: str = option(
        "",
        "a .safetensors of cxrl pretrain, or pspnet; empty: the file in rewards.path (docs/rewards.md)",
        only_if=only.reward_in_use("posture"),
    )
    diagnosis: str = option(
        "",
        "a name such as densenet121-res224-mimic_ch, NAME:FILE, or a .safetensors; empty: as posture",
        only_if=only.reward_in_use("diagnosis"),
    )
    consistency: str = option(
        "",
        "a CLIP or SigLIP folder or hub id of transformers, or a .safetensors; empty: as posture",
        only_if=only.reward_in_use("consistency"),
    )
    sha256: tuple[str, ...] = option(
        (), "digests of your own files as TASK=HEX; a pickle needs one", only_if=only.REWARD_DIGESTS
    )
    batch_size: int = option(
        32,
        "images at once; the models of cxrl pretrain take all",
        unit="images",
        low=1,
        high=MAX_IMAGES,
        only_if=only.REWARD_NETWORK,
    )
    dtype: str = option(
        "float32",
        "precision of the networks; scores are float32, the models of cxrl pretrain too",
        choices=("float32", "bfloat16", "float16"),
        only_if=only.REWARD_NETWORK,
    )


@dataclass(frozen=True)
class ComparisonConfig(Section):
    section: ClassVar[str] = "comparison"
    help: ClassVar[str] = "rewards against the frozen anchor's, and the advantage made of them"

    form: str = option(
        "difference",
        "difference in bank sd, share of the bank beaten, mean sigmoid of difference, or no comparison",
        choices=("difference", "win", "bradley_terry", "direct"),
        only_if=only.COMPARED,
    )
    anchor: str = option(
        "bank",
        "a stored bank per prompt, or one anchor image per sample from the same x_T (paper)",
        choices=("bank", "one_to_one"),
        only_if=(only.ANCHOR, only.COMPARED),
    )
    bank_size: int = option(
        8,
        "anchor images per prompt, drawn once; more is quieter",
        unit="images",
        low=1,
        high=1024,
        only_if=(only.ANCHOR, only.COMPARED, only.BANK),
    )
    min_std: float = option(
        1e-3,
        "floor of the bank's sd: tied anchors must not blow the score up",
        above=0.0,
        high=1000.0,
        only_if=(*only.SPREAD, only.COMPARED, only.BANK),
    )
    temperature: float = option(
        1.0,
        "width of the sigmoid, in sd of the bank",
        above=0.0,
        high=1000.0,
        only_if=(only.BRADLEY_TERRY, only.COMPARED),
    )
    without_anchor: tuple[str, ...] = option(
        ("posture",), "rewards scored directly, as in the paper", only_if=(only.ANCHOR, only.IN_USE)
    )
    center: str = option("prompt", "whose mean the advantage subtracts", choices=("prompt", "batch", "none"))
    scale: str = option("std", "divide the advantage by its sd, or not", choices=("std", "none"))
    advantage_clip: float = option(5.0, "largest absolute advantage", above=0.0, high=1e6)


@dataclass(frozen=True)
class OptimConfig(Section):
    section: ClassVar[str] = "optim"
    help: ClassVar[str] = "the policy gradient: PPO-clip over (sample, timestep)"

    lora_learning_rate: float = option(
        1e-3, "AdamW's, of LoRA or, with policy.train full, of the UNet", low=0.0, high=1.0, only_if=only.UNET
    )
    ace_learning_rate: float = option(
        1e-2, "AdamW's, of the ACE tokens, which need more", low=0.0, high=1.0, only_if=only.ACE
    )
    schedule: str = option(
        "constant",
        "of both learning rates over train.num_epochs: rates that fall let a run settle",
        choices=("constant", "linear", "cosine"),
    )
    final_rate_share: float = option(
        0.05,
        "the rates do not fall below this share of them",
        above=0.0,
        high=1.0,
        only_if=only.FALLING_RATES,
    )
    warmup_epochs: int = option(
        0, "the rates rise evenly over so many epochs", unit="epochs", low=0, high=MAX_EPOCHS
    )
    weight_decay: float = option(1e-4, "AdamW's pull of the weights towards 0", low=0.0, high=1.0)
    clip_range: float = option(
        1e-4,
        "the ratio is clipped to 1 ± this; small as log-probabilities are means over a latent",
        above=0.0,
        high=1.0,
    )
    step_weight: float = option(
        0.0,
        "share of the differences between denoising steps that is divided out: at 1 all get the same "
        "gradient, at 0 their own, in the phantom's base the first a sixteenth of the last",
        low=0.0,
        high=1.0,
    )
    kl_weight: float = option(
        0.0, "weight of the KL to the anchor; 0 saves the anchor's forward pass", low=0.0, high=1e6
    )
    max_grad_norm: float = option(1.0, "gradient clipping, LoRA and ACE apart", above=0.0, high=1e9)
    num_inner_epochs: int = option(1, "passes over a rollout", unit="passes", low=1, high=100)
    minibatches: int = option(
        12, "optimizer steps per pass; few large ones hardly learn", unit="steps", low=1, high=MAX_IMAGES
    )
    gradient_accumulation: int = option(
        1, "pieces of a minibatch; does not change the result", low=1, high=MAX_IMAGES
    )
    micro_batch_size: int = option(
        96,
        "(sample, timestep) pairs per forward pass; sets the memory; 0: what fits into it, with gradient "
        "checkpointing where it must",
        unit="rows",
        low=0,
        high=MAX_IMAGES,
    )
    timestep_fraction: float = option(
        1.0, "share of a trajectory's steps that is trained on", above=0.0, high=1.0
    )
    ratio_tolerance: float = option(
        1e-5,
        "largest |ratio - 1| before an epoch's first step; bfloat16: a tenth of clip_range",
        above=0.0,
        high=1.0,
    )
    on_ratio_mismatch: str = option(
        "error",
        "beyond ratio_tolerance: stop, or score the old steps again and go on",
        choices=("error", "warn"),
    )


@dataclass(frozen=True)
class TrainConfig(Section):
    section: ClassVar[str] = "train"
    help: ClassVar[str] = "the loop"

    num_epochs: int = option(60, "rollout, reward, update", unit="epochs", low=1, high=MAX_EPOCHS)
    prompts_per_epoch: int = option(
        8, "distinct reports of a rollout", unit="prompts", low=1, high=MAX_IMAGES
    )
    samples_per_prompt: int = option(
        12, "images per report; center prompt needs at least 2", unit="images", low=1, high=MAX_IMAGES
    )
    checkpoint_every: int = option(
        10,
        "what a killed run can lose; the last epoch is always saved",
        unit="epochs",
        low=1,
        high=MAX_EPOCHS,
    )
    keep_checkpoints: int = option(2, "older ones are deleted", unit="checkpoints", low=1, high=MAX_EPOCHS)
    eval_every: int = option(20, "judges and grids; 0 only at the end", unit="epochs", low=0, high=MAX_EPOCHS)
    early_stop_diversity: float = option(
        0.8,
        "stop when diversity falls below this share of real films', or, where that is unknown, of the "
        "anchor's; 0 never",
        low=0.0,
        high=1.0,
    )
    early_stop_fid: float = option(
        1.5,
        "stop when the Fréchet distance exceeds this many times the anchor's, both above real films' where "
        "that is known; 0 never",
        low=0.0,
        high=1e6,
        only_if=only.DISTANCE,
    )
    patience: int = option(
        2,
        "evaluations in a row beyond a limit before the run stops (one at the end); "
        "the last weights within limits are kept",
        unit="evaluations",
        low=1,
        high=MAX_EPOCHS,
        only_if=only.LIMITS,
    )


@dataclass(frozen=True)
class EvalConfig(Section):
    section: ClassVar[str] = "eval"
    help: ClassVar[str] = "scores by judges that gave no reward"

    num_images: int = option(
        256, "of the policy and as many of the anchor", unit="images", low=2, high=MAX_IMAGES
    )
    samples_per_prompt: int = option(
        4, "images per report; diversity needs at least 2", unit="images", low=2, high=MAX_IMAGES
    )
    bootstrap: int = option(
        1000, "resamples of the reports, 95 % intervals", unit="resamples", low=0, high=100_000
    )
    judges: str = option(
        PHANTOM, "folder of the judges; 'phantom' is the one that ships", only_if=only.JUDGE_FOLDER
    )
    posture: str = option("", "as rewards.posture, but another model; empty: the file in eval.judges")
    diagnosis: str = option(
        "", "as rewards.diagnosis, but another model; its features give the Fréchet distance"
    )
    consistency: str = option("", "as rewards.consistency, but another model")
    sha256: tuple[str, ...] = option((), "digests of your own files as TASK=HEX; a pickle needs one")
    batch_size: int = option(
        32,
        "images at once; the models of cxrl pretrain take all",
        unit="images",
        low=1,
        high=MAX_IMAGES,
        only_if=only.JUDGE_NETWORK,
    )
    dtype: str = option(
        "float32",
        "precision of the networks, as rewards.dtype",
        choices=("float32", "bfloat16", "float16"),
        only_if=only.JUDGE_NETWORK,
    )
    reference: str = option(
        "",
        "real films of the Fréchet distance: a folder; empty: those of data.eval_split; none: no distance",
        only_if=only.OWN_CLASSIFIER,
    )
    num_reference: int = option(
        2048,
        "most real films that are read, once; few make the distance noisy",
        unit="films",
        low=2,
        high=MAX_IMAGES,
        only_if=(only.OWN_CLASSIFIER, only.FILMS),
    )
    grid_prompts: int = option(
        6, "reports shown in samples/*.png, anchor above policy", unit="prompts", low=1, high=32
    )


@dataclass(frozen=True)
class RunConfig(Section):
    section: ClassVar[str] = "run"
    help: ClassVar[str] = "where things go"

    dir: str = option("", "run directory; empty means runs/<preset>")
    trackers: tuple[str, ...] = option(
        ("tensorboard",), "loggers of accelerate, or none; they get numbers, never reports", choices=TRACKERS
    )
    process_timeout: float = option(
        600.0,
        "of several: how long a process waits for the others, as while one writes, before it ends",
        unit="seconds",
        low=1.0,
        high=604_800.0,
    )
    xrv_cache: str = option(
        "",
        "folder of torchxrayvision's weights; empty means ~/.torchxrayvision/models_data",
        only_if=only.XRV,
    )
    debug: bool = option(False, "show tracebacks")


@dataclass(frozen=True)
class Config(Section):
    """The resolved configuration of a run. Raises CxrlError when fields do not fit each other."""

    preset: str = option("phantom", "the preset it started from")
    seed: int = option(0, "fixes prompts, latents, step noise and evaluation", low=0, high=MAX_SEED)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    rewards: RewardsConfig = field(default_factory=RewardsConfig)
    comparison: ComparisonConfig = field(default_factory=ComparisonConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        only.check_together(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and scalars, for YAML and JSON."""
        data = dataclasses.asdict(self)
        for section in data.values():
            if isinstance(section, dict):
                section.update({k: list(v) for k, v in section.items() if isinstance(v, tuple)})
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], base: Config | None = None, source: str = "") -> Config:
        """``base`` (or the defaults) with the values of a nested mapping put over it.

        Raises:
            CxrlError: An unknown name, a wrong type or a value out of range; the message names ``source``.
        """
        try:
            return override(base or cls(), data)
        except CxrlError as error:
            raise CxrlError(f"{source}: {error}") if source else error from None

    def to_yaml(self) -> str:
        """The resolved configuration as text, which ``--config`` reads again."""
        data = self.to_dict()
        # Left as it is, U+0085 would be read as a space: PyYAML takes it for a line break.
        readable = "\x85" not in "".join(_texts(data))
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=readable)


def _texts(data: Any) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict | list):
        for part in data.values() if isinstance(data, dict) else data:
            yield from _texts(part)


def sections() -> dict[str, type[Section]]:
    """Section name → its dataclass, in the order of ``--help``."""
    return {
        name: tp
        for name, tp in field_types(Config).items()
        if isinstance(tp, type) and issubclass(tp, Section)
    }
