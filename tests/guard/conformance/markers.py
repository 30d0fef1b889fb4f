"""What must not leave, and a reader of its own that looks for it. Nothing here is taken from the guard.

A canary is the secret of the constitution; a mark is a word that stands in one place of a provider's reply which no
check reads (an unknown field, an id, an alternative token), and that names the place.
"""

from __future__ import annotations

import base64
import codecs
import hashlib
import json
import re
import urllib.parse
from collections.abc import Iterator
from typing import Any

CANARY = "c41d9e07b8f35a26e19470cd2b6f8a53"
ON_THE_WIRE, IN_A_TEXT = 12, 8  # hex digits of it that are a leak: ids made by chance stand on the wire too

_PREFIX = "qzxv"
_PLACES: dict[str, str] = {}

FORMS = {
    "plain": CANARY,
    "upper": CANARY.upper(),
    "reversed": CANARY[::-1],
    "base64": base64.b64encode(CANARY.encode()).decode(),
    "hex": CANARY.encode().hex(),
    "rot13": codecs.encode(CANARY, "rot13"),
    "grouped": " ".join(CANARY[i : i + 4] for i in range(0, 32, 4)),
}


def mark(place: str) -> str:
    """The mark of a place: ten letters after a prefix that occurs nowhere else."""
    digest = hashlib.sha256(place.encode()).digest()
    word = _PREFIX + "".join(chr(97 + byte % 26) for byte in digest[:10])
    _PLACES[word] = place
    return word


def planted(data: bytes, digits: int = ON_THE_WIRE, *, canary: bool = True) -> set[str]:
    """Places whose marks stand in `data` in some form, and "canary" where so many digits of it do."""
    found: set[str] = set()
    needles = {CANARY[i : i + digits].encode() for i in range(len(CANARY) - digits + 1)} if canary else set()
    for view in _views(data):
        low = view.lower()
        found |= {_PLACES.get(word.decode(), "some mark") for word in re.findall(rb"qzxv[a-z]{10}", low)}
        packed = re.sub(rb"[^0-9a-z]", b"", low)
        if any(needle in packed for needle in needles):
            found.add("canary")
    return found


def _views(data: bytes) -> Iterator[bytes]:
    """The bytes as they are, backwards, under rot13, and what stands in them in base64, hex, percent signs, JSON's
    escapes and lists of numbers; then all of that once more."""
    first = list(_decoded(data))
    yield from first
    for view in first[1:]:
        if len(view) < 2 * len(data):
            yield from _decoded(view)


def _decoded(data: bytes) -> Iterator[bytes]:
    yield data
    yield data[::-1]
    text = data.decode("latin-1")
    yield codecs.encode(text, "rot13").encode("latin-1", "replace")
    if "%" in text:
        yield urllib.parse.unquote_to_bytes(text)
    if "\\u" in text:
        yield re.sub(r"\\u([0-9a-fA-F]{4})", lambda m: chr(int(m[1], 16)), text).encode("utf-8", "surrogatepass")
    for run in re.findall(r"[0-9a-fA-F]{16,}", text):
        for at in (0, 1):
            part = run[at:]
            yield bytes.fromhex(part[: len(part) // 2 * 2])
    for run in re.findall(r"[A-Za-z0-9+/_-]{16,}", text):
        plain = run.replace("-", "+").replace("_", "/")
        for at in range(4):
            part = plain[at : len(plain) - ((len(plain) - at) % 4 == 1)]
            yield base64.b64decode(part + "=" * (-len(part) % 4))
    lists = re.findall(r"\[((?:\d{1,3},\s*)*\d{1,3})\]", text)
    if lists:
        numbers = [n for one in lists for n in map(int, one.split(",")) if n < 256]
        yield bytes(numbers)


def texts(data: bytes) -> bytes:
    """The strings of a reply as a client joins them: all that stands at one place of its events, end to end."""
    body = data.partition(b"\r\n\r\n")[2]
    if b"transfer-encoding: chunked" in data.lower():
        body = unchunked(body)
    said = [line[5:] for line in body.splitlines() if line.startswith(b"data:")] or [body]
    joined: dict[tuple[Any, ...], list[str]] = {}
    for one in said:
        try:
            _strings(json.loads(one), (), joined)
        except ValueError:
            continue
    return "\n".join("".join(parts) for parts in joined.values()).encode("utf-8", "surrogatepass")


def _strings(value: Any, path: tuple[Any, ...], out: dict[tuple[Any, ...], list[str]]) -> None:
    if isinstance(value, dict):
        at = tuple((name, value[name]) for name in ("index", "output_index", "content_index") if name in value)
        for name, inner in value.items():
            if name not in ("id", "verdict", "item_id", "call_id"):  # made by the guard, of hex digits
                _strings(inner, (*path, *at, name), out)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            _strings(inner, (*path, i), out)
    elif isinstance(value, str):
        out.setdefault(path, []).append(value)


def unchunked(body: bytes) -> bytes:
    """The body of an answer of HTTP/1.1 that came in chunks. Raises ValueError where it does not end well."""
    out = []
    while True:
        size, _, body = body.partition(b"\r\n")
        n = int(size, 16)
        if n == 0:
            if body != b"\r\n":
                raise ValueError(f"after the last chunk stands {body!r}")
            return b"".join(out)
        out.append(body[:n])
        if body[n : n + 2] != b"\r\n":
            raise ValueError("a chunk does not end where it says")
        body = body[n + 2 :]
