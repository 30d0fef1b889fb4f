"""Checks that find stretches of text (rules, personal data, addresses): what follows from a find, whole or in a stream.

In a stream a text is looked at from `back` characters before what is new, and its last `held` characters are kept
back; those that no screen shows are not counted, since what reads past them would match over any number of them. A
check that knows where a find may begin (`opens`) holds back from there alone, and lets ordinary text go at once.

A match longer than `held` is seen when it is complete, when its beginning may have left; what has not left is cut. One
that begins more than `back` characters before its end is not seen, and neither is one that hangs on what stands further
back (`^`, `\\A`): rules that need the whole text belong to a principle with `stream: buffer`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fairlead.exchange import Message
from fairlead.guard.checks.normalise import hidden
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


RUN = 3  # of hidden characters in a row, the first that are kept: no writing puts more marks on one letter


@dataclass(slots=True)
class _Text:
    """The end of a text, of which `at` leads back to the text: it lacks what was left out of long hidden runs."""

    text: str = ""  # from `begins` on
    begins: int = 0
    seen: int = 0
    go: int = 0
    blank: int = 0  # characters of `text` that no screen shows
    run: int = 0  # hidden characters that it ends in
    gaps: list[tuple[int, int]] = field(default_factory=list)  # (where in `text`, how many were left out before it)
    found: list[tuple[str, int, int]] | None = None  # in `text`, where that has been looked at

    def add(self, new: str) -> None:
        self.seen += len(new)
        if not hidden(new):
            self.text += new
            self.run = 0 if new else self.run
            return
        kept: list[str] = []
        for char in new:
            self.run = self.run + 1 if hidden(char) else 0
            self.blank += 0 < self.run <= RUN
            where = len(self.text) + len(kept)
            if self.run <= RUN:
                kept.append(char)
            elif self.gaps and self.gaps[-1][0] == where:
                self.gaps[-1] = (where, self.gaps[-1][1] + 1)
            else:
                self.gaps.append((where, 1))
        self.text += "".join(kept)

    def at(self, i: int) -> int:
        """Where the i-th character stands in the whole text."""
        return self.begins + i + (sum(n for where, n in self.gaps if where <= i) if self.gaps else 0)

    def last(self, visible: int) -> int:
        """The index in `text` of the first of its last characters, of which so many are visible."""
        size = len(self.text)
        start = max(0, size - visible)
        while self.blank and start and (lacking := hidden(self.text[start:]) - (size - start - visible)) > 0:
            start = max(0, start - lacking)
        return start

    def forget(self, keep: int) -> None:
        cut = len(self.text) - keep
        self.begins = self.at(cut)
        self.text, self.found = self.text[cut:], None
        self.gaps = [(where - cut, n) for where, n in self.gaps if where > cut]
        self.blank = hidden(self.text)


@dataclass(slots=True)
class SpanWatch:
    """A stream under a check that finds stretches of text: `check.matches(text)` gives (what, start, end).

    opens   where in the end of a text something begins that may yet become, or grow into, a find: the first such
            place, or the length of the text. Where it is not given, that may be anywhere
    """

    check: Finder
    held: int
    back: int
    opens: Callable[[str], int] | None = None
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
            here.add(new)
            here.found = None
        if here.found is None:  # a text that has ended is looked at once more, and holds what it held
            here.found = self.check.matches(here.text)
        cuts, why = [], []
        floor = here.last(self.held)
        ends = here.seen if last else here.at(floor)
        hold = ends if last or floor else -1  # what begins at or before it is too long to be waited for
        if not last and self.opens is not None:
            start = floor + self.opens(here.text[floor:])
            ends = here.at(start) if start < len(here.text) else here.seen
        shown = len(here.text) - here.run if here.run <= RUN else len(here.text) - RUN
        for what, start, end in here.found:
            known = (channel, here.at(start), here.at(end - 1) + 1)
            a, b = max(known[1], 0 if place == "tool_call" else here.go), max(1, known[2])
            # a match at the very end may grow, or not be one, with what comes next
            if b <= here.go or (not last and end >= shown and a > hold) or known in self._done:
                if not last and end >= shown:
                    ends = min(ends, max(a, hold))
                continue
            self._done.add(known)
            cuts.append(Cut(channel, a, b))
            why.append(what)
        here.go = max(here.go, ends)
        if len(here.text) > 2 * self.back:
            here.forget(self.back)
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
