"""The published shapes of replies in steps, each step labelled right or wrong: what process rewards are learnt from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fairlead.exchange import Stepped, from_json
from fairlead.feedback.dialogue import text_of
from fairlead.feedback.files import BadRow
from fairlead.feedback.rankings import prompt_of
from fairlead.feedback.shapes_pairs import Record, Shape


def _own_stepped(row: Record) -> Stepped:
    try:
        return from_json(Stepped, row)
    except ValueError as error:
        raise BadRow(str(error)) from error


def _stepped(name: str, labels: str, label: Callable[[Any, str], float | None]) -> Callable[[Record], Stepped]:
    """A prompt, a list of steps under `name`, and a list with an entry for each under `labels`."""

    def read(row: Record) -> Stepped:
        steps = tuple(text_of(step, f"{name}[{i}]") for i, step in enumerate(_list(row, name)))
        told = tuple(label(value, f"{labels}[{i}]") for i, value in enumerate(_list(row, labels)))
        try:
            return Stepped(prompt_of(row), steps, told)
        except ValueError as error:
            raise BadRow(str(error)) from error

    return read


def _list(row: Record, key: str) -> Sequence[Any]:
    value = row[key]  # where there is none, the KeyError names it
    if not isinstance(value, list):
        raise BadRow(f"{key!r} is {type(value).__name__}, not a list")
    return value


def _label(value: Any, place: str) -> float | None:
    if value is None:
        return None
    if not isinstance(value, bool | int | float) or not 0 <= value <= 1:
        raise BadRow(f"{place} is {value!r}; a label is true, false, P(right) in [0, 1], or null where nobody said")
    return float(value)


def _rating(value: Any, place: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or value not in (-1, 0, 1):
        raise BadRow(f"{place} is {value!r}; a rating is 1 (right), 0 (neither), -1 (wrong), or null where nobody said")
    return (float(value) + 1.0) / 2.0


def _lists(*keys: str) -> Callable[[Record], bool]:
    return lambda row: all(isinstance(row.get(key), list) for key in keys)


def _own_turns(row: Record) -> bool:
    said = row.get("messages")
    return isinstance(said, list) and bool(said) and isinstance(said[0], Mapping) and "parts" in said[0]


STEPS: tuple[Shape[Stepped], ...] = (
    Shape("fairlead steps", "messages are turns with parts, and steps with labels",
          lambda r: _own_turns(r) and _lists("steps", "labels")(r), _own_stepped),
    Shape("stepwise supervision", "a prompt, its reply's steps as completions, and a label for each",
          _lists("completions", "labels"), _stepped("completions", "labels", _label)),
    Shape("steps and labels", "a prompt, its reply's steps, and a label for each",
          _lists("steps", "labels"), _stepped("steps", "labels", _label)),
    Shape("steps and ratings", "a prompt, its reply's steps, and a rating for each: 1 right, 0 neither, -1 wrong",
          _lists("steps", "ratings"), _stepped("steps", "ratings", _rating)),
)  # fmt: skip
