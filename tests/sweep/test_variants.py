"""The list of a sweep is read strictly; variants that are one configuration are one run."""

from __future__ import annotations

from pathlib import Path

import pytest

from cxrl.config import Config
from cxrl.errors import CxrlError
from cxrl.presets import load_preset
from cxrl.sweep.variants import ABLATION, read_variants, same_runs

MADE = load_preset("smoke")


def variants_of(tmp_path: Path, text: str, base: Config = MADE) -> list:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    return read_variants(path, base)


@pytest.mark.parametrize("preset", ["phantom", "smoke", "mimic", "openi"])
def test_the_ablation_is_one_of_every_preset(preset: str) -> None:
    base = Config.from_dict({"data": {"root": "/d"}} if preset == "mimic" else {}, load_preset(preset))
    variants = read_variants(ABLATION, base)
    shared = same_runs(variants)
    by_name = {v.name: v.config for v in variants}
    assert by_name["without ACE"].policy.num_ace_tokens == 0
    assert by_name["without RLCF"].comparison.form == "direct"
    assert by_name["diagnosis alone"].rewards.names == ("diagnosis",)
    assert by_name["one to one"].comparison.anchor == "one_to_one"
    assert {by_name[f"bank of {n}"].comparison.bank_size for n in (2, 4, 8, 16)} == {2, 4, 8, 16}
    assert shared[f"form {base.comparison.form}"] == "full"
    assert all(c.train.early_stop_diversity == c.train.early_stop_fid == 0 for c in by_name.values())
    assert len({c.train.num_epochs for c in by_name.values()}) == 1


def test_what_changes_is_told(tmp_path: Path) -> None:
    found = variants_of(
        tmp_path, "- {name: full}\n- {name: 'Slow  one', optim: {lora-learning-rate: 1e-4}}\n"
    )
    assert [(v.name, v.folder) for v in found] == [("full", "full"), ("Slow one", "slow-one")]
    assert [v.changed for v in found] == [{}, {"optim.lora_learning_rate": 1e-4}]


def test_a_list_may_have_limits(tmp_path: Path) -> None:
    (one,) = variants_of(tmp_path, "- {name: a, train: {early_stop_fid: 2.0}}\n")
    assert one.config.train.early_stop_fid == 2.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: full\n", "expected a list, got a mapping"),
        ("[]\n", "0 variants, expected 1 to 200"),
        ("- full\n", "variant 1: expected a mapping with a name"),
        ("- {optim: {minibatches: 3}}\n", "variant 1: expected a mapping with a name"),
        ("- {name: ' '}\n", "variant 1: expected a mapping with a name"),
        ("- {name: a}\n- {name: A!}\n", "variant 2: 'A!' has the name, or nearly, of 'a'"),
        ("- {name: a, optim: {minibatch: 3}}\n", r"variant 1 \('a'\): .*minibatch"),
        ("- {name: a, optim: {minibatches: x}}\n", r"variant 1 \('a'\): optim\.minibatches"),
        ("- {name: a, policy: {train: none, lora_rank: 4}}\n", "lora_rank: 4 .*has no effect"),
        ("- {name: a, seed: 3}\n", "seed is the sweep's own"),
        ("- {name: a, run: {dir: x}}\n", "run is the sweep's own"),
        ("- {name: a, name: b}\n", "name"),
    ],
)
def test_what_is_no_sweep_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CxrlError, match=message):
        variants_of(tmp_path, text)
