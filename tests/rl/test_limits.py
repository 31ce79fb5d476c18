from __future__ import annotations

from typing import Any

import pytest
import torch

from cxrl.config import Config
from cxrl.errors import CxrlError
from cxrl.evaluation.summary import Evaluation
from cxrl.metrics.names import KEYS
from cxrl.rl.limits import Limits
from cxrl.storage.checkpoint import State


class Weights:
    """A policy of one number."""

    def __init__(self) -> None:
        self.trainable = {"w": torch.zeros(1)}
        self.ema = {"w": torch.zeros(1)}


def scores(**values: float) -> Evaluation:
    return Evaluation({**dict.fromkeys(KEYS, 1.0), **values}, {}, {}, 4)


def limits(judged: dict[str, Any] | None = None, **settings: Any) -> Limits:
    defaults = {"early_stop_diversity": 0.8, "early_stop_fid": 1.5, "patience": 2}
    config = Config.from_dict({"train": {**defaults, **settings}, "eval": judged or {}})
    return Limits(config, Weights())  # type: ignore[arg-type]


def test_within_the_limits() -> None:
    limit = limits()
    assert limit.check(scores(), scores(fid=1.5, diversity=0.8), None, 1) == ""
    assert limit.check(scores(), scores(fid=float("nan"), diversity=float("nan")), None, 1) == ""
    assert (limit.strikes, limit.reason) == (0, "")


@pytest.mark.parametrize(
    ("bad", "name"), [({"fid": 1.6}, "early_stop_fid"), ({"diversity": 0.7}, "diversity")]
)
def test_a_run_stops_after_strikes_in_a_row(bad: dict[str, float], name: str) -> None:
    limit = limits()
    assert name in limit.check(scores(), scores(**bad), None, 1)
    assert limit.reason == ""
    limit.check(scores(), scores(), None, 1)
    limit.check(scores(), scores(**bad), None, 1)
    assert limit.reason == ""
    limit.check(scores(), scores(**bad), None, 1)
    assert name in limit.reason


NAN = float("nan")


@pytest.mark.parametrize(
    ("policy", "real", "told"),
    [
        # As alike as real films, though the anchor's images are not: no problem.
        ({"diversity": 0.7}, {"diversity": 0.7}, ""),
        ({"diversity": 0.5}, {"diversity": 0.7}, "diversity 0.5 is below 0.8 × real films' 0.7"),
        # Real films may be more diverse than the anchor.
        ({"diversity": 0.9}, {"diversity": 1.5}, "diversity 0.9 is below 0.8 × real films' 1.5"),
        ({"diversity": 0.7}, {"diversity": NAN}, "diversity 0.7 is below 0.8 × the anchor's 1 "),
        # The anchor is 0.4 above real films, so 0.6 is what may be.
        ({"fid": 1.19}, {"fid": 0.6}, ""),
        ({"fid": 1.21}, {"fid": 0.6}, "1.21 is above 1.5 × the anchor's 1, both above real films' 0.6"),
        ({"fid": 1.49}, {"fid": NAN}, ""),
        ({"fid": 1.51}, {"fid": NAN}, "1.51 is above 1.5 × the anchor's 1 (train"),
        # An anchor that is nearer to the reference than real films leaves nothing to count from.
        ({"fid": 1.49}, {"fid": 1.1}, ""),
        ({"fid": 1.51}, {"fid": 1.1}, "1.51 is above 1.5 × the anchor's 1 (train"),
    ],
)
def test_limits_compare_with_real_films_where_they_are_known(
    policy: dict[str, float], real: dict[str, float], told: str
) -> None:
    alike = {"diversity": NAN, "fid": NAN}
    found = limits().problems(scores(), scores(**policy), scores(**(alike | real)))
    assert told in found
    assert bool(told) == bool(found)


def test_the_last_evaluation_says_what_is_kept_and_stops_nothing() -> None:
    limit = limits(patience=1)
    limit.check(scores(), scores(), None, 1)
    assert "early_stop_fid" in limit.check(scores(), scores(fid=2.0), None, 2, last=True)
    assert (limit.reason, limit.strikes, limit.good_epoch) == ("", 0, 1)
    limit.check(scores(), scores(), None, 3, last=True)
    assert limit.good_epoch == 3


@pytest.mark.parametrize(
    "change", [{"selection_num_prompts": 3}, {"eval_num_prompts": 9}, {"eval_split": "validate"}]
)
def test_strikes_of_other_reports_do_not_count(change: dict[str, Any]) -> None:
    def made(**data: Any) -> Limits:
        source = {"source": "prompts", "root": "x.csv"}
        return Limits(Config.from_dict({"data": {**source, **data}}), Weights())  # type: ignore[arg-type]

    before, same, other = made(), made(), made(**change)
    before.check(scores(), scores(fid=2.0), None, 4)
    for limit in (same, other):
        limit.load_state(before.state(), "here")
    assert (same.strikes, same.changed) == (1, False)
    assert (other.strikes, other.changed) == (0, True)


def test_zero_is_never() -> None:
    limit = limits(early_stop_diversity=0.0, early_stop_fid=0.0, patience=1)
    assert limit.check(scores(), scores(fid=1e9, diversity=0.0), None, 1) == ""


def test_the_weights_of_the_last_evaluation_within_limits_are_kept() -> None:
    limit = limits()
    for epoch, (value, bad) in enumerate([(1.0, False), (2.0, False), (3.0, True)], 1):
        limit.policy.ema["w"] = torch.tensor([value])
        limit.check(scores(), scores(fid=9.0 if bad else 1.0), None, epoch)
    assert (float(limit.good["w"]), limit.good_epoch, limit.strikes) == (2.0, 2, 1)
    limit.policy.ema["w"].fill_(7.0)
    assert float(limit.good["w"]) == 2.0


@pytest.mark.parametrize(
    ("settings", "goes_on"), [({}, False), ({"early_stop_fid": 0.0}, True), ({"patience": 3}, True)]
)
def test_a_stop_holds_for_the_limits_that_it_was_for(settings: dict[str, Any], goes_on: bool) -> None:
    stopped = limits(patience=1)
    stopped.policy.ema["w"] = torch.tensor([5.0])
    stopped.check(scores(), scores(), None, 3)
    stopped.check(scores(), scores(fid=2.0), None, 4)
    assert stopped.reason
    again = limits(**({"patience": 1} | settings))
    again.load_state(stopped.state(), "here")
    assert (float(again.good["w"]), again.good_epoch) == (5.0, 3)
    assert (again.reason == "") == goes_on == again.changed
    assert again.strikes == (0 if goes_on else 1)


def test_another_policys_weights_are_refused() -> None:
    state = limits().state()
    other = State({"good.safetensors": {"x": torch.zeros(1)}}, state.numbers)
    with pytest.raises(CxrlError, match=r"here/good.safetensors: misses weight w"):
        limits().load_state(other, "here")


def test_a_stop_holds_for_what_was_judged() -> None:
    stopped = limits(patience=1)
    stopped.check(scores(), scores(fid=2.0), None, 4)
    for judged, goes_on in (({}, False), ({"num_images": 32}, True)):
        again = limits(judged, patience=1)
        again.load_state(stopped.state(), "here")
        assert (again.reason == "") == goes_on
