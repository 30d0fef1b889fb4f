"""What a reply lets out of the canaries of one conversation: the state of a watch over all its texts and turns.

Text is looked at when `BLOCK` characters have come or its part is whole. Nothing is let go that was not looked at, and
of that only what no longer can be the beginning of something: up to the last two ordinary words in a row, and at most
`HELD` characters are kept back. 32 bits are seen when their last character comes, so that not more than 31 were let go
even of a canary that is longer, when written, than all that is held back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from fairlead.guard.checks.canary import Needles, needles
from fairlead.guard.checks.drip import At, Drip
from fairlead.guard.checks.odd import Odd
from fairlead.guard.checks.signs import Sight, sight
from fairlead.guard.checks.trail import Trail
from fairlead.guard.pieces import REDACTED
from fairlead.guard.wire.events import Channel

BLOCK = 32
HELD = 512
LITTLE = 3  # symbols

_PROSE = re.compile(r"(?s).*(?<![^\s])[\"'(]?[A-Za-z]?[a-z]+[,;:.!?)\"']* [a-z]{2,}(?=[\s,;:.!?])")


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
    streamed. `look` gives the first look at a text, which those who share it take once."""

    needles: Needles
    said: Iterable[str] = ()
    painted: bool = False
    whole: bool = False
    look: Callable[[str], Sight] = sight
    _texts: dict[Channel, _Text] = field(default_factory=dict)
    _last: Trail = field(default_factory=Trail)
    _odd: Odd = field(default_factory=Odd)
    _drip: Drip = field(init=False)

    def __post_init__(self) -> None:
        self._drip = Drip(self.needles, strict=self.painted)
        for text in self.said:
            self._drip.strict |= REDACTED in text
            self._last.add(None, 0, text + "\n")
            self._drip.feed(None, 0, text)
            self._odd.add(None, 0, text, always=self._drip.strict)
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
        if not new:  # the end comes by itself: its last word may have waited for it
            found = self._pieces(channel, here, last)
            self._drip.strict |= bool(found)
            here.go = here.go if self.whole else here.seen
            return found
        here.trail.add(channel, here.seen, new)
        here.seen += len(new)
        found = [
            Leak(*place, hit.canary, hit.how)
            for hit in self.needles.scan(here.trail.text, self.look)
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
        size = min(
            here.seen - here.words_from, len(here.trail.text)
        )  # of a word without end only its end is remembered
        text = here.trail.text[len(here.trail.text) - size :] if size else ""
        if not last:  # a word that still grows is weighed when it is whole
            whole = next((n for n in range(len(text), 0, -1) if not text[n - 1].isalnum()), 0)
            text = text[:whole]
        if not text:
            return []
        start = here.seen - size
        here.words_from = start + len(text)
        found = [
            Leak(*place, canary, "in pieces")
            for canary, pieces in self._drip.feed(channel, start, text)
            for place in self._places(pieces)
        ]
        if self._odd.add(channel, start, text, always=self._drip.strict):
            few = needles(self.needles.values, few=True)
            for odd in self._odd.trails:
                found += [
                    Leak(*place, hit.canary, f"{hit.how}, in pieces")
                    for hit in few.scan(odd.text)
                    if hit.decoded or hit.last - hit.first >= self.needles.least
                    for place in self._places(odd.around(hit.start, hit.end))
                ]
                if self._drip.strict:
                    found += self._more(odd)
                odd.forget(4)
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
