"""The published shapes of demonstrations, prompts and rated replies; of pairs, and what a shape is: shapes_pairs.py.

To add a format, add a function and a line to `DEMONSTRATIONS`, `PROMPTS` or `LABELLED`; the first shape that fits a
record wins, so the more particular ones stand first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from fairlead.exchange import Exchange, Message, Preference, Rated, assistant
from fairlead.feedback.dialogue import is_marked, marked_messages, messages_of, split_at_reply, split_marked
from fairlead.feedback.files import BadRow
from fairlead.feedback.shapes_pairs import (
    PREFERENCES,
    Pair,
    Record,
    Shape,
    instruction,
    lists,
    own,
    own_turns,
    prompt_key,
    with_system,
)

# ----------------------------------------------------------------------------------------- demonstrations


def _own_exchange(row: Record) -> Exchange:
    return own(Exchange, row)


_LABEL_KEYS = ("label", "kto_tag")


def _not_bad(row: Record) -> None:
    """A reply that was rated bad is nothing to imitate."""
    bad = next((key for key in _LABEL_KEYS if row.get(key) is False), None)
    if bad is not None:
        raise BadRow(f"{bad!r} is false: the reply was rated bad, so it is no demonstration; kto learns from such rows")


def _conversation(row: Record) -> Exchange:
    _not_bad(row)
    key = "messages" if "messages" in row else "conversations"
    said, reply = split_at_reply(messages_of(row[key], key), key)
    return Exchange(with_system(row, said), reply)


def _prompt_turns(row: Record) -> Exchange:
    _not_bad(row)
    return Exchange(messages_of(row["prompt"], "prompt"), messages_of(row["completion"], "completion"))


_REPLY_KEYS = ("completion", "response", "output", "answer")


def _reply_key(row: Record) -> str | None:
    return next((key for key in _REPLY_KEYS if isinstance(row.get(key), str)), None)


def _prompt_text(row: Record) -> Exchange:
    key = _reply_key(row)
    if key is None:
        raise BadRow(f"the row has no reply text (none of {', '.join(_REPLY_KEYS)})")
    _not_bad(row)
    if is_marked(row.get("prompt")):
        before, started = split_marked(row["prompt"], "prompt")
        if started:
            raise BadRow("'prompt' does not end at an open assistant turn")
        return Exchange(marked_messages(before), (assistant(row[key].strip()),))
    return Exchange(instruction(row), (assistant(row[key]),))


def _chosen_side(shape: Shape[Pair]) -> Shape[Exchange]:
    """A format of preferences, read for its better replies."""

    def read(row: Record) -> Exchange:
        pair = shape.read(row).value
        return Exchange(pair.messages, pair.chosen, {TIE: True} if pair.strength == 0.5 else {})

    return Shape(f"{shape.name}, chosen side", shape.why, shape.fits, read)


TIE = "tie"  # in the meta of a demonstration taken from a pair of which neither reply is better

# Pairs come first: their rows may hold a conversation or an output besides.
DEMONSTRATIONS: tuple[Shape[Exchange], ...] = (
    *map(_chosen_side, PREFERENCES),
    Shape("fairlead", "messages and reply are turns with parts",
          lambda r: own_turns(r, "messages", "reply"), _own_exchange),
    Shape("messages", "a list of turns that ends with the reply",
          lambda r: isinstance(r.get("messages"), list), _conversation),
    Shape("sharegpt", "conversations of from/value turns",
          lambda r: isinstance(r.get("conversations"), list), _conversation),
    Shape("prompt/completion turns", "prompt and completion are lists of turns",
          lists("prompt", "completion"), _prompt_turns),
    Shape("prompt/completion", "a prompt text with a reply text",
          lambda r: prompt_key(r) is not None and _reply_key(r) is not None, _prompt_text),
)  # fmt: skip

# ------------------------------------------------------------------------------------------------ prompts


def _prompt_only(row: Record) -> tuple[Message, ...]:
    if is_marked(row.get("prompt")):
        before, _ = split_marked(row["prompt"], "prompt")
        return marked_messages(before)
    return instruction(row)


def _prompt_messages(row: Record) -> tuple[Message, ...]:
    key = next(k for k in ("messages", "prompt", "conversations") if isinstance(row.get(k), list))
    said = messages_of(row[key], key)
    if said[-1].role == "assistant":
        raise BadRow(f"{key!r} ends with an assistant turn; a prompt ends with what the model is to answer")
    return with_system(row, said)


PROMPTS: tuple[Shape[tuple[Message, ...]], ...] = (
    Shape("turns", "a list of turns that the model is to answer",
          lambda r: any(isinstance(r.get(k), list) for k in ("messages", "prompt", "conversations")), _prompt_messages),
    Shape("prompt", "a prompt text", lambda r: prompt_key(r) is not None, _prompt_only),
)  # fmt: skip

# ------------------------------------------------------------------------------------------ rated replies

# Each reader gives the replies of one row with what their places are called: one, or both sides of a pair, or none.
Rates: TypeAlias = tuple[tuple[str, Rated], ...]


def _own_rated(row: Record) -> Rates:
    return (("", own(Rated, row)),)


def _labelled_reply(read: Callable[[Record], Exchange]) -> Callable[[Record], Rates]:
    """A demonstration's shape with a label beside it."""

    def rated(row: Record) -> Rates:
        key = next((key for key in _LABEL_KEYS if key in row), _LABEL_KEYS[0])
        label = row[key]  # where there is none, the KeyError names it
        if not (isinstance(label, bool) or (isinstance(label, int) and label in (0, 1))):
            raise BadRow(f"{key!r} is {label!r}; it is true (a good reply) or false (a bad one)")
        said = read({name: value for name, value in row.items() if name != key})
        return (("", Rated(said.messages, said.reply, bool(label))),)

    return rated


def both_sides(pair: Preference) -> Rates:
    """A pair as two replies, chosen good and rejected bad. Where neither is better it says nothing of either."""
    if pair.strength == 0.5 or pair.chosen == pair.rejected:
        return ()
    more = {"principle": pair.principle, "annotator": pair.annotator, "source": pair.source}
    return (
        (" chosen", Rated(pair.messages, pair.chosen, True, **more)),
        (" rejected", Rated(pair.messages, pair.rejected, False, **more)),
    )


def _as_two(shape: Shape[Pair]) -> Shape[Rates]:
    name = f"{shape.name} as two replies, chosen good and rejected bad"
    return Shape(name, shape.why, shape.fits, lambda row: both_sides(shape.read(row).value))


def _labelled_row(row: Record) -> bool:
    return any(key in row for key in _LABEL_KEYS)


LABELLED: tuple[Shape[Rates], ...] = (
    Shape("fairlead", "messages and reply are turns with parts, and good",
          lambda r: "good" in r and own_turns(r, "messages", "reply"), _own_rated),
    Shape("messages/label", "a list of turns that ends with the reply, and a label",
          lambda r: _labelled_row(r) and any(isinstance(r.get(k), list) for k in ("messages", "conversations")),
          _labelled_reply(_conversation)),
    Shape("prompt/completion/label turns", "prompt and completion are lists of turns, and a label",
          lambda r: _labelled_row(r) and lists("prompt", "completion")(r), _labelled_reply(_prompt_turns)),
    Shape("prompt/completion/label", "a prompt text with a reply text, and a label",
          lambda r: _labelled_row(r) and prompt_key(r) is not None and _reply_key(r) is not None,
          _labelled_reply(_prompt_text)),
)  # fmt: skip

RATED: tuple[Shape[Rates], ...] = (*LABELLED, *map(_as_two, PREFERENCES))
