"""The numerical ops of cxrl: one schema, one plain PyTorch reference, several backends each.

``attention``, ``trajectory_log_prob``, ``denoise_step``, ``pairwise_comparison`` and ``group_win_rate``.
Every one takes ``backend=`` (or the environment variable ``CXRL_BACKEND``): ``auto`` picks, any other name
is used or refused with the reason (:func:`unavailable_reason`).
"""

from __future__ import annotations

from cxrl.ops._dispatch import BACKENDS, unavailable_reason
from cxrl.ops.attention import attention
from cxrl.ops.pairwise_comparison import FORMS, group_win_rate, pairwise_comparison
from cxrl.ops.trajectory_log_prob import denoise_step, trajectory_log_prob

__all__ = [
    "BACKENDS",
    "FORMS",
    "attention",
    "denoise_step",
    "group_win_rate",
    "pairwise_comparison",
    "trajectory_log_prob",
    "unavailable_reason",
]
