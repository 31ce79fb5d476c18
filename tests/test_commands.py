"""The commands on a tiny model, from the first word of the command line to the last file."""

import errno
import json
import os
import re
import shutil
import sys

import numpy as np
import pydicom
import pytest
import torch
import yaml
from diffusers.utils import logging
from PIL import Image
from safetensors.torch import load_file, save_file

from cxrl import export, report
from cxrl.data.prompts import ReportPrompt
from cxrl.evaluate import main as evaluate
from cxrl.generate import main as generate
from cxrl.images.read import read_image
from cxrl.rewards.base import _REGISTRY, register_reward
from cxrl.scorers.phantom_network import Scorer, ScorerConfig, save_scorer
from cxrl.train import main as train

TEXTS = ("no acute", "heart normal", "left effusion", "lung enlarged", "heart size", "is normal")
KEYS = {"posture", "auroc", "consistency", "fid", "ms_ssim", "diversity", "pose_sd"}


def tiny_prompts(num, *, seed, split="train"):
    """Short reports in the phantom's place: the tiny tokenizer reads 16 tokens."""
    return [ReportPrompt(i, TEXTS[i % 6], tuple(float((i >> f) & 1) for f in range(7))) for i in range(num)]


@pytest.fixture(scope="module")
def patched():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cxrl.data.phantom.films.phantom_prompts", tiny_prompts)
        yield patch


def untrained(folder, seed):
    """Rewards or judges of random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for task, outputs in (("posture", 5), ("diagnosis", 7), ("consistency", 8)):
            config = ScorerConfig(task, "convnext", 4, 16, outputs, ("heart", "lung", "normal"))
            save_scorer(Scorer(config), folder / f"{task}.safetensors")
        reference = {"features": torch.randn(140, 128), "scale": torch.ones(128)}
        save_file(reference, folder / "reference.safetensors")
    return folder


@pytest.fixture(scope="module")
def scorers(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("scorers"), 0)


@pytest.fixture(scope="module")
def judges(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("judges"), 1)


@pytest.fixture(scope="module")
def argv(tiny_pipeline, scorers, judges, patched):
    return (
        f"--preset smoke --model.path {tiny_pipeline} --rewards.path {scorers} --eval.judges {judges} "
        "--train.early-stop-fid 0 --train.early-stop-diversity 0"
    ).split()


@pytest.fixture(scope="module")
def finished(argv, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "smoke"
    assert train([*argv, "--run-dir", str(run)]) == 0
    return run


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run that may be spoilt."""
    return shutil.copytree(finished, tmp_path / "copy")


def fails(capsys, main, argv, *words):
    """One line on stderr that holds the words, no traceback, exit status 2."""
    capsys.readouterr()
    assert main([str(a) for a in argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1, error
    for word in words:
        assert word in error, error


def test_a_run_leaves_exactly_what_is_promised(finished, capsys):
    assert {p.name for p in finished.iterdir()} == {
        ".cxrl-run.json",
        "config.yaml",
        "provenance.json",
        "bounds.json",
        "metrics.jsonl",
        "summary.json",
        "scores.csv",
        "gallery.safetensors",
        "checkpoints",
        "adapter",
        "samples",
        "logs",
    }
    assert {p.name for p in (finished / "adapter").iterdir()} == {
        "pytorch_lora_weights.safetensors",
        "ace.safetensors",
        "adapter.json",
        "README.md",
    }
    assert all(p.name.startswith("step-") for p in (finished / "checkpoints").iterdir())
    assert list((finished / "logs").rglob("events.out.tfevents.*"))
    assert [json.loads(line)["epoch"] for line in (finished / "metrics.jsonl").read_text().splitlines()] == [
        0,
        1,
    ]
    summary = json.loads((finished / "summary.json").read_text())
    assert {"anchor", "policy", "seed", "wall_seconds", "num_images", "judges"} <= set(summary)
    for side in ("anchor", "policy"):
        assert set(summary[side]["ci"]) == KEYS < set(summary[side])
    assert summary["num_images"] == 8
    assert yaml.safe_load((finished / "config.yaml").read_text())["preset"] == "smoke"


def test_samples_say_that_they_are_synthetic(finished):
    grids = sorted((finished / "samples").glob("*.png"))
    assert grids
    for grid in grids:
        with Image.open(grid) as image:
            assert image.text["Synthetic"].startswith("Synthetic image")


def test_the_last_line_is_a_table_of_anchor_and_policy(argv, tmp_path, capsys):
    assert (
        train([*argv, "--run-dir", str(tmp_path / "r"), "--train.num-epochs", "1", "--eval.bootstrap", "0"])
        == 0
    )
    out = capsys.readouterr().out
    assert re.search(r"^epoch +posture win .*\n +1/1 ", out, re.M)
    table = out[out.rindex("anchor  policy  real films") :].splitlines()[1:7]
    assert [line.split()[0] for line in table] == [
        "posture",
        "auroc",
        "consistency",
        "fid",
        "ms_ssim",
        "diversity",
    ]
    assert "samples" in out.splitlines()[-1]


def test_evaluate_repeats_the_summary(finished, tmp_path, capsys):
    out = tmp_path / "new" / "summary.json"
    assert evaluate(["--run", str(finished), "--out", str(out)]) == 0
    first, second = json.loads((finished / "summary.json").read_text()), json.loads(out.read_text())
    for part in ("anchor", "policy", "change"):
        for key in KEYS:
            assert second[part][key] == pytest.approx(first[part][key], rel=1e-4, abs=1e-6), (part, key)
    told = capsys.readouterr()
    assert re.search(r"^ +anchor +policy +real films.*\nposture ", told.out, re.M)
    assert told.err == f"next: cxrl report {finished}\n"
    assert evaluate(["--run", str(finished), "--num-images", "4", "--out", str(out)]) == 0
    assert json.loads(out.read_text())["num_images"] == 4


@pytest.mark.filterwarnings("always:other judges")
def test_other_judges_than_before_are_told(finished, judges, tmp_path, capsys):
    out, path = tmp_path / "summary.json", judges / "diagnosis.safetensors"
    shutil.copytree(finished, tmp_path / "unfinished")
    shutil.rmtree(tmp_path / "unfinished" / "adapter")
    before = path.read_bytes()
    untrained(judges, 2)
    try:
        for run in (finished, tmp_path / "unfinished"):
            assert evaluate(["--run", str(run), "--out", str(out)]) == 0
            told = capsys.readouterr().err
            assert "warning: other judges than judged this run before: eval.consistency, eval.diag" in told
            assert json.loads(out.read_text())["epochs"] == 2
    finally:
        untrained(judges, 1)
    assert path.read_bytes() == before
    assert evaluate(["--run", str(finished), "--out", str(out), "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def generated(finished, out, *more):
    argv = ["--run", str(finished), "--prompt", "left effusion", "--out", str(out), *more]
    assert generate(argv) == 0
    pictures = {}
    for path in sorted(out.iterdir()):
        with Image.open(path) as image:
            pictures[path.name] = (image.tobytes(), dict(image.text))
    return pictures


def test_generated_images_are_marked_and_depend_on_their_seed_alone(finished, tmp_path, capsys):
    pictures = generated(finished, tmp_path / "a", "--num-images", "3", "--seed", "5")
    assert list(pictures) == ["policy-000005.png", "policy-000006.png", "policy-000007.png"]
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "a" / name) for name in pictures]
    pixels, text = pictures["policy-000006.png"]
    assert text["Synthetic"].endswith("Not a real patient. Not for diagnosis.")
    assert (text["Prompt"], text["Seed"], text["Source"]) == ("left effusion", "6", "policy")
    assert len({p for p, _ in pictures.values()}) == 3
    alone = generated(finished, tmp_path / "b", "--num-images", "1", "--seed", "6")
    difference = [abs(a - b) for a, b in zip(pixels, alone["policy-000006.png"][0], strict=True)]
    assert max(difference) <= 1, "only rounding may depend on the batch"


def test_the_anchor_is_another_model_from_the_same_latents(finished, tmp_path):
    policy = generated(finished, tmp_path / "p", "--num-images", "2")
    anchor = generated(finished, tmp_path / "a", "--num-images", "2", "--anchor")
    assert list(anchor) == ["anchor-000000.png", "anchor-000001.png"]
    assert anchor["anchor-000000.png"][1]["Source"] == "anchor"
    assert policy["policy-000000.png"][0] != anchor["anchor-000000.png"][0]


def test_dicom_holds_the_images_of_the_png(finished, tmp_path):
    argv = ["--run", str(finished), "--prompt", "left effusion", "--num-images", "2", "--seed", "5"]
    for kind in ("png", "dicom"):
        assert generate([*argv, "--format", kind, "--out", str(tmp_path / kind)]) == 0
    files = sorted((tmp_path / "dicom").iterdir())
    assert [p.name for p in files] == ["policy-000005.dcm", "policy-000006.dcm"]
    data = [pydicom.dcmread(p) for p in files]
    assert [d.InstanceNumber for d in data] == [1, 2]
    assert data[0].StudyInstanceUID == data[1].StudyInstanceUID
    assert data[0].ImageComments.endswith("Prompt: left effusion")
    for path in files:
        png = read_image(tmp_path / "png" / f"{path.stem}.png")
        assert float((read_image(path) - png).abs().max()) <= 0.5 / 255 + 0.5 / 65535 + 1e-6


def test_dicom_without_pydicom_is_told_before_anything_is_drawn(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    argv = ["--run", finished, "--prompt", "left effusion", "--format", "dicom", "--out", tmp_path / "o"]
    fails(capsys, generate, argv, "DICOM needs pydicom", "pip install 'cxrl[dicom]'")
    fails(capsys, generate, [*argv, "--format", "bmp"], "'bmp' (choose from", "dicom")
    assert list(tmp_path.iterdir()) == []


def test_restricted_data_leaves_no_prompt_and_no_file_for_others(copy, tmp_path):
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["data"]["restricted"] = "yes"
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    argv = ["--run", str(copy), "--prompt", "left effusion", "--num-images", "1"]
    for kind in ("png", "dicom"):
        assert generate([*argv, "--format", kind, "--out", str(tmp_path / "out" / kind)]) == 0
    assert export.main(["--run", str(copy), "--out", str(tmp_path / "plain")]) == 0
    plain = [tmp_path / "plain", *(tmp_path / "plain").rglob("*")]
    assert len(plain) > 10
    assert {path.stat().st_mode & 0o077 for path in plain} == {0}
    assert evaluate(["--run", str(copy), "--num-images", "4", "--out", str(tmp_path / "scores.json")]) == 0
    assert (tmp_path / "scores.json").stat().st_mode & 0o077 == 0
    assert report.main(["--run", str(copy)]) == 0
    page = tmp_path / "copy-report.html"
    assert "do not pass this page on" in page.read_text()
    written = [page, tmp_path / "out", *(tmp_path / "out").rglob("*")]
    assert len(written) == 6
    for path in written:
        assert path.stat().st_mode & 0o077 == 0, path
        assert path == page or path.is_dir() or b"effusion" not in path.read_bytes()


def test_export_gives_plain_diffusers_the_images_of_generate(finished, tmp_path, capsys):
    logging.disable_progress_bar()
    out = tmp_path / "out"
    assert export.main(["--run", str(finished), "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: a StableDiffusionPipeline; its README.md has the call")
    assert {path.stat().st_mode & 0o777 for path in out.rglob("*") if path.is_file()} == {0o666 & ~umask()}
    code = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)[0]
    names = {}
    code = code.replace('folder = "."', f"folder = {str(out)!r}")
    exec(code.replace("Small left pleural effusion.", "left effusion"), names)
    argv = ["--run", str(finished), "--prompt", "left effusion", "--num-images", "1", "--out"]
    assert generate([*argv, str(tmp_path / "images")]) == 0
    (path,) = (tmp_path / "images").iterdir()
    with Image.open(path) as image:
        ours = np.asarray(image, dtype=float)
    assert abs(np.asarray(names["image"], dtype=float).mean(-1) - ours).max() <= 1.0


def test_export_touches_nothing_that_is_there(finished, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    for name in ("mine", "file", "link"):
        argv = ["--run", finished, "--out", tmp_path / name]
        fails(capsys, export.main, argv, f"--out: {tmp_path / name} is there and no empty folder")
    fails(capsys, export.main, ["--run", finished, "--out", tmp_path / "file" / "x"], "--out: cannot write")
    fails(
        capsys, export.main, ["--run", tmp_path / "mine", "--out", tmp_path / "new"], "is not a run", "--run"
    )
    assert {p.name for p in tmp_path.iterdir()} == {"mine", "file", "empty", "link"}
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"
    assert export.main(["--run", str(finished), "--out", str(tmp_path / "empty")]) == 0
    assert (tmp_path / "empty" / "model_index.json").is_file()


def test_an_export_that_fails_leaves_nothing(finished, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cxrl.rl.plain.save_pipeline", full)
    out = tmp_path / "out"
    fails(
        capsys, export.main, ["--run", finished, "--out", out], f"cannot write {out}: No space left on device"
    )
    assert list(tmp_path.iterdir()) == []


def umask():
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def test_report_is_one_page_with_everything(finished, tmp_path, capsys):
    assert report.main(["--run", str(finished), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") >= 5
    assert page.count('class="sheet"') == len(list((finished / "samples").glob("*.png")))
    assert "Not for diagnosis" in page
    assert "do not pass this page on" not in page
    assert "8 a side" in page
    assert report.main(["--run", str(finished)]) == 0
    assert (finished.parent / "smoke-report.html").is_file()


def test_a_second_run_in_the_same_place_is_refused(argv, finished, capsys):
    before = (finished / "summary.json").read_bytes()
    fails(capsys, train, [*argv, "--run-dir", finished], "already holds a run", "--resume", "--overwrite")
    assert (finished / "summary.json").read_bytes() == before


def test_resume_goes_on_and_overwrite_starts_again(argv, copy, capsys):
    assert train(["--run-dir", str(copy), "--resume", "--train.num-epochs", "3"]) == 0
    assert len((copy / "metrics.jsonl").read_text().splitlines()) == 3
    assert train([*argv, "--run-dir", str(copy), "--overwrite", "--train.num-epochs", "1"]) == 0
    assert len((copy / "metrics.jsonl").read_text().splitlines()) == 1
    fails(
        capsys,
        train,
        ["--run-dir", copy, "--resume", "--policy.lora-rank", "3"],
        "policy.lora_rank",
        "3",
    )


def test_ctrl_c_says_how_to_go_on(argv, tmp_path, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("cxrl.rl.update.Updater.update", interrupt)
    assert train([*argv, "--run-dir", str(tmp_path / "r")]) == 130
    error = capsys.readouterr().err
    assert error == f"interrupted; go on with: cxrl train --run-dir {tmp_path / 'r'} --resume\n"


# Bad input: one clear line, a non-zero exit, nothing lost.


def test_a_run_directory_that_cannot_be_written(argv, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    fails(capsys, train, [*argv, "--run-dir", tmp_path / "file" / "run"], "cannot write", "--run-dir")


def test_what_is_no_run(tmp_path, capsys):
    rest = ["--run", tmp_path, "--out", tmp_path / "o"]
    fails(capsys, generate, [*rest, "--prompt", "lung"], f"{tmp_path} is not a run of cxrl train")
    fails(capsys, evaluate, rest, "is not a run of cxrl train")
    fails(capsys, report.main, rest, "is not a run of cxrl train")
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_longer_than_the_tokenizer(finished, tmp_path, capsys):
    long = "left effusion " * 40
    out = ["--run", finished, "--out", tmp_path / "o"]
    fails(capsys, generate, [*out, "--prompt", long], "the prompt has 202 tokens", "reads 16", "shorten it")
    fails(capsys, generate, [*out, "--prompt", "  "], "prompt is empty")
    assert list(tmp_path.iterdir()) == []


def test_training_prompts_that_are_too_long_or_missing(argv, tmp_path, capsys, monkeypatch):
    def give(texts):
        prompts = [ReportPrompt(i, text, (0.0,) * 7) for i, text in enumerate(texts)]
        monkeypatch.setattr("cxrl.data.phantom.films.phantom_prompts", lambda num, *, seed, split: prompts)

    run = [*argv, "--run-dir", tmp_path / "r", "--overwrite"]
    give(["lung", "left effusion " * 40])
    fails(capsys, train, [*run, "--data.on-long-prompt", "error"], "prompt 1 has 202 tokens", "reads 16")
    give(["left effusion " * 40])
    fails(capsys, train, run, "all 1 prompts are longer than the 16 tokens")
    give([])
    fails(capsys, train, run, "prompt list is empty")


@pytest.mark.parametrize("name", ["weights.safetensors", "state.json", "optimizer.safetensors"])
def test_a_truncated_checkpoint_is_named_and_kept(copy, capsys, name):
    last = max((copy / "checkpoints").iterdir())
    content = (last / name).read_bytes()
    (last / name).write_bytes(content[: len(content) // 2])
    kept = sorted(p.name for p in (copy / "checkpoints").iterdir())
    fails(capsys, train, ["--run-dir", copy, "--resume", "--train.num-epochs", "3"], str(last / name))
    assert sorted(p.name for p in (copy / "checkpoints").iterdir()) == kept
    assert (copy / "summary.json").is_file()


def test_a_truncated_adapter_is_named(copy, tmp_path, capsys):
    path = copy / "adapter" / "ace.safetensors"
    path.write_bytes(path.read_bytes()[:20])
    fails(capsys, evaluate, ["--run", copy, "--out", tmp_path / "s.json"], str(path))
    assert not (tmp_path / "s.json").exists()


def test_truncated_and_missing_assets_are_named(argv, scorers, judges, tmp_path, capsys):
    run = [*argv, "--run-dir", tmp_path / "r", "--overwrite"]
    spoilt = shutil.copytree(scorers, tmp_path / "spoilt")
    path = spoilt / "diagnosis.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    fails(capsys, train, [*run, "--rewards.path", spoilt], f"{path} cannot be read")
    spoilt = shutil.copytree(judges, tmp_path / "spoilt-judges")
    (spoilt / "reference.safetensors").unlink()
    fails(capsys, train, [*run, "--eval.judges", spoilt], str(spoilt / "reference.safetensors"))
    fails(capsys, train, [*run, "--rewards.path", tmp_path / "none"], f"{tmp_path / 'none'}")
    fails(capsys, train, [*run, "--model.path", tmp_path / "nowhere"], f"{tmp_path / 'nowhere'}")
    fails(
        capsys,
        train,
        [*run, "--rewards.names", "postur", "--rewards.weights", "1"],
        "'postur'",
        "posture",
    )


def test_a_full_disk_keeps_the_older_checkpoint(argv, tmp_path, capsys, monkeypatch):
    from cxrl.storage import checkpoint
    from cxrl.storage.writing import write_tensors

    saved = []

    def full_at_the_second(path, tensors):
        saved.append(path)
        if "step-000004" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_tensors(path, tensors)

    monkeypatch.setattr(checkpoint, "write_tensors", full_at_the_second)
    fails(capsys, train, [*argv, "--run-dir", tmp_path / "r"], "No space left on device", "step-000002")
    assert [p.name for p in (tmp_path / "r" / "checkpoints").iterdir()] == ["step-000002"]
    load_file(tmp_path / "r" / "checkpoints" / "step-000002" / "weights.safetensors")
    monkeypatch.undo()
    monkeypatch.setattr("cxrl.data.phantom.films.phantom_prompts", tiny_prompts)
    assert train(["--run-dir", str(tmp_path / "r"), "--resume"]) == 0


@pytest.mark.parametrize(
    ("score", "words"),
    [
        (lambda images: images.mean((1, 2, 3))[1:], ("reward 'broken' returned (7,)", "(8,)")),
        (
            lambda images: images.mean((1, 2, 3)).index_fill(0, torch.tensor(3), float("nan")),
            ("nan", "sample 3"),
        ),
        (lambda images: 1.0, ("reward 'broken' returned float",)),
    ],
)
def test_a_broken_reward_is_named_with_its_sample(argv, tmp_path, capsys, score, words):
    @register_reward("broken")
    class Broken:
        name = "broken"

        def __init__(self, path, device):
            pass

        def score(self, images, batch):
            return score(images)

    try:
        names = ["--rewards.names", "posture,broken", "--rewards.weights", "1,1"]
        fails(capsys, train, [*argv, "--run-dir", tmp_path / "r", *names], "broken", *words)
    finally:
        del _REGISTRY["broken"]
