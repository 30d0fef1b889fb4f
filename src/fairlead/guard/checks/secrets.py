"""Keeping secrets: what may not leave in any spelling or encoding is found, and what has to be painted over.

The values come from the constitution: given ones, and, where it says `from: system`, what the system prompt of the
exchange at hand holds ("the day word is anchor"). What earlier turns of the assistant already said is read together
with the reply, so that a secret told one letter a turn is seen; only the reply can still be held back.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import ClassVar, TypeAlias

from fairlead.exchange import Exchange, Message, Text
from fairlead.guard.checks import (
    canary,
    decode,
    drip,
    normalise,
    odd,
    painted,
    reader,
    signs,
    spill,
    told,
    trail,
    words,
)
from fairlead.guard.checks.canary import Needles, is_random, needles
from fairlead.guard.checks.painted import Painted
from fairlead.guard.checks.reader import TooMuch
from fairlead.guard.checks.spill import Leak, Spill
from fairlead.guard.checks.words import Told
from fairlead.guard.decision import ALLOW, Decision, Outcome, Span, most_severe
from fairlead.guard.pieces import PLACES, Piece, pieces
from fairlead.guard.watch import Cut, Ruling, Seen, cut_of
from fairlead.guard.wire.events import Channel
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
    """Finds the secrets of one principle in a reply: drawn ones by the part that makes 32 bits (`spill.py`), others as
    a whole (`words.py`). Whole replies and streams go the same way."""

    secrets: tuple[Secret, ...]
    principle: str = ""
    on_violation: Outcome = "redact"
    at: frozenset[str] = PLACES
    cost: int = 0
    held: ClassVar[int] = spill.HELD + spill.BLOCK  # characters of a stream at most, of what is no ordinary text
    ordinary: ClassVar[int] = 2 * spill.BLOCK
    painted: Painted = field(default_factory=Painted, repr=False, compare=False)

    @property
    def name(self) -> str:
        return f"secrets:{self.principle}" if self.principle else "secrets"

    @cached_property
    def lineage(self) -> Lineage:
        files = [__file__, *(module.__file__ or "" for module in _MODULES)]
        code = hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()
        return leaf("rule", text=" ".join(["guard secrets", *(secret.id for secret in self.secrets)]), code=code)

    def decide(self, exchanges: Sequence[Exchange]) -> list[Decision]:
        return [self._one(item) for item in exchanges]

    def _one(self, item: Exchange) -> Decision:
        watch = SecretsWatch(self, item.messages, whole=True)
        parts = pieces(item.reply)
        rulings = [watch.feed(_seen(n, part)) for n, part in enumerate(parts)]
        rulings.append(watch.finish(0))
        spans: list[Span] = []
        for cut in sorted(
            {cut for ruling in rulings for cut in ruling.cuts}, key=lambda c: (c.channel, c.start, -c.end)
        ):
            part = parts[cut.channel.part]
            name = part.text.find("\n") if part.place == "tool_call" else -1
            start, end = (name + 1 + cut.start, name + 1 + cut.end) if cut.end else (0, name)
            if not (spans and spans[-1].at == part.at and end <= spans[-1].end):
                spans.append(Span(part.at, start, end))
        told = [ruling.decision for ruling in rulings if ruling.decision.outcome != "allow"]
        if not told:
            return ALLOW
        why = "; ".join(dict.fromkeys(why for decision in told for why in decision.evidence.split("; ")))
        return Decision(most_severe(told).outcome, self.principle, why, tuple(spans), self.name)

    def watch(self, messages: Sequence[Message]) -> SecretsWatch:
        return SecretsWatch(self, messages)

    def wanted(self, messages: Sequence[Message]) -> list[Wanted]:
        """What is looked for in a reply to these messages."""
        return self._fixed if self._fixed is not None else _wanted(self, messages)

    @cached_property
    def _fixed(self) -> list[Wanted] | None:
        """The same for all messages, where no secret is read from them."""
        return _wanted(self, ()) if all(secret.values for secret in self.secrets) else None

    def with_canary(self, value: str, id: str = "canary") -> SecretsCheck:
        """The same check, of which `value` (from `fresh_canary`, placed by `with_canary`) is a canary.

        A value that serves many requests is made ready once; a fresh one per request costs about 0.1 ms.
        """
        return dataclasses.replace(self, secrets=(*self.secrets, Secret(id, (value,), anywhere=True)))


def fresh_canary() -> str:
    """128 bits as 32 hex digits."""
    return secrets.token_hex(16)


def with_canary(messages: Sequence[Message], value: str) -> tuple[Message, ...]:
    """The messages with the canary last in the system prompt (a system prompt of its own where there is none)."""
    said = _CANARY.read_text().strip().replace("{canary}", value)
    for n in range(len(messages) - 1, -1, -1):
        if messages[n].role == "system":
            placed = dataclasses.replace(messages[n], parts=(*messages[n].parts, Text(f"\n\n{said}")))
            return (*messages[:n], placed, *messages[n + 1 :])
    return (Message("system", (Text(said),)), *messages)


_CANARY = Path(__file__).with_name("canary.md")


_Known: TypeAlias = tuple[frozenset[str], "Spill | Told", tuple[str, ...]]  # places, state, ids
Wanted: TypeAlias = tuple[frozenset[str], "Needles | None", tuple[str, ...], tuple[str, ...]]
"""Places; needles of drawn values (None: they are words); the values; their ids."""


def _wanted(check: SecretsCheck, messages: Sequence[Message]) -> list[Wanted]:
    found: list[Wanted] = []
    for places, anywhere in ((check.at, False), (PLACES, True)):
        pairs = {
            value: secret.id
            for secret in check.secrets
            if secret.anywhere is anywhere
            for value in values_in(secret, messages)
        }
        drawn = tuple(value for value in pairs if is_random(value))
        worded = tuple(value for value in pairs if value not in drawn)
        if drawn:
            found.append((places, needles(drawn), drawn, tuple(pairs[value] for value in drawn)))
        if worded:
            found.append((places, None, worded, tuple(pairs[value] for value in worded)))
    return found


class SecretsWatch:
    """One reply, all its alternatives and parts, and what earlier turns of the assistant said."""

    def __init__(self, check: SecretsCheck, messages: Sequence[Message], *, whole: bool = False) -> None:
        self._check = check
        self._known: list[_Known] = []
        self._cuts: set[Cut] = set()
        self._open: dict[Channel, Seen] = {}
        self._messages = messages
        self._texts: dict[Channel, list[str]] = {}
        self._leaked = False
        self._names: Names | None = None
        said, painted = check.painted.said(messages)
        look = signs.Eye()
        for places, drawn, values, ids in check.wanted(messages):
            state = Told(values, said, whole, look) if drawn is None else Spill(drawn, said, painted, whole, look)
            self._known.append((places, state, ids))

    def feed(self, seen: Seen) -> Ruling:
        text = f"{seen.name}\n{seen.text}" if seen.place == "tool_call" else seen.text  # told of once, whole
        self._open[seen.channel] = seen
        self._texts.setdefault(seen.channel, []).append(text)
        return self._look(seen, text, seen.last)

    def finish(self, choice: int) -> Ruling:
        waiting = [seen for channel, seen in self._open.items() if channel.choice == choice and not seen.last]
        ruling = _together([self._look(seen, "", True) for seen in waiting])
        if self._leaked:  # the next turn may go on where this one was painted over
            told = {
                channel: "".join(texts) for channel, texts in sorted(self._texts.items()) if channel.choice == choice
            }
            cut = {cut.channel for cut in self._cuts if self._open[cut.channel].place == "tool_call"}
            self._check.painted.keep(self._messages, list(told.values()), [told[c] for c in told if c in cut])
        return ruling

    def _look(self, seen: Seen, text: str, last: bool) -> Ruling:
        channel, place = seen.channel, _PLACE_OF.get(seen.place, "reply")
        safe: list[int] = []
        leaks: list[tuple[Leak, str]] = []
        for places, state, ids in self._known:
            if place in places:
                try:
                    leaks += [(leak, ids[leak.canary]) for leak in state.feed(channel, text, last)]
                except TooMuch:
                    return self._no_end()
                safe.append(state.go(channel))
        if seen.place == "tool_call" and self._known:
            try:
                leaks += self._in_names(seen)
            except TooMuch:
                return self._no_end()
        here = {channel: max(0, min(safe) - _before(seen))} if safe else {channel: 1 << 62}
        new = {self._cut(leak): (leak, id) for leak, id in leaks}
        new = {cut: told for cut, told in new.items() if cut not in self._cuts}
        if not new:
            return Ruling(safe=here)
        self._cuts |= set(new)
        self._leaked = True
        outcome = self._check.on_violation
        if outcome == "redact" and any(self._open[cut.channel].place == "tool_call" for cut in new):
            outcome = "block_tool_call"  # a call with a hole in it is another call
        why = "; ".join(
            dict.fromkeys(
                f"{id} {leak.how}, " + (f"at {cut.start}" if cut.end else "in the name of a call")
                for cut, (leak, id) in new.items()
            )
        )
        spans = tuple(Span((cut.channel.choice, cut.channel.part), cut.start, cut.end) for cut in new)
        return Ruling(Decision(outcome, self._check.principle, why, spans, self._check.name), tuple(new), here)

    def _no_end(self) -> Ruling:
        why = "the text is made so that reading it through its encodings has no end"
        return Ruling(Decision("failed", self._check.principle, why, (), self._check.name))

    def _in_names(self, seen: Seen) -> list[tuple[Leak, str]]:
        """What the names of calls hold together, one after the other."""
        if self._names is None:
            said, _ = self._check.painted.said(self._messages)
            self._names = Names([(p, state, ids) for p, state, ids in self._known if "tool_call" in p], said)
        return self._names.feed(seen)

    def _cut(self, leak: Leak) -> Cut:
        """Where a leak stands in a text. One that touches the name of a call takes the call out."""
        seen = self._open[leak.channel]
        return cut_of(Span((0,), leak.start, leak.end), leak.channel, seen.place, seen.name)


class Names:
    """The names of the calls of a conversation as a text of their own. With the arguments between them, what is told in
    many names would be too short by the piece to be read under a decoder; so would it with the same words before each
    ("look_YTZ", "look_kNG"). So they are read as they are, and without such words; and without those that are no hex
    digits, which may be a part of what is told ("t.ef-bc-97", "t.ef-bd-85")."""

    def __init__(self, known: Sequence[_Known], said: Sequence[str]) -> None:
        self._before = ""
        earlier = [self._read(match[0]) for match in map(_NAMED.match, said) if match]
        self._ways = [
            [(_anew(state, [names[way] for names in earlier if names[way]]), ids) for _, state, ids in known]
            for way in range(3)
        ]

    def feed(self, seen: Seen) -> list[tuple[Leak, str]]:
        return [
            (leak, ids[leak.canary])
            for name, known in zip(self._read(seen.name), self._ways, strict=True)
            for state, ids in known
            for leak in state.feed(seen.channel, name, True)
        ]

    def _read(self, name: str) -> tuple[str, str, str]:
        """The name; without those of its words that the name before it begins with too (small letters alone, for others
        may be a part of what is told); and without those of them before the first that may be hex digits."""
        start, hexed = 0, -1
        for word in _WORDS.finditer(name):
            if word.start() != start or not self._before.startswith(name[: word.end()]):
                break
            if hexed < 0 and _HEX_WORD.fullmatch(word[0][:-1]):
                hexed = start
            start = word.end()
        self._before = name
        return name, name[start:], name[hexed if hexed >= 0 else start :]


_WORDS = re.compile(r"[a-z]+[_.:/@+-]")
_HEX_WORD = re.compile(r"[a-f]{1,2}|[n-s]{1,2}")
_NAMED = re.compile(r"[^\s{}]{1,256}(?=\n)")  # a call as it is read begins so; of a text, one word does no harm


def _anew(state: Spill | Told, said: Sequence[str]) -> Spill | Told:
    """The same secrets over another text."""
    if isinstance(state, Spill):
        return Spill(state.needles, said, state.painted, state.whole)
    return Told(state.values, said, state.whole)


def _before(seen: Seen) -> int:
    """Characters of a call that are read before its arguments: its name, and a line end."""
    return len(seen.name) + 1 if seen.place == "tool_call" else 0


_PLACE_OF = {"reply": "reply", "reasoning": "reasoning", "tool_call": "tool_call", "tool_result": "tool_result"}
_MODULES = (canary, decode, drip, normalise, odd, painted, reader, signs, spill, told, trail, words)


def _together(rulings: Sequence[Ruling]) -> Ruling:
    safe = {channel: n for ruling in rulings for channel, n in ruling.safe.items()}
    cuts = tuple(cut for ruling in rulings for cut in ruling.cuts)
    return Ruling(most_severe(ruling.decision for ruling in rulings), cuts, safe)


def _seen(number: int, part: Piece) -> Seen:
    """A whole text of a reply as the one piece that it comes in."""
    name, _, text = part.text.partition("\n") if part.place == "tool_call" else ("", "", part.text)
    return Seen(Channel(0, number), part.place, text, True, name)  # type: ignore[arg-type]  # a tool's result is a place too


def values_of(secret: Secret, item: Exchange) -> tuple[str, ...]:
    """The values to keep in this exchange. A system prompt that gives none has none to keep."""
    return values_in(secret, item.messages)


def values_in(secret: Secret, messages: Sequence[Message]) -> tuple[str, ...]:
    """The values that these messages ask to keep."""
    if secret.values:
        return secret.values
    found: list[str] = []
    for prompt in (message.text for message in messages if message.origin == "operator"):
        found += _values_of_prompt(prompt, secret.pattern, secret.id)
    return tuple(dict.fromkeys(filter(None, found)))


@lru_cache(maxsize=256)
def _values_of_prompt(prompt: str, pattern: str, id: str) -> tuple[str, ...]:
    if pattern:
        return tuple(next(filter(None, m.groups()), "") for m in re.finditer(pattern, prompt))
    return told.told_to_keep(prompt, id)
