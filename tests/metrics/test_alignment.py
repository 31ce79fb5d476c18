import pytest
import torch

from cxrl.metrics.alignment import alignment, retrieval_top1


def test_cosine_by_hand():
    image = torch.tensor([[3.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    text = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [0.0, -1.0]])
    torch.testing.assert_close(alignment(image, text), torch.tensor([1.0, 0.0, -1.0]))


def test_retrieval_counts_the_nearest():
    text = torch.eye(4)
    image = torch.eye(4)[[0, 1, 3, 2]] * 5.0
    assert retrieval_top1(image, text) == 0.5


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"images \(2, 3\), reports \(3, 3\)"):
        alignment(torch.zeros(2, 3), torch.zeros(3, 3))
