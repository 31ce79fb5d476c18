import dataclasses
import re
from pathlib import Path

import pytest
import yaml

import cxrl
from cxrl.config import Config, sections
from cxrl.errors import CxrlError
from cxrl.options import allowed, coerce, field_types
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
        assert any(bound is not None for bound in bounds.values()), "a number without a range"


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
    ("tp", "given", "expected"),
    [
        (int, "12", 12),
        (int, 12.0, 12),
        (float, "1e-4", 1e-4),
        (float, 3, 3.0),
        (bool, "yes", True),
        (bool, "False", False),
        (str, "a", "a"),
        (tuple[str, ...], "a, b", ("a", "b")),
        (tuple[str, ...], "none", ()),
        (tuple[str, ...], ["a"], ("a",)),
        (tuple[float, ...], "1,.5", (1.0, 0.5)),
        (tuple[float, ...], 2, (2.0,)),
    ],
)
def test_values_are_converted(tp, given, expected):
    value = coerce("x.y", given, tp)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("tp", "given", "words"),
    [
        (int, "1.5", "a whole number"),
        (int, True, "a whole number"),
        (int, "inf", "a whole number"),
        (int, None, "a whole number"),
        (float, "nan", "a finite number"),
        (float, [1.0], "a finite number"),
        (bool, "maybe", "true or false"),
        (bool, 1, "true or false"),
        (str, 3, "text"),
        (tuple[float, ...], "1,x", "a finite number"),
    ],
)
def test_values_that_do_not_convert_are_named(tp, given, words):
    with pytest.raises(CxrlError, match=rf"^x\.y_z: .* is not {words} \(change --x\.y-z\)$"):
        coerce("x.y_z", given, tp)


def test_numbers_of_yaml_1_1_are_understood(tmp_path):
    # PyYAML reads 1e-4 (without a dot) as text.
    (tmp_path / "c.yaml").write_text("optim: {clip_range: 1e-4}\n")
    assert load_yaml(tmp_path / "c.yaml").optim.clip_range == 1e-4


def test_a_file_goes_over_its_preset(tmp_path):
    (tmp_path / "c.yaml").write_text("preset: smoke\ntrain: {num_epochs: 5}\n")
    config = load_yaml(tmp_path / "c.yaml")
    assert (config.train.num_epochs, config.sampler.guidance_scale) == (5, 2.0)
    (tmp_path / "empty.yaml").write_text("")
    assert load_yaml(tmp_path / "empty.yaml") == Config()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: [", r"c\.yaml: not valid YAML at line \d"),
        ("- a\n", r"c\.yaml: expected sections such as 'train:', got list"),
        (
            "train: {num_epochs: 0}\n",
            r"c\.yaml: train\.num_epochs: 0 epochs is out of range, expected at least 1",
        ),
        ("\x00", r"c\.yaml: not valid YAML"),
    ],
)
def test_bad_files_are_named(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(CxrlError, match=message):
        load_yaml(tmp_path / "c.yaml")


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(CxrlError, match=r"cannot read configuration .*none\.yaml: No such file"):
        load_yaml(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(CxrlError, match=r"cannot read configuration .*latin\.yaml"):
        load_yaml(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"rewards": {"names": []}}, r"rewards\.names: .* is empty"),
        ({"rewards": {"names": "a,a", "weights": "1,1"}}, "has a name twice"),
        (
            {"rewards": {"weights": [1]}},
            r"rewards\.weights: 1 weights for rewards posture,diagnosis,consistency",
        ),
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
        ({"optim": {"minibatches": 10**6}}, r"optim\.minibatches: 1000000 exceeds the epoch's 768"),
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
    assert words["train.num_epochs"] == "at least 1"
    assert words["sampler.num_steps"] == "1 to 1000"
    assert words["model.path"] == ""


def test_a_configuration_cannot_be_edited():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().train.num_epochs = 3
