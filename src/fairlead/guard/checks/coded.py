"""Stretches of a text that are written in base64, in hex or in escapes, decoded: what a model reads as easily as words.

Linear in the text, and nothing where there are no such stretches. Two layers deep; what decodes to noise is left out.
Words reversed or shifted (rot13) are not turned back: that would read every text several times.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from fairlead.guard.checks.decode import View, unbase64, unescape, unhex

DEPTH = 2
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{24,}={0,2}(?:\r?\n[A-Za-z0-9+/_-]{4,}={0,2})*")
_HEX = re.compile(r"(?:[0-9a-fA-F]{2}[\s:,]?){12,}|(?:0x[0-9a-fA-F]{2}[\s,]{0,2}){12,}")
_ESCAPED = re.compile(r"%[0-9a-fA-F]{2}|\\x[0-9a-fA-F]{2}|\\u\{?[0-9a-fA-F]{2}|&#[xX]?[0-9a-fA-F]{2}")


def coded(view: View, depth: int = DEPTH) -> Iterator[View]:
    """Every stretch that decodes to something readable, and the whole text with its escapes read."""
    if not depth:
        return
    for pattern, decode in ((_BASE64, unbase64), (_HEX, unhex)):
        for run in pattern.finditer(view.text):
            for inner in decode(_part(view, run.start(), run.end())):
                if _readable(inner.text):
                    yield inner
                    yield from coded(inner, depth - 1)
    if "escaped" not in view.path[-1:] and _ESCAPED.search(view.text):
        for inner in unescape(view):
            yield inner
            yield from coded(inner, depth - 1)


def _part(view: View, start: int, end: int) -> View:
    return View(view.text[start:end], view.path, lambda i, j: view.locate(start + i, start + j), view.loose)


def _readable(text: str) -> bool:
    return len(text) >= 12 and sum(char.isprintable() or char.isspace() for char in text) >= 0.9 * len(text)
