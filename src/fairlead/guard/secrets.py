"""Keeping secrets: what may not leave in any spelling or encoding is found, and what has to be painted over.

The values come from the constitution: given ones, and, where it says `from: system`, what the system prompt of the
exchange at hand holds ("the day word is anchor"). What earlier turns of the assistant already said is read together
with the reply, so that a secret told one letter a turn is seen; only the reply can still be held back.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fairlead.exchange import Exchange
from fairlead.guard import decode
from fairlead.guard.decision import ALLOW, Decision, Outcome, Span
from fairlead.guard.pieces import Piece, pieces
from fairlead.guard.told import told_to_keep
from fairlead.judges.lineage import Lineage, leaf


@dataclass(frozen=True, slots=True)
class Secret:
    """One thing to keep: given `values`, what `pattern` captures in the system prompt, or, with neither, what the
    system prompt tells to keep in plain words (`told.py`)."""

    id: str
    values: tuple[str, ...] = ()
    pattern: str = ""

    def __post_init__(self) -> None:
        for value in self.values:
            try:
                decode.shape(value)
            except ValueError as problem:
                raise ValueError(f"secret {self.id!r}: {problem}") from None
        if self.pattern and not re.compile(self.pattern).groups:
            raise ValueError(f"secret {self.id!r}: the pattern {self.pattern!r} has no group that captures the value")


@dataclass(frozen=True)
class SecretsCheck:
    """Finds the secrets of one principle in a reply, through the readings of `decode.py`."""

    secrets: tuple[Secret, ...]
    principle: str = ""
    on_violation: Outcome = "redact"
    at: frozenset[str] = frozenset({"reply", "reasoning", "tool_call", "tool_result"})
    cost: int = 0

    @property
    def name(self) -> str:
        return f"secrets:{self.principle}" if self.principle else "secrets"

    @cached_property
    def lineage(self) -> Lineage:
        code = hashlib.sha256(Path(__file__).read_bytes() + Path(decode.__file__).read_bytes()).hexdigest()
        return leaf("rule", text=" ".join(["guard secrets", *(secret.id for secret in self.secrets)]), code=code)

    def decide(self, exchanges: Sequence[Exchange]) -> list[Decision]:
        return [self._one(item) for item in exchanges]

    def _one(self, item: Exchange) -> Decision:
        known = [(secret.id, value) for secret in self.secrets for value in values_of(secret, item)]
        if not known:
            return ALLOW
        said = "".join(message.text + "\n" for message in item.messages if message.role == "assistant")
        parts = [part for part in pieces(item.reply) if part.place in self.at]
        text = said + "".join(f"{part.text}\n" for part in parts)
        views = list(decode.readings(text))
        spans: list[Span] = []
        evidence: list[str] = []
        for secret_id, value in dict.fromkeys(known):
            for hit in decode.find(value, views):
                touched = _spans(hit.start, hit.end, parts, len(said))
                if touched:
                    spans += touched
                    evidence.append(f"{secret_id} {hit.how}, at {max(0, hit.start - len(said))}")
        if not spans:
            return ALLOW
        outcome, told = self.on_violation, "; ".join(dict.fromkeys(evidence))
        if outcome == "redact" and any(part.place == "tool_call" for part in parts for s in spans if s.at == part.at):
            outcome = "block_tool_call"  # a call with a hole in it is another call
        return Decision(outcome, self.principle, told, tuple(dict.fromkeys(spans)), self.name)


def values_of(secret: Secret, item: Exchange) -> tuple[str, ...]:
    """The values to keep in this exchange. A system prompt that gives none has none to keep."""
    if secret.values:
        return secret.values
    found: list[str] = []
    for prompt in (message.text for message in item.messages if message.origin == "operator"):
        if secret.pattern:
            found += [next(filter(None, m.groups()), "") for m in re.finditer(secret.pattern, prompt)]
        else:
            found += told_to_keep(prompt, secret.id)
    return tuple(dict.fromkeys(filter(None, found)))


def _spans(start: int, end: int, parts: Sequence[Piece], offset: int) -> list[Span]:
    """The stretch [start, end) of the joined text as spans of the pieces it touches."""
    out: list[Span] = []
    for part in parts:
        a, b = max(start, offset), min(end, offset + len(part.text))
        if a < b:
            out.append(Span(part.at, a - offset, b - offset))
        offset += len(part.text) + 1
    return out
