"""Exchanges that already happened, by checks that answer doubts: who is asked about which of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fairlead.exchange import Exchange, exchange
from fairlead.guard.audit.review import Reviewed, review, summary
from fairlead.guard.decision import ALLOW, Decision
from fairlead.guard.plan import plan
from fairlead.guard.policy import Policy
from fairlead.guard.watch import Doubt
from fairlead.judges.lineage import Lineage, leaf

OPEN, CLOSED = Policy(on_error="allow"), Policy(on_error="refuse")


@dataclass
class Model:
    """Says what `rule` says of a reply, and remembers what it was asked."""

    rule: Callable[[str], Any]
    name: str = "critic"
    cost: int = 2
    principle: str = "p"
    asked: list[str] = field(default_factory=list)
    lineage: Lineage = field(default_factory=lambda: leaf("classifier", text="m"))

    def decide(self, exchanges: Sequence[Exchange]) -> list[Any]:
        self.asked += [item.reply_text for item in exchanges]
        return [self.rule(item.reply_text) for item in exchanges]


@dataclass
class Unsure(Model):
    name: str = "classifier"
    cost: int = 1
    asks: frozenset[str] = frozenset({"p"})

    def weigh(self, exchanges: Sequence[Exchange]) -> list[Any]:
        return self.decide(exchanges)


@dataclass
class Listening(Model):
    """Its doubts are those of a watch: it has no `weigh`."""

    cost: int = 0
    name: str = "listening"
    asks: frozenset[str] = frozenset({"critic"})


def weighed(text: str) -> Any:
    if text == "raises":
        raise ValueError(text)
    if text == "no verdict":
        return Decision("failed", "p", "none")
    if text == "unsure":
        return Doubt("p", Decision("refuse", "p", "in doubt"), "0.4")
    return Decision("refuse", "p", "broken") if text == "broken" else ALLOW


def reviewed(*checks: Any, policy: Policy = CLOSED, rows: Sequence[str], **more: Any) -> list[Reviewed]:
    return list(review([exchange("hi", text) for text in rows], plan(checks, {"p": policy}), **more))


ROWS = ("good", "unsure", "broken", "unsure", "good")


def test_who_sleeps_is_asked_about_doubts_alone_in_one_batch_and_the_numbers_are_of_all() -> None:
    critic = Model(lambda text: Decision("refuse", "p", "the critic"))
    rows = reviewed(critic, Unsure(weighed), rows=ROWS)
    assert critic.asked == ["unsure", "unsure"]
    assert [row.outcome for row in rows] == ["allow", "refuse", "refuse", "refuse", "allow"]
    assert [row.evidence for row in rows[1:3]] == ["the critic", "broken"]
    assert [row.unasked for row in rows] == [("p",), (), ("p",), (), ("p",)]
    told = summary(rows, on_doubt=["p"])
    (rate,) = told.principles
    assert (rate.acted, rate.n, told.on_doubt) == (3, 5, {"p": 2})
    assert "in doubt, so the critic was asked: 2 of 5, p" in told.lines()


def test_a_doubt_that_nobody_can_settle_is_what_the_check_says_otherwise() -> None:
    rows = reviewed(Unsure(weighed), rows=ROWS)
    assert [(row.outcome, row.evidence) for row in rows[:2]] == [("allow", ""), ("refuse", "in doubt")]


def test_what_a_check_that_fails_open_could_not_read_is_read_by_who_sleeps() -> None:
    failing = ("good", "raises", "no verdict")
    for policy, more, asked in ((OPEN, {}, 2), (CLOSED, {}, 0), (CLOSED, {"on_error": {1: "allow"}}, 2)):
        critic = Model(lambda text: ALLOW)
        rows = reviewed(critic, Unsure(weighed), policy=policy, rows=failing, **more)  # type: ignore[arg-type]
        assert critic.asked == [*failing[1:]][:asked]
        assert [row.outcome for row in rows] == (["allow"] * 3 if asked else ["allow", "refuse", "refuse"])


def test_where_doubts_are_those_of_a_stream_nobody_sleeps() -> None:
    critic = Model(lambda text: ALLOW)
    reviewed(Listening(lambda text: ALLOW), critic, rows=ROWS)
    assert critic.asked == [*ROWS]
