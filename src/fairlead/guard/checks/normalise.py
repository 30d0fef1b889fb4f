"""Text as it reads: look-alike letters, full-width forms, accents and characters that no screen shows are folded to
plain letters, and words spelled out are put together. Every other check looks at the folded text; positions lead back
to the text as written.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

# Each letter and what looks like it. Full-width, circled and mathematical letters and accents are left to Unicode's own
# compatibility forms.
_LOOKALIKES = {
    "a": "аɑαᴀ", "b": "вβƅʙь", "c": "сϲςᴄ", "d": "ԁᴅ", "e": "еҽεᴇ", "f": "ғƒꜰϝ", "g": "ɡɢ", "h": "һнʜ", "i": "іιıɪ",
    "j": "јᴊϳ", "k": "кκᴋ", "l": "ӏʟ", "m": "мᴍ", "n": "ηɴ", "o": "оοօσᴏ", "p": "рρᴘ", "q": "ԛ", "r": "ʀг", "s": "ѕꜱ",
    "t": "тτᴛ", "u": "υᴜ", "v": "ѵνᴠ", "w": "ԝωᴡ", "x": "хχ", "y": "уγʏ", "z": "ᴢз", "A": "АΑ", "B": "ВΒ", "C": "СϹ",
    "D": "Ꭰ", "E": "ЕΕ", "F": "Ϝ", "H": "НΗ", "I": "ІΙ", "J": "Ј", "K": "КΚ", "M": "МΜ", "N": "Ν", "O": "ОΟ",
    "P": "РΡ", "S": "Ѕ", "T": "ТΤ", "W": "Ԝ", "X": "ХΧ", "Y": "УΥ", "Z": "Ζ", "0": "〇", "3": "ЗƷ",
}  # fmt: skip
_LOOKALIKE = {other: letter for letter, others in _LOOKALIKES.items() for other in others}
_LOOKALIKE = {
    **{o.upper(): c.upper() for o, c in _LOOKALIKE.items() if len(o.upper()) == 1 and c.isalpha()},
    **{o.lower(): c.lower() for o, c in _LOOKALIKE.items() if len(o.lower()) == 1 and c.isalpha()},
    **_LOOKALIKE,
}
_DROPPED = frozenset("\u115f\u1160\u3164\uffa0\u034f")  # fillers that count as letters and show nothing
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
_SPELLED = re.compile(r"(?<![^\W_])[^\W\d_](?:[\W_]{1,3}[^\W\d_](?![^\W_])){2,}")  # "a r s e n i c", "a-r-s-e-n-i-c"
_KEPT = 65536  # characters whose folding is remembered; a text of more kinds is folded more slowly, not wrongly


class _Folds(dict[int, str]):
    """What each character folds to, worked out when it first comes: the form `str.translate` reads."""

    def __missing__(self, code: int) -> str:
        folded = _fold(chr(code))
        if len(self) < _KEPT:
            self[code] = folded
        return folded


def _fold(char: str) -> str:
    """One character as plain letters: compatibility forms, accents, look-alikes and invisible characters folded."""
    code = ord(char)
    if code < 0x80:
        return char
    if 0xE0020 <= code <= 0xE007E:  # tag characters: ASCII that no screen shows
        return chr(code - 0xE0000)
    if 0x1F1E6 <= code <= 0x1F1FF:  # regional indicators, and white-on-black letters
        return chr(code - 0x1F1E6 + 97)
    for base in (0x1F150, 0x1F170):
        if base <= code < base + 26:
            return chr(code - base + 97)
    if char in _DROPPED:
        return ""
    if char in _LOOKALIKE:
        return _LOOKALIKE[char]
    return "".join(
        _LOOKALIKE.get(c, c)
        for c in unicodedata.normalize("NFKD", char)
        if unicodedata.category(c) not in ("Mn", "Me", "Cf")
    )


_FOLDS = _Folds()


class Folded:
    """A folded text, and where each of its characters stands in the text as written: `at`, None where that is the same.
    The places are worked out when they are first asked for; most texts hold nothing that has to be found again."""

    __slots__ = ("_at", "_written", "text")

    def __init__(self, text: str, at: tuple[int, ...] | None = None, written: str | None = None) -> None:
        self.text, self._at, self._written = text, at, written

    @property
    def same(self) -> bool:
        """Whether the text is the one that was written."""
        return self._at is None and self._written is None

    @property
    def at(self) -> tuple[int, ...] | None:
        if self._at is None and self._written is not None:
            self._at = _places(self._written)
        return self._at

    def locate(self, i: int, j: int) -> tuple[int, int]:
        """The characters of the text as written behind text[i:j], j > i."""
        return (i, j) if (at := self.at) is None else (at[i], at[j - 1] + 1)


def fold(text: str) -> str:
    """The folded text alone: what a check looks at before it needs to know where. Case and spacing are kept.

    >>> fold("раs\u200bsｗord")
    'password'
    """
    return text if text.isascii() else _NOT_ASCII.sub(lambda match: match[0].translate(_FOLDS), text)


def normalise(text: str) -> Folded:
    """The folded text with its positions; a text of plain ASCII is its own."""
    return Folded(text) if text.isascii() else Folded(fold(text), None, text)


def _places(text: str) -> tuple[int, ...]:
    at: list[int] = []
    done = 0
    for match in _NOT_ASCII.finditer(text):
        at += range(done, match.start())
        for n, char in enumerate(match[0], match.start()):
            at += [n] * len(_FOLDS[ord(char)])
        done = match.end()
    at += range(done, len(text))
    return tuple(at)


def spelled(read: Folded) -> Iterator[Folded]:
    """Words of a folded text whose letters stand alone, each put together. Of letters only: figures in a row with gaps
    between them are a list more often than a number."""
    for run in _SPELLED.finditer(read.text):
        at = [n for n in range(run.start(), run.end()) if read.text[n].isalpha()]
        yield Folded("".join(read.text[n] for n in at), tuple(at if (far := read.at) is None else (far[n] for n in at)))


def visible(text: str) -> Folded:
    """The text as written, without the characters that no screen shows."""
    if not hidden(text):
        return Folded(text)
    at = [n for n, char in enumerate(text) if _FOLDS[ord(char)]]
    return Folded("".join(text[n] for n in at), tuple(at))


def hidden(text: str) -> int:
    """How many characters of a text no screen shows: they fold to nothing."""
    return 0 if text.isascii() else sum(not _FOLDS[ord(char)] for found in _NOT_ASCII.findall(text) for char in found)


def lookalikes(text: str) -> str:
    """The plain letters and digits that characters beyond ASCII in a text are read as."""
    folded = "".join(match[0].translate(_FOLDS) for match in _NOT_ASCII.finditer(text))
    return "".join(char for char in folded if char.isascii() and char.isalnum())


def characters(data: bytes) -> tuple[str, list[int]]:
    """Bytes as text (what is no UTF-8 stays one odd character per byte) and the byte offset of each character."""
    text = data.decode("utf-8", "surrogateescape")
    offsets = [0]
    for char in text:
        code = ord(char)
        wide = 1 if code < 0x80 or 0xDC80 <= code <= 0xDCFF else 2 if code < 0x800 else 3 if code < 0x10000 else 4
        offsets.append(offsets[-1] + wide)
    return text, offsets
