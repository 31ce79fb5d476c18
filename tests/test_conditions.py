"""An option that has no effect is an error: every option, in every situation, by command line and file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cxrl.cli import parse_train, train_parser
from cxrl.conditions import check_together
from cxrl.config import ComparisonConfig, Config, DataConfig, EvalConfig, sections
from cxrl.data.sources import load_prompts
from cxrl.errors import CxrlError
from cxrl.options import show, value_of
from cxrl.presets import load_preset, presets
from cxrl.scorers.choice import model_choices

OPTIONS = {f"{name}.{f.name}": f for name, section in sections().items() for f in dataclasses.fields(section)}

_ALWAYS = """
    model.path model.dtype model.offload model.gradient_checkpointing
    data.source data.num_prompts data.selection_num_prompts data.eval_num_prompts data.on_long_prompt
    data.check_images data.restricted
    sampler.num_steps sampler.eta sampler.guidance_scale sampler.timestep_spacing sampler.batch_size
    policy.train policy.num_ace_tokens policy.ema_decay
    rewards.names rewards.weights
    comparison.center comparison.scale comparison.advantage_clip
    optim.schedule optim.warmup_epochs optim.step_weight
    optim.weight_decay optim.clip_range optim.kl_weight optim.max_grad_norm optim.num_inner_epochs
    optim.minibatches optim.gradient_accumulation optim.micro_batch_size optim.timestep_fraction
    optim.ratio_tolerance optim.on_ratio_mismatch
    train.num_epochs train.prompts_per_epoch train.samples_per_prompt train.checkpoint_every
    train.keep_checkpoints train.eval_every train.early_stop_diversity
    eval.num_images eval.samples_per_prompt eval.bootstrap eval.posture eval.diagnosis eval.consistency
    eval.sha256 eval.grid_prompts
    run.dir run.trackers run.process_timeout run.debug
"""
ALWAYS = set(_ALWAYS.split())
"""Do something whatever the rest says. ``data.check_images`` is checked with the source it goes with."""

SOURCES = {
    "phantom": "",
    "mimic_cxr": "--data.source mimic_cxr --data.root /d",
    "openi": "--data.source openi",
    "table": "--data.source table --data.root t.csv",
    "prompts.csv": "--data.source prompts --data.root p.csv",
    "prompts.txt": "--data.source prompts --data.root p.txt",
}
FILES = set(SOURCES) - {"phantom"}
BY_SOURCE: dict[str, tuple[str, set[str]]] = {
    "data.root": ("other.csv", FILES),
    "data.reports": ("/r", {"mimic_cxr"}),
    "data.eval_split": ("validate", FILES),
    "data.views": ("PA", FILES - {"prompts.txt"}),
    "data.placeholders": ("keep", FILES),
    "data.comparisons": ("keep", FILES),
    "data.label_set": ("negbio", {"mimic_cxr"}),
    "data.label_columns": ("a", {"table", "prompts.csv"}),
    "data.uncertain_labels": ("positive", FILES - {"openi", "prompts.txt"}),
    "data.image_format": ("dicom", {"mimic_cxr"}),
    "data.cache": ("none", FILES),
}
"""Option → a value, and the sources that read it."""

OWN = "--eval.diagnosis densenet121-res224-chex"
OWN_REWARDS = "--rewards.posture a.safetensors --rewards.diagnosis b.safetensors --rewards.consistency c"
ALL_DIRECT = "--comparison.without-anchor posture,diagnosis,consistency"
TWO = "--rewards.names posture,diagnosis --rewards.weights 1,1"
HEX = "0" * 64
BY_REST: dict[str, tuple[str, list[str], list[str]]] = {
    "model.allow_pickle": ("true", ["--model.path m"], [""]),
    "policy.lora_rank": ("4", [""], ["--policy.train full", "--policy.train none"]),
    "policy.lora_alpha": ("4", [""], ["--policy.train full", "--policy.train none"]),
    "rewards.path": ("r", ["", "--rewards.posture a.safetensors"], [OWN_REWARDS]),
    "rewards.posture": ("a.safetensors", [""], ["--rewards.names consistency --rewards.weights 1"]),
    "rewards.diagnosis": ("a.safetensors", [TWO], ["--rewards.names posture --rewards.weights 1"]),
    "rewards.consistency": ("a.safetensors", [""], [TWO]),
    "rewards.sha256": (f"consistency={HEX}", [""], [TWO]),
    "rewards.batch_size": ("4", ["--rewards.consistency clip"], ["", "--rewards.posture a.safetensors"]),
    "rewards.dtype": (
        "bfloat16",
        ["--rewards.diagnosis densenet121-res224-chex"],
        ["", f"{TWO} --rewards.posture a.safetensors"],
    ),
    "comparison.form": ("win", [""], [ALL_DIRECT]),
    "comparison.anchor": ("one_to_one", [""], ["--comparison.form direct", ALL_DIRECT]),
    "comparison.bank_size": (
        "4",
        ["", "--comparison.form win"],
        ["--comparison.anchor one_to_one", "--comparison.form direct", ALL_DIRECT],
    ),
    "comparison.min_std": (
        "0.1",
        ["", "--comparison.form difference"],
        ["--comparison.form win", "--comparison.anchor one_to_one", "--comparison.bank-size 1", ALL_DIRECT],
    ),
    "comparison.temperature": (
        "2",
        [""],
        ["--comparison.form difference", "--comparison.form win", "--comparison.form direct", ALL_DIRECT],
    ),
    "comparison.without_anchor": (
        "posture,diagnosis",
        ["", TWO],
        ["--comparison.form direct", "--rewards.names posture,consistency --rewards.weights 1,1"],
    ),
    "optim.lora_learning_rate": ("0.1", ["", "--policy.train full"], ["--policy.train none"]),
    "optim.ace_learning_rate": ("0.1", [""], ["--policy.num-ace-tokens 0"]),
    "optim.final_rate_share": (
        "0.1",
        ["--optim.schedule cosine", "--optim.schedule linear"],
        ["", "--optim.schedule constant"],
    ),
    "train.early_stop_fid": (
        "3",
        ["", f"{OWN} --eval.reference d", f"{OWN} {SOURCES['table']}"],
        [OWN, f"{OWN} {SOURCES['table']} --eval.reference none", f"{OWN} {SOURCES['openi']}"],
    ),
    "train.patience": (
        "3",
        ["", "--train.early-stop-fid 0"],
        ["--train.early-stop-fid 0 --train.early-stop-diversity 0"],
    ),
    "eval.judges": (
        "j",
        ["", OWN],
        [f"{OWN} --eval.posture a.safetensors --eval.consistency b.safetensors"],
    ),
    "eval.batch_size": ("4", [OWN], ["", "--eval.posture a.safetensors"]),
    "eval.dtype": ("bfloat16", ["--eval.consistency clip"], ["", "--eval.posture a.safetensors"]),
    "eval.reference": ("d", [OWN], ["", "--eval.consistency clip", SOURCES["table"]]),
    "eval.num_reference": (
        "9",
        [f"{OWN} --eval.reference d", f"{OWN} {SOURCES['mimic_cxr']}"],
        ["", OWN, SOURCES["table"], f"{OWN} {SOURCES['prompts.csv']}", f"{OWN} {SOURCES['openi']}"],
    ),
    "run.xrv_cache": (
        "x",
        ["--eval.posture pspnet", "--rewards.diagnosis densenet121-res224-all"],
        [
            "",
            "--eval.posture pspnet:file.pth",
            "--rewards.consistency clip",
            f"{TWO.replace('diagnosis', 'consistency')} --eval.posture a.safetensors",
        ],
    ),
}
"""Option → a value, situations in which it has an effect, situations in which it has none."""


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def without(argv: str, name: str) -> list[str]:
    """A situation without the option itself."""
    words = argv.split()
    return [w for i, w in enumerate(words) if flag(name) not in (w, words[i - 1] if i else "")]


def accepted(argv: list[str], name: str, value: str) -> None:
    config = parse_train([*argv, flag(name), value]).config
    assert show(value_of(config, name)) == value


def refused(argv: list[str], name: str, value: str) -> None:
    with pytest.raises(CxrlError, match=f"{name}: {value} has no effect with .*; leave it out, or set "):
        parse_train([*argv, flag(name), value])
    parse_train(argv)  # the situation alone is none


def test_every_option_is_either_always_effective_or_has_its_condition() -> None:
    conditional = {name for name, f in OPTIONS.items() if f.metadata["only_if"]}
    assert conditional == {*BY_SOURCE, *BY_REST}, "a condition without a test, or a test without a condition"
    assert conditional | ALWAYS == set(OPTIONS), "a new option: does it always have an effect?"
    assert not conditional & ALWAYS


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", BY_SOURCE)
def test_data_options_go_with_their_sources(name: str, source: str) -> None:
    value, read_by = BY_SOURCE[name]
    argv = without(SOURCES[source], name) if source == "openi" else SOURCES[source].split()
    if name == "data.root":
        argv = argv[:2]
    if source in read_by:
        accepted(argv, name, value if name != "data.root" else value.replace("csv", source[-3:]))
    else:
        refused(argv, name, value)


@pytest.mark.parametrize(
    ("name", "argv"), [(name, argv) for name, (_, holds, _) in BY_REST.items() for argv in holds]
)
def test_an_option_whose_condition_holds_is_taken(name: str, argv: str) -> None:
    accepted(argv.split(), name, BY_REST[name][0])


@pytest.mark.parametrize(
    ("name", "argv"), [(name, argv) for name, (_, _, fails) in BY_REST.items() for argv in fails]
)
def test_an_option_whose_condition_does_not_hold_is_refused(name: str, argv: str) -> None:
    refused(argv.split(), name, BY_REST[name][0])


def test_the_error_says_what_decides_and_what_to_do() -> None:
    with pytest.raises(CxrlError) as caught:
        parse_train(["--comparison.form", "difference", "--comparison.temperature", "2"])
    assert str(caught.value) == (
        "comparison.temperature: 2 has no effect with comparison.form difference; leave it out, or set "
        "comparison.form bradley_terry"
    )
    with pytest.raises(CxrlError, match=r"^data\.root: my\.csv has no effect with data\.source phantom; "):
        parse_train(["--data.root", "my.csv"])
    with pytest.raises(CxrlError, match=r"eval\.diagnosis empty; .* set an eval\.diagnosis of your own"):
        parse_train(["--eval.reference", "none"])


def test_a_value_that_turns_off_what_is_off_is_no_error() -> None:
    accepted(OWN.split(), "train.early_stop_fid", "0")
    accepted([], "comparison.form", "direct")
    accepted([*OWN.split(), "--eval.reference", "dir"], "data.cache", "none")


@pytest.mark.parametrize("preset", presets())
def test_what_a_preset_says_may_be_said_again(preset: str, tmp_path: Path) -> None:
    config = load_preset(preset)
    argv = ["--preset", preset]
    if config.data.source == "mimic_cxr":
        argv += ["--data.root", "/d"]
    values = {n: show(value_of(config, n)) for n in OPTIONS if n != "run.dir"}
    values |= {"data.root": "/d"} if config.data.source == "mimic_cxr" else {}
    words = [w for n, v in values.items() for w in (flag(n), "" if v == "empty" else v)]
    assert parse_train(["--preset", preset, *words]).config.rewards == config.rewards
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    again = parse_train([*argv[2:], "--config", str(tmp_path / "config.yaml")]).config
    assert again.comparison == config.comparison
    # Another situation than the preset's: what the file repeats of it is not asked for.
    parse_train([*argv[2:], "--config", str(tmp_path / "config.yaml"), "--comparison.form", "direct"])


@pytest.mark.parametrize("name", [*BY_SOURCE, *BY_REST])
def test_a_file_is_held_to_the_same(name: str, tmp_path: Path) -> None:
    value, argv = (
        (BY_SOURCE[name][0], SOURCES["phantom"] if name != "data.views" else SOURCES["prompts.txt"])
        if name in BY_SOURCE
        else (BY_REST[name][0], BY_REST[name][2][0])
    )
    section, _, key = name.partition(".")
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"{section}: {{{key}: [{value}]}}\n" if "," in value else f"{section}: {{{key}: {value}}}\n"
    )
    with pytest.raises(CxrlError, match=rf"mine\.yaml: {name}: .* has no effect with "):
        parse_train([*argv.split(), "--config", str(file)])


def test_resume_is_held_to_the_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(load_preset("smoke").to_yaml())
    argv = ["--run-dir", str(tmp_path), "--resume"]
    parse_train([*argv, "--comparison.temperature", "1"])
    with pytest.raises(CxrlError, match=r"comparison\.temperature: 2 has no effect"):
        parse_train([*argv, "--comparison.temperature", "2"])


def test_help_tells_the_conditions() -> None:
    text = " ".join(train_parser().format_help().split())
    assert "default 1; needs comparison.form bradley_terry; needs fewer of rewards.names in" in text
    for f in OPTIONS.values():
        for need in f.metadata["only_if"]:
            assert f"needs {need.words}" in text


# A configuration made in Python is held to what cannot be, and to nothing else.


def test_without_anchor_names_rewards() -> None:
    with pytest.raises(CxrlError, match=r"without_anchor: 'postur' is no reward; did you mean posture\?"):
        Config.from_dict({"comparison": {"without_anchor": "postur"}})
    with pytest.raises(CxrlError, match=r"without_anchor: 'contrast' is no reward; known: .*posture"):
        parse_train(["--comparison.without-anchor", "contrast"])
    own = {"rewards": {"names": "contrast", "weights": 1}}
    assert Config.from_dict(own).comparison.without_anchor == ("posture",), "the default stays valid"
    Config.from_dict({**own, "comparison": {"without_anchor": "contrast"}})


def test_python_may_say_anything_that_can_be() -> None:
    for name, (value, _, _) in BY_REST.items():
        section, _, key = name.partition(".")
        check_together(Config.from_dict({section: {key: value}}))


# The conditions are true: what the sources and the comparison read is what the tables above say.


class Spy:
    """Mixed into a section: notes which fields are read."""

    read: set[str]

    def __getattribute__(self, name: str) -> Any:
        if name in object.__getattribute__(self, "__dataclass_fields__"):
            type(self).read.add(name)
        return object.__getattribute__(self, name)


@pytest.fixture
def spied() -> Callable[..., Any]:
    """A section whose fields are noted when they are read."""

    def make(section: type, **values: Any) -> Any:
        kind = type("Spied", (Spy, section), {"read": set()})
        made = kind(**values)
        kind.read.clear()
        return made

    return make


class Reader:
    max_tokens = 1000

    def num_tokens(self, text: str) -> int:
        return len(text.split())


@pytest.fixture
def data(tmp_path: Path, mimic: Any) -> dict[str, dict[str, Any]]:
    """Source → its settings, over small files."""
    rows = [f"{i},{i}.png,no edema {i},PA,1.0,{s}" for i, s in enumerate(("train", "validate", "test") * 2)]
    table = "\n".join(("id,image,text,view,Edema,split", *rows)) + "\n"
    (tmp_path / "t.csv").write_text(table)
    (tmp_path / "p.txt").write_text("".join(f"no edema {i}\n" for i in range(30)))
    tree = mimic.write_mimic_tree(tmp_path / "mimic")
    roots = {
        "mimic_cxr": str(tree.root),
        "table": str(tmp_path / "t.csv"),
        "prompts.csv": str(tmp_path / "t.csv"),
        "prompts.txt": str(tmp_path / "p.txt"),
    }
    settings = {s: {"source": s.split(".")[0], "root": root, "cache": "none"} for s, root in roots.items()}
    return {"phantom": {}, "openi": {"source": "openi", "cache": str(tmp_path / "cache")}, **settings}


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_reads_the_options_that_are_said_to_matter(
    source: str, spied: Callable[..., Any], data: dict[str, dict[str, Any]]
) -> None:
    section = spied(DataConfig, **data[source])
    config = Config.from_dict({"train": {"prompts_per_epoch": 1}})
    object.__setattr__(config, "data", section)
    for split in ("train", "eval"):
        load_prompts(config, Reader(), split)
    read = {f"data.{name}" for name in type(section).read}
    matters = {name for name, (_, sources) in BY_SOURCE.items() if source in sources}
    assert matters <= read, "said to have an effect, but not read"
    if source == "prompts.txt":
        return  # goes through the reader of tables; see the test below
    everywhere = {n for n in ALWAYS if n.startswith("data.")} | {"data.source", "data.root"}
    assert read <= matters | everywhere, "read, but said to have no effect"


def test_labels_and_views_need_columns(data: dict[str, dict[str, Any]]) -> None:
    """In a ``.txt`` file there is nothing that the options could choose from."""

    def prompts(**more: Any) -> Any:
        config = Config.from_dict({"data": {**data["prompts.txt"], "num_prompts": 8, **more}})
        return load_prompts(config, Reader(), "train").prompts

    usual = prompts()
    assert all(p.labels == () for p in usual)
    assert prompts(views="LATERAL") == prompts(uncertain_labels="positive") == usual


@pytest.mark.parametrize("form", ["difference", "win", "bradley_terry", "direct"])
@pytest.mark.parametrize("name", ["min_std", "temperature", "without_anchor"])
@pytest.mark.parametrize("num_anchors", [1, 4])
def test_the_comparison_reads_what_is_said_to_matter(form: str, name: str, num_anchors: int) -> None:
    """A field changes the scores exactly where its condition holds; ``num_anchors`` 1 is one_to_one."""
    from cxrl.rl.comparison import RewardUnits, compare
    from cxrl.rl.records import RewardTable

    values = {"min_std": 5.0, "temperature": 3.0, "without_anchor": ("a", "b")}
    names = ("a", "b")
    generator = torch.Generator().manual_seed(0)
    rewards = RewardTable(names, torch.randn(6, 2, generator=generator))
    anchors = torch.randn(2, num_anchors, 2, generator=generator)
    units = RewardUnits(torch.zeros(2), torch.ones(2))

    def scores(**change: Any) -> torch.Tensor:
        config = ComparisonConfig(**{"form": form, "without_anchor": ("a",), **change})
        return compare(rewards, anchors, torch.tensor([0, 0, 0, 1, 1, 1]), (1.0, 1.0), units, config).score

    changed = not torch.equal(scores(), scores(**{name: values[name]}))
    whole = Config.from_dict(
        {
            "rewards": {"names": names, "weights": (1, 1)},
            "comparison": {
                "form": form,
                "without_anchor": "a",
                "anchor": "bank" if num_anchors > 1 else "one_to_one",
            },
        }
    )
    conditions = OPTIONS[f"comparison.{name}"].metadata["only_if"]
    assert changed == all(need.holds(whole) for need in conditions)


@pytest.mark.parametrize("section", ["rewards", "eval"])
@pytest.mark.parametrize(
    ("task", "value"),
    [
        *(
            (task, value)
            for task in ("posture", "diagnosis", "consistency")
            for value in ("", "a.safetensors")
        ),
        ("posture", "pspnet"),
        ("posture", "pspnet:file.pth"),
        ("posture", "pspnet:file.safetensors"),
        ("diagnosis", "densenet121-res224-all"),
        ("diagnosis", "densenet121-res224-chex:file.safetensors"),
        ("consistency", "pspnet"),
        ("consistency", "google/medsiglip-448"),
        ("consistency", "densenet121-res224-all"),
    ],
)
def test_which_models_read_batch_size_and_the_cache(section: str, task: str, value: str) -> None:
    """The conditions, which know only texts, agree with what loads the models."""
    config = Config.from_dict({section: {task: value}})
    choice = model_choices(config, section)[task]

    def holds(name: str) -> bool:
        return all(need.holds(config) for need in OPTIONS[name].metadata["only_if"])

    assert holds(f"{section}.batch_size") == holds(f"{section}.dtype") == (choice.kind != "scorer")
    in_cache = choice.kind == "xrv" and choice.path.is_relative_to(choice.cache.expanduser())
    assert holds("run.xrv_cache") == in_cache


def test_the_phantom_s_judges_read_no_reference(spied: Callable[..., Any]) -> None:
    from cxrl.evaluation.judges import build_judges

    config = Config()
    object.__setattr__(config, "eval", spied(EvalConfig))
    build_judges(config, (64, 64))
    read = type(config.eval).read  # type: ignore[attr-defined]
    assert {"posture", "diagnosis", "consistency", "sha256", "judges"} <= read
    assert not {"reference", "num_reference"} & read
