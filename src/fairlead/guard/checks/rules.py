"""Rules: patterns that a reply must not hold. There are none by default; a rule is only what somebody wrote down, in
the guard layer of a stack (`guard: {rules: {PRINCIPLE: [PATTERN]}}`).

Patterns are read by RE2, so that no pattern can be made to take longer than the text is long; what RE2 does not know
(look-around, back-references) is refused with the place. Where the extra `guard` is not installed the standard library
reads them, after the same words are refused.

In a stream a text is looked at from `BACK` characters before what is new, and its last `HELD` characters are kept
back. A match longer than `HELD` is seen when it is complete, when its beginning may have left; what has not left is
cut. One that begins more than `BACK` characters before its end is not seen, and neither is one that hangs on what
stands further back (`^`, `\\A`): rules that need the whole text belong to a principle with `stream: buffer`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from fairlead.errors import InputError
from fairlead.exchange import Exchange, Message
from fairlead.guard.decision import ALLOW, Decision, Outcome, Span
from fairlead.guard.pieces import PLACES, pieces
from fairlead.guard.watch import Cut, Ruling, Seen
from fairlead.guard.wire.events import Channel
from fairlead.judges.lineage import Lineage, leaf

try:
    import re2
except ImportError:
    re2 = None

HELD, BACK = 256, 2048
_UNKNOWN = re.compile(r"(?<!\\)(?:\\\\)*(\(\?(?:[=!]|<[=!]|\(|>|P=)|\\[1-9]|[*+?}]\+)")


def fault(pattern: str) -> str:
    """What is wrong with a pattern, and where, or ""."""
    unknown = _UNKNOWN.search(pattern)
    if unknown:
        what, at = unknown[1], unknown.start(1)
        return (
            f"the pattern {pattern!r} cannot be read: {what!r} at character {at} (look-around, back-references and "
            "possessive repeats are unknown to RE2; write it without)"
        )
    try:
        found = _compiled(pattern)
    except _ERRORS as problem:
        return f"the pattern {pattern!r} cannot be read: {problem}"
    return f"the pattern {pattern!r} matches empty text: it would match every reply" if found.match("") else ""


_ERRORS = (re.error,) if re2 is None else (re.error, re2.error)


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> Any:
    if re2 is None:
        return re.compile(pattern)
    options = re2.Options()
    options.log_errors = False
    return re2.compile(pattern, options)


@dataclass(frozen=True)
class RulesCheck:
    """Regular expressions over every text of the reply, as written.

    What matches is what gets redacted. A pattern that matches the empty text would match everywhere and is refused.
    """

    patterns: tuple[str, ...]
    principle: str = ""
    on_violation: Outcome = "refuse"
    at: frozenset[str] = PLACES
    cost: int = 0

    def __post_init__(self) -> None:
        for pattern in self.patterns:
            problem = fault(pattern)
            if problem:
                raise InputError(f"{self.name}: {problem}")

    @property
    def name(self) -> str:
        return f"rules:{self.principle}" if self.principle else "rules"

    @cached_property
    def lineage(self) -> Lineage:
        # Patterns are compared by their exact text: punctuation is meaning here, so it goes in as code.
        return leaf("rule", text="guard rules", code="\n".join(self.patterns))

    def matches(self, text: str, start: int = 0) -> list[tuple[str, int, int]]:
        """(pattern, start, end) of every match in text[start:]."""
        return [
            (pattern, start + match.start(), start + match.end())
            for pattern in self.patterns
            for match in _compiled(pattern).finditer(text[start:] if start else text)
            if match.end() > match.start()
        ]

    def decide(self, exchanges: Sequence[Exchange]) -> list[Decision]:
        return [self._one(item) for item in exchanges]

    def _one(self, item: Exchange) -> Decision:
        hits = [
            (pattern, part, Span(part.at, start, end))
            for part in pieces(item.reply)
            if part.place in self.at
            for pattern, start, end in self.matches(part.text)
        ]
        if not hits:
            return ALLOW
        evidence = "; ".join(dict.fromkeys(self.says(pattern, part.place) for pattern, part, _ in hits))
        outcome = self.on_violation
        if outcome == "redact" and any(part.place == "tool_call" for _, part, _ in hits):
            outcome = "block_tool_call"  # a call with a hole in it is another call
        return Decision(outcome, self.principle, evidence, tuple(span for _, _, span in hits), self.name)

    def says(self, pattern: str, place: str) -> str:
        return f"matches /{pattern}/ in the {place.replace('_', ' ')}"

    def watch(self, messages: Sequence[Message]) -> SpanWatch:
        return SpanWatch(self, HELD, BACK)


@dataclass(slots=True)
class _Text:
    text: str = ""  # its end, from `begins` on
    begins: int = 0
    seen: int = 0
    go: int = 0


@dataclass(slots=True)
class SpanWatch:
    """A stream under a check that finds stretches of text: `check.matches(text)` gives (what, start, end)."""

    check: Any
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
        here = self._texts.setdefault(channel, _Text())
        if not here.text and place == "tool_call":  # read as in a whole reply: its name, then its arguments
            here.text, here.begins = f"{seen.name}\n", -len(seen.name) - 1
        here.text += new
        here.seen += len(new)
        cuts, why = [], []
        ends = here.seen if last else here.seen - self.held
        for what, start, end in self.check.matches(here.text):
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
            here.text = here.text[-self.back :]
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
