from __future__ import annotations

import math

import pytest
import torch

from cxrl.data.prompts import PromptBatch, ReportPrompt

A = ReportPrompt(7, "Normal.", (1.0, 0.0))
B = ReportPrompt(9, "Large effusion.", (0.0, math.nan))


def test_repeat_puts_the_samples_of_a_prompt_side_by_side() -> None:
    batch = PromptBatch.repeat([A, B], 3)
    assert batch.prompt_of.tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.texts == ["Normal."] * 3 + ["Large effusion."] * 3
    assert len(batch) == 6


def test_labels_follow_the_samples_and_keep_nan() -> None:
    batch = PromptBatch((A, B), torch.tensor([1, 0, 1]))
    assert batch.labels.dtype == torch.float32
    expected = torch.tensor([[0.0, math.nan], [1.0, 0.0], [0.0, math.nan]])
    assert torch.equal(batch.labels.nan_to_num(-1), expected.nan_to_num(-1))


def test_labels_are_looked_up_by_name() -> None:
    named = ReportPrompt(1, "Edema.", (1.0, 0.0), ("Edema", "Fracture"))
    batch = PromptBatch((named, A), torch.tensor([0, 1, 0]))
    found = batch.labels_of(("Fracture", "Edema"))
    assert found.tolist() == [[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]], "unnamed labels are in the order asked for"
    assert str(named.labels_of(("Pneumonia", "Edema"))) == "(nan, 1.0)"
    assert str(ReportPrompt(2, "x", ()).labels_of(("Edema",))) == "(nan,)"
    assert tuple(PromptBatch((), torch.zeros(0, dtype=torch.int64)).labels_of(("a", "b")).shape) == (0, 2)
    with pytest.raises(ValueError, match="prompt 7: 2 unnamed labels for 3 findings"):
        batch.labels_of(("a", "b", "c"))
    with pytest.raises(ValueError, match="1 labels for 2 findings"):
        ReportPrompt(3, "x", (1.0,), ("a", "b"))


def test_a_slice_keeps_the_distinct_prompts() -> None:
    part = PromptBatch.repeat([A, B], 2).slice(1, 3)
    assert part.prompts == (A, B)
    assert part.prompt_of.tolist() == [0, 1]


def test_a_batch_may_be_empty() -> None:
    batch = PromptBatch.repeat([A], 2).slice(0, 0)
    assert (len(batch), batch.texts, tuple(batch.labels.shape)) == (0, [], (0, 2))


@pytest.mark.parametrize("prompt_of", [torch.tensor([0.0]), torch.tensor([[0]]), torch.tensor([0, 0]).int()])
def test_group_must_be_a_vector_of_int64(prompt_of: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"prompt_of must be int64 \[N\], got torch\."):
        PromptBatch((A,), prompt_of)


@pytest.mark.parametrize("index", [-1, 2])
def test_a_group_outside_the_prompts_is_refused(index: int) -> None:
    with pytest.raises(ValueError, match="outside the 2 prompts"):
        PromptBatch((A, B), torch.tensor([0, index]))


def test_no_finding_denies_the_others_where_it_is_no_output() -> None:
    findings = ("No Finding", "Edema", "Pneumonia", "Support Devices")
    normal = ReportPrompt(0, "Normal.", (1.0, math.nan, 1.0, math.nan), findings)
    assert str(normal.labels_of(("Edema", "Fracture", "Pneumonia"))) == "(0.0, 0.0, 1.0)"
    assert math.isnan(normal.labels_of(("Support Devices",))[0]), "a device is no disease"
    assert math.isnan(normal.labels_of(("No Finding", "Edema"))[1]), "the model has an output for it"
    other = ReportPrompt(1, "Edema.", (0.0, 1.0, math.nan, math.nan), findings)
    assert str(other.labels_of(("Edema", "Pneumonia"))) == "(1.0, nan)"
