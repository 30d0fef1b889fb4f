"""How far labels can be trusted: agreement with people, with themselves, and what the place of a reply does to them.

Pure functions on probabilities. Who says nothing, and who cannot choose, is given half a point, which is what a coin
gets: so a reader that is mute, or always says the same, comes out at chance in every row, in agreement and in
consistency alike. Intervals are clustered by prompt.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeAlias

from fairlead.stats import Interval, clustered_mean, rate

P: TypeAlias = float | None  # P(the first of two replies is better); None: no answer


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `n` counts pairs; `missing` are those without an answer, `ties` those without a choice."""

    measure: str
    who: str
    value: float
    low: float
    high: float
    n: int
    missing: int = 0
    ties: int = 0


def side(p: P) -> float:
    """1 for the first, 0 for the second, 1/2 for a tie and for no answer."""
    if p is None or abs(p - 0.5) < 1e-9:
        return 0.5
    return float(p > 0.5)


def same(a: P, b: P) -> float:
    """1 where two readings choose the same reply, 0 where they differ, 1/2 where one of them does not choose."""
    x, y = side(a), side(b)
    return 0.5 if 0.5 in (x, y) else float(x == y)


def agreement(who: str, ps: Sequence[P], people: Sequence[float], clusters: Sequence[Hashable]) -> Row:
    """Share of pairs of which a reader chooses the reply that people chose. Pairs that people tied have no say here.

    Raises ValueError where people chose on no pair.
    """
    rows = [i for i, human in enumerate(people) if side(human) != 0.5]
    if not rows:
        raise ValueError("people chose on no pair")
    return _row("agreement", who, [same(ps[i], people[i]) for i in rows], clusters, rows, [ps[i] for i in rows])


def consistency(measure: str, who: str, takes: Sequence[Sequence[P]], clusters: Sequence[Hashable]) -> Row:
    """How often two takes of one pair choose the same reply: per pair the mean over all pairs of takes.

    takes    [take][pair]: repeats of one question, or one question in several wordings
    """
    if len(takes) < 2:
        raise ValueError(f"{len(takes)} take: consistency needs two")
    outcomes = [
        sum(same(a, b) for a, b in combinations(pair, 2)) / (len(pair) * (len(pair) - 1) / 2)
        for pair in zip(*takes, strict=True)
    ]
    rows = range(len(outcomes))
    return _row(measure, who, outcomes, clusters, rows, [_least(pair) for pair in zip(*takes, strict=True)])


def position_bias(who: str, biases: Sequence[P], clusters: Sequence[Hashable]) -> Row | None:
    """What being shown first adds to P(better), in [-1, 1]; None of a reader that is shown one reply at a time."""
    rows = [i for i, bias in enumerate(biases) if bias is not None]
    if not rows:
        return None
    known = [float(biases[i] or 0.0) for i in rows]
    found = clustered_mean(known, [clusters[i] for i in rows])
    low, high = max(found.low, -1.0), min(found.high, 1.0)
    return Row("position_bias", who, found.value, low, high, len(rows), len(biases) - len(rows))


def order_flips(who: str, flipped: Sequence[bool | None], clusters: Sequence[Hashable]) -> Row | None:
    """Share of pairs of which a reader chooses the other reply when the two change places."""
    rows = [i for i, flip in enumerate(flipped) if flip is not None]
    if not rows:
        return None
    found = rate([float(bool(flipped[i])) for i in rows], [clusters[i] for i in rows])
    return Row("order_flips", who, found.value, found.low, found.high, len(rows), len(flipped) - len(rows))


def longer(first: str, second: str) -> float:
    """The reader that likes what is longer, in words."""
    a, b = len(first.split()), len(second.split())
    return 0.5 if a == b else float(a > b)


# ------------------------------------------------------------------------------------------------- within


def _row(
    measure: str,
    who: str,
    outcomes: Sequence[float],
    clusters: Sequence[Hashable],
    rows: Sequence[int],
    ps: Sequence[P],
) -> Row:
    found: Interval = rate(outcomes, [clusters[i] for i in rows])
    missing = sum(p is None for p in ps)
    ties = sum(p is not None and side(p) == 0.5 for p in ps)
    return Row(measure, who, found.value, found.low, found.high, found.n, missing, ties)


def _least(pair: Sequence[P]) -> P:
    """None where a take is missing, 1/2 where one is a tie, else any of them."""
    if any(p is None for p in pair):
        return None
    return next((p for p in pair if side(p) == 0.5), pair[0])
