"""The guard's checks over exchanges that already happened: what it would have done, row by row and in numbers.

What was asked is looked at first, as a proxy does. Where that would not have gone on to a model there would have been
no reply, so the row tells of what was asked alone; in the numbers by principle both sides count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from fairlead import stats
from fairlead.errors import FairleadError
from fairlead.exchange import Exchange
from fairlead.guard.asking import answers_of
from fairlead.guard.decision import Check, Decision, Outcome, most_severe
from fairlead.guard.pieces import unreadable
from fairlead.guard.plan import Plan
from fairlead.guard.prompt_side import settles
from fairlead.guard.watch import Doubt, PromptCheck

_BATCH = 64
_AS_WRITTEN: Mapping[int, str] = MappingProxyType({})
_NONE: Mapping[str, Sequence[str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Reviewed:
    """What would have become of one exchange, by the most severe decision on it.

    said      (principle or check, outcome) of every check; outcome failed where it gave no verdict
    unread    parts that no check can read: the guard would have withheld them
    where     what the decision is about: `asked` or `reply`, "" where all was allowed
    unasked   principles with a check that is asked on a cheaper one's doubt alone, and was not
    """

    outcome: str
    principle: str
    evidence: str
    said: tuple[tuple[str, str], ...]
    unread: tuple[str, ...]
    where: str = ""
    unasked: tuple[str, ...] = ()


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
    """All rows in numbers.

    unchecked  principles with a `guard:` that nobody looked at
    partly     those of which the checks named see a part
    on_doubt   of each principle whose critic is asked on the classifier's doubt alone, about how many rows it was
    """

    n: int
    allowed: int
    outcomes: dict[str, int]
    principles: tuple[Rate, ...]
    unread: dict[str, int]
    unchecked: tuple[str, ...]
    partly: dict[str, tuple[str, ...]] = field(default_factory=dict)
    on_doubt: dict[str, int] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """For the terminal."""
        counts = ", ".join(f"{n:,} {outcome}" for outcome, n in self.outcomes.items())
        return [
            f"{self.n:,} exchange{'' if self.n == 1 else 's'}: {counts}",
            *map(str, self.principles),
            *(f"in doubt, so the critic was asked: {n:,} of {self.n:,}, {id}" for id, n in self.on_doubt.items()),
            *(f"{n:,} {what}, which no check can read: the guard withholds it" for what, n in self.unread.items()),
            *(f"checked in part: {id}, by {', '.join(names)}" for id, names in self.partly.items()),
            *([f"not checked: {', '.join(self.unchecked)}"] if self.unchecked else []),
        ]


def review(
    exchanges: Sequence[Exchange],
    made: Plan,
    advance: Callable[[int, int], None] = lambda _done, _total: None,
    *,
    prompts: Sequence[PromptCheck] = (),
    on_error: Mapping[int, str] = _AS_WRITTEN,
) -> Iterator[Reviewed]:
    """One per exchange, in order. Every check is asked about every exchange, also where that of another principle would
    have been enough: the numbers by principle need them all. As in a proxy a critic that sleeps is asked where a
    cheaper check of its principle is in doubt, and not else. A check that raises has failed on that batch; errors that
    a user can mend are raised.

    made      the checks of replies
    prompts   the checks of what was asked
    on_error  by cost of a check, what follows when it fails, where not what its principle says
    """

    def closed(check: Check | PromptCheck) -> bool:
        """What follows when it fails, as the constitution, or the settings over it, say."""
        written = made.policy(getattr(check, "principle", "")).on_error
        return on_error.get(getattr(check, "cost", 0), written) == "refuse"

    def settled(check: Check | PromptCheck, decision: Decision) -> Decision:
        if decision.outcome not in ("failed", "hold"):
            return decision
        told = f"the check {check.name} failed ({decision.evidence})"
        outcome: Outcome = "refuse" if closed(check) else "allow"
        return Decision(outcome, getattr(check, "principle", ""), told, (), check.name)

    for start in range(0, len(exchanges), _BATCH):
        batch = exchanges[start : start + _BATCH]
        replied = _reply(made, batch, closed)
        for n, item in enumerate(batch):
            asked = list(_asked(prompts, item))
            said = [(one.check, by[n]) for one, by in zip(made.followed, replied, strict=True) if n in by]
            slept = (one.principle for one, by in zip(made.followed, replied, strict=True) if n not in by)
            before = most_severe([settled(check, decision) for check, decision in asked])
            after = most_severe([settled(check, decision) for check, decision in said])
            yield _one(item, [*asked, *said], before, after, tuple(dict.fromkeys(slept)))
        advance(start + len(batch), len(exchanges))


def _reply(made: Plan, batch: Sequence[Exchange], closed: Callable[[Check], bool]) -> list[dict[int, Decision]]:
    """Of each check in the plan's order, what it says of those exchanges, by number, that it was asked about."""
    said: list[dict[int, Decision]] = [{} for _ in made.followed]
    due = {i: list(range(len(batch))) for i, one in enumerate(made.followed) if not one.asleep}
    while due:
        i = min(due)
        one, rows = made.followed[i], due.pop(i)
        check: Any = one.check
        ask, kinds = (check.weigh, (Decision, Doubt)) if one.weighs else (check.decide, (Decision,))
        answers = answers_of(check, ask, kinds, [batch[n] for n in rows], alone=1, quiet=True)
        asks: frozenset[str] = getattr(check, "asks", frozenset())
        for n, answer in zip(rows, answers, strict=True):
            names: frozenset[str] = frozenset()
            if isinstance(answer, Doubt):
                names = frozenset({answer.ask})
                doubtful = Decision("allow", one.principle, answer.why, (), one.name)
                answer = doubtful if made.targets(i, answer.ask) else answer.otherwise
            elif not one.weighs:
                names = asks  # it says its doubts of streams alone
            elif answer.outcome == "failed" and not closed(check) and asks:
                names = frozenset({min(asks)})  # it let pass what it could not read
            said[i][n] = answer
            for other in (target for name in names for target in made.targets(i, name)):
                if made.followed[other].asleep and n not in said[other] and n not in due.get(other, ()):
                    due.setdefault(other, []).append(n)
    return said


def _asked(prompts: Sequence[PromptCheck], item: Exchange) -> Iterator[tuple[PromptCheck, Decision]]:
    """What the checks say of what was asked: as in a proxy a critic is spared where a classifier has no doubt."""
    settled: set[str] = set()
    for check in sorted(prompts, key=lambda check: getattr(check, "cost", 0)):
        principle = getattr(check, "principle", "")
        if getattr(check, "cost", 0) == 2 and principle in settled:
            continue
        decision = _ask_prompt(check, item)
        if settles(check, decision):
            settled.add(principle)
        yield check, decision


def _ask_prompt(check: PromptCheck, item: Exchange) -> Decision:
    """What a check says of what was asked, as a proxy takes it: nothing is there to be revised or blocked."""
    try:
        decision = check.ask(item.messages)
    except (FairleadError, MemoryError):
        raise
    except Exception as problem:  # noqa: BLE001  # becomes a counted `failed`
        return Decision("failed", getattr(check, "principle", ""), f"raised {type(problem).__name__}", (), check.name)
    return replace(decision, outcome="refuse") if decision.outcome in ("revise", "block_tool_call") else decision


def _one(
    item: Exchange,
    said: Sequence[tuple[Check | PromptCheck, Decision]],
    before: Decision,
    after: Decision,
    unasked: tuple[str, ...],
) -> Reviewed:
    """`before` is the most severe decision on what was asked, `after` that on the reply."""
    ended = before.outcome not in ("allow", "redact")  # no model would have been asked
    worst = before if ended else most_severe([after, before])
    where = "" if worst.outcome == "allow" else "asked" if worst is before else "reply"
    told = tuple((getattr(check, "principle", "") or check.name, decision.outcome) for check, decision in said)
    return Reviewed(worst.outcome, worst.principle, worst.evidence, told, tuple(unreadable(item.reply)), where, unasked)


def summary(
    rows: Sequence[Reviewed],
    unchecked: Sequence[str] = (),
    partly: Mapping[str, Sequence[str]] = _NONE,
    on_doubt: Sequence[str] = (),
) -> Summary:
    """Counts and rates. A principle with several checks counts an exchange once: broken where any of them acted. That
    of a critic that was not asked about it, since the classifier was in no doubt, counts as the classifier says."""
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
        len(rows), outcomes["allow"], dict(outcomes.most_common()), rates, dict(unread), tuple(unchecked),
        {id: tuple(names) for id, names in partly.items()},
        {id: sum(id not in row.unasked for row in rows) for id in on_doubt},
    )  # fmt: skip


def _rate(principle: str, counts: Counter[str]) -> Rate:
    n = counts["acted"] + counts["kept"]
    if not n:
        return Rate(principle, 0, 0, counts["missing"], None, None, None)
    told = stats.wilson(counts["acted"], n)
    return Rate(principle, counts["acted"], n, counts["missing"], told.value, told.low, told.high)
