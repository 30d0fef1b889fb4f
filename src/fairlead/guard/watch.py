"""A check on a reply that is still coming: what of it may go now, what has to wait, what may not go at all.

`Check.decide` looks at finished replies (`decision.py`); a `Watch` looks at the same reply while it grows, is told of
every piece once, and keeps what it needs in between, so that its cost grows with the text and not with its square. A
watch belongs to one request: it is told of all alternatives and parts, for a secret may be split over them.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

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

    In a tool call they are characters of its arguments: what is painted over there must leave valid JSON, else the call
    is taken out. An empty cut of a call (0, 0) takes it out in any case: something in its name, say.
    """

    channel: Channel
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Doubt:
    """A check that is not sure, and whom to ask.

    ask        name of a check, or id of a principle whose dearer checks are meant: one of the check's own `asks`
    otherwise  the decision where no such check is there
    why        evidence, for the log
    """

    ask: str
    otherwise: Decision
    why: str = ""


@dataclass(frozen=True, slots=True)
class Ruling:
    """What a watch says after a piece.

    decision   `ALLOW` while nothing was found; else what has to happen and why. Its spans are not read here: the cuts
               are (a decision to redact must carry some span, any will do)
    cuts       of a decision to redact: what to paint over. It lies ahead of what this watch has let go; where all of
               it has left already, the alternative is stopped. Of one to block a call: the calls, by their channel
    safe       how many characters of each text, from its start, this watch lets go. Never less than it said before,
               never of a text it was not told of. A text that is not named has let go what it had let go
    doubt      who else has to be asked before what is not out yet may leave
    """

    decision: Decision = ALLOW
    cuts: tuple[Cut, ...] = ()
    safe: Mapping[Channel, int] = field(default_factory=dict)
    doubt: Doubt | None = None


class Watch(Protocol):
    """One check over one reply as it grows. Not shared between requests, and told of one piece at a time.

    Tool calls that do not parse as JSON are withheld and never told of. The string that ended an alternative
    (`Finish.stop`) is told of as a text of the part `STOP`.
    """

    def feed(self, seen: Seen) -> Ruling: ...

    def finish(self, choice: int) -> Ruling:
        """An alternative is whole. Everything of it has to be let go here, or decided upon."""
        ...


STOP = 2**31 - 1


@runtime_checkable
class Weighing(Check, Protocol):
    """A check that may be in doubt. Checks that it `asks` (by name, or by principle) are asked on its doubt alone.

    A check with a `watch` of its own says its doubt in a `Ruling`, and needs `asks` alone.
    """

    @property
    def asks(self) -> frozenset[str]: ...

    def weigh(self, exchanges: Sequence[Exchange]) -> list[Decision | Doubt]: ...


@runtime_checkable
class Sharing(Check, Protocol):
    """One of several checks over one model, which reads an exchange once for all of them.

    Checks with equal `model` are asked together: `read` gives what the model makes of each exchange, and must be the
    same for all of them, a failed `Decision` of one that it cannot read; `said` is what follows from it for this check,
    cheap enough for the loop.
    """

    @property
    def model(self) -> Hashable: ...

    def read(self, exchanges: Sequence[Exchange]) -> Sequence[Any]: ...

    def said(self, reading: Any) -> Decision | Doubt: ...


@runtime_checkable
class Windowed(Check, Protocol):
    """A model check (cost 1 or 2) that reads a growing reply by windows, where its principle streams by a window.

    It is asked whenever `window` more characters have come, and at the end; it reads those and at most `context`
    characters before them. Any other model check is asked once, about the whole alternative.
    """

    @property
    def window(self) -> int: ...
    @property
    def context(self) -> int: ...


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
        if any(span.at[0] != 0 or span.at[1] >= len(mine) for span in decision.spans):
            raise ValueError(f"{self.check.name} found something in a part that the reply does not have")
        found = decision.spans if decision.outcome != "allow" else ()  # seen, and let go: `on_violation: allow`
        cuts = tuple(self._cut(mine[span.at[1]], span) for span in found)
        safe = {channel: sum(map(len, self.texts[channel])) for channel in mine}
        return Ruling(decision, cuts, safe)

    def _cut(self, channel: Channel, span: Span) -> Cut:
        seen = self.kinds[channel]
        return cut_of(span, channel, seen.place, seen.name)


def cut_of(span: Span, channel: Channel, place: Place, name: str, offset: int = 0) -> Cut:
    """A span of a part that a check was shown, as a cut of the text. What was shown began at `offset` of it."""
    before = len(name) + 1 if place == "tool_call" else 0  # `pieces` reads a call as its name, then its arguments
    if span.start < before:
        return Cut(channel, 0, 0)
    return Cut(channel, span.start - before + offset, span.end - before + offset)


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
