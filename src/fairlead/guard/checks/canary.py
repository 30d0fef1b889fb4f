"""Canaries: 128 bits whose appearance proves a leak, found by the part that makes 32 of them.

A canary is written in letters and digits; its bits are spread evenly over them, so of 32 hex digits eight are a leak.
What is looked for is any such fragment, in any of the readings of `reader.py`; what is named is the whole stretch that
agrees with the canary around it. A value in words ("the lamp is out tonight") is no canary here, whatever the
constitution calls it: a quarter of it would be found in ordinary text.
"""

from __future__ import annotations

import re
from base64 import b64encode
from codecs import encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from fairlead.guard.checks import signs
from fairlead.guard.checks.normalise import fold
from fairlead.guard.checks.reader import OTHERS, Layer, compiled, layers, roots, without_prose

BITS, LEAK = 128, 32
SHORTEST = 16  # letters and digits; a shorter value is looked for as a whole (`decode.py`)
FEWEST = 6  # symbols of a fragment: five letters come about by chance


@dataclass(frozen=True, slots=True)
class Hit:
    """A part of a canary seen: [start, end) of the text, which canary, which of its symbols, and how it was written."""

    start: int
    end: int
    canary: int
    first: int
    last: int
    how: str
    decoded: bool = False


def symbols(value: str) -> str:
    """The letters and digits that carry a value, in small letters."""
    return "".join(char for char in fold(value).lower() if char.isascii() and char.isalnum())


@lru_cache(maxsize=4096)
def is_random(value: str) -> bool:
    """Whether a value is drawn and not worded: long enough, and figures run all through it, or hex digits with some."""
    text = symbols(value)
    if len(text) >= SHORTEST and sum(map(str.isdigit, text)) >= 4 and not set(text) - set("0123456789abcdef"):
        return True  # of 32 drawn ones one in 3,000 has eleven letters in a row
    longest = max(map(len, re.findall(r"[a-z]+", text)), default=0)
    return len(text) >= SHORTEST and longest <= len(text) // 3


def needed(size: int) -> int:
    """How many symbols of a canary of `size` are 32 of its bits, or as few as can be told from chance."""
    return max(FEWEST, -(-size * LEAK // BITS))


@dataclass(frozen=True, slots=True)
class Strand:
    """One way in which a canary can stand in a text without a decoder: as it is, backwards, under rot13, or both."""

    text: bytes
    canary: int
    how: str

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Which symbols of the canary stand at [start, end) of the strand."""
        size = len(self.text)
        return (size - end, size - start) if "reversed" in self.how else (start, end)


def strands(values: Sequence[str]) -> tuple[Strand, ...]:
    out = []
    for n, value in enumerate(values):
        text = symbols(value)
        turned = encode(text, "rot13")
        ways = (("", text), ("reversed", text[::-1]), ("rot13", turned), ("rot13, reversed", turned[::-1]))
        out += [Strand(spelled.encode(), n, how) for how, spelled in ways]
    return tuple(out)


@dataclass(frozen=True, slots=True)
class Needles:
    """What is looked for, ready made. `by_size`: for each size of fragment where each of them stands in which strand.
    `hexed`: the values are hex digits, which `signs.py` knows by their look; the others are known by `anchors`.
    `few`: two symbols
    less than 32 bits are looked for."""

    values: tuple[str, ...]
    strands: tuple[Strand, ...]
    by_size: tuple[tuple[int, dict[bytes, tuple[int, int]]], ...]
    hexed: bool
    anchors: Any
    uncommon: int = 0
    few: bool = False
    _places: dict[bytes, tuple[tuple[int, int, bool], ...]] = field(default_factory=dict)

    @property
    def least(self) -> int:
        """Symbols of the shortest fragment."""
        return min(size for size, _ in self.by_size)

    def places(self, word: bytes) -> tuple[tuple[int, int, bool], ...]:
        """(strand, start, whether it is under rot13) wherever a short word stands, the later ones first."""
        found = self._places.get(word)
        if found is None:
            found = tuple(
                (n, start, "rot13" in strand.how)
                for n, strand in enumerate(self.strands)
                for start in range(len(strand.text) - len(word), -1, -1)
                if strand.text.startswith(word, start)
            )
            if found or len(self._places) < 4096:
                self._places[word] = found
        return found

    def maybe(self, seen: signs.Sight) -> tuple[bool, bool]:
        """The first look: (something may stand in it as it is, something may stand under a decoder)."""
        known = self._may(seen)
        if not seen.others or known == (True, True):
            return known
        other = [self._may(one) for one in seen.others]
        return known[0] or any(may for may, _ in other), known[1] or any(may for _, may in other)

    def _may(self, seen: signs.Sight) -> tuple[bool, bool]:
        if not self.hexed and self.anchors.search(seen.letters):
            return True, True
        return seen.bare, seen.encoded(self.few)

    def scan(self, text: str, look: Callable[[str], signs.Sight] = signs.sight) -> list[Hit]:
        """All fragments in a text, outermost first. Raises TooMuch for a text made to keep the reader busy."""
        bare, deep = self.maybe(look(text))
        if not bare and not deep:
            return []
        found: set[Hit] = set()
        for root in roots(text):
            found.update(self.in_layer(root))
            if deep:
                odd = root if self.few else without_prose(root)
                seen = signs.Sight(odd.data)
                if seen.encoded(self.few) or (not self.hexed and self.anchors.search(seen.letters)):
                    found.update(hit for layer in layers(odd) for hit in self.in_layer(layer))
        return sorted(found, key=lambda hit: (hit.start, -hit.end))

    def read(self, text: str, *, fine: bool = False) -> list[Hit]:
        """The same without a first look, which the tests hold against it; `fine`: in the shortest texts too."""
        found = {hit for root in roots(text) for layer in layers(root, fine=fine) for hit in self.in_layer(layer)}
        return sorted(found, key=lambda hit: (hit.start, -hit.end))

    def in_layer(self, layer: Layer) -> Iterator[Hit]:
        data = layer.data
        letters = signs.glued(data).lower()
        at: list[int] | None = None
        for strand, i, j, start in self.matches(letters):
            if at is None:
                at = [n for n, byte in enumerate(data) if byte not in _NO_LETTERS]
            first, last = strand.span(start, start + j - i)
            begin, end = layer.where(at[i], at[j - 1] + 1)
            how = ", ".join(filter(None, (*layer.path[::-1], strand.how))) or "as it is"
            decoded = any(step in ("base64", "hex", "escaped") for step in layer.path)
            yield Hit(begin, end, strand.canary, first, last, how, decoded)

    def matches(self, letters: bytes) -> Iterator[tuple[Strand, int, int, int]]:
        """(strand, i, j, start): letters[i:j] stands in the strand from `start` on, and no more around it does."""
        for size, places in self.by_size:
            for begin, end in _stretches(letters, size) if self.hexed else ((0, len(letters)),):
                i = begin
                while i + size <= end:
                    place = places.get(letters[i : i + size])
                    if place is None:
                        i += 1
                        continue
                    strand, start = self.strands[place[0]], place[1]
                    j, k = i + size, start + size
                    while j < len(letters) and k < len(strand.text) and letters[j] == strand.text[k]:
                        j, k = j + 1, k + 1
                    yield strand, i, j, start
                    i = j - size + 1 if j - size + 1 > i else i + 1


_NO_LETTERS = frozenset(OTHERS)
_HEX_RUN, _TURNED_RUN = re.compile(rb"[0-9a-f]{3,}"), re.compile(rb"[0-9n-s]{3,}")


def _stretches(letters: bytes, size: int) -> Iterable[tuple[int, int]]:
    for pattern in (_HEX_RUN, _TURNED_RUN):
        for run in pattern.finditer(letters):
            if run.end() - run.start() >= size:
                yield run.span()


@lru_cache(maxsize=1024)
def needles(values: tuple[str, ...], least: int = 0, *, few: bool = False) -> Needles:
    """The needles of some values, each `is_random`; `least`: symbols of a fragment, where not those of 32 bits; `few`:
    two symbols less, for 32 bits under a decoder may be two symbols cut through and six whole ones."""
    ways = strands(values)
    by_size: dict[int, dict[bytes, tuple[int, int]]] = {}
    for n, strand in enumerate(ways):
        size = least or max(FEWEST, needed(len(strand.text)) - 2 * few)
        places = by_size.setdefault(size, {})
        for start in range(len(strand.text) - size + 1):
            places.setdefault(strand.text[start : start + size], (n, start))
    hexed = all(re.fullmatch(r"[0-9a-f]{32,}", symbols(value)) for value in values)
    common = max(
        strand.text[n : n + size].count(b"a") for strand in ways for size in by_size for n in range(len(strand.text))
    )
    uncommon = min(by_size) - common  # symbols of a fragment at least that are not the word "a"
    return Needles(values, ways, tuple(by_size.items()), hexed, None if hexed else _anchors(values, few), uncommon, few)


def _anchors(values: Sequence[str], few: bool) -> Any:
    """A pattern of short pieces, one of which stands in every fragment, as it is, in hex and in base64."""
    pieces: set[str] = set()
    for value in values:
        text = symbols(value)
        least = max(FEWEST, needed(len(text)) - 2 * few)
        forms = [(text, least), (text.encode().hex(), 2 * least)]
        for spelled in dict.fromkeys((fold(value), text, text.upper())):
            joined = "".join(char for char in spelled if char.isascii() and char.isalnum())
            forms += [(_core(joined, skip), 8 * least // 6 - 1) for skip in range(3)]
        for form, size in forms:
            long = (size + 1) // 2
            stride = size - long + 1
            for start in range(0, len(form) - long + 1, stride):
                piece = form[start : start + long]
                turned = encode(piece, "rot13")
                pieces |= {piece, piece[::-1], turned, turned[::-1]}
    return compiled(b"(?i:" + "|".join(sorted(map(re.escape, pieces))).encode() + b")")


def _core(text: str, skip: int) -> str:
    """The base64 characters that `text` alone determines when `skip` bytes stand before it."""
    coded = b64encode(b"\0" * skip + text.encode()).decode()
    return coded[-(-8 * skip // 6) : 8 * (skip + len(text)) // 6]
