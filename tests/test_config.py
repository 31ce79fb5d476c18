import dataclasses
import re
from pathlib import Path

import pytest
import yaml

import cxrl
from cxrl.config import Config, sections
from cxrl.errors import CxrlError
from cxrl.options import allowed, field_types
from cxrl.presets import load_preset, load_yaml, presets

CODE = "\n".join(
    path.read_text()
    for path in Path(cxrl.__file__).parent.rglob("*.py")
    if path.name not in ("config.py", "options.py")
)
FIELDS = [(name, f) for name, section in sections().items() for f in dataclasses.fields(section)]


def refused(data, match):
    with pytest.raises(CxrlError, match=match) as caught:
        Config.from_dict(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("section", "field"), FIELDS, ids=lambda v: getattr(v, "name", v))
def test_every_field_is_explained_and_its_default_allowed(section, field):
    assert len(field.metadata["reason"]) > 10
    value = getattr(getattr(Config(), section), field.name)
    assert value == field.default
    bounds = {key: field.metadata[key] for key in ("low", "high", "above")}
    for bound in ("low", "high"):
        if bounds[bound] is not None:
            beyond = bounds[bound] + (-1 if bound == "low" else 1)
            values = [beyond] * len(value) if isinstance(value, tuple) else beyond
            refused(
                {section: {field.name: values}}, rf"^{section}\.{field.name}: .* is out of range, expected "
            )
    if bounds["above"] is not None:
        refused({section: {field.name: bounds["above"]}}, rf"{section}\.{field.name}: .* expected above")
    if field.metadata["choices"]:
        refused(
            {section: {field.name: "zzz"}},
            rf"{section}\.{field.name}: 'zzz' is not one of .*change --{section}",
        )
    if field_types(sections()[section])[field.name] in (int, float):
        assert None in (bounds["low"], bounds["above"]), "two lower limits"
        assert bounds["low"] is not None or bounds["above"] is not None, "a number without a lower limit"
        assert bounds["high"] is not None, "a number without an upper limit"
        assert value <= bounds["high"] < 2**53
    if isinstance(value, str) and value and not field.metadata["choices"]:
        refused(
            {section: {field.name: ""}}, rf"{section}\.{field.name}: the text is empty; expected one such"
        )


@pytest.mark.parametrize(("section", "field"), FIELDS, ids=lambda v: getattr(v, "name", v))
def test_every_knob_is_read_somewhere(section, field):
    assert re.search(rf"\.{field.name}\b", CODE), f"{section}.{field.name} changes nothing"


@pytest.mark.parametrize("name", presets())
def test_presets_load_and_survive_being_written(name, tmp_path):
    config = load_preset(name)
    assert config.preset == name
    (tmp_path / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    assert load_yaml(tmp_path / "config.yaml") == config
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert set(written) == {"preset", "seed", *sections()}, "a resolved configuration names every section"
    assert all(set(written[s]) == {f.name for f in dataclasses.fields(tp)} for s, tp in sections().items())


def test_the_presets_are_the_ones_that_are_promised():
    assert {"phantom", "smoke"} <= set(presets())
    smoke = load_preset("smoke")
    assert (smoke.train.num_epochs, smoke.sampler.guidance_scale) == (2, 2.0)


def test_unknown_names_get_the_nearest():
    with pytest.raises(CxrlError, match=r"unknown preset 'smok'; did you mean smoke\?"):
        load_preset("smok")
    refused(
        {"optim": {"clip_rnge": 1}}, r"unknown field 'optim\.clip_rnge'; did you mean optim\.clip_range\?"
    )
    refused({"optm": {}}, r"unknown field 'optm'; did you mean optim\?")
    refused({"comparison": {"form": "winn"}}, r"comparison\.form: 'winn' .*did you mean win\?")
    refused({"train": 3}, "train: 3 is not a section")


def test_names_may_use_dashes():
    assert Config.from_dict({"optim": {"clip-range": 0.25}}).optim.clip_range == 0.25


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"rewards": {"names": []}}, r"rewards\.names: .* is empty"),
        (
            {"rewards": {"weights": [1]}},
            r"rewards\.weights: 1 weights for rewards posture,diagnosis,consistency",
        ),
        ({"eval": {"sha256": ["diagnosis=a", "diagnosis=b"]}}, r"eval\.sha256: 'diagnosis' has two digests"),
        ({"rewards": {"weights": [0, 0, 0]}}, "all 0, nothing to learn"),
        ({"policy": {"train": "none", "num_ace_tokens": 0}}, "leaves nothing to train"),
        ({"train": {"samples_per_prompt": 1}}, r"comparison\.center prompt needs at least 2"),
        ({"data": {"num_prompts": 3}}, r"train\.prompts_per_epoch: 8 is more than data\.num_prompts \(3\)"),
        ({"data": {"views": "none"}}, r"data\.views is empty; expected at least one, such as PA,AP"),
        (
            {"data": {"source": "openi", "check_images": "exist"}},
            r"data\.check_images: exist, but data\.source openi has no data\.root; use none",
        ),
        ({"data": {"check_images": "decode"}}, r"but data\.source phantom has no image files; use none"),
        ({"optim": {"minibatches": 1000}}, r"optim\.minibatches: 1000 exceeds the epoch's 768"),
        (
            {"data": {"num_prompts": 1000}, "train": {"prompts_per_epoch": 1000, "samples_per_prompt": 101}},
            r"train\.samples_per_prompt: .* are 101000 images an epoch, expected at most 100000",
        ),
    ],
)
def test_fields_that_do_not_fit_each_other(data, message):
    refused(data, message)


@pytest.mark.parametrize("source", ["mimic_cxr", "table", "prompts"])
def test_a_source_without_its_folder(source):
    config = Config.from_dict({"data": {"source": source}})  # a preset cannot know it
    with pytest.raises(CxrlError, match=rf"data\.root is empty, but data\.source {source} needs it"):
        config.data.check_root()


def test_sources_that_need_no_folder():
    for source in ("phantom", "openi"):
        Config.from_dict({"data": {"source": source}}).data.check_root()


def test_what_only_looks_wrong_is_allowed():
    Config.from_dict({"policy": {"train": "none"}})
    Config.from_dict({"train": {"samples_per_prompt": 1}, "comparison": {"center": "batch"}})


def test_ranges_in_words():
    words = {f"{s}.{f.name}": allowed(f.metadata) for s, f in FIELDS}
    assert words["sampler.eta"] == "above 0, at most 1"
    assert words["train.num_epochs"] == "1 to 1000000"
    assert words["sampler.num_steps"] == "1 to 1000"
    assert words["model.path"] == ""


def test_a_configuration_cannot_be_edited():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().train.num_epochs = 3
