"""The guard's checks over exchanges that already happened: what it would have done, row by row and in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fairlead import stats
from fairlead.errors import FairleadError
from fairlead.exchange import Exchange
from fairlead.guard.decision import Check, Decision, most_severe
from fairlead.guard.guard import Policy
from fairlead.guard.pieces import unreadable

_BATCH = 64


@dataclass(frozen=True, slots=True)
class Reviewed:
    """What would have become of one exchange, by the most severe decision on it.

    said      (principle or check, outcome) of every check; outcome failed where it gave no verdict
    unread    parts that no check can read: the guard would have withheld them
    """

    outcome: str
    principle: str
    evidence: str
    said: tuple[tuple[str, str], ...]
    unread: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rate:
    """Of one principle: `acted` of `n` exchanges would not have passed as they are, with the 95% interval (Wilson);
    `missing` got no verdict and count in neither."""

    principle: str
    acted: int
    n: int
    missing: int
    rate: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        rate = "cannot tell" if self.rate is None else f"{self.rate:.1%} [{self.low:.1%}, {self.high:.1%}]"
        missing = f"; {self.missing:,} without a verdict" if self.missing else ""
        return f"{self.principle}: {self.acted:,} of {self.n:,}, {rate}{missing}"


@dataclass(frozen=True, slots=True)
class Summary:
    """All rows in numbers. `unchecked` are principles with a `guard:` that nobody looked at."""

    n: int
    allowed: int
    outcomes: dict[str, int]
    principles: tuple[Rate, ...]
    unread: dict[str, int]
    unchecked: tuple[str, ...]

    def lines(self) -> list[str]:
        """For the terminal."""
        counts = ", ".join(f"{n:,} {outcome}" for outcome, n in self.outcomes.items())
        return [
            f"{self.n:,} exchange{'' if self.n == 1 else 's'}: {counts}",
            *map(str, self.principles),
            *(f"{n:,} {what}, which no check can read: the guard withholds it" for what, n in self.unread.items()),
            *([f"not checked: {', '.join(self.unchecked)}"] if self.unchecked else []),
        ]


def review(
    exchanges: Sequence[Exchange],
    checks: Sequence[Check],
    policies: Mapping[str, Policy],
    advance: Callable[[int, int], None] = lambda _done, _total: None,
) -> Iterator[Reviewed]:
    """One per exchange, in order. Every check is asked about every exchange, also where a cheap one would have been
    enough: the numbers by principle need them all. A check that raises has failed on that batch; errors that a user
    can mend are raised."""
    for start in range(0, len(exchanges), _BATCH):
        batch = exchanges[start : start + _BATCH]
        said = [_ask(check, batch) for check in checks]
        for n, item in enumerate(batch):
            yield _one(item, [decisions[n] for decisions in said], checks, policies)
        advance(start + len(batch), len(exchanges))


def _ask(check: Check, batch: Sequence[Exchange]) -> list[Decision]:
    try:
        decisions = check.decide(batch)
    except (FairleadError, MemoryError):
        raise
    except Exception as problem:  # noqa: BLE001  # becomes a counted `failed`
        if len(batch) > 1 and check.cost == 0:
            return [decision for item in batch for decision in _ask(check, [item])]
        return [Decision("failed", check.principle, f"raised {type(problem).__name__}", (), check.name)] * len(batch)
    if len(decisions) != len(batch):
        raise ValueError(f"{check.name} gave {len(decisions)} decisions for {len(batch)} exchanges")
    return decisions


def _one(
    item: Exchange, decisions: Sequence[Decision], checks: Sequence[Check], policies: Mapping[str, Policy]
) -> Reviewed:
    said = tuple((c.principle or c.name, d.outcome) for c, d in zip(checks, decisions, strict=True))
    worst = most_severe([_settled(check, d, policies) for check, d in zip(checks, decisions, strict=True)])
    return Reviewed(worst.outcome, worst.principle, worst.evidence, said, tuple(unreadable(item.reply)))


def _settled(check: Check, decision: Decision, policies: Mapping[str, Policy]) -> Decision:
    """A failed check becomes what the constitution says of its errors."""
    if decision.outcome not in ("failed", "hold"):
        return decision
    closed = policies.get(check.principle, Policy()).on_error == "refuse"
    told = f"the check {check.name} failed ({decision.evidence})"
    return Decision("refuse" if closed else "allow", check.principle, told, (), check.name)


def summary(rows: Sequence[Reviewed], unchecked: Sequence[str] = ()) -> Summary:
    """Counts and rates. A principle with several checks counts an exchange once: broken where any of them acted."""
    outcomes = Counter(row.outcome for row in rows)
    by_principle: dict[str, Counter[str]] = {}
    for row in rows:
        for principle in dict.fromkeys(name for name, _ in row.said):
            of = {outcome for name, outcome in row.said if name == principle}
            kind = "acted" if of - {"allow", "failed"} else "missing" if "failed" in of else "kept"
            by_principle.setdefault(principle, Counter())[kind] += 1
    unread = Counter(what for row in rows for what in row.unread)
    rates = tuple(_rate(name, counts) for name, counts in by_principle.items())
    return Summary(
        len(rows), outcomes["allow"], dict(outcomes.most_common()), rates, dict(unread), tuple(unchecked)
    )  # fmt: skip


def _rate(principle: str, counts: Counter[str]) -> Rate:
    n = counts["acted"] + counts["kept"]
    if not n:
        return Rate(principle, 0, 0, counts["missing"], None, None, None)
    told = stats.wilson(counts["acted"], n)
    return Rate(principle, counts["acted"], n, counts["missing"], told.value, told.low, told.high)
