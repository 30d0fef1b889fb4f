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
from fairlead.guard.checks import decode, told
from fairlead.guard.decision import ALLOW, Decision, Outcome, Span
from fairlead.guard.pieces import PLACES, Piece, pieces
from fairlead.judges.lineage import Lineage, leaf


@dataclass(frozen=True, slots=True)
class Secret:
    """One thing to keep: given `values`, what `pattern` captures in the system prompt, or, with neither, what the
    system prompt tells to keep in plain words (`told.py`). `anywhere` looks for it in every place (a canary)."""

    id: str
    values: tuple[str, ...] = ()
    pattern: str = ""
    anywhere: bool = False

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
    at: frozenset[str] = PLACES
    cost: int = 0

    @property
    def name(self) -> str:
        return f"secrets:{self.principle}" if self.principle else "secrets"

    @cached_property
    def lineage(self) -> Lineage:
        files = (__file__, decode.__file__, told.__file__)
        code = hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()
        return leaf("rule", text=" ".join(["guard secrets", *(secret.id for secret in self.secrets)]), code=code)

    def decide(self, exchanges: Sequence[Exchange]) -> list[Decision]:
        return [self._one(item) for item in exchanges]

    def _one(self, item: Exchange) -> Decision:
        spans: list[Span] = []
        evidence: list[str] = []
        for at, anywhere in ((self.at, False), (PLACES, True)):
            known = [(s.id, value) for s in self.secrets if s.anywhere is anywhere for value in values_of(s, item)]
            if known:
                found, said = _look(known, item, [part for part in pieces(item.reply) if part.place in at])
                spans += found
                evidence += said
        if not spans:
            return ALLOW
        outcome, why = self.on_violation, "; ".join(dict.fromkeys(evidence))
        calls = {part.at for part in pieces(item.reply) if part.place == "tool_call"}
        if outcome == "redact" and any(span.at in calls for span in spans):
            outcome = "block_tool_call"  # a call with a hole in it is another call
        return Decision(outcome, self.principle, why, tuple(dict.fromkeys(spans)), self.name)


def _look(known: Sequence[tuple[str, str]], item: Exchange, parts: Sequence[Piece]) -> tuple[list[Span], list[str]]:
    """Where these secrets (id, value) stand in these parts of the reply, and what was seen."""
    said = "".join(message.text + "\n" for message in item.messages if message.role == "assistant")
    views = list(decode.readings(said + "".join(f"{part.text}\n" for part in parts)))
    spans: list[Span] = []
    evidence: list[str] = []
    for secret_id, value in dict.fromkeys(known):
        for hit in decode.find(value, views):
            touched = _spans(hit.start, hit.end, parts, len(said))
            if touched:
                spans += touched
                evidence.append(f"{secret_id} {hit.how}, at {max(0, hit.start - len(said))}")
    return spans, evidence


def values_of(secret: Secret, item: Exchange) -> tuple[str, ...]:
    """The values to keep in this exchange. A system prompt that gives none has none to keep."""
    if secret.values:
        return secret.values
    found: list[str] = []
    for prompt in (message.text for message in item.messages if message.origin == "operator"):
        if secret.pattern:
            found += [next(filter(None, m.groups()), "") for m in re.finditer(secret.pattern, prompt)]
        else:
            found += told.told_to_keep(prompt, secret.id)
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
