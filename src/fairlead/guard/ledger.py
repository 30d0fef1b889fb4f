"""What left the guard, stretch by stretch, and which verdicts let it go.

A verdict is what one check said: of a check that follows a stream, one for all that it let go of an alternative; of a
model, one per question. Stretches of one text lie end to end from its first character. What was let go is written down
once it is sent (`sent`), or not at all (`forget`). `faults` compares a ledger with
what was written, event by event: the property that the guard stands for, and a switch for looking into a running one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fairlead.guard.watch import STOP
from fairlead.guard.wire.events import Delta, Finish, Open

_IDS = 1 << 48


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one check said.

    id         "v-" and 12 hex digits
    check      its name ("guard" where nothing was asked: nothing is there to check)
    principle  id of the principle ("" for none)
    outcome    an `Outcome` of decision.py, or "doubt"
    evidence   what was seen and where, never the secret itself
    ms         what it took, in milliseconds, for a model; 0.0 for code
    """

    id: str
    check: str
    principle: str = ""
    outcome: str = "allow"
    evidence: str = ""
    ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Range:
    """Characters [start, end) of one text as the client reads it, the guard's own words in it included. The text of a
    tool call is its name, and right behind it its arguments.

    choice, part  the alternative, and the number of the part within it
    place         place of the part, or "guard" for words of the guard itself (a mark, what a principle says)
    bytes         its length in UTF-8
    sha256        digest of those bytes
    verdicts      ids of all verdicts that let it go
    """

    choice: int
    part: int
    place: str
    start: int
    end: int
    bytes: int
    sha256: str
    verdicts: tuple[str, ...]


class _Run:
    """A stretch that may still grow."""

    __slots__ = ("bytes", "end", "hash", "place", "start", "verdicts")

    def __init__(self, place: str, start: int, verdicts: tuple[str, ...]) -> None:
        self.place, self.start, self.verdicts = place, start, verdicts
        self.end, self.bytes, self.hash = start, 0, hashlib.sha256()


class Ledger:
    """The ledger of one request. With `keep` it holds the texts themselves too (`said`)."""

    def __init__(self, keep: bool = False) -> None:
        self._texts: dict[tuple[int, int], list[str]] | None = {} if keep else None
        self.verdicts: list[Verdict] = []
        self.shadow: list[Verdict] = []  # of checks in shadow mode: they cover nothing
        self._next = int.from_bytes(os.urandom(6), "big")
        self._runs: dict[tuple[int, int], list[_Run]] = {}
        self._coming: list[tuple[int, int, str, str, tuple[str, ...]]] = []  # let go, and not sent yet

    def verdict(
        self, check: str, principle: str, outcome: str, evidence: str = "", ms: float = 0.0, *, shadow: bool = False
    ) -> str:
        """Writes down what a check said; its id."""
        id = f"v-{self.fresh()}"
        (self.shadow if shadow else self.verdicts).append(Verdict(id, check, principle, outcome, evidence, ms))
        return id

    def fresh(self) -> str:
        """12 hex digits that this request has not used."""
        self._next = (self._next + 1) % _IDS
        return f"{self._next:012x}"

    def write(self, choice: int, part: int, place: str, text: str, verdicts: tuple[str, ...]) -> None:
        """Writes down that `text` was let go, next in its part."""
        if text:
            self._coming.append((choice, part, place, text, verdicts))

    def sent(self) -> None:
        """What was let go so far is on its way to the client."""
        for one in self._coming:
            self._add(*one)
        self._coming.clear()

    def forget(self) -> None:
        """What was let go and not sent will not be sent any more."""
        self._coming.clear()

    def _add(self, choice: int, part: int, place: str, text: str, verdicts: tuple[str, ...]) -> None:
        runs = self._runs.setdefault((choice, part), [])
        run = runs[-1] if runs else None
        if run is None or run.verdicts != verdicts or run.place != place:
            run = _Run(place, run.end if run else 0, verdicts)
            runs.append(run)
        data = text.encode()
        run.end += len(text)
        run.bytes += len(data)
        run.hash.update(data)
        if self._texts is not None:
            self._texts.setdefault((choice, part), []).append(text)

    @property
    def said(self) -> list[dict[str, object]]:
        """What was sent, by alternative and part, as the client reads it; empty where no texts are kept."""
        return [
            {"choice": choice, "part": part, "place": self._runs[choice, part][0].place, "text": "".join(pieces)}
            for (choice, part), pieces in sorted((self._texts or {}).items())
        ]

    @property
    def ranges(self) -> tuple[Range, ...]:
        """All stretches so far, by alternative and part; what was let go counts as sent."""
        self.sent()
        return tuple(
            Range(choice, part, run.place, run.start, run.end, run.bytes, run.hash.hexdigest(), run.verdicts)
            for (choice, part), runs in sorted(self._runs.items())
            for run in runs
        )

    @property
    def bytes(self) -> int:
        """Bytes of text released so far."""
        self.sent()
        return sum(run.bytes for runs in self._runs.values() for run in runs)

    def keep_only(self, choice: int) -> None:
        """Of several candidates one is written, as alternative 0: the stretches of the others are forgotten."""
        self._runs = {(0, part): runs for (of, part), runs in self._runs.items() if of == choice}
        self._coming = [(0, *one[1:]) for one in self._coming if one[0] == choice]
        if self._texts is not None:
            self._texts = {(0, part): pieces for (of, part), pieces in self._texts.items() if of == choice}


def faults(ledger: Ledger, written: Iterable[Any]) -> list[str]:
    """What is wrong between a ledger and the events that were written; empty where every character is covered."""
    texts: dict[tuple[int, int], list[str]] = {}
    for event in written:
        if isinstance(event, Delta):
            texts.setdefault((event.channel.choice, event.channel.part), []).append(event.text)
        elif isinstance(event, Finish) and event.stop:
            texts.setdefault((event.choice, STOP), []).append(event.stop)
        elif isinstance(event, Open):
            named = [event.name] if event.place == "tool_call" else []
            texts.setdefault((event.channel.choice, event.channel.part), []).extend(named)
    known = {verdict.id for verdict in ledger.verdicts}
    by_part: dict[tuple[int, int], list[Range]] = {}
    for stretch in ledger.ranges:
        by_part.setdefault((stretch.choice, stretch.part), []).append(stretch)
    out = []
    for at in sorted(texts.keys() | by_part.keys()):
        out += [f"choice {at[0]} part {at[1]}: {why}" for why in _part("".join(texts.get(at, [])), by_part.get(at, []))]
    for stretch in ledger.ranges:
        if not stretch.verdicts or not known.issuperset(stretch.verdicts):
            out.append(f"choice {stretch.choice} part {stretch.part}: a stretch at {stretch.start} has no verdict")
    return out


def _part(text: str, stretches: Sequence[Range]) -> Iterable[str]:
    end = 0
    for stretch in stretches:
        data = text[stretch.start : stretch.end].encode()
        if stretch.start != end:
            yield f"a stretch begins at {stretch.start}, the one before it ends at {end}"
        if len(data) != stretch.bytes or hashlib.sha256(data).hexdigest() != stretch.sha256:
            yield f"what was written at {stretch.start} is not what was let go"
        end = stretch.end
    if end != len(text):
        yield f"{len(text)} characters were written, {end} are covered"
