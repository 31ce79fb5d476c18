"""The limits at which a run stops, and which weights are kept when it has passed them."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from cxrl.config import Config
from cxrl.evaluation.summary import Evaluation
from cxrl.models.policy import Policy
from cxrl.storage.checkpoint import State
from cxrl.storage.layout import GOOD_FILE
from cxrl.storage.reading import check_weights, field, laid_out_as

_CHOOSE = ("selection_num_prompts", "eval_num_prompts", "eval_split")
"""Settings of ``data`` that say which reports choose."""


class Limits:
    """Counts evaluations in a row, of the reports that choose, at which quality or diversity is beyond its
    limit.

    Attributes:
        strikes: Such evaluations in a row.
        reason: Why the run must stop; empty while it may go on.
        good: Name → averaged weights of the last evaluation within limits; of the start before there was one.
        good_epoch: Whose they are; 0 is the start.
        changed: Whether the limits, or what is judged by what, are others than in the checkpoint that was
            loaded.
    """

    def __init__(self, config: Config, policy: Policy) -> None:
        self.config, self.policy = config.train, policy
        told = config.to_dict()
        self._judging = {"eval": told["eval"]} | {name: told["data"][name] for name in _CHOOSE}
        self.strikes, self.reason, self.good_epoch, self.changed = 0, "", 0, False
        self.good: dict[str, Tensor] = {}
        self.keep(0)

    def problems(self, anchor: Evaluation, policy: Evaluation, real: Evaluation | None) -> str:
        """What of an evaluation is beyond its limit, in words; empty when all is well.

        Diversity is compared with real films': a policy may become as alike as they are. The Fréchet distance
        of real films is what their number makes of none at all, so distances count from there. Where a number
        of real films is not known, the anchor's stands alone.

        Args:
            anchor, policy: Of the same reports.
            real: Of real films of these, if there are any.
        """
        found = []
        share, factor = self.config.early_stop_diversity, self.config.early_stop_fid
        whose, reference = "the anchor's", anchor.values["diversity"]
        if real is not None and math.isfinite(real.values["diversity"]):
            whose, reference = "real films'", real.values["diversity"]
        diversity = policy.values["diversity"]
        if share and diversity < share * reference:
            found.append(
                f"diversity {diversity:.3g} is below {share:g} × {whose} {reference:.3g} "
                "(train.early_stop_diversity)"
            )
        fid, worst = policy.values["fid"], anchor.values["fid"]
        floor = math.nan if real is None else real.values["fid"]
        floor, above = (floor, f", both above real films' {floor:.3g}") if floor < worst else (0.0, "")
        if factor and fid - floor > factor * (worst - floor):
            found.append(
                f"Fréchet distance {fid:.3g} is above {factor:g} × the anchor's {worst:.3g}{above} "
                "(train.early_stop_fid)"
            )
        return "; ".join(found)

    def check(
        self,
        anchor: Evaluation,
        policy: Evaluation,
        real: Evaluation | None,
        epoch: int,
        *,
        last: bool = False,
    ) -> str:
        """Judge the evaluation of an epoch: within limits its weights are kept, beyond it is a strike, unless
        it is the last epoch, after which nothing can be stopped.

        Returns:
            As :meth:`problems`.
        """
        problem = self.problems(anchor, policy, real)
        if not problem:
            self.strikes = 0
            self.keep(epoch)
            return ""
        if last:
            return problem
        self.strikes += 1
        if self.strikes >= self.config.patience:
            self.reason = problem
        return problem

    def state(self) -> State:
        """For a checkpoint, with the limits and the settings of ``eval``: a stop holds for the same."""
        return State(
            {GOOD_FILE: self.good},
            {
                "good_epoch": self.good_epoch,
                "strikes": self.strikes,
                "stopped_early": self.reason,
                "limits": self._limits(),
            },
        )

    def load_state(self, state: State, source: str) -> None:
        """Take what :meth:`state` gave. With other limits or judges than then the run may go on.

        Raises:
            CxrlError: It is damaged or another policy's; the message names ``source``.
        """
        good, numbers = dict(state.tensors[GOOD_FILE]), state.numbers
        check_weights(self.policy.trainable, good, f"{source}/{GOOD_FILE}")
        self.good = {name: laid_out_as(p, good[name]) for name, p in self.policy.trainable.items()}
        self.good_epoch = field(numbers, "good_epoch", int, source)
        self.changed = field(numbers, "limits", dict, source) != self._limits()
        if not self.changed:
            self.strikes = field(numbers, "strikes", int, source)
            self.reason = field(numbers, "stopped_early", str, source)

    def keep(self, epoch: int) -> None:
        """Take the averaged weights as those of the last evaluation within limits."""
        self.good = {name: value.clone() for name, value in self.policy.ema.items()}
        self.good_epoch = epoch

    def _limits(self) -> dict[str, Any]:
        c = self.config
        limits = {"diversity": c.early_stop_diversity, "fid": c.early_stop_fid, "patience": c.patience}
        return {**limits, **self._judging}
