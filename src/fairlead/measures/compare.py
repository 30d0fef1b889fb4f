"""Before and after, on the same cases: the paired verdict that the report and the release gate share.

Each pair of layers and each measure is one comparison; Holm's correction goes over all of them, so that the chance of
any false "better" or "worse" in a run is at most 5%. What is missing is filled in against the claim.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from fairlead import stats
from fairlead.measures.measure import Better, Outcome
from fairlead.measures.result import MeasureResult

Judgement: TypeAlias = Literal["better", "worse", "cannot tell"]
ALPHA = 0.05


@dataclass(frozen=True, slots=True)
class SideEffect:
    """What one measure did between two layers.

    change         mean(after) - mean(before) over the cases scored in both; None without any
    low, high      its 95% interval, paired and clustered, missing cases filled in both ways
    p, p_adjusted  of no change: see `_p_value`; after Holm over all comparisons of the run
    n, missing     pairs asked in both layers, and those of them with an answer missing
    """

    measure: str
    before: str
    after: str
    change: float | None
    low: float
    high: float
    verdict: Judgement
    p: float
    p_adjusted: float
    n: int
    missing: int
    better: Better

    def row(self) -> dict[str, Any]:
        """The row of `results.json` (DESIGN §7), with the p-value and the n it stands on."""
        return {
            "measure": self.measure, "from": self.before, "to": self.after, "change": self.change, "low": self.low,
            "high": self.high, "verdict": self.verdict, "p": self.p_adjusted, "n": self.n, "missing": self.missing,
        }  # fmt: skip


def side_effects(
    layers: Mapping[str, Sequence[MeasureResult]],
    pairs: Sequence[tuple[str, str]] | None = None,
    *,
    alpha: float = ALPHA,
) -> list[SideEffect]:
    """All comparisons of a run. `layers` in their order; `pairs`: each layer with the next and the first with the last.

    A measure that one of the two layers lacks is not compared.
    """
    names = list(layers)
    if pairs is None:
        pairs = list(itertools.pairwise(names))
        if len(names) > 2:
            pairs.append((names[0], names[-1]))
    found = []
    for first, second in pairs:
        after = {result.measure: result for result in layers[second]}
        found += [compare(before, after[before.measure]) for before in layers[first] if before.measure in after]
    return judge_all(found, alpha=alpha)


def judge_all(effects: Sequence[SideEffect], *, alpha: float = ALPHA) -> list[SideEffect]:
    """The same comparisons with Holm's correction over all of them, and the verdicts that stand after it."""
    adjusted = stats.holm([effect.p for effect in effects]) if effects else []
    return [
        replace(effect, p_adjusted=p, verdict=_verdict(effect, p, alpha))
        for effect, p in zip(effects, adjusted, strict=True)
    ]


def compare(before: MeasureResult, after: MeasureResult) -> SideEffect:
    """One measure on the same cases, before and after, judged by itself (`judge_all` corrects for many)."""
    if before.measure != after.measure:
        raise ValueError(f"{before.measure} and {after.measure} are two measures: they cannot be compared")
    if before.lineage != after.lineage:
        raise ValueError(
            f"measure {before.measure!r} was judged by {before.judge} in layer {before.layer!r} and by {after.judge} "
            f"in {after.layer!r}: measure both with the same judge"
        )
    pairs = _pairs(before, after)
    both = [(x.value, y.value) for x, y in pairs if x.value is not None and y.value is not None]
    span = (-1.0, 1.0) if before.difference else (0.0, 1.0)
    width = span[1] - span[0]
    n = len({x.of_case for x, _ in pairs})
    missing = len({x.of_case for x, y in pairs if x.value is None or y.value is None})
    effect = SideEffect(
        before.measure, before.layer, after.layer, None, -width, width, "cannot tell", 1.0, 1.0, n, missing,
        before.better,
    )  # fmt: skip
    if not both:
        return effect
    clusters = [x.cluster for x, _ in pairs]
    down = [_filled(x, y, span, up=False) for x, y in pairs]
    up = [_filled(x, y, span, up=True) for x, y in pairs]
    # the least favourable filling decides: a change that hangs on what is missing is no change that can be told
    p = max(_p_value(filling, clusters, span) for filling in ((down, up) if missing else (down,)))
    change = math.fsum(y - x for x, y in both) / len(both)
    low, high = _interval(down, clusters, span).low, _interval(up, clusters, span).high
    effect = replace(effect, change=change, low=low, high=high, p=p, p_adjusted=p)
    return replace(effect, verdict=_verdict(effect, p, ALPHA))


def _pairs(before: MeasureResult, after: MeasureResult) -> list[tuple[Outcome, Outcome]]:
    """The cases asked in both layers, in a fixed order whatever order they were asked in."""
    second = {item.case: item for item in after.outcomes if item.status != "not asked"}
    both = [(x, second[x.case]) for x in before.outcomes if x.status != "not asked" and x.case in second]
    return sorted(both, key=lambda pair: pair[0].case)


def _filled(before: Outcome, after: Outcome, span: tuple[float, float], *, up: bool) -> tuple[float, float]:
    """The pair with what is missing set so that the change is smallest, or (up) largest."""
    low, high = span if up else (span[1], span[0])
    return (low if before.value is None else before.value, high if after.value is None else after.value)


Pair: TypeAlias = tuple[float, float]


def _unit(pairs: Sequence[Pair], span: tuple[float, float]) -> tuple[list[float], list[float]]:
    """Both columns moved into [0, 1], where `stats` works."""
    low, width = span[0], span[1] - span[0]
    return [(x - low) / width for x, _ in pairs], [(y - low) / width for _, y in pairs]


def _interval(
    pairs: Sequence[Pair], clusters: Sequence[str], span: tuple[float, float], confidence: float = 0.95
) -> stats.Interval:
    x, y = _unit(pairs, span)
    found = stats.paired_difference(x, y, clusters, confidence)
    width = span[1] - span[0]
    return stats.Interval(width * found.value, width * found.low, width * found.high, found.n)


def _p_value(pairs: Sequence[Pair], clusters: Sequence[str], span: tuple[float, float]) -> float:
    """Two-sided p of no change: exact where cases stand alone, else from the clustered interval.

    Yes/no outcomes: McNemar's exact test; others: the smallest alpha at which their interval still leaves 0 out. Where
    cases share clusters, that of the clustered interval, and never less than the test that takes the cases for
    independent. (Sign flips of whole clusters cannot reach 5% with fewer than six of them: the intervals can.)
    """
    yes_no = all(value in span for pair in pairs for value in pair)
    if yes_no:
        alone = stats.mcnemar_exact(sum(y > x for x, y in pairs), sum(y < x for x, y in pairs))
    else:
        alone = _inverted(pairs, [str(index) for index in range(len(pairs))], span)
    if len(set(clusters)) == len(clusters):
        return alone
    return max(alone, _inverted(pairs, clusters, span))


def _inverted(pairs: Sequence[Pair], clusters: Sequence[str], span: tuple[float, float]) -> float:
    """The alpha at which the interval begins to hold 0, by bisection on its logarithm; at least 1e-12."""
    if _interval(pairs, clusters, span).value == 0.0:
        return 1.0
    low, high = -12.0, -1e-6  # log10 of alpha
    if _interval(pairs, clusters, span, 1.0 - 10.0**low).excludes(0.0):
        return 1e-12
    if not _interval(pairs, clusters, span, 1.0 - 10.0**high).excludes(0.0):
        return 1.0
    for _ in range(40):
        middle = (low + high) / 2.0
        excluded = _interval(pairs, clusters, span, 1.0 - 10.0**middle).excludes(0.0)
        low, high = (low, middle) if excluded else (middle, high)
    return float(10.0**high)


def _verdict(effect: SideEffect, p: float, alpha: float) -> Judgement:
    if effect.change is None or p > alpha or effect.low <= 0.0 <= effect.high:
        return "cannot tell"
    return "better" if (effect.change > 0) == (effect.better == "higher") else "worse"
