"""Checks on streams that answer from a script, and replies as events."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fairlead.exchange import Exchange, Message, user
from fairlead.guard.decision import Decision, Span
from fairlead.guard.ledger import faults
from fairlead.guard.plan import Plan, plan
from fairlead.guard.policy import Policy
from fairlead.guard.release import Release
from fairlead.guard.released import Out
from fairlead.guard.watch import Cut, Ruling, Seen
from fairlead.guard.wire.events import Channel, Close, Delta, End, Event, Finish, Open
from fairlead.judges.lineage import Lineage, leaf

ASKED = (user("hello"),)
SOME = (Span((0, 0), 0, 1),)  # a decision to redact has to carry a span; a ruling's cuts are what counts
WINDOW = Policy("be kind", "i will not .", "refuse", "window")
BUFFER = Policy("be kind", "i will not .", "refuse", "buffer")


@dataclass
class StreamChecked:
    """A check whose watches are made by `make`."""

    make: Callable[[], Any]
    principle: str = "p"
    name: str = "scripted"
    cost: int = 0

    @property
    def lineage(self) -> Lineage:
        return leaf("rule", text=self.name)

    def decide(self, exchanges: Sequence[Exchange]) -> list[Decision]:
        raise AssertionError("a check with a watch of its own is not asked about whole replies")

    def watch(self, messages: Sequence[Message]) -> Any:
        return self.make()


@dataclass
class Passing:
    """Lets go of everything at once; `back` characters of every text only when it is whole."""

    back: int = 0
    seen: dict[Channel, int] = field(default_factory=dict)
    fed: int = 0

    def feed(self, seen: Seen) -> Ruling:
        self.fed += 1
        n = self.seen[seen.channel] = self.seen.get(seen.channel, 0) + len(seen.text)
        return Ruling(safe={seen.channel: n if seen.last else max(0, n - self.back)})

    def finish(self, choice: int) -> Ruling:
        return Ruling()


@dataclass
class Words:
    """Acts on a word, over each text: lets go of what cannot be the beginning of it any more."""

    word: str
    outcome: str = "redact"
    text: dict[Channel, str] = field(default_factory=dict)
    safe: dict[Channel, int] = field(default_factory=dict)

    def feed(self, seen: Seen) -> Ruling:
        text = self.text[seen.channel] = self.text.get(seen.channel, "") + seen.text
        start = self.safe.get(seen.channel, 0)
        cuts = []
        while (at := text.find(self.word, start)) >= 0:
            start = at + len(self.word)
            cuts.append(Cut(seen.channel, at, start))
        held = (
            0
            if seen.last
            else next(k for k in range(len(self.word) - 1, -1, -1) if not k or text[start:].endswith(self.word[:k]))
        )
        self.safe[seen.channel] = len(text) - held
        if not cuts:
            return Ruling(safe={seen.channel: self.safe[seen.channel]})
        decision = Decision(self.outcome, "", f"holds {self.word}", SOME)  # type: ignore[arg-type]
        return Ruling(decision, tuple(cuts), {seen.channel: self.safe[seen.channel]})

    def finish(self, choice: int) -> Ruling:
        return Ruling()


def check(make: Callable[[], Any], **more: Any) -> StreamChecked:
    return StreamChecked(make, **more)


def planned(*checks: Any, policy: Policy = WINDOW, policies: dict[str, Policy] | None = None, **more: Any) -> Plan:
    return plan(checks, {"p": policy} | (policies or {}), **more)


def text(
    *pieces: str, choice: int = 0, part: int = 0, place: str = "reply", name: str = "", close: bool = True
) -> list[Event]:
    """One part, cut into these pieces."""
    channel = Channel(choice, part)
    deltas: list[Event] = [Delta(channel, piece) for piece in pieces]
    return [Open(channel, place, "id1" if name else "", name), *deltas, *([Close(channel)] if close else [])]  # type: ignore[arg-type]


def reply(*pieces: str, reason: str = "stop", **more: Any) -> list[Event]:
    return [*text(*pieces, **more), Finish(0, reason), End()]  # type: ignore[arg-type]


def released(the_plan: Plan, events: Iterable[Event], **more: Any) -> tuple[Release, list[Out]]:
    """The release, and all that left; the ledger is compared with it."""
    release = Release(the_plan, ASKED, **more)
    out = [event for came in events for event in release.feed(came)]
    assert faults(release.ledger, out) == []
    return release, out


def said(out: Iterable[Out], choice: int = 0) -> str:
    return "".join(event.text for event in out if isinstance(event, Delta) and event.channel.choice == choice)


def kinds(out: Iterable[Out]) -> list[str]:
    return [type(event).__name__ for event in out]
