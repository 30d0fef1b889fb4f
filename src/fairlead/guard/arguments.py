"""The arguments of a tool call, JSON as a model wrote it: how they are read, and how to paint over a part of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from fairlead.guard.pieces import REDACTED

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_KEY = re.compile(r"\s*:")
_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{4}|.)", re.S)
_SURROGATE = re.compile("[\ud800-\udfff]")
_BETWEEN = re.compile(r'[\s,:{}\[\]"]*')  # what may be left of a cut outside of strings: it carries no value


def spelled(arguments: str) -> str | None:
    r"""The same JSON with every character of its strings that can stand for itself standing for itself, or None where
    it is no JSON. Arguments may be empty: a call without any.

    Checks read what a tool would read, so `"a\u0062c"` leaves as `"abc"` and the bytes that leave are those that were
    checked. Numbers, order, spacing and doubled keys stay as they were written.

    >>> spelled('{"to": "a\\u0062c\\/d"}')
    '{"to": "abc/d"}'
    >>> spelled('{"to": ')
    """
    if not arguments.strip():
        return arguments
    try:
        json.loads(arguments, parse_constant=_no_json)
    except (ValueError, RecursionError):
        return None
    return _STRING.sub(_plain, arguments) if "\\" in arguments else arguments


def _no_json(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _plain(match: re.Match[str]) -> str:
    token = match[0]
    if "\\" not in token:
        return token
    plain = json.dumps(json.loads(token), ensure_ascii=False)
    return token if _SURROGATE.search(plain) else plain  # half a character cannot be written in UTF-8


def painted(arguments: str, cuts: Iterable[tuple[int, int]], mark: str = REDACTED) -> str | None:
    """The arguments with these characters painted over inside the strings that hold them: still valid JSON.

    None where that cannot be: a cut touches a number, a literal or the name of a field, or holds nothing. The call has
    to be taken out then. `mark` has to be free of quotes and backslashes. The work is linear in arguments and cuts.
    """
    tokens = [token.span() for token in _STRING.finditer(arguments)]
    inside: dict[int, list[tuple[int, int]]] = {}
    k = 0
    for start, end in _merged(cuts):
        at = start
        while at < end:
            while k < len(tokens) and tokens[k][1] <= at:
                k += 1
            a, b = tokens[k] if k < len(tokens) else (end, end)
            if at < a:
                upto = min(a, end)
                if _BETWEEN.fullmatch(arguments, at, upto) is None:
                    return None
                at = upto
                continue
            upto = min(b, end)
            if max(at, a + 1) < min(upto, b - 1):
                inside.setdefault(k, []).append((max(at, a + 1), min(upto, b - 1)))
            at = upto
    if not inside:
        return None
    out: list[str] = []
    done = 0
    for k, spans in inside.items():
        start, end = tokens[k]
        if _KEY.match(arguments, end):
            return None  # a call with other fields is another call
        for a, b in _merged(_whole_escapes(arguments, start + 1, end - 1, spans)):
            out += [arguments[done:a], mark]
            done = b
    return spelled("".join([*out, arguments[done:]]))


def _whole_escapes(text: str, start: int, end: int, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The spans, sorted, grown so that they cut no escape of the string [start, end) in two."""
    if text.find("\\", start, end) < 0:
        return spans
    edges: dict[int, tuple[int, int]] = {}  # a place inside an escape, and the escape
    for escape in _ESCAPE.finditer(text, start, end):
        for place in range(escape.start() + 1, escape.end()):
            edges[place] = escape.span()
    return [(edges.get(a, (a, a))[0], edges.get(b, (b, b))[1]) for a, b in spans]


def _merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted, without empty ones; touching and overlapping ones are one."""
    out: list[tuple[int, int]] = []
    for a, b in sorted(spans):
        if a >= b:
            continue
        if out and a <= out[-1][1]:
            out[-1] = (out[-1][0], max(b, out[-1][1]))
        else:
            out.append((a, b))
    return out
