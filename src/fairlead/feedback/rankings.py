"""The published shapes of comparisons: pairs as in `shapes`, and rankings of several replies to one prompt.

How the replies stand is read from one key, in the row or in each reply, and the key says how: `order` lists the replies
from best to worst, of ranks the smallest is best, of scores the largest. `ranking` is published in both of the first
two meanings, so it is refused.

A `Ranking` has no ties. Two replies that stand alike are a pair of strength 0.5, as in any file of pairs. Among more, a
row with a tie is a bad row: to break the tie would invent an order, to drop one of the replies would lose what it says
beside the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

from fairlead.exchange import Message, Preference, Ranking, assistant, from_json
from fairlead.feedback.dialogue import messages_of, text_of
from fairlead.feedback.files import BadRow
from fairlead.feedback.shapes import PREFERENCES, PROMPTS, Pair, Record, Shape

Comparison: TypeAlias = Preference | Ranking

_REPLIES = ("replies", "responses", "completions", "answers")
_TEXTS = ("response", "answer", "completion", "reply", "text", "content")  # of a reply that is an object
_ORDERS = ("order",)
_RANKS = ("rank", "ranks")
_SCORES = ("score", "scores", "rating", "ratings", "overall_score")
_UNCLEAR = ("ranking",)
_STANDINGS = (*_ORDERS, *_RANKS, *_SCORES, *_UNCLEAR)


def prompt_of(row: Record) -> tuple[Message, ...]:
    """The prompt of a row in any published spelling: a text, or turns."""
    shape = next((shape for shape in PROMPTS if shape.fits(row)), None)
    if shape is None:
        raise BadRow(f"the row has no prompt: {'; '.join(shape.why for shape in PROMPTS)}; its keys are {_keys(row)}")
    return shape.read(row)


def _own_ranking(row: Record) -> Comparison:
    try:
        return from_json(Ranking, row)
    except ValueError as error:
        raise BadRow(str(error)) from error


def _ranked(row: Record) -> Comparison:
    said = prompt_of(row)
    name = _replies_key(row)
    if name is None:
        raise BadRow(f"the row has no list of replies (none of {', '.join(_REPLIES)}); its keys are {_keys(row)}")
    written = row[name]
    key, values = _standing(row, written, name)
    replies = tuple(_reply(item, f"{name}[{i}]") for i, item in enumerate(written))
    if len(replies) < 2:
        raise BadRow(f"{name!r} holds {len(replies)} reply: there is nothing to compare")
    if len(values) != len(replies):
        raise BadRow(f"{len(replies)} {name} but {key!r} has {len(values)} entries")
    order = _from_order(key, values) if key in _ORDERS else _from_numbers(key, values, best=-1 if key in _SCORES else 1)
    if order is None:
        return Preference(said, replies[0], replies[1], strength=0.5)
    return Ranking(said, replies, order)


def _standing(row: Record, replies: Sequence[Any], name: str) -> tuple[str, Sequence[Any]]:
    """The key that says how the replies stand, and its values, one a reply."""
    keys = _standing_keys(row, replies)
    if len(keys) != 1:
        raise BadRow(
            f"{' and '.join(map(repr, keys))} both say how the replies stand: keep one of them"
            if keys
            else f"nothing says how the {name} stand (none of {', '.join(_STANDINGS)})"
        )
    (key,) = keys
    if key in _UNCLEAR:
        raise BadRow(
            f"{key!r} may mean the rank of each reply, or the replies from best to worst: call it 'rank' or 'order'"
        )
    if key in row:
        if not isinstance(row[key], list):
            raise BadRow(f"{key!r} is {type(row[key]).__name__}, not a list with an entry for each reply")
        return key, row[key]
    missing = next((i for i, item in enumerate(replies) if not (isinstance(item, Mapping) and key in item)), None)
    if missing is not None:
        raise BadRow(f"{name}[{missing}] has no {key!r}")
    return key, [item[key] for item in replies]


def _from_order(key: str, values: Sequence[Any]) -> tuple[int, ...]:
    """Indices from best to worst, counted from 0 or from 1."""
    for start in (0, 1):
        if all(type(v) is int for v in values) and sorted(values) == list(range(start, start + len(values))):
            return tuple(v - start for v in values)
    raise BadRow(f"{key!r} is {list(values)}; it names each of the {len(values)} replies once, from best to worst")


def _from_numbers(key: str, values: Sequence[Any], *, best: int) -> tuple[int, ...] | None:
    """The order that ranks or scores mean; None for two replies that stand alike."""
    for i, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise BadRow(f"{key}[{i}] is {value!r}, not a number")
    order = sorted(range(len(values)), key=lambda i: best * values[i])
    tied = next(((a, b) for a, b in pairwise(order) if values[a] == values[b]), None)
    if tied is None:
        return tuple(order)
    if len(values) == 2:
        return None
    raise BadRow(
        f"replies {min(tied)} and {max(tied)} (from 0) have the same {key!r}, {values[tied[0]]}: a ranking has no "
        "ties. Leave one of them out, or write the row as pairs"
    )


def _reply(item: Any, place: str) -> tuple[Message, ...]:
    if isinstance(item, str):
        return (assistant(item),)
    if isinstance(item, Mapping) and not any(key in item for key in ("role", "from", "parts")):
        key = next((key for key in _TEXTS if key in item), None)
        if key is None:
            raise BadRow(f"{place} has no text (none of {', '.join(_TEXTS)}); its keys are {_keys(item)}")
        return (assistant(text_of(item[key], f"{place}.{key}")),)
    return messages_of(item, place)


def _replies_key(row: Record) -> str | None:
    return next((key for key in _REPLIES if isinstance(row.get(key), list) and row[key]), None)


def _standing_keys(row: Record, replies: Sequence[Any]) -> list[str]:
    inside = [item for item in replies if isinstance(item, Mapping)]
    return [key for key in _STANDINGS if row.get(key) is not None or any(item.get(key) is not None for item in inside)]


def _keys(row: Record) -> str:
    return ", ".join(map(str, row)) or "none"


def _stands_by(*keys: str) -> Callable[[Record], bool]:
    def fits(row: Record) -> bool:
        name = _replies_key(row)
        if name is None or not any(shape.fits(row) for shape in PROMPTS):
            return False
        return any(key in keys for key in _standing_keys(row, row[name]))

    return fits


def _own_turns(row: Record) -> bool:
    """Whether prompt and first reply are lists of turns with parts."""
    replies = row.get("replies")
    sides = (row.get("messages"), replies[0] if isinstance(replies, list) and replies else None)
    return all(isinstance(s, list) and bool(s) and isinstance(s[0], Mapping) and "parts" in s[0] for s in sides)


RANKINGS: tuple[Shape[Comparison], ...] = (
    Shape("fairlead rankings", "messages and replies are turns with parts, and an order",
          lambda r: "order" in r and _own_turns(r), _own_ranking),
    Shape("replies by order", "a prompt, its replies, and their indices from best to worst",
          _stands_by(*_ORDERS), _ranked),
    Shape("replies by rank", "a prompt, its replies, and the rank of each, the smallest the best",
          _stands_by(*_RANKS, *_UNCLEAR), _ranked),
    Shape("replies by score", "a prompt, its replies, and the score of each, the largest the best",
          _stands_by(*_SCORES), _ranked),
)  # fmt: skip


def _one_pair(shape: Shape[Pair]) -> Shape[Comparison]:
    return Shape(shape.name, shape.why, shape.fits, lambda row: shape.read(row).value)


# Pairs come first: their rows may hold lists of replies besides.
COMPARISONS: tuple[Shape[Comparison], ...] = (*map(_one_pair, PREFERENCES), *RANKINGS)
