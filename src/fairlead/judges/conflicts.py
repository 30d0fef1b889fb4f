"""Principles that pull apart: told by whoever wrote them, shown by their examples, or found by a critic.

What code finds without a model: one principle's good reply is another's bad one, or refuses what another's good reply
answers, or breaks a rule that another names as its auditor. It finds nothing that no example shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations

from fairlead.constitution.alike import normalised
from fairlead.constitution.schema import Constitution, Example, Principle
from fairlead.exchange import Exchange, assistant, system, user
from fairlead.judges.critic import critic
from fairlead.judges.rules import Rule, length, no_emoji, no_flattery, polite, refused
from fairlead.models.protocol import Model

READ_ANY_REPLY: Mapping[str, Callable[[], Rule]] = {
    "length": length, "emoji": no_emoji, "flattery": no_flattery, "polite": polite,
}  # fmt: skip
"""Auditors that read any reply by itself; those that ask for a reference or for what should be refused do not."""

BROKEN = 0.5  # a critic's P(kept) below which one principle's good reply breaks another


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two principles that pull apart, in the order of the constitution.

    why          what shows it, one sentence each
    goes_first   id of the one that has priority, "" where nobody said
    """

    first: str
    second: str
    why: tuple[str, ...]
    goes_first: str


def conflicts(constitution: Constitution, reader: Model | None = None) -> list[Conflict]:
    """Every pair of principles that pull apart, once. `reader` reads each good reply by every other principle."""
    place = {id: n for n, id in enumerate(constitution.ids)}
    found: dict[tuple[str, str], list[str]] = {}
    for a, b, why in (*_shown(constitution), *(_read(constitution, reader) if reader is not None else ())):
        pair = (a, b) if place[a] < place[b] else (b, a)
        reasons = found.setdefault(pair, [])
        if why not in reasons:
            reasons.append(why)
    return [
        Conflict(*pair, tuple(why), _winner(constitution, *pair))
        for pair, why in sorted(found.items(), key=lambda item: (place[item[0][0]], place[item[0][1]]))
    ]


def _winner(constitution: Constitution, a: str, b: str) -> str:
    return a if constitution.goes_first(a, b) else b if constitution.goes_first(b, a) else ""


def _shown(constitution: Constitution) -> Iterator[tuple[str, str, str]]:
    rules = {
        p.id: [(n, READ_ANY_REPLY[n]()) for n in p.judges.audit if n in READ_ANY_REPLY] for p in constitution.principles
    }
    for a, b in permutations(constitution.principles, 2):
        if b.id in a.conflicts:
            yield a.id, b.id, f"{a.id!r} says so"
        for good in a.good:
            yield from _against(a, good, b)
            for name, rule in rules[b.id]:
                (verdict,) = rule.judge([_exchange(good)])
                if verdict.score is not None and verdict.score < BROKEN:
                    why = f"the good reply of {a.id!r} to {good.user!r} breaks the rule {name} of {b.id!r}"
                    yield a.id, b.id, f"{why} ({verdict.reason})" if verdict.reason else why


def _against(a: Principle, good: Example, b: Principle) -> Iterator[tuple[str, str, str]]:
    for bad in b.bad:
        if _asked(bad) == _asked(good) and normalised(bad.reply) == normalised(good.reply):
            yield a.id, b.id, f"the good reply of {a.id!r} to {good.user!r} is a bad one of {b.id!r}"
    for other in b.good:
        if _asked(other) == _asked(good) and refused(_exchange(good)) and not refused(_exchange(other)):
            yield a.id, b.id, f"to {good.user!r} the good reply of {a.id!r} refuses and that of {b.id!r} answers"


def _read(constitution: Constitution, reader: Model) -> Iterator[tuple[str, str, str]]:
    for b in constitution.principles:
        goods = [(a, good) for a in constitution.principles if a.id != b.id for good in a.good]
        verdicts = critic(b, reader).judge([_exchange(good) for _, good in goods]) if goods else []
        for (a, good), verdict in zip(goods, verdicts, strict=True):
            if verdict.score is not None and verdict.score < BROKEN:
                why = f"the good reply of {a.id!r} to {good.user!r} breaks {b.id!r}, as {reader.name} reads it"
                yield a.id, b.id, f"{why} ({verdict.score:.2f})"


def _asked(example: Example) -> tuple[str, str]:
    return normalised(example.system or ""), normalised(example.user)


def _exchange(example: Example) -> Exchange:
    said = ((system(example.system),) if example.system else ()) + (user(example.user),)
    return Exchange(said, (assistant(example.reply),))
