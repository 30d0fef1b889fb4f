"""What checks in shadow mode would have done, principle by principle, read from the log."""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from fairlead.guard.decision import SEVERITY
from fairlead.stats import wilson

_SEVERITY: dict[str, int] = dict(SEVERITY.items())


@dataclass(frozen=True, slots=True)
class Shadow:
    """Of one principle and check.

    n           exchanges that it looked at in shadow mode
    acted       of those, how often it would have done anything but allow
    failed      of those, how often it gave no verdict: neither allowed nor acted
    outcomes    how often each outcome
    rate        acted / (n - failed), with its 95% interval (Wilson; exchanges taken as independent: those of one
                conversation or one tenant are not, and make it wider in truth)
    at_least, at_most  the rate if every failed one would have been allowed, or acted upon
    """

    principle: str
    check: str
    n: int
    acted: int
    failed: int
    outcomes: dict[str, int]
    rate: float | None
    low: float | None
    high: float | None
    at_least: float
    at_most: float


def shadow(db: sqlite3.Connection, *, since: float = 0.0, constitution: str = "") -> list[Shadow]:
    """One row for each principle and check, by how often it would have acted. An exchange with several verdicts of a
    check counts once, by the most severe."""
    outcomes: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for body in exchanges(db):
        if body["time"] < since or (constitution and body["constitution"] != constitution):
            continue
        worst: dict[tuple[str, str], str] = {}
        for _, check, principle, outcome, _, _ in body.get("shadow", ()):
            key = (principle, check)
            if key not in worst or _SEVERITY.get(outcome, 0) > _SEVERITY.get(worst[key], 0):
                worst[key] = outcome
        for key, outcome in worst.items():
            outcomes[key][outcome] += 1
    rows = [_row(principle, check, counts) for (principle, check), counts in outcomes.items()]
    return sorted(rows, key=lambda row: (-(row.rate or 0.0), row.principle, row.check))


def exchanges(db: sqlite3.Connection) -> Iterator[dict[str, Any]]:
    """All exchanges of the log, in the order of its chains. Whether they are whole is for `verify` to say."""
    for (body,) in db.execute("select body from records order by row"):
        fields = orjson.loads(body)
        if fields["kind"] == "exchange":
            yield fields


def _row(principle: str, check: str, counts: Counter[str]) -> Shadow:
    n, failed = counts.total(), counts["failed"]
    acted = n - failed - counts["allow"]
    told = wilson(acted, n - failed) if n > failed else None
    return Shadow(
        principle,
        check,
        n,
        acted,
        failed,
        dict(sorted(counts.items())),
        told.value if told else None,
        told.low if told else None,
        told.high if told else None,
        at_least=acted / n,
        at_most=(acted + failed) / n,
    )
