"""Checks that find stretches of text (rules, personal data, addresses): what follows from a find, whole or in a stream.

In a stream a text is looked at from `back` characters before what is new, and its last `held` characters are kept
back. A match longer than `held` is seen when it is complete, when its beginning may have left; what has not left is
cut. One that begins more than `back` characters before its end is not seen, and neither is one that hangs on what
stands further back (`^`, `\\A`): rules that need the whole text belong to a principle with `stream: buffer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fairlead.exchange import Message
from fairlead.guard.decision import ALLOW, Decision, Outcome, Span
from fairlead.guard.pieces import pieces
from fairlead.guard.watch import Cut, Ruling, Seen
from fairlead.guard.wire.events import Channel


class Finder(Protocol):
    """`matches` gives (what, start, end) of a text; `says` puts a find into words for the log, repeating no secret."""

    @property
    def name(self) -> str: ...
    @property
    def principle(self) -> str: ...
    @property
    def on_violation(self) -> Outcome: ...
    @property
    def at(self) -> frozenset[str]: ...

    def matches(self, text: str) -> list[tuple[str, int, int]]: ...

    def says(self, what: str, place: str) -> str: ...


def decided(check: Finder, messages: Sequence[Message]) -> Decision:
    """What follows from all that a check finds in whole messages."""
    hits = [
        (what, part, Span(part.at, start, end))
        for part in pieces(messages)
        if part.place in check.at
        for what, start, end in check.matches(part.text)
    ]
    if not hits:
        return ALLOW
    outcome = check.on_violation
    if outcome == "redact" and any(part.place == "tool_call" for _, part, _ in hits):
        outcome = "block_tool_call"  # a call with a hole in it is another call
    why = "; ".join(dict.fromkeys(check.says(what, part.place) for what, part, _ in hits))
    return Decision(outcome, check.principle, why, tuple(span for _, _, span in hits), check.name)


@dataclass(slots=True)
class _Text:
    text: str = ""  # its end, from `begins` on
    begins: int = 0
    seen: int = 0
    go: int = 0
    found: list[tuple[str, int, int]] | None = None  # in `text`, where that has been looked at


@dataclass(slots=True)
class SpanWatch:
    """A stream under a check that finds stretches of text: `check.matches(text)` gives (what, start, end)."""

    check: Finder
    held: int
    back: int
    _texts: dict[Channel, _Text] = field(default_factory=dict)
    _open: dict[Channel, Seen] = field(default_factory=dict)
    _done: set[tuple[Channel, int, int]] = field(default_factory=set)

    def feed(self, seen: Seen) -> Ruling:
        place = seen.place if seen.place in ("tool_call", "reasoning") else "reply"
        if place not in self.check.at:
            return Ruling(safe={seen.channel: 1 << 62})
        self._open[seen.channel] = seen
        return self._look(seen, seen.text, place, seen.last)

    def finish(self, choice: int) -> Ruling:
        rulings = [
            self._look(seen, "", seen.place, True)
            for channel, seen in self._open.items()
            if channel.choice == choice and not seen.last
        ]
        told = [ruling for ruling in rulings if ruling.decision.outcome != "allow"]
        return Ruling(
            told[0].decision if told else ALLOW,
            tuple(cut for ruling in rulings for cut in ruling.cuts),
            {channel: n for ruling in rulings for channel, n in ruling.safe.items()},
        )

    def _look(self, seen: Seen, new: str, place: str, last: bool) -> Ruling:
        channel = seen.channel
        here = self._texts.get(channel)
        if here is None:
            here = self._texts[channel] = _Text()
        if not here.text and place == "tool_call":  # read as in a whole reply: its name, then its arguments
            here.text, here.begins = f"{seen.name}\n", -len(seen.name) - 1
        if new:
            here.text += new
            here.seen += len(new)
            here.found = None
        if here.found is None:  # a text that has ended is looked at once more, and holds what it held
            here.found = self.check.matches(here.text)
        cuts, why = [], []
        ends = here.seen if last else here.seen - self.held
        for what, start, end in here.found:
            a, b = max(here.begins + start, 0 if place == "tool_call" else here.go), max(1, here.begins + end)
            known = (channel, here.begins + start, here.begins + end)
            # a match at the very end may grow, or not be one, with what comes next
            if b <= here.go or (not last and b == here.seen and b - a < self.held) or known in self._done:
                if not last and b == here.seen:
                    ends = min(ends, max(a, here.seen - self.held))
                continue
            self._done.add(known)
            cuts.append(Cut(channel, a, b))
            why.append(what)
        here.go = max(here.go, ends)
        if len(here.text) > 2 * self.back:
            here.begins += len(here.text) - self.back
            here.text, here.found = here.text[-self.back :], None
        safe = {channel: max(0, here.go)}
        if not cuts:
            return Ruling(safe=safe)
        outcome = self.check.on_violation
        if outcome == "redact" and place == "tool_call":
            outcome = "block_tool_call"
        told = "; ".join(dict.fromkeys(self.check.says(what, place) for what in why))
        spans = tuple(Span((channel.choice, channel.part), cut.start, cut.end) for cut in cuts)
        decision = Decision(outcome, self.check.principle, told, spans, self.check.name)
        # seen, and let go (`on_violation: allow`): there is nothing to paint over
        return Ruling(decision, () if outcome == "allow" else tuple(cuts), safe)
