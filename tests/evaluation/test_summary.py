import json
import math
import time

import pytest
import torch

from cxrl.config import Config
from cxrl.data.prompts import PromptBatch, ReportPrompt
from cxrl.errors import CxrlError
from cxrl.evaluation.summary import (
    NUM_JUDGEMENTS,
    Summary,
    evaluate_images,
    evaluation_batch,
    num_judged,
    summarise,
    truth_probability,
)
from cxrl.metrics.classification import macro_auroc
from cxrl.metrics.distribution import frechet_distance
from cxrl.metrics.names import KEYS


class FakeJudges:
    """Reads everything off the pixels, so that every score can be computed by hand."""

    findings = ("Bright", "Top")

    def __init__(self, dim=4):
        self.reference = torch.rand(50, dim, generator=torch.Generator().manual_seed(99))

    def posture(self, images):
        psi = torch.zeros(len(images), 5)
        psi[:, 2] = images.mean((1, 2, 3)) - 0.5
        return psi

    def classify(self, images):
        return torch.stack([images.mean((1, 2, 3)), images[:, :, :8].mean((1, 2, 3))], 1)

    def image_embeds(self, images):
        level = images.mean((1, 2, 3))
        return torch.stack([level, 1 - level], 1)

    def text_embeds(self, texts):
        return torch.tensor([[1.0, 0.0] if "bright" in text else [0.0, 1.0] for text in texts])

    def features(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


def prompts(num):
    labels = [(float(i % 2), float(i % 3 == 0)) for i in range(num)]
    return [ReportPrompt(i, "bright" if i % 2 else "dark", labels[i]) for i in range(num)]


def pictures(n, seed=0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    level = torch.rand(n, 1, 1, 1, generator=generator)
    return (0.8 * level + 0.2 * torch.rand(n, 1, 16, 16, generator=generator) + shift).clamp(0, 1)


def test_every_value_by_hand():
    batch = PromptBatch.repeat(prompts(6), 3)
    images, judges = pictures(18), FakeJudges()
    result = evaluate_images(images, batch, judges, seed=0, bootstrap=0)
    level = images.mean((1, 2, 3))
    bright = torch.tensor([i % 2 == 1 for i in range(6)])[batch.prompt_of]
    cosine = torch.where(bright, level, 1 - level) / torch.stack([level, 1 - level]).norm(dim=0)
    pairs = [(3 * p + a, 3 * p + b) for p in range(6) for a, b in ((0, 1), (0, 2), (1, 2))]
    rms = [float((images[a] - images[b]).square().mean().sqrt()) for a, b in pairs]
    expected = {
        "posture": -float((level - 0.5).abs().mean()),
        "auroc": macro_auroc(judges.classify(images), batch.labels)[0],
        "consistency": float(cosine.mean()),
        "fid": frechet_distance(judges.features(images), judges.reference),
        "diversity": sum(rms) / len(rms),
    }
    for key, value in expected.items():
        assert result.values[key] == pytest.approx(value, rel=1e-5), key
    assert 0 < result.values["ms_ssim"] < 1
    assert tuple(result.values) == KEYS
    assert result.to_dict()["ci"]["posture"] == [None, None]


def test_intervals_cover_the_estimate_and_are_reproducible():
    batch = PromptBatch.repeat(prompts(12), 3)
    first = summarise(pictures(36), batch, FakeJudges(), seed=3, bootstrap=300)
    for key in KEYS:
        low, high = first["ci"][key]
        assert low < first[key] < high, key
    assert summarise(pictures(36), batch, FakeJudges(), seed=3, bootstrap=300) == first
    assert summarise(pictures(36), batch, FakeJudges(), seed=4, bootstrap=300)["ci"] != first["ci"]
    json.dumps(first, allow_nan=False)


def test_replicates_of_the_frechet_distance_are_centred_on_the_estimate():
    # A resample repeats images, which by itself pushes the distance up: far more than its spread here.
    batch = PromptBatch.repeat(prompts(12), 3)
    result = evaluate_images(pictures(36), batch, FakeJudges(), seed=3, bootstrap=300)
    replicates, estimate = result.replicates["fid"], result.values["fid"]
    assert float(replicates.mean()) == pytest.approx(estimate, rel=1e-6)
    assert float(replicates.std()) > 1e-3 * estimate
    for key in set(KEYS) - {"fid"}:  # the others' mean is near, and not on, the estimate
        assert float(result.replicates[key].mean()) != pytest.approx(result.values[key], rel=1e-9)


def test_prompts_are_resampled_and_not_images():
    # Every prompt's images are equal: 40 copies carry no more information than one.
    levels = torch.rand(10, 1, 1, 1, generator=torch.Generator().manual_seed(5))
    few = levels.expand(10, 1, 16, 16).repeat_interleave(2, 0)
    many = levels.expand(10, 1, 16, 16).repeat_interleave(40, 0)
    narrow, wide = (
        summarise(images, PromptBatch.repeat(prompts(10), n), FakeJudges(), seed=0, bootstrap=400)["ci"][
            "posture"
        ]
        for images, n in ((many, 40), (few, 2))
    )
    assert narrow == pytest.approx(wide)
    spread = float((levels.flatten() - 0.5).abs().std()) / math.sqrt(10)
    assert wide[1] - wide[0] == pytest.approx(2 * 1.96 * spread, rel=0.3)


def test_what_is_undefined_is_null():
    result = summarise(pictures(4), PromptBatch.repeat(prompts(4), 1), FakeJudges(), seed=0, bootstrap=20)
    assert result["diversity"] is None
    assert result["ms_ssim"] is None
    assert result["ci"]["diversity"] == [None, None]
    single = summarise(pictures(4), PromptBatch.repeat(prompts(1), 4), FakeJudges(), seed=0, bootstrap=20)
    assert single["auroc"] is None
    assert single["ci"]["posture"] == [None, None]
    json.dumps([result, single], allow_nan=False)


def evaluated(batch, shift, bootstrap=100):
    images = pictures(len(batch), shift=shift)
    return evaluate_images(images, batch, FakeJudges(), seed=1, bootstrap=bootstrap), images


def test_policy_anchor_and_real_films_are_compared_on_the_same_prompts():
    batch = evaluation_batch(prompts(8), 24, 3)
    (anchor, _), (policy, images), (real, _) = (evaluated(batch, shift) for shift in (0.0, 0.05, 0.2))
    judges = {"name": "mine"}
    summary = Summary(anchor, policy, batch, images, 1, judges, real)
    data = summary.to_dict(wall_seconds=2.5)
    assert list(data) == [
        *("anchor", "policy", "real", "change", "gap", "seed", "wall_seconds"),
        *("num_images", "num_reports", "judges"),
    ]
    assert (data["num_images"], data["seed"], data["wall_seconds"], data["judges"]) == (24, 1, 2.5, judges)
    assert data["change"]["posture"] == pytest.approx(data["policy"]["posture"] - data["anchor"]["posture"])
    bounds = torch.tensor([0.025, 0.975], dtype=torch.float64)
    for key in KEYS:
        of_policy, of_anchor, of_real = (e.replicates[key].double() for e in (policy, anchor, real))
        share = (of_policy - of_anchor) / (of_real - of_anchor)
        for found, values in (
            (data["policy"], of_policy), (data["change"], of_policy - of_anchor), (data["gap"], share)
        ):  # fmt: skip
            low, high = found["ci"][key]
            if low is not None:
                assert [low, high] == pytest.approx(values.nanquantile(bounds).tolist(), rel=1e-9), key
        floor, reached, ceiling = (data[side][key] for side in ("anchor", "policy", "real"))
        if ceiling != floor:
            assert data["gap"][key] == pytest.approx((reached - floor) / (ceiling - floor)), key
    paired, each = data["change"]["ci"]["consistency"], data["policy"]["ci"]["consistency"]
    assert paired[1] - paired[0] < 0.5 * (each[1] - each[0])
    without = Summary(anchor, policy, batch, images, 1, judges).to_dict(wall_seconds=2.5)
    assert (without["real"], without["gap"]) == (None, None)
    json.dumps([data, without], allow_nan=False)


def test_the_distance_may_be_that_of_other_films():
    batch, judges = evaluation_batch(prompts(8), 8, 1), FakeJudges()
    images, others = pictures(8), torch.rand(24, 4, generator=torch.Generator().manual_seed(5))
    own = evaluate_images(images, batch, judges, seed=0, bootstrap=40)
    result = evaluate_images(images, batch, judges, seed=0, bootstrap=40, comparable=False, instead=others)
    assert result.values["fid"] == pytest.approx(frechet_distance(others, judges.reference))
    low, high = result.intervals()["fid"]
    assert low < result.values["fid"] < high
    assert own.values["fid"] != result.values["fid"]
    for key in set(KEYS) - {"fid"}:
        assert (result.values[key] == own.values[key]) or math.isnan(own.values[key])
        assert torch.equal(result.replicates[key].nan_to_num(), own.replicates[key].nan_to_num()), key
    judges.reference = None
    without = evaluate_images(images, batch, judges, seed=0, bootstrap=4, comparable=False, instead=others)
    assert math.isnan(without.values["fid"])


def test_how_many_images_choose_and_how_many_are_the_result():
    made = Config.from_dict({"eval": {"num_images": 100, "samples_per_prompt": 4}})
    assert (num_judged(made, "eval"), num_judged(made, "selection")) == (100, 64)
    few = Config.from_dict({"eval": {"num_images": 10, "samples_per_prompt": 4}})
    assert num_judged(few, "selection") == 10, "never more than of the result"


def test_a_gap_of_nothing_has_no_share():
    batch = evaluation_batch(prompts(8), 24, 3)
    (same, images), (policy, _) = evaluated(batch, 0.0), evaluated(batch, 0.05)
    gap = Summary(same, policy, batch, images, 1, {}, same).gap()
    assert all(gap[key] is None for key in KEYS)
    json.dumps(gap, allow_nan=False)


def test_every_image_is_scored_by_itself():
    batch = evaluation_batch(prompts(8), 24, 3)
    result, _ = evaluated(batch, 0.1, bootstrap=0)
    each = result.images
    assert each.posture.shape == each.diagnosis.shape == each.consistency.shape == (24,)
    assert float(each.posture.mean()) == pytest.approx(result.values["posture"], rel=1e-5)
    assert float(each.consistency.mean()) == pytest.approx(result.values["consistency"], rel=1e-5)
    assert each.psi.shape == (24, 5)
    labels = torch.tensor([[1.0, 0.0], [math.nan, 1.0], [math.nan, math.nan]])
    probability = torch.tensor([[0.9, 0.3], [0.5, 0.2], [0.1, 0.1]])
    found = truth_probability(probability, labels)
    assert found[:2].tolist() == pytest.approx([0.8, 0.2])
    assert bool(found[2].isnan())


def test_fewer_films_than_images_have_no_frechet_distance():
    batch = evaluation_batch(prompts(8), 8, 1)
    images = pictures(8)
    seen = []
    result = evaluate_images(
        images, batch, FakeJudges(), seed=0, bootstrap=10, judged=seen.append, comparable=False
    ).to_dict()
    assert result["fid"] is None
    assert result["posture"] is not None
    assert sum(seen) == NUM_JUDGEMENTS * 8


@pytest.mark.parametrize(
    ("num_prompts", "num_images", "counts"),
    [(8, 24, [3] * 8), (2, 7, [4, 3]), (9, 2, [2]), (50, 10, [4, 3, 3])],
)
def test_images_are_spread_over_prompts(num_prompts, num_images, counts):
    batch = evaluation_batch(prompts(num_prompts), num_images, 3)
    assert torch.bincount(batch.prompt_of).tolist() == counts
    assert batch.prompt_of.tolist() == sorted(batch.prompt_of.tolist())
    assert len(batch.prompts) == len(counts)


def test_bad_input_is_named():
    batch = PromptBatch.repeat(prompts(2), 2)
    images = pictures(4)
    images[3, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"image 3 has values outside \[0, 1\] or nan"):
        summarise(images, batch, FakeJudges(), seed=0, bootstrap=0)
    with pytest.raises(ValueError, match=r"expected 4 images \[N, 1, H, W\], got shape \(5"):
        summarise(pictures(5), batch, FakeJudges(), seed=0, bootstrap=0)
    with pytest.raises(CxrlError, match="no prompts to evaluate on"):
        evaluation_batch([], 4, 2)


def test_a_summary_of_256_images_is_quick():
    judges = FakeJudges(dim=128)
    judges.features = lambda images: images.flatten(1)[:, ::72][:, :128]
    images = torch.rand(256, 1, 96, 96, generator=torch.Generator().manual_seed(0))
    started = time.process_time()
    evaluate_images(images, PromptBatch.repeat(prompts(64), 4), judges, seed=0, bootstrap=1000)
    # The whole summary may take 15 s on one core; the networks of the judges need their part of it.
    assert time.process_time() - started < 12


@pytest.mark.parametrize(
    ("output", "task"),
    [
        ("posture", "posture"),
        ("classify", "diagnosis"),
        ("features", "diagnosis"),
        ("image_embeds", "consistency"),
        ("text_embeds", "consistency"),
    ],
)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_judge_that_gives_no_number_is_named(monkeypatch, output, task, bad):
    judges = FakeJudges()
    judges.description = {task: "a model"}
    original = getattr(judges, output)

    def broken(inputs):
        scores = original(inputs).clone()
        scores[-1, 0] = bad
        return scores

    monkeypatch.setattr(judges, output, broken)
    batch = PromptBatch.repeat(prompts(6), 3)
    words = (
        "1 of 6 reports, first for report 5"
        if output == "text_embeds"
        else "1 of 18 images, first for image 17"
    )
    with pytest.raises(CxrlError, match=rf"^eval\.{task}: the judge a model gives values .* for {words}; "):
        evaluate_images(pictures(18), batch, judges, seed=0, bootstrap=0)


class WildJudges(FakeJudges):
    """As the others, and changes its images in place."""

    def _spoiled(self, found, images):
        images.data.zero_()
        return found

    def posture(self, images):
        return self._spoiled(super().posture(images), images)

    def classify(self, images):
        return self._spoiled(super().classify(images), images)

    def image_embeds(self, images):
        return self._spoiled(super().image_embeds(images), images)

    def features(self, images):
        return self._spoiled(super().features(images), images)


def test_judges_change_their_own_copies_only():
    reports = prompts(4)
    batch = evaluation_batch(reports, 12, 3)
    images = pictures(12)
    before = images.clone()
    found, expected = (
        evaluate_images(images, batch, judges, seed=0, bootstrap=3) for judges in (WildJudges(), FakeJudges())
    )
    assert torch.equal(images, before)
    assert found.to_dict() == expected.to_dict()
    assert found.values["diversity"] > 0


def test_a_judge_that_raises_is_named():
    class Broken(FakeJudges):
        def classify(self, images):
            raise IndexError("no such finding")

    class Mute(FakeJudges):
        def text_embeds(self, texts):
            return None

    batch = evaluation_batch(prompts(2), 4, 2)
    with pytest.raises(CxrlError, match="the judge of diagnosis raised IndexError: no such finding"):
        evaluate_images(pictures(4), batch, Broken(), seed=0, bootstrap=0)
    with pytest.raises(CxrlError, match="the judge of consistency raised AttributeError"):
        evaluate_images(pictures(4), batch, Mute(), seed=0, bootstrap=0)
