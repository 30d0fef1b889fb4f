"""The arguments of a tool call, JSON as a model wrote it: how they are read, and how to paint over a part of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
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
    to be taken out then. `mark` has to be free of quotes and backslashes.
    """
    spans = _merged(cuts)
    if not spans:
        return None
    left = list(spans)
    out: list[str] = []
    done = 0
    for token in _STRING.finditer(arguments):
        touched = [span for span in spans if span[0] < token.end() and token.start() < span[1]]
        if not touched:
            continue
        start, end = token.start() + 1, token.end() - 1
        inside = _merged(_whole_escapes(arguments, start, end, max(a, start), min(b, end)) for a, b in touched)
        left = _without(left, token.start(), token.end())
        if not inside:
            continue  # the quotes alone
        if _KEY.match(arguments, token.end()):
            return None  # a call with other fields is another call
        for a, b in inside:
            out += [arguments[done:a], mark]
            done = b
    if not out or any(_BETWEEN.fullmatch(arguments, a, b) is None for a, b in left):
        return None
    out.append(arguments[done:])
    return spelled("".join(out))


def _whole_escapes(text: str, start: int, end: int, a: int, b: int) -> tuple[int, int]:
    """[a, b) grown so that it cuts no escape of the string [start, end) in two."""
    for escape in _ESCAPE.finditer(text, start, end):
        if escape.start() >= b:
            break
        if escape.end() > a:
            a, b = min(a, escape.start()), max(b, escape.end())
    return a, b


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


def _without(spans: Sequence[tuple[int, int]], start: int, end: int) -> list[tuple[int, int]]:
    """The spans without [start, end)."""
    out: list[tuple[int, int]] = []
    for a, b in spans:
        out += [(x, y) for x, y in ((a, min(b, start)), (max(a, end), b)) if x < y]
    return out
