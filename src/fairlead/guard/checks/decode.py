"""Seeing a known word through its disguises, and where it stands in the text as written.

A `View` is the text read another way (look-alike letters folded, reversed, rot13, unescaped, hex or base64 decoded)
that can say which characters of the original each stretch came from. `find` looks for one secret in all views, up to
`DEPTH` readings on top of each other. Every view is at most as long as its parent, what reads as noise is not read
on, and the patterns have one way to match: the time is linear in the text.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from fairlead.guard.checks.normalise import characters, normalise
from fairlead.guard.checks.reader import compiled

DEPTH = 3
SHORTEST = 3  # a shorter secret would be found in every second sentence

Locate = Callable[[int, int], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class View:
    """A reading of the text. `locate(i, j)` gives the characters of the original behind text[i:j]."""

    text: str
    path: tuple[str, ...]
    locate: Locate
    loose: bool = True  # look for spelled-out forms too; not in streams glued from all of a text


@dataclass(frozen=True, slots=True)
class Found:
    """A secret seen: [start, end) of the original, and how it was written."""

    start: int
    end: int
    how: str


def clean(text: str) -> View:
    """The text with look-alikes, accents, full-width forms and zero-width characters folded; case is kept."""
    folded = normalise(text)
    return View(folded.text, (), folded.locate)


# ---------------------------------------------------------------------------------------- other readings

_LOWER, _UPPER = "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ROT13 = str.maketrans(_LOWER + _UPPER, _LOWER[13:] + _LOWER[:13] + _UPPER[13:] + _UPPER[:13])


def reverse(view: View) -> View:
    size = len(view.text)
    return View(view.text[::-1], (*view.path, "reversed"), lambda i, j: view.locate(size - j, size - i), view.loose)


def rot13(view: View) -> View:
    return View(view.text.translate(_ROT13), (*view.path, "rot13"), view.locate, view.loose)


_ESCAPES = re.compile(
    r"(?:%[0-9a-fA-F]{2})+|(?:\\x[0-9a-fA-F]{2})+|\\u[0-9a-fA-F]{4}|\\u\{[0-9a-fA-F]{1,6}\}"
    r"|&#[xX][0-9a-fA-F]{1,6};?|&#[0-9]{1,7};?"
)


def unescape(view: View) -> Iterator[View]:
    """URL, backslash and HTML escapes read; nothing where there are none."""
    text: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    done = 0
    for match in _ESCAPES.finditer(view.text):
        text.append(view.text[done : match.start()])
        starts += range(done, match.start())
        ends += range(done + 1, match.start() + 1)
        for char, start, end in _read_escape(match[0], match.start()):
            text.append(char)
            starts.append(start)
            ends.append(end)
        done = match.end()
    if not done:
        return
    text.append(view.text[done:])
    starts += range(done, len(view.text))
    ends += range(done + 1, len(view.text) + 1)
    yield View("".join(text), (*view.path, "escaped"), lambda i, j: view.locate(starts[i], ends[j - 1]))


def _read_escape(escape: str, at: int) -> Iterator[tuple[str, int, int]]:
    if escape[0] == "%" or escape[1] == "x":
        width = 3 if escape[0] == "%" else 4
        data = bytes(int(escape[i + width - 2 : i + width], 16) for i in range(0, len(escape), width))
        text, offsets = characters(data)
        for n, char in enumerate(text):
            yield char, at + width * offsets[n], at + width * offsets[n + 1]
        return
    digits = escape.strip("\\&#;{}uxX")
    code = int(digits, 16 if escape[0] == "\\" or escape[2] in "xX" else 10)
    if code < 0x110000:
        yield chr(code), at, at + len(escape)


_HEX_RUN = re.compile(r"[0-9a-fA-FxX\W_]{6,}")
_HEX_RUN_DECODED = re.compile(r"[0-9a-fA-FxX\s,:;.|%\\'\"-]{6,}")
_HEX_TOKEN = re.compile(r"([0\\][\W_]*[xX])(?=[\W_]*[0-9a-fA-F][\W_]*[0-9a-fA-F])|([0-9a-fA-F])|([xX])")


def unhex(view: View, least: int = 0) -> Iterator[View]:
    """Runs of hex digits, with any separators and 0x or \\x before the bytes, read at both alignments."""
    run_pattern = _HEX_RUN_DECODED if view.path else _HEX_RUN
    for run in run_pattern.finditer(view.text):
        digits: list[int] = []
        for token in [*_HEX_TOKEN.finditer(view.text, run.start(), run.end()), None]:
            if token is not None and token[2]:
                digits.append(token.start())
            elif token is None or token[3]:
                yield from _hex_bytes(view, digits, least)
                digits = []


def _hex_bytes(view: View, at: list[int], least: int) -> Iterator[View]:
    for skip in (0, 1):
        even = at[skip : len(at) - (len(at) - skip) % 2]
        if len(even) >= 2 * max(SHORTEST, _bytes(least)):
            text, offsets = characters(bytes.fromhex("".join(view.text[i] for i in even)))
            yield View(text, (*view.path, "hex"), _located(view, offsets, even, 2))


def _located(view: View, offsets: list[int], at: list[int], per_byte: int) -> Locate:
    def locate(i: int, j: int) -> tuple[int, int]:
        return view.locate(at[per_byte * offsets[i]], at[per_byte * offsets[j] - 1] + 1)

    return locate


_BASE64_RUN = re.compile(r"[A-Za-z0-9+/_-]{4,}(?:=*\r?\n[A-Za-z0-9+/_-]+)*")  # may go on over lines
_BASE64_RUN_DECODED = re.compile(r"[A-Za-z0-9+/_-]{6,}")  # in noise shorter runs are common
_MIXED = re.compile(r"[0-9+/_-]|[a-z].*[A-Z]|[A-Z].*[A-Z]", re.DOTALL)
_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/]+")
_URLSAFE = str.maketrans("-_", "+/")


def unbase64(view: View, least: int = 0) -> Iterator[View]:
    """Runs of the base64 alphabet (either alphabet, padded or not) that do not look like plain words."""
    short = 4 * _bytes(least) // 3
    for run in (_BASE64_RUN_DECODED if view.path else _BASE64_RUN).finditer(view.text):
        if run.end() - run.start() >= short and _MIXED.search(run[0]):
            yield from _base64_bytes(view, run[0].translate(_URLSAFE), run.start(), glued=False, least=least)


def unbase64_glued(view: View) -> Iterator[View]:
    """All letters and digits of the text as one base64 stream: spaced out, or all lower case.

    Reading plain words this way gives noise, so only the plain spelling of a secret counts in it (`loose=False`).
    """
    yield from _base64_bytes(view, view.text, 0, glued=True)
    if "-" in view.text or "_" in view.text:
        yield from _base64_bytes(view, view.text.translate(_URLSAFE), 0, glued=True)


def _base64_bytes(view: View, source: str, start: int, *, glued: bool, least: int = 0) -> Iterator[View]:
    stream = _NOT_BASE64.sub("", source)
    for skip in range(4):  # the run may be glued to what stands before it
        body = stream[skip:]
        if len(body) % 4 == 1:
            body = body[:-1]
        if len(body) >= 4:
            data = base64.b64decode(body + "=" * (-len(body) % 4))
            if len(data) >= _bytes(least):
                yield _base64_view(view, source, start, skip, data, glued=glued)


def _base64_view(view: View, source: str, start: int, skip: int, data: bytes, *, glued: bool) -> View:
    text = data.decode("utf-8", "surrogateescape")

    def locate(i: int, j: int) -> tuple[int, int]:
        # worked out only for a hit: most readings are noise and have none
        at = [start + n for n, char in enumerate(source) if not _NOT_BASE64.match(char)][skip:]
        offsets = characters(data)[1]
        first, last = offsets[i], offsets[j] - 1  # bytes; byte b is written by characters 8b // 6 to (8b + 7) // 6
        return view.locate(at[8 * first // 6], at[(8 * last + 7) // 6] + 1)

    return View(text, (*view.path, "base64"), locate, loose=not glued)


def _readable(view: View) -> bool:
    """Most of it could be on a page: noise is not worth reading on."""
    text = view.text
    plain = len(text)
    if text.isprintable():
        return True
    for char in text:
        if not (char.isprintable() or char.isspace()):
            plain -= 1
            if plain < 0.9 * len(text):  # noise is seen at its beginning
                return False
    return True


def readings(text: str, depth: int = DEPTH, least: int = 0) -> Iterator[View]:
    """The text and all its readings, up to `depth` on top of each other. Left out are those that hold less than `least`
    letters and digits, and of which no other can be read that holds so many."""
    least = min(least, 600)  # longer ones are as rare, and RE2 counts to 1,000
    level = [clean(text)]
    if not text.isascii():  # rot13 of look-alikes: the letters have to be turned before they are folded
        level.append(replace(clean(text.translate(_ROT13)), path=("rot13 of look-alikes",)))
    for step in range(depth + 1):
        yield from level
        if step == depth:
            return
        level = [child for view in level for child in _children(view, least)]


def _children(view: View, least: int) -> Iterator[View]:
    mirrored = all(name in ("reversed", "rot13") for name in view.path)  # as long as the text itself, never noise
    if not mirrored and view.loose and not _readable(view):
        return
    if least and not mirrored and not _encoded(least).search(view.text.encode("ascii", "replace")):
        return
    if "reversed" not in view.path:
        yield reverse(view)
    if "rot13" not in view.path and "reversed" not in view.path[-1:]:
        yield rot13(view)
    for child in (*unescape(view), *unhex(view, least), *unbase64(view, least)):
        if not child.text.isascii() or 2 * len(child.text) >= least:  # base64 over base64, as in `_bytes`
            yield _refolded(child)
    if mirrored:
        yield from unbase64_glued(view)


def _bytes(least: int) -> int:
    """Of how many bytes `least` letters or digits may come. Folding makes at most 5 of 3 bytes (of "㎯"); where base64
    stands in them, and in that once more, it happens again to three quarters of it each time: 2.6 in all."""
    return -(-least // 3)


@lru_cache(maxsize=64)
def _encoded(least: int) -> Any:
    """Where decoded text, turned or not, may be read on and give `least` letters or digits: an escape, a run of base64,
    hex digits in a row. Most noise has none of them, and what it would be turned into has neither."""
    token, digits = max(6, 4 * _bytes(least) // 3), 2 * max(SHORTEST, _bytes(least))
    return compiled(
        rb"%%[0-9a-fA-Fn-sN-S]{2}|[0-9a-fA-Fn-sN-S]{2}%%|\\[xukh]|[xukh]\\|&#|#&|[A-Za-z0-9+/_-]{%d,}"
        rb"|(?:[0-9a-fA-Fn-sN-S][xXkK\x09-\x0d\x1c-\x20?,:;.|%%\\'\"-]*){%d,}" % (token, digits)
    )


def _refolded(view: View) -> View:
    """Decoded text may itself be written in look-alikes."""
    if view.text.isascii() or not view.loose:
        return view
    folded = clean(view.text)

    def locate(i: int, j: int) -> tuple[int, int]:
        return view.locate(*folded.locate(i, j))

    return View(folded.text, view.path, locate)


# ------------------------------------------------------------------------------------------ the word itself

_GAP = r"[\W_]*"
_LEET = {"a": "4", "b": "8", "e": "3", "g": "9", "i": "1", "l": "1", "o": "0", "s": "5", "t": "7"}
_SPELLED = re.compile(r"(?<![^\W_])[^\W_](?:[\W_]+[^\W_](?![^\W_])){2,}")  # letters standing alone, one after another


@dataclass(frozen=True, slots=True)
class Shape:
    """The patterns of one secret, by the way it is turned ("" for not).

    `loose` allows gaps between the letters, `strict` is plain spelling, `shifted` are the other Caesar alphabets, which
    only count where every letter stands alone.
    """

    letters: str
    loose: tuple[tuple[str, re.Pattern[str]], ...]
    strict: tuple[tuple[str, re.Pattern[str]], ...]
    shifted: re.Pattern[str]


@lru_cache(maxsize=4096)
def shape(secret: str) -> Shape:
    """Patterns for `secret`. Raises ValueError where it is too short to be told from ordinary text."""
    whole = clean(secret).text
    letters = _letters(whole)
    if len(letters) < SHORTEST:
        raise ValueError(f"a secret needs at least {SHORTEST} letters or digits to be told from ordinary text")
    turned = {"": whole, "reversed": whole[::-1], "rot13": whole.translate(_ROT13)}
    turned["rot13, reversed"] = turned["rot13"][::-1]
    words: dict[str, str] = {}  # two ways may give one word (digits, palindromes): the simpler one names it
    for way, text in turned.items():
        words.setdefault(_letters(text).lower(), way)
    loose = tuple((way, re.compile(_GAP.join(_letter(c, leet=not way) for c in w), re.I)) for w, way in words.items())
    # In a glued stream letters of mixed case are noise: the secret as it was given, in one case, or capitalised.
    strict = tuple(
        (way, re.compile("|".join(sorted(re.escape(form) for form in {t, t.lower(), t.upper(), t.capitalize()}))))
        for way, t in ((way, turned[way]) for way in words.values())
    )
    alphabets = {letters.lower().translate(str.maketrans(_LOWER, _LOWER[n:] + _LOWER[:n])) for n in range(1, 26)}
    shifted = "|".join(_GAP.join(map(re.escape, word)) for word in sorted(alphabets - set(words)))
    return Shape(letters, loose, strict, re.compile(shifted or r"(?!)", re.I))


def _letters(text: str) -> str:
    return "".join(re.findall(r"[^\W_]", text))


def _letter(char: str, *, leet: bool) -> str:
    other = _LEET.get(char.lower(), "") if leet else ""
    return f"[{re.escape(char)}{other}]" if other else re.escape(char)


def find(secret: str, views: list[View]) -> list[Found]:
    """Where `secret` stands in the text behind `views` (from `readings`), in order of place.

    The same stretch seen in two readings is named once, by the simpler one.
    """
    form = shape(secret)
    found: list[Found] = []
    for view in views:
        if view.path[-1:] in (("reversed",), ("rot13",)):
            continue  # the patterns know these two; such a view is there to be decoded further
        for way, pattern in form.loose if view.loose else form.strict:
            at = 0
            while match := pattern.search(view.text, at):
                spelling = _spelling(form.letters, way, match, view)
                at = match.end() if spelling is not None else match.start() + 1
                if spelling is not None:
                    found.append(_found(view, match, spelling))
        if not view.path:
            for run in _SPELLED.finditer(view.text):
                hits = form.shifted.finditer(view.text, run.start(), run.end())
                found += [_found(view, match, "shifted letters, spelled out") for match in hits]
    return _outermost(found)


def _found(view: View, match: re.Match[str], spelling: str) -> Found:
    how = ", ".join(filter(None, (*reversed(view.path), spelling))) or "as it is"
    return Found(*view.locate(match.start(), match.end()), how)


def _spelling(letters: str, way: str, match: re.Match[str], view: View) -> str | None:
    """How the match is spelled, or None where it is ordinary text that happens to hold these letters."""
    gaps = re.split(r"[^\W_]", match[0])[1:-1]
    text, start, end = view.text, match.start(), match.end()
    alone = not (start and text[start - 1].isalnum()) and not (end < len(text) and text[end].isalnum())
    if not any(gaps):
        # "ehol" inside "household" is no rot13 of ruby; six letters in a row hardly come about by chance
        plain = not way and "rot13 of look-alikes" not in view.path
        return way if alone or len(letters) >= (4 if plain else 6) else None
    spelled = f"{way}, spelled out" if way else "spelled out"
    if all(gaps):
        return spelled
    if not alone:
        return None
    if letters.isdigit():  # "12 + 34" is a sum, "12 34" a code
        return spelled if all(gap in ("", " ", "-") for gap in gaps) else None
    return spelled if len(letters) >= 4 else None


def _outermost(found: list[Found]) -> list[Found]:
    """In order of place; what lies inside another stretch is left out, of equals the first seen stays."""
    kept: list[Found] = []
    for item in sorted(found, key=lambda f: (f.start, -f.end)):
        if not kept or item.end > kept[-1].end:
            kept.append(item)
    return kept
