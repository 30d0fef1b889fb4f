"""A canary let out in pieces, with ordinary words between them: a letter a sentence, four of its digits a turn.

Every short word of letters and digits that also stands in a canary may be a piece of it by chance. A chain of pieces,
each where the one before it ended, is weighed: each symbol is worth the bits that guessing it would cost, finding the
place in the canary costs some, and so do the other words of this kind that were skipped, unless the same number was
skipped before (numbered lists). A chain, or several apart from each other, that makes up 32 bits of the canary and is
worth `SURE` bits of evidence is a leak: ordinary text comes to that about once in four million of its short words.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TypeAlias

from fairlead.guard.checks.canary import Needles, Strand, needed
from fairlead.guard.checks.normalise import normalise
from fairlead.guard.checks.reader import compiled, plain
from fairlead.guard.wire.events import Channel

SURE, SURE_AFTER_A_LEAK = 22.0, 10.0  # bits; once something was painted over, what follows needs less
PLACE = 9.0  # bits to point at a place in one of a few canaries, in one of four ways

At: TypeAlias = tuple[Channel | None, int, int]  # the text that a piece stands in (None: an earlier turn), start, end

_WORD_AT = re.compile(rb"\b[0-9a-zA-Z]{1,7}\b")
_HEX_WORD_AT = re.compile(rb"\b(?:[0-9a-fA-F]{1,7}|[0-9n-sN-S]{1,7})\b")
_FIGURE_OR_LETTER = compiled(rb"[0-9]|\b[b-fn-sB-FN-S]\b")
_COMMON = frozenset(
    b"a ace add added be bad bed bee beef cab cafe dad dead deaf deed decade fade faced fed fee feed face an no so on "
    b"or nor not son soon moon poor pop sop sons noon pro spoon".split()
)


# Symbols so far, evidence in bits, the last piece's number, words skipped before it, first symbol, pieces.
_Chain: TypeAlias = "tuple[int, float, int, int, int, _Pieces]"
_Pieces: TypeAlias = "tuple[_Pieces | None, At]"
_Found: TypeAlias = "tuple[int, tuple[At, ...]]"


@dataclass(slots=True)
class Drip:
    """The chains of one conversation. Linear in its words."""

    needles: Needles
    strict: bool = False
    _number: list[int] = field(default_factory=lambda: [0, 0])
    _ends: list[list[_Chain | None]] = field(default_factory=list)
    _strong: dict[int, dict[tuple[int, int], tuple[float, tuple[At, ...]]]] = field(default_factory=dict)
    _waiting: list[tuple[Channel | None, int, str]] = field(default_factory=list)
    _unweighed: list[bytes] = field(default_factory=list)
    _weight: int = 0

    def feed(self, channel: Channel | None, start: int, text: str) -> list[_Found]:
        """(canary, its pieces) for every leak that is complete with this text, whose words are whole."""
        read = plain(text).replace(b"_", b" ")
        self._waiting.append((channel, start, text))
        self._unweighed.append(read)
        if not self._weight and not self.strict and not _FIGURE_OR_LETTER.search(read):
            return []  # words of letters alone wait for something that makes them suspicious
        for word in (_HEX_WORD_AT if self.needles.hexed else _WORD_AT).findall(b"\n".join(self._unweighed)):
            low = word.lower()
            if low not in _COMMON and self.needles.places(low):
                self._weight += len(word)
        self._unweighed.clear()
        if self._weight < self.needles.uncommon and not self.strict:
            return []  # too little to be 32 bits with all the small words between
        if not self._ends:
            self._ends = [[None] * (len(strand.text) + 1) for strand in self.needles.strands]
        found: list[_Found] = []
        for there, offset, said in self._waiting:
            folded = normalise(said)
            read = folded.text.encode("ascii", "replace").replace(b"_", b" ")
            for match in (_HEX_WORD_AT if self.needles.hexed else _WORD_AT).finditer(read):
                a, b = folded.locate(*match.span())
                found += self._one(match[0].lower(), (there, offset + a, offset + b))
        self._waiting.clear()
        return found

    def _one(self, word: bytes, at: At) -> list[_Found]:
        """A word at all places where it stands in a canary: what it goes on from, or a chain of its own."""
        figures = word.isdigit() or not self.needles.hexed
        turned = not figures and max(word) > 103
        numbers = self._number
        if figures or not turned:
            numbers[0] += 1
        if figures or turned:
            numbers[1] += 1
        found: list[_Found] = []
        size = len(word)
        worth = size * (4.0 if self.needles.hexed else 5.0)
        least, enough = (2, -1.0) if self.strict else (5, 11.0)  # of a chain that may be a part of a leak
        all_ends, log2, own = self._ends, math.log2, worth - PLACE
        for n, start, is_turned in self.needles.places(word):
            number = numbers[is_turned]
            ends = all_ends[n]
            chain: _Chain = (size, own, number, -1, start, (None, at))
            before = ends[start]
            if before is not None:
                skipped = number - before[2] - 1
                bits = before[1] + worth - (0.0 if skipped == before[3] else log2(1 + skipped))
                if bits > own:
                    chain = (before[0] + size, bits, number, skipped, before[4], (before[5], at))
            old = ends[start + size]
            if old is None or chain[1] >= old[1] - log2(1 + number - old[2]):
                ends[start + size] = chain
            if chain[0] >= least and chain[1] >= enough:
                found += self._leak(n, chain, start + size, least)
        return found

    def _leak(self, n: int, chain: _Chain, end: int, least: int) -> list[_Found]:
        strand = self.needles.strands[n]
        need, sure = needed(len(strand.text)), SURE_AFTER_A_LEAK if self.strict else SURE
        if chain[0] >= need and chain[1] >= sure:
            return [(strand.canary, _flat(chain[5]))]
        return self._apart(strand, chain, end, need, sure, least)

    def _apart(self, strand: Strand, chain: _Chain, end: int, need: int, sure: float, least: int) -> list[_Found]:
        """Leaks made of chains that do not follow each other."""
        strong = self._strong.setdefault(strand.canary, {})
        strong[strand.span(chain[4], end)] = (chain[1], _flat(chain[5]))
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


def _flat(pieces: _Pieces | None) -> tuple[At, ...]:
    out: list[At] = []
    while pieces is not None:
        pieces, at = pieces
        out.append(at)
    return tuple(out[::-1])
