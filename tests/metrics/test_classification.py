import math

import pytest
import torch

from cxrl.metrics.classification import auroc, macro_auroc, weighted_auroc

NAN = float("nan")


def brute_force(scores, labels):
    wins = [
        1.0 if p > n else 0.5 if p == n else 0.0
        for p, a in zip(scores, labels, strict=True)
        if a == 1
        for n, b in zip(scores, labels, strict=True)
        if b == 0
    ]
    return sum(wins) / len(wins) if wins else NAN


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_against_brute_force_with_ties_and_unknowns(levels):
    generator = torch.Generator().manual_seed(levels)
    scores = torch.randint(0, levels, (61,), generator=generator) / levels
    labels = torch.randint(0, 3, (61,), generator=generator).float()
    labels[labels == 2] = NAN
    assert auroc(scores, labels) == pytest.approx(brute_force(scores.tolist(), labels.tolist()))


def test_known_values():
    labels = torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert auroc(torch.tensor([0.9, 0.8, 0.2, 0.1]), labels) == 1.0
    assert auroc(torch.tensor([0.1, 0.2, 0.8, 0.9]), labels) == 0.0
    assert auroc(torch.zeros(4), labels) == 0.5
    assert auroc(torch.tensor([0.8, 0.3, 0.5, 0.1]), labels) == 0.75


def test_an_unknown_label_is_a_mask_not_a_zero():
    scores = torch.tensor([0.9, 0.1, 0.99])
    assert auroc(scores, torch.tensor([1.0, 0.0, NAN])) == 1.0
    assert auroc(scores, torch.tensor([1.0, 0.0, 0.0])) == 0.5


def test_macro_leaves_out_findings_without_both_classes():
    scores = torch.tensor([[0.9, 0.3, 0.1], [0.1, 0.6, 0.2]])
    labels = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, NAN]])
    mean, each = macro_auroc(scores, labels)
    assert mean == 0.5
    assert each[:2].tolist() == [1.0, 0.0]
    assert math.isnan(each[2])
    assert math.isnan(macro_auroc(scores, torch.ones(2, 3))[0])


def test_weights_are_multiplicities():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 6, (20, 2), generator=generator).float()
    labels = torch.randint(0, 2, (20, 2), generator=generator).float()
    counts = torch.randint(0, 3, (5, 20), generator=generator)
    values = weighted_auroc(scores, labels, counts)
    for b in range(5):
        repeated = macro_auroc(scores.repeat_interleave(counts[b], 0), labels.repeat_interleave(counts[b], 0))
        torch.testing.assert_close(values[b], repeated[1])


def test_refusals():
    with pytest.raises(ValueError, match=r"0\.5 is not 0, 1 or nan"):
        auroc(torch.zeros(2), torch.tensor([1.0, 0.5]))
    with pytest.raises(ValueError, match="sample 1 is not finite"):
        auroc(torch.tensor([0.0, NAN]), torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match=r"expected scores \[N, F\]"):
        macro_auroc(torch.zeros(3, 2), torch.zeros(3, 1))
