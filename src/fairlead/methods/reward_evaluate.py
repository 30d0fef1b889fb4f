"""Is a reward model any good, on pairs it did not learn from: accuracy, calibration, and what it owes to length.

Any judge with raw values can be asked (an ensemble too). Every number has an interval; pairs on one prompt stand in one
cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fairlead.exchange import Exchange, Preference
from fairlead.judges.lineage import case_key
from fairlead.judges.protocol import Comparer, Judge
from fairlead.judges.twoway import sigmoid
from fairlead.methods.evaluate import (
    Accuracy,
    Margins,
    decided,
    length_matched,
    longer_wins,
    preference_accuracy,
    reply_length,
)
from fairlead.stats import Interval

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], float]  # of how often each pair counts; NaN where it is not defined

DRAWS, BINS = 1_000, 10


@dataclass(frozen=True, slots=True)
class RewardReport:
    """What a reward model does on held-out pairs.

    accuracy       the better reply has the higher reward: on all decided pairs and on those of matched length, beside
                   the baseline that prefers the longer reply
    error          expected calibration error of P(chosen is better), 10 bins of confidence; biased upward for few pairs
    log_loss       nats per pair; a coin has 0.693
    length         correlation, within pairs, of the difference in reward with the difference in length (characters)
    length_labels  the same of the labels: what a perfect judge of these pairs would show
    pairs, ties, missing    pairs in all; ties, which have no right answer; pairs without rewards
    """

    accuracy: tuple[Accuracy, ...]
    error: Interval
    log_loss: Interval
    length: Interval
    length_labels: Interval
    pairs: int
    ties: int
    missing: int

    def lines(self) -> list[str]:
        """Rows of a table for the terminal."""
        named = {
            "calibration error": self.error,
            "log loss (nats)": self.log_loss,
            "length correlation": self.length,
            "… of the labels": self.length_labels,
        }
        rows = [f"{n:<29} {i.value:.3f} [{i.low:.3f}, {i.high:.3f}]  n = {i.n:,}" for n, i in named.items()]
        return [*(a.line() for a in self.accuracy), *rows, f"{self.ties:,} ties, {self.missing:,} without rewards"]


def evaluate_reward(
    judge: Judge, pairs: Sequence[Preference], *, groups: Sequence[str] | None = None, seed: int = 0
) -> RewardReport:
    """Ask a judge about held-out pairs. `groups` names what pairs share (their prompt, by default).

    Intervals of accuracies are `stats.rate`'s; the others are percentiles of 1,000 bootstrap draws of whole groups
    (Efron 1979), fixed by `seed`. Raises ValueError where no pair is decided.
    """
    labels = list(groups) if groups is not None else [case_key(pair.messages) for pair in pairs]
    if len(labels) != len(pairs):
        raise ValueError(f"{len(pairs)} pairs but {len(labels)} groups")
    known = decided(pairs)
    if not known:
        raise ValueError(f"none of {len(pairs)} pairs has a better reply: there is nothing to be right about")
    margins, chances = ask(judge, pairs)
    accuracy = []
    matched = set(length_matched(pairs))
    for where, rows in (("all", known), ("length-matched", [i for i in known if i in matched])):
        for scorer, values in (("reward", margins), ("longer wins", longer_wins(pairs))):
            if rows:
                picked = [values[i] for i in rows]
                accuracy.append(preference_accuracy(scorer, where, picked, [labels[i] for i in rows]))

    seen = [i for i in known if margins[i] is not None and chances[i] is not None]
    lead = np.array([margins[i] for i in seen], dtype=np.float64)
    p = np.array([chances[i] for i in seen], dtype=np.float64)
    strength = np.array([pairs[i].strength for i in seen])
    longer = np.array([reply_length(pairs[i].chosen) - reply_length(pairs[i].rejected) for i in seen], dtype=np.float64)
    # Floored at one part in a million: a log of 0 would drown all other pairs.
    loss = -(strength * np.log(np.clip(p, 1e-6, 1)) + (1 - strength) * np.log(np.clip(1 - p, 1e-6, 1)))
    clusters = [labels[i] for i in seen]

    def interval(statistic: Statistic) -> Interval:
        return bootstrap(statistic, clusters, seed=seed)

    return RewardReport(
        accuracy=tuple(accuracy),
        error=interval(lambda w: calibration_error(p, strength, w)),
        log_loss=interval(lambda w: float(w @ loss / w.sum())),
        length=interval(lambda w: _correlation(lead, longer, w)),
        length_labels=interval(lambda w: _correlation(np.ones_like(lead), longer, w)),
        pairs=len(pairs),
        ties=len(pairs) - len(known),
        missing=sum(margin is None for margin in margins),
    )


def ask(judge: Judge, pairs: Sequence[Preference]) -> tuple[Margins, list[float | None]]:
    """The difference in raw value of each pair's replies, and P(chosen is better): the judge's own where it compares.

    Where it does not, Bradley and Terry's: the sigmoid of the difference.
    """
    both = [(Exchange(pair.messages, pair.chosen), Exchange(pair.messages, pair.rejected)) for pair in pairs]
    verdicts = judge.judge([item for pair in both for item in pair])
    margins: Margins = [
        None if a.raw is None or b.raw is None else a.raw - b.raw
        for a, b in zip(verdicts[::2], verdicts[1::2], strict=True)
    ]
    if isinstance(judge, Comparer):
        return margins, judge.compare(both)
    return margins, [None if margin is None else sigmoid(margin) for margin in margins]


def calibration_error(p: Floats, strength: Floats, weight: Floats) -> float:
    """Expected calibration error (Naeini et al. 2015): mean gap of confidence and hit rate over 10 equal bins.

    Confidence is max(p, 1 - p), so bins lie in [0.5, 1]; a hit counts the label's own probability of that side.
    """
    confidence = np.maximum(p, 1 - p)
    hit = np.where(p == 0.5, 0.5, np.where(p > 0.5, strength, 1 - strength))
    bins = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    gap = np.bincount(bins, weight * (confidence - hit), minlength=BINS)
    return float(np.abs(gap).sum() / weight.sum())


def _correlation(x: Floats, y: Floats, weight: Floats) -> float:
    """Of differences whose sign depends on which reply is called first: through the origin, no mean taken off."""
    spread = np.sqrt((weight @ x**2) * (weight @ y**2))
    return float(weight @ (x * y) / spread) if spread > 0 else 0.0


def bootstrap(
    statistic: Statistic, clusters: Sequence[Hashable], *, seed: int = 0, draws: int = DRAWS, confidence: float = 0.95
) -> Interval:
    """Percentile interval of a statistic, whole clusters drawn with replacement. One cluster: unbounded.

    The statistic is called with how often each case counts.
    """
    number: dict[Hashable, int] = {}
    label = np.array([number.setdefault(c, len(number)) for c in clusters], dtype=np.int64)
    if not len(label):
        return Interval(float("nan"), -float("inf"), float("inf"), 0)
    value = statistic(np.ones(len(label)))
    if len(number) == 1:
        return Interval(value, -float("inf"), float("inf"), len(label))
    times = np.random.default_rng(seed).multinomial(len(number), np.full(len(number), 1 / len(number)), size=draws)
    values = [statistic(row[label].astype(np.float64)) for row in times]
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, min(float(low), value), max(float(high), value), len(label))
