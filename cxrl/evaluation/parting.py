"""Where a reward and its judge part: the reward of the same images rises, and the judge's score does not.

That is how a reward is gamed.

Two signs, looked for at the last evaluation:

* *falls*: since the evaluation at which the judge's score was highest the reward has risen and the judge's
  score has fallen, each beyond its 95 % interval;
* *lags*: where real films are known, the reward has gone more than ``LARGEST_LAG`` further along its own way
  from the anchor to real films than the judge along its.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

JUDGE_OF = {"posture": "posture", "diagnosis": "auroc", "consistency": "consistency"}
"""Reward → what its judge's score is called. Rewards of the user's own have no judge."""
LARGEST_LAG = 0.5

Number = float | None
Interval = Sequence[Number]


@dataclass(frozen=True)
class Scored:
    """An evaluation, or real films.

    Attributes:
        epoch: 0 is the anchor.
        judge, reward: Name → mean over the images; None or absent where it is not known.
        judge_ci, reward_ci: Name → [low, high].
    """

    epoch: int
    judge: Mapping[str, Number]
    reward: Mapping[str, Number]
    judge_ci: Mapping[str, Interval]
    reward_ci: Mapping[str, Interval]

    @classmethod
    def of_bounds(cls, side: Mapping[str, Any]) -> Scored:
        """Anchor or real films, as in bounds.json."""
        return cls(0, side, side["reward"], side["ci"], side.get("reward_ci") or {})

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Scored:
        """An epoch that was judged, as in metrics.jsonl."""
        intervals = record["eval_ci"], record.get("eval_reward_ci") or {}
        return cls(record["epoch"] + 1, record["eval"], record["eval_reward"], *intervals)


@dataclass(frozen=True)
class Parting:
    """A reward that its judge does not follow.

    Attributes:
        reward, judge: Names.
        since, epoch: Evaluations between which they parted; 0 is the anchor.
        reward_change, judge_change: Between these.
        shares: Of the way to real films that reward and judge have gone, where it lags; else None.
    """

    reward: str
    judge: str
    since: int
    epoch: int
    reward_change: float
    judge_change: float
    shares: tuple[float, float] | None = None

    def __str__(self) -> str:
        since = f"epoch {self.since}" if self.since else "the anchor"
        if self.shares is None:
            return (
                f"the reward {self.reward} and its judge part: since {since} the reward rose by "
                f"{self.reward_change:.3g}, the judge's {self.judge} fell by {-self.judge_change:.3g}"
            )
        mine, judges = self.shares
        return (
            f"the judge does not follow the reward {self.reward}: of the way to real films the reward has "
            f"gone {mine:.0%}, the judge's {self.judge} {judges:.0%}"
        )


def partings(history: Sequence[Scored], real: Scored | None = None) -> list[Parting]:
    """What parts at the last evaluation.

    Args:
        history: The evaluations in order, the anchor first.
        real: Real films of the same reports.
    """
    if len(history) < 2:
        return []
    found = [_falls(history, reward) or _lags(history, reward, real) for reward in JUDGE_OF]
    return [parting for parting in found if parting is not None]


def _falls(history: Sequence[Scored], reward: str) -> Parting | None:
    judge, now = JUDGE_OF[reward], history[-1]
    known = [s for s in history if s.judge.get(judge) is not None and s.reward.get(reward) is not None]
    if len(known) < 2 or known[-1] is not now:
        return None
    best = max(known[:-1], key=lambda s: s.judge[judge] or 0.0)
    _, high = now.judge_ci.get(judge, (None, None))
    low, _ = now.reward_ci.get(reward, (None, None))
    changes = _change(best, now, reward)
    if high is None or low is None or changes is None:
        return None
    was = best.judge[judge], best.reward[reward]
    parted = was[0] is not None and was[1] is not None and was[0] > high and was[1] < low
    return Parting(reward, judge, best.epoch, now.epoch, *changes) if parted else None


def _lags(history: Sequence[Scored], reward: str, real: Scored | None) -> Parting | None:
    anchor, now = history[0], history[-1]
    gone = _change(anchor, now, reward)
    way = None if real is None else _change(anchor, real, reward)
    if gone is None or way is None or min(way) <= 0:
        return None
    shares = gone[0] / way[0], gone[1] / way[1]
    parted = shares[0] - shares[1] > LARGEST_LAG
    return Parting(reward, JUDGE_OF[reward], anchor.epoch, now.epoch, *gone, shares) if parted else None


def _change(before: Scored, after: Scored, reward: str) -> tuple[float, float] | None:
    """Of reward and judge."""
    judge = JUDGE_OF[reward]
    rewards = [s.reward.get(reward) for s in (before, after)]
    values = [float(v) for v in (*rewards, *(s.judge.get(judge) for s in (before, after))) if v is not None]
    return (values[1] - values[0], values[3] - values[2]) if len(values) == 4 else None
