"""A check on a reply that is still coming: what of it may go now, what has to wait, what may not go at all.

`Check.decide` looks at finished replies (`decision.py`); a `Watch` looks at the same reply while it grows, is told of
every piece once, and keeps what it needs in between, so that its cost grows with the text and not with its square. A
watch belongs to one request: it is told of all alternatives and parts, for a secret may be split over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from fairlead.exchange import Exchange, Message, Part, Reasoning, Refusal, Text, ToolCall
from fairlead.guard.decision import ALLOW, Check, Decision, Span
from fairlead.guard.wire.events import Channel, Place


@dataclass(frozen=True, slots=True)
class Seen:
    """The next piece of one text, in the order in which it would be released.

    `last` says that the part is whole with this piece (which may be empty). A tool call is told of once, whole, when
    its arguments are complete; `name` is the tool's.
    """

    channel: Channel
    place: Place
    text: str
    last: bool = False
    name: str = ""


@dataclass(frozen=True, slots=True)
class Cut:
    """Characters [start, end) of one text that may not be read, counted from the start of that text.

    In a tool call they are characters of its arguments: what is painted over there must leave valid JSON.
    """

    channel: Channel
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Ruling:
    """What a watch says after a piece.

    decision   `ALLOW` while nothing was found; else what has to happen and why (`Decision.spans` stay empty here)
    cuts       of a decision to redact: what to paint over. It lies ahead of what this watch has let go
    safe       how many characters of each text, from its start, this watch lets go. Never less than it said before.
               A text that is not named has let go what it had let go
    """

    decision: Decision = ALLOW
    cuts: tuple[Cut, ...] = ()
    safe: dict[Channel, int] = field(default_factory=dict)


class Watch(Protocol):
    """One check over one reply as it grows. Not shared between requests."""

    def feed(self, seen: Seen) -> Ruling: ...

    def finish(self, choice: int) -> Ruling:
        """An alternative is whole. Everything of it has to be let go here, or decided upon."""
        ...


@runtime_checkable
class PromptCheck(Protocol):
    """A check that reads what is asked, before any model does. Its `Decision.spans` point into `messages`, by message
    and part (`pieces.pieces(messages)` gives the places)."""

    @property
    def name(self) -> str: ...

    def ask(self, messages: Sequence[Message]) -> Decision: ...


@runtime_checkable
class StreamCheck(Check, Protocol):
    """A check that can follow a stream: `watch` starts on a request, before the first piece of its reply."""

    def watch(self, messages: Sequence[Message]) -> Watch: ...


def watched(check: Check, messages: Sequence[Message]) -> Watch:
    """The watch of a check: its own where it has one, else one that waits for the whole reply."""
    return check.watch(messages) if isinstance(check, StreamCheck) else Whole(check, tuple(messages))


@dataclass(slots=True)
class Whole:
    """A check that reads finished replies alone: nothing is let go before an alternative is whole."""

    check: Check
    messages: tuple[Message, ...]
    texts: dict[Channel, list[str]] = field(default_factory=dict)
    kinds: dict[Channel, Seen] = field(default_factory=dict)

    def feed(self, seen: Seen) -> Ruling:
        self.texts.setdefault(seen.channel, []).append(seen.text)
        self.kinds.setdefault(seen.channel, seen)
        return Ruling()

    def finish(self, choice: int) -> Ruling:
        mine = sorted(channel for channel in self.texts if channel.choice == choice)
        parts = tuple(as_part(self.kinds[channel], "".join(self.texts[channel])) for channel in mine)
        reply = (Message("assistant", parts),) if parts else ()
        [decision] = self.check.decide([Exchange(self.messages, reply)])
        cuts = tuple(self._cut(mine[span.at[1]], span) for span in decision.spans)
        safe = {channel: sum(map(len, self.texts[channel])) for channel in mine}
        return Ruling(decision, cuts, safe)

    def _cut(self, channel: Channel, span: Span) -> Cut:
        seen = self.kinds[channel]
        before = len(seen.name) + 1 if seen.place == "tool_call" else 0  # `pieces` reads a call as its name, then these
        return Cut(channel, max(0, span.start - before), max(0, span.end - before))


def as_part(seen: Seen, text: str) -> Part:
    """A whole text as the part of a message that it is."""
    match seen.place:
        case "reasoning":
            return Reasoning(text)
        case "refusal":
            return Refusal(text)
        case "tool_call":
            return ToolCall("", seen.name, text)
        case _:
            return Text(text)
