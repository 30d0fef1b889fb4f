"""What in a text is no word of a language, put together over sentences, texts and turns.

A thing told in pieces ("the first part is YTZkN, then comes MTk1") is read as one when the words between are left out:
what has figures, capitals within, signs, or is a letter alone is odd, and so is a short word beside it that is no
common one ("zkx"). Ordinary text has little of it, and figures by themselves (dates, prices) are none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from fairlead.guard.checks.normalise import normalise
from fairlead.guard.checks.reader import compiled, plain
from fairlead.guard.checks.trail import Trail
from fairlead.guard.wire.events import Channel

ENOUGH = 4  # figures and capitals within words that a fragment under a decoder has at the least
LEAST = 8  # characters worth reading
NEAR = 24  # characters between two odd words that may belong together

_NO_VOWEL = rb"[B-DF-HJ-NP-TV-XZb-df-hj-np-tv-xz]"
_ODD = compiled(
    rb"\S*(?:[0-9]|[a-z][A-Z]|[A-Z][A-Z]|[^A-Za-z\s'\".,:;!?()-]{2}"  # figures, capitals within, two signs
    rb"|[^0-9A-Za-z\s'][b-hj-zB-HJ-Z](?:[^0-9A-Za-z\s'][A-Za-z]|[_=+/|*~-])"  # a letter between signs
    rb"|[_=+/|*~-][A-Za-z](?:[^A-Za-z0-9']|$))\S*"
    rb"|(?:^|\s)(?:[b-hj-zB-HJ-Z]|%s{3,})\b"
    % _NO_VOWEL  # a letter alone, a word without a vowel
    + rb"|[_=+/|*~-]%s{3,}\b" % _NO_VOWEL  # such a word behind a sign that joins
)
_REST = re.compile(rb"\S+")
_WORD = re.compile(rb"[A-Za-z]+")
_SHORT = rb"(?:[A-Za-z]{1,4}|%s{5,8})(?![A-Za-z])" % _NO_VOWEL
_WORD_BEFORE = re.compile(rb"(?:^|\s)[^A-Za-z0-9\s]*%s[^A-Za-z0-9]*$" % _SHORT)
_WORD_AFTER = re.compile(rb"[^A-Za-z0-9]*%s" % _SHORT)
_FIRST_ALONE = re.compile(rb"[^A-Za-z0-9]*[A-Za-z0-9](?![A-Za-z0-9])")
_LAST_ALONE = re.compile(rb"(?<![A-Za-z0-9])[A-Za-z0-9][^A-Za-z0-9]*$")
_COMMON = frozenset(
    b"a able all also am an and any are area as ask at away back bad be been best big both but buy by call came can "
    b"card case city code come cost cut data date day days deal did do does done down each easy else end even ever far "
    b"fast few file find fine food for form free from full game gave get give go goes gone good got had half hand hard "
    b"has have he head hear help her here hers high him his hold home hope hour how i idea if in into is it item its "
    b"just keep key kind know last late left less let life like line list live long look lot love made main make many "
    b"may me mean men mind mine more most move much must my name near need new news next no none nor not note now of "
    b"off oh ok old on once one only onto open or our out over own page paid part past pay per plan play poor put read "
    b"real rest room run safe said same saw say see seem seen sell send sent set she show side sir size so some soon "
    b"sort stay step stop such sure take talk team tell ten test text than that the them then they this thus time to "
    b"told too took town turn two type upon us use used very via view wait walk want war was way we week well went "
    b"were what when who whom why will wish with word work year yes yet you your".split()
)
_ENDS = " \t\r\n.,:;!?()\"'*"
_NO_FIGURES = str.maketrans("", "", ".,$%")


def _kind(c: int) -> str:
    char = chr(c)
    if c >= 128 or char.isdigit():
        return "0"
    if char in "bcdfgh":
        return "b"
    return "a" if char.islower() else "A" if char.isupper() else " "


_KINDS = bytes(ord(_kind(c)) for c in range(256))
_JOINED = bytes(ord("." if chr(c) in "._=+/|*~-" else chr(kind)) for c, kind in enumerate(_KINDS))


@dataclass(slots=True)
class _Reading:
    """The odd words put together in one way: `letters` takes the words "a" and "I" beside an odd one for letters."""

    letters: bool = False
    trail: Trail = field(default_factory=Trail)
    open: tuple[Channel | None, int] | None = None  # an odd word that the text gathered last broke off in ends here

    def gather(self, channel: Channel | None, start: int, text: str) -> bool:
        folded = None if text.isascii() else normalise(text)
        read, new = plain(text), False
        regions = _regions(read, self.letters)
        if self.open == (channel, start) and (rest := _REST.match(read)):  # it goes on here
            inside = [j for i, j in regions if i < rest.end()]
            regions = [(0, max([rest.end(), *inside])), *((i, j) for i, j in regions if i >= rest.end())]
        broken_off = bool(regions) and regions[-1][1] == len(read) and not read[-1:].isspace()
        self.open = (channel, start + len(text)) if broken_off else None
        for i, j in regions:
            a, b = (i, j) if folded is None else folded.locate(i, j)
            odd = text[a:b]
            kept = odd.strip(_ENDS)
            if len(kept) > 4 or not kept.translate(_NO_FIGURES).isdigit():
                self.trail.add(channel, start + a + odd.find(kept), kept)
                new = new or bool(kept)
        return new


@dataclass(slots=True)
class Odd:
    """The odd words of one conversation. Nothing is gone over before there are signs `ENOUGH` of it. From the first "A"
    on that may be an article or a letter ("Next: A jDni gIxl"), they are put together in both ways."""

    _readings: list[_Reading] = field(default_factory=lambda: [_Reading()])
    _waiting: list[tuple[Channel | None, int, str]] = field(default_factory=list)
    _signs: int = 0

    @property
    def trails(self) -> list[Trail]:
        return [reading.trail for reading in self._readings]

    def add(self, channel: Channel | None, start: int, text: str, *, always: bool = False) -> bool:
        """Take a text, characters from `start` on of `channel`; whether there is something new to be read in `trails`.
        `always`: also where there are too few signs."""
        self._waiting.append((channel, start, text))
        read = plain(text)
        look = read.translate(_KINDS)
        within = look.count(b"A") - read.translate(_JOINED).count(b" A")  # capitals that begin no word
        self._signs += within + look.count(b"0") + look.count(b" b ") + look.count(b" A ")
        if self._signs < ENOUGH and not always:
            return False
        waiting, self._waiting = self._waiting, []
        return sum([self._gather(*item) for item in waiting]) > 0 and any(len(t.text) >= LEAST for t in self.trails)

    def _gather(self, channel: Channel | None, start: int, text: str) -> bool:
        first = self._readings[0]
        if len(self._readings) == 1 and _ARTICLE.search(read := plain(text)) and _regions(read) != _regions(read, True):
            self._readings.append(_Reading(True, first.trail.copy(), first.open))
        return sum([reading.gather(channel, start, text) for reading in self._readings]) > 0


_ARTICLE = re.compile(rb"(?<![A-Za-z0-9])[AaIi](?![A-Za-z0-9])")


def _regions(read: bytes, letters: bool = False) -> list[tuple[int, int]]:
    """Odd words, joined where what stands between may belong to them, with their neighbours. `letters`: the words "a"
    and "I" among those are letters."""
    joined: list[tuple[int, int]] = []
    for match in _ODD.finditer(read):
        i, j = match.span()
        if joined and i - joined[-1][1] < NEAR and _belongs(read[joined[-1][1] : i]):
            joined[-1] = (joined[-1][0], j)
        else:
            joined.append((i, j))
    out: list[tuple[int, int]] = []
    for n, (i, j) in enumerate(joined):
        left = max(out[-1][1] if out else 0, i - NEAR)
        right = min(joined[n + 1][0] if n + 1 < len(joined) else len(read), j + NEAR)
        spelled = letters or _FIRST_ALONE.match(read, i, j) is not None
        while (before := _WORD_BEFORE.search(read, left, i)) and not _common(before[0], spelled):
            i = before.start()
        spelled = letters or _LAST_ALONE.search(read, max(i, j - NEAR), j) is not None
        while (after := _WORD_AFTER.match(read, j)) and after.end() <= right and not _common(after[0], spelled):
            j = after.end()
        while i > left and not read[i - 1 : i].isalnum():
            i -= 1
        while j < right and not read[j : j + 1].isalnum():
            j += 1
        out.append((i, j))
    return out


def _belongs(gap: bytes) -> bool:
    """One word, or short ones that are no common ones."""
    words = _WORD.findall(gap)
    return len(words) <= 1 or all(len(word) <= 4 and word.lower() not in _COMMON for word in words)


def _common(words: bytes, spelled: bool) -> bool:
    """Whether it is a word of every day; `spelled`: beside a letter alone the words "a" and "I" are letters too."""
    return any(word.lower() in _COMMON and not (spelled and len(word) == 1) for word in _WORD.findall(words))
