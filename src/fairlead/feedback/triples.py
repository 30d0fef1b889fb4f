"""The published shapes of TPO's data: a gold reply beside each pair, or a ranking of three."""

from __future__ import annotations

from dataclasses import replace

from fairlead.exchange import Message, Preference, Ranking, assistant
from fairlead.feedback.dialogue import is_marked, marked_messages, messages_of, split_at_reply, split_marked
from fairlead.feedback.files import BadRow
from fairlead.feedback.rankings import RANKINGS, Comparison
from fairlead.feedback.shapes_pairs import PREFERENCES, Pair, Record, Shape, with_system

GOLD = "reference"  # how TPO's data sets call the gold reply


def with_gold(shape: Shape[Pair]) -> Shape[Pair]:
    """The same format with a gold reply beside each pair, as TPO's data sets have it, under `reference`.

    It is written as the row's other replies are: a text, a dialogue in markers, or turns, of the reply alone or of
    the prompt and the reply. Our own format calls it `gold`.
    """

    def read(row: Record) -> Pair:
        pair = shape.read(row)
        return pair if pair.value.gold else replace(pair, value=replace(pair.value, gold=_gold(row, pair.value)))

    return Shape(shape.name, shape.why, shape.fits, read)


def _gold(row: Record, pair: Preference) -> tuple[Message, ...]:
    if row.get(GOLD) is None:
        raise BadRow(
            f"the row has no {GOLD!r}, the gold reply beside the pair; its keys are {', '.join(map(str, row))}"
        )
    written = row[GOLD]
    reply: tuple[Message, ...]
    if isinstance(written, str) and is_marked(written):
        opening, text = split_marked(written, GOLD)
        before, reply = marked_messages(opening), (assistant(text),)
    elif isinstance(written, str):
        return (assistant(written.strip() if is_marked(row.get("prompt")) else written),)
    else:
        turns = messages_of(written, GOLD)
        if turns[0].role not in ("user", "system"):
            return turns
        opening_turns, reply = split_at_reply(turns, GOLD)
        before = with_system(row, opening_turns)
    if before != pair.messages:
        raise BadRow(f"{GOLD!r} and the pair answer different conversations (what stands before the reply differs)")
    return reply


def _as_triple(shape: Shape[Comparison]) -> Shape[Pair]:
    """A ranking of three as TPO reads it: the best is the gold reply, the others are the pair."""

    def read(row: Record) -> Pair:
        value = shape.read(row)
        if not isinstance(value, Ranking) or len(value.replies) != 3:
            count = len(value.replies) if isinstance(value, Ranking) else 2
            raise BadRow(
                f"{count} replies: a ranking of three is a gold reply and a pair, best first. Leave out the others, or "
                f"write chosen, rejected and {GOLD}"
            )
        gold, chosen, rejected = (value.replies[i] for i in value.order)
        pair = Preference(value.messages, chosen, rejected, gold=gold)
        return Pair(replace(pair, principle=value.principle, annotator=value.annotator, source=value.source))

    return Shape(f"{shape.name}, the best of three as the gold reply", shape.why, shape.fits, read)


TRIPLES: tuple[Shape[Pair], ...] = (*map(with_gold, PREFERENCES), *map(_as_triple, RANKINGS))
