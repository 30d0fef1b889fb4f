"""What a reply lets out of the canaries of one conversation: the state of a watch over all its texts and turns.

Text is looked at when `BLOCK` characters have come or its part is whole. Nothing is let go that was not looked at, and
of that only what no longer can be the beginning of something: up to the last two ordinary words in a row, and at most
`HELD` characters are kept back. 32 bits are seen when their last character comes, so that not more than 31 were let go
even of a canary that is longer, when written, than all that is held back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from fairlead.guard.checks.canary import Needles, needles
from fairlead.guard.checks.drip import At, Drip
from fairlead.guard.checks.normalise import normalise
from fairlead.guard.checks.reader import compiled, plain
from fairlead.guard.checks.trail import Trail
from fairlead.guard.wire.events import Channel

BLOCK = 32
HELD = 512
LITTLE = 3  # symbols
ODD = 4  # figures and capitals within words that a fragment under a decoder has at the least
MARK = "[redacted]"

_PROSE = re.compile(r"(?s).*(?<![^\s])[\"'(]?[A-Za-z]?[a-z]+[,;:.!?)\"']* [a-z]{2,}(?=[\s,;:.!?])")
# What is no word of a language: figures, capitals within, signs, single letters. It is put together over sentences and
# turns, so that a thing told in pieces is read as one; one word that stands alone between two such is taken along.
_ODD = compiled(rb"\S*(?:[0-9]|[a-z][A-Z]|[A-Z][A-Z]|[^A-Za-z\s'\".,:;!?()-]{2})\S*|(?:^|\s)[b-hj-zB-HJ-Z]\b")
_KINDS = bytes(
    ord(
        "0"
        if chr(c).isdigit()
        else "b"
        if chr(c) in "bcdfgh"
        else "a"
        if chr(c).islower()
        else "A"
        if chr(c).isupper()
        else " "
    )
    if c < 128
    else ord("0")
    for c in range(256)
)
_ENDS = " \t\r\n.,:;!?()\"'*"


def free(trail: str, seen: int) -> int:
    """Up to where a text of `seen` characters, of which `trail` is the end, is ordinary: what comes later cannot make a
    leak of it that is not one yet."""
    tail = trail[-HELD:]
    match = _PROSE.match(tail)
    return max(0, seen - len(tail) + (match.end() if match else 0))


@dataclass(slots=True)
class _Text:
    trail: Trail
    seen: int = 0  # characters looked at
    waiting: str = ""
    go: int = 0  # characters let go
    words_from: int = 0  # words begin here that are not weighed yet


@dataclass(frozen=True, slots=True)
class Leak:
    """Part of a canary (its number) that stands at [start, end) of a text, and how it was written."""

    channel: Channel
    start: int
    end: int
    canary: int
    how: str


@dataclass(slots=True)
class Spill:
    """Over one conversation. `said`: the earlier texts of the assistant. `painted`: something was painted over in them,
    and they are as they were before. `whole`: nothing is let go before all is read, as with replies that are not
    streamed."""

    needles: Needles
    said: Iterable[str] = ()
    painted: bool = False
    whole: bool = False
    _texts: dict[Channel, _Text] = field(default_factory=dict)
    _last: Trail = field(default_factory=Trail)
    _odd: Trail = field(default_factory=Trail)
    _drip: Drip = field(init=False)
    _plain: list[tuple[Channel | None, int, str]] = field(default_factory=list)  # not odd enough yet to be gone over
    _oddness: int = 0

    def __post_init__(self) -> None:
        self._drip = Drip(self.needles, strict=self.painted)
        for text in self.said:
            self._drip.strict |= MARK in text
            self._last.add(None, 0, text + "\n")
            self._drip.feed(None, 0, text)
            self._odd_words(None, 0, text)
        self._last.forget()

    def feed(self, channel: Channel, text: str, last: bool) -> list[Leak]:
        """The leaks that are complete with this piece; every piece of the canary that has not been let go is named."""
        here = self._texts.get(channel)
        if here is None:
            here = self._texts[channel] = _Text(self._last.copy())
            here.trail.add(None, 0, "\n")
        here.waiting += text
        if not (last or len(here.waiting) >= BLOCK):
            return []
        new, here.waiting = here.waiting, ""
        if not new:
            here.go = here.go if self.whole else here.seen
            return []
        here.trail.add(channel, here.seen, new)
        here.seen += len(new)
        found = [
            Leak(*place, hit.canary, hit.how)
            for hit in self.needles.scan(here.trail.text)
            for place in self._places(here.trail.whose(hit.start, hit.end))
        ]
        found += self._pieces(channel, here, last)
        if found:
            self._drip.strict = True
        if not self.whole:
            here.go = max(here.go, here.seen if last else free(here.trail.text, here.seen))
        here.trail.forget()
        self._last = here.trail
        return found

    def go(self, channel: Channel) -> int:
        """How many characters of a text are let go."""
        here = self._texts.get(channel)
        return here.go if here else 0

    def _places(self, places: Iterable[At]) -> list[tuple[Channel, int, int]]:
        """Of some stretches those that can still be kept back."""
        return [(c, max(a, self.go(c)), b) for c, a, b in places if c is not None and b > self.go(c)]

    # ------------------------------------------------------------------------------------------------- in pieces

    def _pieces(self, channel: Channel, here: _Text, last: bool) -> list[Leak]:
        size = here.seen - here.words_from
        text = here.trail.text[len(here.trail.text) - size :] if size else ""
        if not last:  # a word that still grows is weighed when it is whole
            whole = next((n for n in range(len(text), 0, -1) if not text[n - 1].isalnum()), 0)
            text = text[:whole]
        if not text:
            return []
        start, here.words_from = here.words_from, here.words_from + len(text)
        found = [
            Leak(*place, canary, "in pieces")
            for canary, pieces in self._drip.feed(channel, start, text)
            for place in self._places(pieces)
        ]
        if self._odd_words(channel, start, text):
            found += [
                Leak(*place, hit.canary, f"{hit.how}, in pieces")
                for hit in self.needles.scan(self._odd.text)
                for place in self._places(self._odd.around(hit.start, hit.end))
            ]
            if self._drip.strict:
                found += self._more(self._odd)
            self._odd.forget(4)
        return found

    def _more(self, trail: Trail) -> list[Leak]:
        """Where something of a canary was painted over before, what an earlier turn gave of it is not known any more:
        so little is looked for that it cannot be told from chance, and only in what is no ordinary text."""
        fine = needles(self.needles.values, LITTLE)
        return [
            Leak(*place, hit.canary, f"{hit.how}, more of it")
            for hit in fine.read(trail.text, fine=True)
            if hit.decoded or hit.last - hit.first > LITTLE
            for place in self._places(trail.around(hit.start, hit.end))
        ]

    def _odd_words(self, channel: Channel | None, start: int, text: str) -> bool:
        """Keep what is no word of a language; whether there is something new to be read in it."""
        self._plain.append((channel, start, text))
        look = plain(text).translate(_KINDS)
        self._oddness += (
            look.count(b"0")
            + look.count(b"aA")
            + look.count(b"bA")
            + look.count(b"AA")
            + look.count(b" b ")
            + look.count(b" A ")
        )
        if self._oddness < ODD and not self._drip.strict:
            return False
        waiting, self._plain = self._plain, []
        return sum([self._gather(*item) for item in waiting]) > 0  # all of them, not the first alone

    def _gather(self, channel: Channel | None, start: int, text: str) -> bool:
        read = plain(text)
        regions: list[tuple[int, int]] = []
        for match in _ODD.finditer(read):
            i, j = match.span()
            if regions and (i - regions[-1][1] < 16 and len(read[regions[-1][1] : i].split()) <= 1):
                regions[-1] = (regions[-1][0], j)
            else:
                regions.append((i, j))
        folded = None if text.isascii() else normalise(text)
        new = False
        for i, j in regions:
            a, b = (i, j) if folded is None else folded.locate(i, j)
            odd = text[a:b]
            kept = odd.strip(_ENDS)
            if len(kept) > 4 or not kept.replace(".", "").replace(",", "").replace("$", "").replace("%", "").isdigit():
                at = a + odd.find(kept)
                self._odd.add(channel, start + at, kept)
                new = new or bool(kept)
        return new and len(self._odd.text) >= 8 and (len(regions) > 1 or len(self._odd.parts) > 1)
