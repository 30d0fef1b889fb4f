"""The rows of tasks: a prompt in any published spelling, with what judges read of it. What reinforcement learning asks.

Of a row's other fields these are read, and anything under `meta`; others (ids, sources, levels) are left alone.

    reference, answer   the right answer: a text or a number. An answer of GSM8K's kind ends with it, behind ####
    references          several, any of which is right
    wrong               one or several that must not be asserted
    tests               what code is run against
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fairlead.exchange import Exchange
from fairlead.feedback.files import BadRow
from fairlead.feedback.shapes import PROMPTS
from fairlead.feedback.shapes_pairs import Record, Shape

READ = ("reference", "references", "wrong", "tests")
_ANSWER = "answer"
_SETTLED = "####"


def meta_of(row: Record) -> dict[str, Any]:
    """What judges read of a row. A field that is null was not given. Raises BadRow for two that differ."""
    given = row.get("meta")
    if given is not None and not isinstance(given, Mapping):
        raise BadRow(f"'meta' is {type(given).__name__}, not an object with named fields")
    meta = {name: _read(name, value, f"meta.{name}") for name, value in (given or {}).items() if value is not None}
    for key in (*READ, _ANSWER):
        if row.get(key) is None:
            continue
        name = "reference" if key == _ANSWER else key
        value = _settled(_read(name, row[key], key)) if key == _ANSWER else _read(name, row[key], key)
        if name in meta and meta[name] != value:
            raise BadRow(f"{key!r} and another field of the row both give the {name}, and differ; keep one")
        meta[name] = value
    return meta


def _read(name: str, value: Any, place: str) -> Any:
    if name == "reference":
        return _text(value, place)
    if name in ("references", "wrong"):
        if name == "wrong" and not isinstance(value, list | tuple):
            return _text(value, place)
        if not isinstance(value, list | tuple) or not value:
            raise BadRow(f"{place!r} is {type(value).__name__}, not a list with at least one answer")
        return [_text(item, f"{place}[{i}]") for i, item in enumerate(value)]
    if name == "tests" and not value and value != 0:
        raise BadRow(f"{place!r} is empty: there is nothing to run")
    if name == "tests":
        return _tests(value, place)
    return value


def _tests(value: Any, place: str) -> Any:
    if not isinstance(value, str | list | tuple):
        raise BadRow(f"{place!r} is {type(value).__name__}, not a text of assertions or a list of tests")
    for i, test in enumerate(() if isinstance(value, str) else value):
        if not isinstance(test, str | list | tuple | Mapping):
            raise BadRow(f"'{place}[{i}]' is {type(test).__name__}, not a text of assertions or a pair of texts")
    return value


def _text(value: Any, place: str) -> str:
    """A text, or a number as a text (judges compare texts, and 0 is an answer)."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadRow(f"{place!r} is {type(value).__name__}, not a text or a number")
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    if not text.strip():
        raise BadRow(f"{place!r} is empty: there is nothing to compare a reply with")
    return text


def _settled(answer: str) -> str:
    """Of a worked answer the number it settles on, where it is marked as GSM8K marks it."""
    _, mark, last = answer.rpartition(_SETTLED)
    return last.strip() if mark and last.strip() else answer


def _with_meta(shape: Shape[Any]) -> Shape[Exchange]:
    return Shape(shape.name, shape.why, shape.fits, lambda row: Exchange(shape.read(row), (), meta_of(row)))


TASKS: tuple[Shape[Exchange], ...] = tuple(map(_with_meta, PROMPTS))
