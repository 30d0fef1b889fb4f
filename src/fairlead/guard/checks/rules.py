"""Rules: patterns that a reply must not hold. There are none by default; a rule is only what somebody wrote down, in
the guard layer of a stack (`guard: {rules: {PRINCIPLE: [PATTERN]}}`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from fairlead.errors import InputError
from fairlead.exchange import Exchange
from fairlead.guard.decision import ALLOW, Decision, Outcome, Span
from fairlead.guard.pieces import PLACES, Piece, pieces
from fairlead.judges.lineage import Lineage, leaf


def fault(pattern: str) -> str:
    """What is wrong with a pattern, or ""."""
    try:
        compiled = re.compile(pattern)
    except re.error as problem:
        return f"the pattern {pattern!r} cannot be read: {problem}"
    return f"the pattern {pattern!r} matches empty text: it would match every reply" if compiled.match("") else ""


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

    @cached_property
    def _compiled(self) -> tuple[re.Pattern[str], ...]:
        return tuple(map(re.compile, self.patterns))

    def decide(self, exchanges: Sequence[Exchange]) -> list[Decision]:
        return [self._one(item) for item in exchanges]

    def _one(self, item: Exchange) -> Decision:
        hits = [
            (pattern.pattern, part, Span(part.at, match.start(), match.end()))
            for part in pieces(item.reply)
            if part.place in self.at
            for pattern in self._compiled
            for match in pattern.finditer(part.text)
            if match.end() > match.start()
        ]
        if not hits:
            return ALLOW
        evidence = "; ".join(dict.fromkeys(f"matches /{pattern}/ in the {_place(part)}" for pattern, part, _ in hits))
        outcome = self.on_violation
        if outcome == "redact" and any(part.place == "tool_call" for _, part, _ in hits):
            outcome = "block_tool_call"  # a call with a hole in it is another call
        return Decision(outcome, self.principle, evidence, tuple(span for _, _, span in hits), self.name)


def _place(part: Piece) -> str:
    return part.place.replace("_", " ")
