"""Two replies to one prompt, for somebody to compare: rows of any preference file, and rows that nobody has judged.

What a file says about a pair is kept beside it and is no part of it: which reply stands first hangs on their texts, so
that neither a reader nor an order of places can learn from a file that puts the better reply first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from fairlead.errors import InputError
from fairlead.exchange import Exchange, Message, assistant, to_json
from fairlead.feedback.dialogue import messages_of, text_of
from fairlead.feedback.files import BadRow
from fairlead.feedback.formats import LOOKED_AT, prompt_text, recognise
from fairlead.feedback.rankings import prompt_of
from fairlead.feedback.shapes_pairs import PREFERENCES, Pair, Record, Shape


@dataclass(frozen=True, slots=True)
class TwoReplies:
    """A prompt with two replies.

    p_first  P(the first is better) as the file says it; None where it says nothing
    group    what rows share that are not independent: the prompt, or what the file calls its group
    key      a hash of prompt and replies, the same whichever stands first in the file
    """

    messages: tuple[Message, ...]
    first: tuple[Message, ...]
    second: tuple[Message, ...]
    p_first: float | None
    group: str
    key: str

    @property
    def pair(self) -> tuple[Exchange, Exchange]:
        return Exchange(self.messages, self.first), Exchange(self.messages, self.second)


_TWO_KEYS = (
    ("first", "second"), ("response_a", "response_b"), ("reply_a", "reply_b"), ("answer_a", "answer_b"),
    ("output_1", "output_2"), ("response1", "response2"), ("response_1", "response_2"),
)  # fmt: skip
_LISTS = ("replies", "responses", "completions", "answers")
_JUDGED = ("order", "rank", "ranks", "ranking", "score", "scores", "rating", "ratings", "label", "preference")


def _two_keys(row: Record) -> tuple[str, str] | None:
    return next(((a, b) for a, b in _TWO_KEYS if a in row and b in row), None)


def _by_name(row: Record) -> TwoReplies:
    names = _two_keys(row)
    if names is None:
        raise BadRow(f"the row has no two replies; its keys are {', '.join(map(str, row))}")
    return _two(prompt_of(row), _reply(row[names[0]], names[0]), _reply(row[names[1]], names[1]), None, "")


def _listed(row: Record) -> TwoReplies:
    name = next((key for key in _LISTS if isinstance(row.get(key), list)), None)
    if name is None:
        raise BadRow(f"the row has no list of replies; its keys are {', '.join(map(str, row))}")
    if len(row[name]) != 2:
        raise BadRow(f"{name!r} holds {len(row[name])} replies; two are compared")
    first, second = (_reply(item, f"{name}[{i}]") for i, item in enumerate(row[name]))
    return _two(prompt_of(row), first, second, None, "")


def _reply(value: Any, name: str) -> tuple[Message, ...]:
    return messages_of(value, name) if isinstance(value, list) else (assistant(text_of(value, name)),)


def _two(
    said: tuple[Message, ...],
    first: tuple[Message, ...],
    second: tuple[Message, ...],
    p_first: float | None,
    group: str,
) -> TwoReplies:
    prompt, *replies = (orjson.dumps([to_json(m) for m in part]) for part in (said, first, second))
    key = hashlib.sha256(b"\0".join((prompt, *sorted(replies)))).hexdigest()
    # The lower hash stands first: of the two texts alone, and not of their lengths or first letters.
    hashes = [hashlib.sha256(prompt + b"\0" + reply).digest() for reply in replies]
    if hashes[0] > hashes[1]:
        first, second = second, first
        p_first = None if p_first is None else 1.0 - p_first
    return TwoReplies(said, first, second, p_first, group or prompt_text(said), key[:32])


def _judged(shape: Shape[Pair]) -> Shape[TwoReplies]:
    def read(row: Record) -> TwoReplies:
        pair = shape.read(row)
        value = pair.value
        return _two(value.messages, value.chosen, value.rejected, value.strength, pair.group)

    return Shape(shape.name, shape.why, shape.fits, read)


TWO_REPLIES: tuple[Shape[TwoReplies], ...] = (
    *map(_judged, PREFERENCES),
    Shape("two named replies", "a prompt and two replies by name, such as first and second",
          lambda r: _two_keys(r) is not None, _by_name),
    Shape("two listed replies", "a prompt and a list of replies, not ranked",
          lambda r: any(isinstance(r.get(k), list) for k in _LISTS) and not any(k in r for k in _JUDGED), _listed),
)  # fmt: skip


def shape_of(records: Sequence[Any], where: object) -> Shape[TwoReplies]:
    """The shape of a file by its first rows. Raises `InputError` naming the file where they are no pairs."""
    rows = [record for record in records if isinstance(record, Mapping)][:LOOKED_AT]
    shape = recognise(rows, TWO_REPLIES)
    if shape is None:
        keys = f": its rows have the keys {', '.join(map(str, rows[0]))}" if rows else ""
        raise InputError(f"{where}: no rows of two replies to one prompt{keys}. Known: {_known()}")
    return shape


def read_two(record: Any) -> TwoReplies:
    """One record as a pair, whatever file it stands in. Raises `BadRow` with the reason."""
    if isinstance(record, BadRow):
        raise record
    if not isinstance(record, Mapping):
        raise BadRow(f"a row is an object with named fields, not {type(record).__name__}")
    shape = next((shape for shape in TWO_REPLIES if shape.fits(record)), None)
    if shape is None:
        raise BadRow(f"no two replies to one prompt; the keys are {', '.join(map(str, record))}")
    try:
        return shape.read(record)
    except KeyError as error:
        raise BadRow(f"the row has no {error.args[0]!r}; its keys are {', '.join(map(str, record))}") from error


def _known() -> str:
    return "; ".join(f"{shape.name} ({shape.why})" for shape in TWO_REPLIES)
