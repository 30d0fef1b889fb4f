"""Secrets that are words: looked for as a whole, through the readings of `decode.py`, in texts that still come.

The readings cost milliseconds, so a first look says whether any of them could find something. It is generous: all
letters in a row with figures read as the letters they look like, the secret's base64 and hex, letters that stand alone,
escapes, long runs of hex digits, and words of mixed letters and figures.
"""

from __future__ import annotations

from base64 import b64encode
from codecs import encode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from fairlead.guard.checks import decode, signs
from fairlead.guard.checks.reader import compiled
from fairlead.guard.checks.spill import BLOCK, Leak, free
from fairlead.guard.checks.trail import Trail
from fairlead.guard.wire.events import Channel

_LEET = bytes.maketrans(b"4839105l7", b"abegiosit")  # both sides of `decode.py`'s table on one letter
# Letters that stand alone, three in a row; tokens of capitals, small letters and figures without order.
_ODD = compiled(
    rb"(?:^|[^0-9A-Za-z])[0-9A-Za-z][^0-9A-Za-z]+[0-9A-Za-z][^0-9A-Za-z]+[0-9A-Za-z](?:$|[^0-9A-Za-z])"
    rb"|[A-Za-z0-9+/_-]{3,}[a-z0-9][A-Z][A-Za-z0-9+/_-]*|[A-Za-z0-9+/_-]*[a-z0-9][A-Z][A-Za-z0-9+/_-]{3,}"
    rb"|[A-Za-z+/_-]*[0-9][A-Za-z]+[0-9][A-Za-z0-9+/_-]*|[A-Za-z]+[0-9]+[A-Za-z]+[A-Za-z0-9+/_-]*"
)
# Five characters in figures; ten hex digits in a row, turned or not, a letter among them.
_HEX = compiled(
    rb"(?:[2-7][0-9]|09|10|13){5}|(?:[0-9][2-7]|90|01|31){5}|"
    + b"|".join(b"[0-9%s]{%d}[%s][0-9%s]{%d}" % (of, n, of, of, 9 - n) for of in (b"a-f", b"n-s") for n in range(10))
)


@dataclass(frozen=True, slots=True)
class Look:
    """What the first look goes by: patterns of letters, small and with figures read as letters, and of base64."""

    letters: Any
    coded: Any

    def maybe(self, seen: signs.Sight) -> bool:
        return self._may(seen) or any(self._may(other) for other in seen.others)

    def _may(self, seen: signs.Sight) -> bool:
        low = seen.low
        return (
            self.letters.search(low.translate(_LEET)) is not None
            or self.coded.search(seen.letters) is not None
            or _ODD.search(seen.read) is not None
            or _HEX.search(low) is not None
            or seen.encoded()
        )


@lru_cache(maxsize=1024)
def look(value: str) -> Look:
    """The first look for one secret."""
    text = "".join(char for char in decode.clean(value).text if char.isalnum())
    if not text.isascii():
        return Look(compiled(b""), compiled(b""))  # letters of another alphabet: always read in full
    low = text.lower()
    turned = encode(low, "rot13")
    plainly = {form.encode().translate(_LEET) for form in (low, low[::-1], turned, turned[::-1])}
    hexed = {form.encode().hex() for form in (text, low, text.upper(), text.capitalize())}
    hexed |= {form[::-1] for form in hexed} | {encode(form, "rot13") for form in hexed}
    whole = decode.clean(value).text
    coded: set[str] = set()
    for form in {whole, whole.lower(), whole.upper(), whole.capitalize(), text}:
        for said in (form, form[::-1], encode(form, "rot13"), encode(form[::-1], "rot13")):
            coded |= {_core(said, skip) for skip in range(3)}
    coded |= {encode(form, "rot13") for form in coded}
    coded |= {form[::-1] for form in coded}
    plainly |= {form.encode().translate(_LEET) for form in hexed}
    return Look(_any_of(plainly), _any_of({form.encode() for form in coded if len(form) >= 2}))


def _any_of(forms: set[bytes]) -> Any:
    """One pattern for all. They are letters and digits, so that nothing in them has to be escaped, and there are some:
    base64 of letters and digits has no "+" or "/"."""
    return compiled(b"|".join(sorted(forms)))


def _core(text: str, skip: int) -> str:
    """The base64 letters and digits that `text` alone determines when `skip` bytes stand before it."""
    data = text.encode()
    coded = b64encode(b"\0" * skip + data).decode()[-(-8 * skip // 6) : 8 * (skip + len(data)) // 6]
    return coded.replace("+", "").replace("/", "")


@dataclass(slots=True)
class _Text:
    trail: Trail
    seen: int = 0
    waiting: str = ""
    go: int = 0


@dataclass(slots=True)
class Told:
    """Secrets in words over one conversation; the same face as `Spill`."""

    values: Sequence[str]
    said: Iterable[str] = ()
    whole: bool = False
    look: Callable[[str], signs.Sight] = signs.sight
    _texts: dict[Channel, _Text] = field(default_factory=dict)
    _last: Trail = field(default_factory=Trail)
    _margin: int = 0

    def __post_init__(self) -> None:
        self._margin = 8 + 2 * max(map(len, self.values), default=0)
        for text in self.said:
            self._last.add(None, 0, text + "\n")
        self._last.forget()

    def feed(self, channel: Channel, text: str, last: bool) -> list[Leak]:
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
            self._last = here.trail
            return []
        here.trail.add(channel, here.seen, new)
        here.seen += len(new)
        found = self._find(here.trail)
        if last and not self.whole:
            here.go = here.seen
        elif not self.whole:
            ordinary = min(here.seen - self._margin, free(here.trail.text, here.seen))
            here.go = max(here.go, ordinary)
        here.trail.forget()
        self._last = here.trail
        return found

    def _find(self, trail: Trail) -> list[Leak]:
        seen = self.look(trail.text)
        likely = [n for n, value in enumerate(self.values) if look(value).maybe(seen)]
        if not likely:
            return []
        views = list(decode.readings(trail.text, least=min(len(decode.shape(self.values[n]).letters) for n in likely)))
        return [
            Leak(channel, max(a, self.go(channel)), b, n, hit.how)
            for n in likely
            for hit in decode.find(self.values[n], views)
            for channel, a, b in trail.whose(hit.start, hit.end)
            if channel is not None and b > self.go(channel)
        ]

    def go(self, channel: Channel) -> int:
        here = self._texts.get(channel)
        return here.go if here else 0
