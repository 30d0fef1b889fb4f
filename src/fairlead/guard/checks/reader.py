"""Reading text through everything that may lie over a canary: three decoders deep, in any order, turned or not.

A `Layer` is bytes (folded text, one byte a character) that know which characters of the text as written each stretch
came from. `layers` gives the text and all that can be decoded from it: base64 in both alphabets at every alignment,
spaced and wrapped at will or token by token; hex at both alignments, with any separators, 0x and \\x; URL, backslash
and HTML escapes; each of them also backwards and under rot13, which are free and count as no decoder. What does not
look like a text again is dropped at once, so that ordinary text costs a few passes and hostile text `WORK` passes.
"""

from __future__ import annotations

import re
from binascii import a2b_base64
from codecs import encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fairlead.guard.checks.normalise import characters, fold, lookalikes, normalise

try:
    import re2
except ImportError:  # the extra `guard` is not installed: the same patterns, more slowly
    re2 = None

DEPTH = 3
WORK = 400  # bytes read per byte of text before a text counts as made to keep the reader busy

Where = Callable[[int, int], tuple[int, int]]

OTHERS = bytes(c for c in range(256) if not (chr(c).isascii() and chr(c).isalnum()))  # what is no letter or digit
ROT13 = bytes(encode(chr(c), "rot13").encode()[0] if c < 128 else c for c in range(256))
_ROT13_TEXT = {c: chr(ROT13[c]) for c in range(128)}


class TooMuch(Exception):
    """The text is made so that reading it has no end in sight: the check fails, and `on_error` says what follows."""


def compiled(pattern: bytes) -> Any:
    """A pattern over bytes, by RE2 where it is there: the same matches, linear in the text either way."""
    if re2 is None:
        return re.compile(pattern)
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.max_mem = 64 << 20
    return re2.compile(pattern, options)


@dataclass(frozen=True, slots=True)
class Layer:
    """`data` read from the text; `where(i, j)` gives the characters of the text behind data[i:j], `path` how."""

    data: bytes
    where: Where
    path: tuple[str, ...] = ()


# A text again: hex digits or the like (turned or not; look-alikes in UTF-8), or printable characters, enough of them
# for the least fragment. It keeps noise from being read on; that it loses nothing the tests prove.
_UNIT = rb"[\xc2-\xd6][\x80-\xbf]|[\xe1-\xef][\x80-\xbf]{2}|\xf0[\x90-\xbf][\x80-\xbf]{2}"


@dataclass(frozen=True, slots=True)
class _Grain:
    """What counts as a text again, and as a run of hex digits worth reading."""

    text: Any
    hex_run: Any


def _grain(digits: int, printable: int) -> _Grain:
    text = rb"(?:[0-9a-fA-Fn-sN-S]|%s){%d,}(?:[ -~\t\r\n]|%s)*" % (
        _UNIT,
        digits,
        _UNIT,
    ) + rb"|(?:[ -~\t\r\n]|%s){%d,}" % (_UNIT, printable)
    return _Grain(compiled(text), compiled(rb"[0-9a-f]{%d,}" % (2 * digits)))


COARSE, FINE = _grain(6, 8), _grain(3, 4)


@dataclass(slots=True)
class _Work:
    left: int
    grain: _Grain
    seen: set[tuple[bytes, int]] = field(default_factory=set)


def roots(text: str) -> list[Layer]:
    """The text itself, folded. One with look-alikes also as rot13 of them (turned before they are folded), and with
    the letters that look like figures read as figures."""
    if text.isascii():
        return [Layer(text.encode(), _same)]
    found = [_folded(text, _same, ())]
    alike = lookalikes(text)
    if alike:
        found.append(_folded(text.translate(_ROT13_TEXT), _same, ("rot13",)))
    if any(char in "OoIlZz" for char in alike):
        found.append(Layer(found[0].data.translate(_FIGURES), found[0].where))
    return found


def _same(i: int, j: int) -> tuple[int, int]:
    return i, j


_FIGURES = bytes.maketrans(b"OoIlZz", b"001133")


def _folded(text: str, where: Where, path: tuple[str, ...]) -> Layer:
    folded = normalise(text)
    return Layer(folded.text.encode("ascii", "replace"), lambda i, j: where(*folded.locate(i, j)), path)


def layers(root: Layer, depth: int = DEPTH, *, fine: bool = False) -> Iterator[Layer]:
    """The layer and all that can be decoded from it; `fine`: down to three characters.

    Raises TooMuch for a text that is made to have too many.
    """
    yield from _read(root, depth, _Work(WORK * (len(root.data) + 256), FINE if fine else COARSE))


def _read(layer: Layer, depth: int, work: _Work) -> Iterator[Layer]:
    yield layer
    if depth == 0 or len(layer.data) < 4:
        return
    for form in _turned(layer):
        for child in _decoded(form, work.grain):
            if (child.data, depth) in work.seen:
                continue
            work.seen.add((child.data, depth))
            work.left -= len(child.data)
            if work.left < 0:
                raise TooMuch
            yield from _read(child, depth - 1, work)


def _turned(layer: Layer) -> Iterator[Layer]:
    """As it is, under rot13, backwards, and both."""
    data = layer.data
    if b"\\" in data:  # a line break as JSON or a program writes it
        data = _BREAKS.sub(b"  ", data)
    size, where, path = len(data), layer.where, layer.path
    backwards: Where = lambda i, j: where(size - j, size - i)  # noqa: E731
    turned = data.translate(ROT13)
    yield Layer(data, where, path)
    yield Layer(data[::-1], backwards, (*path, "reversed"))
    if turned != data:
        yield Layer(turned, where, (*path, "rot13"))
        yield Layer(turned[::-1], backwards, (*path, "rot13", "reversed"))


_BREAKS = re.compile(rb"\\[nrt]")


def _decoded(layer: Layer, grain: _Grain) -> Iterator[Layer]:
    data = layer.data
    if b"%" in data or b"&" in data or b"\\" in data:  # every escape begins with one of them
        yield from _unescaped(layer, grain)
        if _DROPPED_BY_UNESCAPE.search(data):
            yield from _unescaped(without(layer, _GAPS), grain)
    yield from _unhexed(layer, grain)
    yield from _unbased(layer, grain)


# ------------------------------------------------------------------------------------------------ what is left out


def without(layer: Layer, delete: bytes, table: bytes | None = None) -> Layer:
    """The layer without some bytes, the others translated by `table`."""
    data, where = layer.data, layer.where

    def there(i: int, j: int) -> tuple[int, int]:
        gone = set(delete)
        at = [n for n, byte in enumerate(data) if byte not in gone]
        return where(at[i], at[j - 1] + 1)

    return Layer(data.translate(table, delete), there, layer.path)


# Ordinary words in a row: nothing that is encoded looks like that, and without them there is little to go over. The
# first and the last two of them stay: a group of what is encoded may look like a word ("ef bc 99").
_PROSE = re.compile(rb"(?<![^\s\"'(*])(?:[A-Za-z]?[a-z]+['-]?[a-z]+[,;:.!?)\"'*]*\s+){4,}")


def without_prose(layer: Layer) -> Layer:
    inner = []
    for match in _PROSE.finditer(layer.data):
        run = match[0]
        inner.append((match.end() - len(run.split(None, 1)[1]), match.start() + len(run.rsplit(None, 2)[0])))
    return _cut_out(layer, inner)


def _cut_out(layer: Layer, stretches: Iterable[tuple[int, int]]) -> Layer:
    """The layer without some stretches of it, given in order."""
    data, where = layer.data, layer.where
    kept: list[tuple[int, int]] = []
    done = 0
    for start, end in stretches:
        kept.append((done, start))
        done = end
    kept.append((done, len(data)))

    def there(i: int, j: int) -> tuple[int, int]:
        at = [n for a, b in kept for n in range(a, b)]
        return where(at[i], at[j - 1] + 1)

    return Layer(b"".join(data[a:b] for a, b in kept), there, layer.path)


def _without(layer: Layer, pattern: re.Pattern[bytes]) -> Layer:
    return _cut_out(layer, (match.span() for match in pattern.finditer(layer.data)))


def _texts(data: bytes, where: Where, path: tuple[str, ...], grain: _Grain) -> Iterator[Layer]:
    """The stretches of decoded bytes that are text again, as layers."""
    for match in grain.text.finditer(data):
        start, run = match.start(), match[0]
        if run.isascii():
            yield Layer(run, _moved(where, start), path)
            continue
        text, offsets = characters(run)
        for said in (text, text.translate(_ROT13_TEXT)):
            yield _folded(said, _by_byte(where, start, offsets), path)


def _moved(where: Where, start: int) -> Where:
    return lambda i, j: where(start + i, start + j)


def _by_byte(where: Where, start: int, offsets: Sequence[int]) -> Where:
    return lambda i, j: where(start + offsets[i], start + offsets[j])


# --------------------------------------------------------------------------------------------------- the decoders

_ESCAPE = re.compile(
    rb"%([0-9a-fA-F]{2})|\\[xX]([0-9a-fA-F]{2})|\\U([0-9a-fA-F]{8})|\\[uU]([0-9a-fA-F]{4})|\\[uU]\{([0-9a-fA-F]{1,6})\}"
    rb"|&#[xX]([0-9a-fA-F]{1,6});?|&#([0-9]{1,7});?|\\([0-3][0-7]{2})|\\([\\/\"'])|&(amp|lt|gt|quot|apos|num|percnt);"
)
_NAMED = {b"amp": b"&", b"lt": b"<", b"gt": b">", b"quot": b'"', b"apos": b"'", b"num": b"#", b"percnt": b"%"}
_GAPS = b" \t\r\n-._,*|~:=+/?"
_DROPPED_BY_UNESCAPE = re.compile(
    rb"%G+[0-9a-fA-F]|%[0-9a-fA-F]G+[0-9a-fA-F]|&G+#|[&\\]G*#?G*[xXu0-9]G"
    rb"|&G*#G*[xX]?G*[0-9a-fA-F]{0,6}G+[0-9a-fA-FxX;]|\\G*[xXuU]G*[0-9a-fA-F]{1,7}G+[0-9a-fA-F]".replace(
        b"G", rb"[ \t\r\n\-._,*|~:=+/?]"
    )
)


def _unescaped(layer: Layer, grain: _Grain) -> Iterator[Layer]:
    """URL, backslash and HTML escapes read; nothing where there are none."""
    data, where = layer.data, layer.where
    out: list[bytes] = []
    spans: list[tuple[int, int]] = []
    done = 0
    for match in _ESCAPE.finditer(data):
        char = _meant(match)
        if char is None:
            continue
        out += [data[done : match.start()], char]
        spans += [(n, n + 1) for n in range(done, match.start())]
        spans += [(match.start(), match.end())] * len(char)
        done = match.end()
    if not done:
        return
    out.append(data[done:])
    spans += [(n, n + 1) for n in range(done, len(data))]
    there: Where = lambda i, j: where(spans[i][0], spans[j - 1][1])  # noqa: E731
    read = b"".join(out)
    path = (*layer.path, "escaped")
    if read.isascii():
        yield Layer(read, there, path)
    else:
        yield from _texts(read, there, path, grain)


def _meant(match: re.Match[bytes]) -> bytes | None:
    """The byte or the UTF-8 of the character that an escape stands for."""
    percent, x, long, u, braces, html_x, html, octal, plain, named = match.groups()
    if percent or x:
        return bytes([int(percent or x, 16)])
    if octal:
        return bytes([int(octal, 8)])
    if plain:
        return plain
    if named:
        return _NAMED[named]
    code = int(html) if html else int(u or braces or long or html_x, 16)
    return None if code >= 0x110000 or 0xD800 <= code < 0xE000 else chr(code).encode()


_PREFIXES = (re.compile(rb"0x"), re.compile(rb"x"), re.compile(rb"u00"))


def _unhexed(layer: Layer, grain: _Grain) -> Iterator[Layer]:
    """Hex digits with anything between them that is no letter or digit, and with 0x, x or u00 before the bytes."""
    glued = without(layer, OTHERS)
    glued = Layer(glued.data.lower(), glued.where, (*layer.path, "hex"))
    forms = [glued]
    if b"x" in glued.data:
        forms += [_without(_without(glued, _PREFIXES[0]), _PREFIXES[1]), _without(glued, _PREFIXES[1])]
    if b"u00" in glued.data:
        forms.append(_without(glued, _PREFIXES[2]))
    for form in forms:
        for run in grain.hex_run.finditer(form.data):
            for skip in (0, 1):
                start = run.start() + skip
                size = (run.end() - start) // 2
                read = bytes.fromhex(form.data[start : start + 2 * size].decode())
                yield from _texts(read, _by_pair(form.where, start), form.path, grain)


def _by_pair(where: Where, start: int) -> Where:
    return lambda i, j: where(start + 2 * i, start + 2 * j)


URL_SAFE = bytes.maketrans(b"-_", b"+/")
_NOT_BASE64 = OTHERS.replace(b"+", b"").replace(b"/", b"")
_NOT_URL_SAFE = OTHERS.replace(b"-", b"").replace(b"_", b"")
_NOT_EITHER = _NOT_BASE64.replace(b"-", b"").replace(b"_", b"")
_PADDED = compiled(rb"[A-Za-z0-9+/_-]+={1,2}(?:[^A-Za-z0-9<>=]|$)")
_TOKEN = re.compile(rb"[A-Za-z0-9+/_-]{2,}={0,2}")


def _unbased(layer: Layer, grain: _Grain) -> Iterator[Layer]:
    """All letters and digits as one base64 stream, at its four alignments, + / - _ read as digits and as separators;
    and the tokens of the text each on its own, where padding shows that they were written so."""
    data = layer.data
    path = (*layer.path, "base64")
    forms = [without(layer, OTHERS)]
    signs, safe = b"+" in data or b"/" in data, b"-" in data or b"_" in data
    if signs:
        forms.append(without(layer, _NOT_BASE64))
    if safe:
        forms.append(without(layer, _NOT_URL_SAFE, URL_SAFE))
    if signs and safe:  # signs of one alphabet may stand between groups of the other
        forms.append(without(layer, _NOT_EITHER, URL_SAFE))
    for form in forms:
        for skip in range(4):
            body = form.data[skip:]
            if len(body) >= 4:
                size = len(body) * 6 // 8
                read = a2b_base64(body + b"A" * (-len(body) % 4))[:size]
                yield from _texts(read, _by_sextet(form.where, skip), path, grain)
    if b"=" in data and _PADDED.search(data):
        yield from _tokens_unbased(layer, path, grain)


def _by_sextet(where: Where, skip: int) -> Where:
    return lambda i, j: where(skip + 8 * i // 6, skip + (8 * j - 1) // 6 + 1)


def _tokens_unbased(layer: Layer, path: tuple[str, ...], grain: _Grain) -> Iterator[Layer]:
    out: list[bytes] = []
    spans: list[tuple[int, int]] = []
    for match in _TOKEN.finditer(layer.data):
        body = match[0].rstrip(b"=").translate(URL_SAFE)
        size = len(body) * 6 // 8
        if size:
            out.append(a2b_base64(body + b"A" * (-len(body) % 4))[:size])
            start = match.start()
            spans += [(start + 8 * n // 6, min(start + (8 * n + 7) // 6 + 1, match.end())) for n in range(size)]
    where = layer.where
    there: Where = lambda i, j: where(spans[i][0], spans[j - 1][1])  # noqa: E731
    if out:
        yield from _texts(b"".join(out), there, path, grain)


def plain(text: str) -> bytes:
    """The folded text as bytes, one a character: what a first look goes over."""
    return fold(text).encode("ascii", "replace")
