import pytest
import torch

from cxrl.metrics.posture import posture_score


def test_the_identity_is_best():
    psi = torch.zeros(3, 5)
    psi[1, 0], psi[2, 4] = 0.3, -0.4
    score = posture_score(psi)
    assert score[0] == 0
    assert score.tolist() == pytest.approx([0.0, -0.3, -0.4])


def test_bad_poses_are_named():
    psi = torch.zeros(3, 5)
    psi[2, 1] = float("inf")
    with pytest.raises(ValueError, match="psi: sample 2 is not finite"):
        posture_score(psi)
    with pytest.raises(ValueError, match=r"expected psi \[N, 5\]"):
        posture_score(torch.zeros(5))
