import pytest
import torch

from cxrl.metrics.posture import pose_sd, posture_score


def test_the_identity_is_best():
    psi = torch.zeros(3, 5)
    psi[1, 0], psi[2, 4] = 0.3, -0.4
    score = posture_score(psi)
    assert score[0] == 0
    assert score.tolist() == pytest.approx([0.0, -0.3, -0.4])


def test_the_spread_is_the_distance_from_the_mean():
    psi = torch.randn(200, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3.0
    ones, twice = torch.ones(1, 200), torch.arange(200)[None] % 3
    expected = (psi - psi.mean(0)).square().sum(1).mean().sqrt()
    assert pose_sd(psi, ones).tolist() == pytest.approx([float(expected)])
    repeated = psi[torch.repeat_interleave(torch.arange(200), twice[0])]
    spread = (repeated - repeated.mean(0)).square().sum(1).mean().sqrt()
    assert pose_sd(psi, torch.cat([ones, twice])).tolist() == pytest.approx([float(expected), float(spread)])
    assert pose_sd(torch.ones(4, 5), torch.ones(1, 4)).tolist() == [0.0]


def test_bad_poses_are_named():
    psi = torch.zeros(3, 5)
    psi[2, 1] = float("inf")
    with pytest.raises(ValueError, match="psi: sample 2 is not finite"):
        posture_score(psi)
    with pytest.raises(ValueError, match=r"expected psi \[N, 5\]"):
        posture_score(torch.zeros(5))
