"""A canary let out in pieces, with ordinary words between them: a letter a sentence, four of its digits a turn.

Every short word of letters and digits that also stands in a canary may be a piece of it by chance. A chain of pieces,
each where the one before it ended, is weighed: each symbol is worth the bits that guessing it would cost, finding the
place in the canary costs some, and so do the other words of this kind that were skipped, unless the same number was
skipped before (numbered lists). A chain, or several apart from each other, that makes up 32 bits of the canary and is
worth `SURE` bits of evidence is a leak: ordinary text comes to that about once in four million of its short words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from fairlead.guard.checks.canary import Needles, Strand, needed
from fairlead.guard.checks.reader import compiled
from fairlead.guard.wire.events import Channel

SURE, SURE_AFTER_A_LEAK = 22.0, 10.0  # bits; once something was painted over, what follows needs less
PLACE = 9.0  # bits to point at a place in one of a few canaries, in one of four ways

At: TypeAlias = tuple[Channel | None, int, int]  # the text that a piece stands in (None: an earlier turn), start, end

WORD = compiled(rb"\b[0-9a-zA-Z]{1,7}\b")
_HEX_WORD = compiled(rb"\b(?:[0-9a-fA-F]{1,7}|[0-9n-sN-S]{1,7})\b")
_COMMON = frozenset(
    b"a ace add added be bad bed bee beef cab cafe dad dead deaf deed decade fade faced fed fee feed face an no so on "
    b"or nor not son soon moon poor pop sop sons noon pro spoon".split()
)


@dataclass(frozen=True, slots=True)
class Chain:
    """Pieces one after another: how many symbols, their evidence in bits, the last piece's number, how many words were
    skipped before it, which symbols of the strand, and where."""

    size: int
    bits: float
    number: int
    skipped: int
    start: int
    pieces: tuple[At, ...]


@dataclass(slots=True)
class Drip:
    """The chains of one conversation. Linear in its words."""

    needles: Needles
    strict: bool = False
    _number: list[int] = field(default_factory=lambda: [0, 0])
    _ends: dict[int, dict[int, Chain]] = field(default_factory=dict)
    _strong: dict[int, dict[tuple[int, int], tuple[float, tuple[At, ...]]]] = field(default_factory=dict)
    _waiting: list[tuple[bytes, At]] = field(default_factory=list)
    _weight: int = 0
    _joined: bytes = b""

    def __post_init__(self) -> None:
        self._joined = b"|".join(strand.text for strand in self.needles.strands)

    def words(self, read: bytes) -> list[tuple[int, int]]:
        """Where the words stand that could be pieces."""
        return [match.span() for match in (_HEX_WORD if self.needles.hexed else WORD).finditer(read)]

    def feed(self, words: Sequence[tuple[bytes, At]]) -> list[tuple[int, tuple[At, ...]]]:
        """(canary, its pieces) for every leak that is complete with these words, in small letters."""
        for word, at in words:
            self._waiting.append((word, at))
            if word not in _COMMON:
                self._weight += len(word)
        if self._weight < 4:
            return []  # too little to be 32 bits with all the small words between
        found = []
        for word, at in self._waiting:
            found += self._one(word, at)
        self._waiting.clear()
        return found

    def _one(self, word: bytes, at: At) -> list[tuple[int, tuple[At, ...]]]:
        turned = not word.isdigit() and all(48 <= c <= 57 or 110 <= c <= 115 for c in word)
        kinds = (0, 1) if word.isdigit() or not self.needles.hexed else ((1,) if turned else (0,))
        for kind in kinds:
            self._number[kind] += 1
        if word not in self._joined:
            return []
        found = []
        for n, strand in enumerate(self.needles.strands):
            kind = 1 if "rot13" in strand.how else 0
            if kind in kinds:
                ends, new = self._ends.setdefault(n, {}), dict[int, Chain]()
                start = strand.text.find(word)
                while start >= 0:
                    found += self._piece(strand, word, start, at, self._number[kind], ends, new)
                    start = strand.text.find(word, start + 1)
                ends |= new
        return found

    def _piece(
        self,
        strand: Strand,
        word: bytes,
        start: int,
        at: At,
        number: int,
        ends: dict[int, Chain],
        new: dict[int, Chain],
    ) -> list[tuple[int, tuple[At, ...]]]:
        worth = len(word) * (4.0 if self.needles.hexed else 5.0)
        chain = Chain(len(word), worth - PLACE, number, -1, start, (at,))
        before = ends.get(start)
        if before is not None and before.number < number:
            skipped = number - before.number - 1
            cost = 0.0 if skipped == before.skipped else math.log2(1 + skipped)
            bits = before.bits + worth - cost
            if bits > chain.bits:
                size = before.size + len(word)
                chain = Chain(size, bits, number, skipped, before.start, (*before.pieces, at))
        end = start + len(word)
        old = ends.get(end)
        if old is None or chain.bits >= old.bits - math.log2(1 + number - old.number):
            new[end] = chain
        need, sure = needed(len(strand.text)), SURE_AFTER_A_LEAK if self.strict else SURE
        if chain.size >= need and chain.bits >= sure:
            return [(strand.canary, chain.pieces)]
        return self._apart(strand, chain, end, need, sure)

    def _apart(
        self, strand: Strand, chain: Chain, end: int, need: int, sure: float
    ) -> list[tuple[int, tuple[At, ...]]]:
        """Leaks made of chains that do not follow each other."""
        least = 2 if self.strict else 5
        if chain.size < least or chain.bits < (-1.0 if self.strict else 11.0):
            return []
        strong = self._strong.setdefault(strand.canary, {})
        strong[strand.span(chain.start, end)] = (chain.bits, chain.pieces)
        covered: set[int] = set()
        bits = 0.0
        pieces: list[At] = []
        for (first, last), (worth, there) in sorted(strong.items(), key=lambda item: -item[1][0]):
            new = set(range(first, last)) - covered
            if len(new) >= least:
                covered |= new
                bits += worth
                pieces += there
        return [(strand.canary, tuple(dict.fromkeys(pieces)))] if len(covered) >= need and bits >= sure else []
