"""The first look: could this text hold a canary at all, under any of the listed encodings?

It knows nothing of the canary's value, only that 32 of its bits were written: eight hex digits or more, possibly
turned, possibly under base64, hex or escapes. Base64 of a text has a rhythm of four in which each character comes from
a part of the alphabet; eight hex digits fill ten characters of it, which ordinary text does not do by chance. Whatever
has no such sign is known to hold nothing (`tests/guard/checks/test_signs.py` holds it against the full reading).

The rhythms are looked for in all places at once: every character becomes a byte with one bit for each rhythm that it
fits into, the bytes one long integer, and a rhythm is a handful of shifts and ands over it.
"""

from __future__ import annotations

import string
from binascii import a2b_base64
from codecs import encode
from collections.abc import Iterator
from typing import Any

from fairlead.guard.checks.reader import OTHERS, ROT13, URL_SAFE, compiled, plain, roots

_BASE64 = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"
_HEX = b"0123456789abcdefABCDEF"
_TURNED_HEX = b"0123456789nopqrsNOPQRS"
_WORDLIKE = string.ascii_letters.encode() + string.digits.encode()
_PRINTABLE = bytes([9, 10, 13, *range(32, 127)])


def _rhythm(inner: bytes) -> list[set[str]]:
    """For the four characters of a base64 quartet: which ones can come of bytes from `inner`."""
    parts = (
        {b >> 2 for b in inner},
        {(a & 3) << 4 | b >> 4 for a in inner for b in inner},
        {(a & 15) << 2 | b >> 6 for a in inner for b in inner},
        {b & 63 for b in inner},
    )
    return [{_BASE64[n] for n in part} for part in parts]


def _tables(*inners: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """For each of four characters in a row a table from character to bits: one bit for each of two kinds of inner text,
    written as it is, backwards, under rot13, and both."""
    tables = [bytearray(256) for _ in range(4)]
    bit = 1
    for inner in inners:
        straight = _rhythm(inner)
        turned = [{encode(c, "rot13") for c in part} for part in straight]
        for parts in (straight, straight[::-1], turned, turned[::-1]):
            for table, part in zip(tables, parts, strict=True):
                for char in part:
                    table[ord(char)] |= bit
            bit <<= 1
    first, second, third, fourth = map(bytes, tables)
    return first, second, third, fourth


_SHORT = _tables(_HEX, _TURNED_HEX)  # hex digits in base64
_LONG = _tables(_WORDLIKE, _PRINTABLE)  # base64 in base64; spelled out, escaped or in hex in base64


def _bits(letters: bytes, tables: tuple[bytes, bytes, bytes, bytes]) -> tuple[int, int, int, int]:
    one, two, three, four = tables
    number = int.from_bytes
    return (
        number(letters.translate(one), "little"), number(letters.translate(two), "little"),
        number(letters.translate(three), "little"), number(letters.translate(four), "little"),
    )  # fmt: skip


def _short_rhythm(letters: bytes, few: bool = False) -> bool:
    """Ten characters that eight hex digits would fill: two quartets, and two characters before, around or after.
    `few`: seven, that six would: two quartets, or one with three characters around it."""
    one, two, three, four = _bits(letters, _SHORT)
    quartet = one & two >> 8 & three >> 16 & four >> 24
    pair = quartet & quartet >> 32
    if few:
        before = quartet & four << 8
        return bool(pair | before & three << 16 & one >> 32 | before & one >> 32 & two >> 40)
    if not pair:
        return False
    after = pair & one >> 64 & two >> 72
    around = pair & four << 8 & one >> 64
    before = pair & four << 8 & three << 16
    return bool(after | around | before)


_FIRST_FOUR = b"\x0f"  # the bits of the first kind of inner text


def _long_rhythm(letters: bytes, few: bool = False) -> bool:
    """Twelve characters that eleven letters would fill, or three quartets of fifteen printable characters. `few`: eight
    that seven letters would fill, which is what base64 of six hex digits has."""
    one, two, three, four = _bits(letters, _LONG)
    quartet = one & two >> 8 & three >> 16 & four >> 24
    pair = quartet & quartet >> 32
    if not quartet or not (pair or few):
        return False
    every = int.from_bytes(_FIRST_FOUR * len(letters), "little")
    triple = pair & quartet >> 64
    if triple & ~every:
        return True
    if few:
        words = quartet & every
        before = words & four << 8
        return bool((words & pair & (one >> 64 | four << 8)) | (before & three << 16 & one >> 32 & two >> 40))
    words = pair & every
    after1 = words & one >> 64
    after2 = after1 & two >> 72
    before1 = words & four << 8
    before2 = before1 & three << 16
    return bool(triple & every | after2 & three >> 80 & four << 8 | after2 & before2 | after1 & before2 & two << 24)


_X_FORMS = compiled(
    b"|".join(
        b"(?:%s){4}" % pair
        for pair in (
            b"0?x[0-9a-f]{2}", b"0?k[0-9n-s]{2}", b"[0-9a-f]{2}x0?", b"[0-9n-s]{2}k0?",
            b"u[0-9a-f]{4}", b"h[0-9n-s]{4}", b"[0-9a-f]{4}u", b"[0-9n-s]{4}h",
        )
    )
)  # fmt: skip


def _hex_figures(digits: int, letters: int) -> Any:
    return compiled(
        rb"(?:3[0-9]|[46][1-6]|[57][0-3]|2[0-9]|09|10|13){%d}|(?:[0-9]3|[1-6][46]|[0-3][57]|[0-9]2|90|01|31){%d}"
        rb"|(?:[2-7][0-9]){%d}|(?:[0-9][2-7]){%d}" % (digits, digits, letters, letters)
    )


_HEX_FIGURES, _FEW_HEX_FIGURES = _hex_figures(8, 11), _hex_figures(6, 7)
_HEX_RUNS = (compiled(rb"[0-9a-f]{16,}"), compiled(rb"[0-9n-s]{16,}"))
_FEW_HEX_RUNS = (compiled(rb"[0-9a-f]{12,}"), compiled(rb"[0-9n-s]{12,}"))
_DENSE, _FEW_DENSE = (compiled(rb"(?:[A-Z0-9+/][a-z]{0,4}){%d,}" % times) for times in (7, 5))
_NO_SEXTETS, _NO_SIGNS, _NO_SAFE = (bytes(c for c in OTHERS if c not in kept) for kept in (b"+/-_", b"+/", b"-_"))
_ESCAPED = compiled(
    rb"&[ \t\r\n._,*|~:=+/?-]{1,6}#|#[ \t\r\n._,*|~:=+/?-]{1,6}&"
    rb"|%[0-9a-fA-Fn-sN-S]{2}|\\[xXuUkKhH0-3]|&#|&[a-z]{2,6};|#&|;[a-z]{2,6}&"
    rb"|[0-9a-fA-Fn-sN-S]{2}%.{0,9}[0-9a-fA-Fn-sN-S]{2}%|[0-9a-fA-Fn-sN-S]{2}[xk]\\|[0-9a-fA-Fn-sN-S]{4}[uh]\\"
)
_AS_HEX = bytes(104 if c in _HEX else 46 for c in range(256))
_AS_TURNED_HEX = bytes(104 if c in _TURNED_HEX else 46 for c in range(256))
_EIGHT, _TWELVE, _SIXTEEN = b"h" * 8, b"h" * 12, b"h" * 16


def glued(plain: bytes) -> bytes:
    """The letters and digits of a text alone: what stands between them is no sign of anything."""
    return plain.translate(None, OTHERS)


class Sight:
    """A text at a first look; what several checks ask of it is worked out once."""

    __slots__ = ("_encoded", "_few", "bare", "letters", "low", "others", "read")

    def __init__(self, read: bytes) -> None:
        self.read = read  # folded, one byte a character; in `letters` what stands between them is no sign of anything
        self.letters = glued(read)
        self.low = self.letters.lower()
        self.bare = runs(self.letters)
        self.others: tuple[Sight, ...] = ()  # the same text as the other `roots` read it: where it has look-alikes
        self._encoded: bool | None = None
        self._few: bool | None = None

    def encoded(self, few: bool = False) -> bool:
        """Whether something in it could be a canary under a decoder. `few`: six of its digits, not eight; ordinary text
        looks like that more often."""
        known = self._few if few else self._encoded
        if known is None:
            known = self._look(few)
            if few:
                self._few = known
            else:
                self._encoded = known
        return known

    def _look(self, few: bool) -> bool:
        read, letters = self.read, self.letters
        return (
            _short_rhythm(letters, few)
            or _long_rhythm(letters, few)
            or (self.bare and _hexlike(letters, self.low, few))
            or _prefixed(self.low)
            or _dense(letters, few)
            or any(_dense(form, few) for form in _signed(read))
            or _ESCAPED.search(read) is not None
        )


def sight(text: str) -> Sight:
    seen = Sight(plain(text))
    if not text.isascii():
        seen.others = tuple(Sight(root.data) for root in roots(text)[1:])
    return seen


class Eye:
    """Remembers the last text that it looked at: those who share one look at the same texts one after another. It
    belongs to one request, so that no text outlives it."""

    __slots__ = ("_sight", "_text")

    def __init__(self) -> None:
        self._text = ""
        self._sight = Sight(b"")

    def __call__(self, text: str) -> Sight:
        if text != self._text:
            self._text, self._sight = text, sight(text)
        return self._sight


def _signed(read: bytes) -> Iterator[bytes]:
    """A text with the signs of base64's alphabets as digits of it: of one, of the other, and of both, where it has
    such; those of one may stand between groups of the other."""
    signs, safe = b"+" in read or b"/" in read, b"-" in read or b"_" in read
    if signs:
        yield read.translate(None, _NO_SIGNS)
    if safe:
        yield read.translate(URL_SAFE, _NO_SAFE)
    if signs and safe:
        yield read.translate(URL_SAFE, _NO_SEXTETS)


def _hexlike(letters: bytes, low: bytes, few: bool = False) -> bool:
    """Sixteen hex digits in a row that could be eight characters (`few`: twelve); figures alone are mostly none."""
    row = _TWELVE if few else _SIXTEEN
    if row not in letters.translate(_AS_HEX) and row not in letters.translate(_AS_TURNED_HEX):
        return False
    figures, runs = (_FEW_HEX_FIGURES, _FEW_HEX_RUNS) if few else (_HEX_FIGURES, _HEX_RUNS)
    return figures.search(low) is not None or any(
        not run[0].isdigit() for pattern in runs for run in pattern.finditer(low)
    )


def _prefixed(low: bytes) -> bool:
    if low.count(b"x") >= 4 or low.count(b"k") >= 4 or b"u" in low or b"h" in low:
        return _X_FORMS.search(low) is not None
    return False


def _dense(letters: bytes, few: bool) -> bool:
    """Base64 of look-alikes has no rhythm, but capitals, figures and small letters without order: where they stand
    densely it is tried whether look-alikes come of it."""
    for match in (_FEW_DENSE if few else _DENSE).finditer(letters):
        if sum(c >= 97 for c in match[0]) >= 2 and any(65 <= c < 91 for c in match[0]):
            near = letters[max(0, match.start() - 16) : match.end() + 16]
            turned = near.translate(ROT13)
            for form in (near, near[::-1], turned, turned[::-1]):
                for skip in range(4):
                    body = form[skip:]
                    if _ALIKE.search(a2b_base64(body + b"A" * (-len(body) % 4))):
                        return True
    return False


_UNIT = rb"(?:[\xc2-\xd6][\x80-\xbf]|[\xe1-\xef][\x80-\xbf]{2}|\xf0[\x90-\xbf][\x80-\xbf]{2})"
_ALIKE = compiled(
    rb"(?:[ -~\t\r\n]{0,7}U){3}|UE{4}|EUE{3}|EEUEE|E{3}UE|E{4}U".replace(b"E", rb"(?:[0-9a-fA-Fn-sN-S]|U)").replace(
        b"U", _UNIT
    )
)  # look-alikes or what no screen shows among printable characters (" . 9 . "), or look-alikes among hex digits


def runs(letters: bytes) -> bool:
    """Whether eight hex digits stand in a row, turned or not: a canary as it is, spelled out or backwards."""
    return _EIGHT in letters.translate(_AS_HEX) or _EIGHT in letters.translate(_AS_TURNED_HEX)
