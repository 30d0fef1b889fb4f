"""From outcomes to a number: the rate, its interval, its n and what is missing from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fairlead import stats
from fairlead.judges.lineage import Evidence
from fairlead.measures.measure import Better, Measure, Outcome


@dataclass(frozen=True, slots=True)
class Rate:
    """`value` is the mean over the scored draws of cases, None without any. `n` counts scored and missing cases.

    Cases may have been drawn several times; a case is missing where any of its draws is.

    `low` and `high` bound it at 95%, with the missing cases filled in the worst and the best way.
    """

    value: float | None
    low: float
    high: float
    n: int
    missing: int
    not_asked: int


@dataclass(frozen=True, slots=True)
class MeasureResult:
    """One measure of one layer: a row of `results.json`, and the outcomes behind it.

    principle   id of the principle it stands beside, "" for none
    evidence    True, "related", or False (shown, never believed)
    note        what must be printed beside the judge ("same rule, new cases")
    not_asked   cases with nothing to ask further; not part of n
    seen        cases left out because the run had trained or selected on them; not part of n
    truncated   replies cut at the token limit; judged as they are
    """

    measure: str
    principle: str
    layer: str
    value: float | None
    low: float
    high: float
    n: int
    missing: int
    better: Better
    judge: str
    lineage: str
    evidence: Evidence
    note: str = ""
    title: str = ""
    not_asked: int = 0
    seen: int = 0
    truncated: int = 0
    difference: bool = False
    outcomes: tuple[Outcome, ...] = ()

    def row(self) -> dict[str, Any]:
        """The row of `results.json` (DESIGN §7); what else there is to say follows only where there is any."""
        body: dict[str, Any] = {
            "measure": self.measure, "principle": self.principle, "layer": self.layer, "value": self.value,
            "low": self.low, "high": self.high, "n": self.n, "missing": self.missing, "better": self.better,
            "judge": self.judge, "lineage": self.lineage, "evidence": self.evidence,
        }  # fmt: skip
        more = {"note": self.note, "not_asked": self.not_asked, "seen": self.seen, "truncated": self.truncated}
        return body | {name: value for name, value in more.items() if value}

    def failures(self) -> list[Outcome]:
        """What slipped through: scored cases on the wrong side of one half, worst first."""
        sign = 1.0 if self.better == "lower" else -1.0
        bad = [item for item in self.outcomes if item.value is not None and sign * (item.value - self._middle) > 0]
        return sorted(bad, key=lambda item: (-sign * (item.value or 0.0), item.case))

    @property
    def _middle(self) -> float:
        return 0.0 if self.difference else 0.5


def rate_of(measure: Measure, outcomes: Sequence[Outcome]) -> Rate:
    """The rate over outcomes in any order. Intervals are clustered where cases share a cluster."""
    cases = sorted((item for item in outcomes if item.status != "not asked"), key=lambda item: item.case)
    scored = [item for item in cases if item.value is not None]
    asked = {item.of_case for item in cases}
    n, missing = len(asked), len({item.of_case for item in cases if item.value is None})
    not_asked = len({item.of_case for item in outcomes} - asked)
    if not scored:
        return Rate(None, *measure.span, n, missing, not_asked)
    value = math.fsum(item.value for item in scored if item.value is not None) / len(scored)
    clusters = [item.cluster for item in cases]
    if measure.difference:
        low = _difference([item.pair or (1.0, 0.0) for item in cases], clusters).low
        high = _difference([item.pair or (0.0, 1.0) for item in cases], clusters).high
    else:
        worst, best = stats.missing_bounds([item.value for item in cases], clusters)
        low, high = worst.low, best.high
    return Rate(value, low, high, n, missing, not_asked)


def _difference(pairs: Sequence[tuple[float, float]], clusters: Sequence[str]) -> stats.Interval:
    return stats.paired_difference([pair[0] for pair in pairs], [pair[1] for pair in pairs], clusters)
