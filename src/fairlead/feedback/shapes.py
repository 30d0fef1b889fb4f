"""The published shapes of preference and demonstration rows: how each is told from the others, and how it is read.

One `Shape` per format: the keys that betray it, why that is enough, and a function from one record to a value. To add
a format, add a function and a line to `PREFERENCES` or `DEMONSTRATIONS`; the first shape that fits a record wins, so
the more particular ones stand first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from fairlead.exchange import Exchange, Message, Preference, Rated, assistant, from_json, preference, system, user
from fairlead.feedback.dialogue import (
    is_marked,
    marked_messages,
    messages_of,
    split_at_reply,
    split_marked,
    text_of,
)
from fairlead.feedback.files import BadRow

Record: TypeAlias = Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pair:
    """A preference with what splitting and baselines need: its group, and who wrote each side (chosen, rejected)."""

    value: Preference
    group: str = ""
    generators: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Shape(Generic[T]):
    """One published format: its name, the test that recognises a record, the reason said aloud, and its reader."""

    name: str
    why: str
    fits: Callable[[Record], bool]
    read: Callable[[Record], T]


# -------------------------------------------------------------------------------------------- preferences


def _own_pair(row: Record) -> Pair:
    body = {key: value for key, value in row.items() if key not in ("group", "generators")}
    written, group = row.get("generators"), row.get("group")
    if group is not None and not isinstance(group, str):
        raise BadRow(f"'group' is {type(group).__name__}, not a text")
    if written is not None and not (
        isinstance(written, list) and len(written) == 2 and all(isinstance(name, str) for name in written)
    ):
        raise BadRow("'generators' is not a list of two names (who wrote chosen, who wrote rejected)")
    return Pair(_own(Preference, body), group or "", (written[0], written[1]) if written else None)


def _own(cls: type[T], row: Record) -> T:
    try:
        return from_json(cls, row)
    except ValueError as error:
        raise BadRow(str(error)) from error


def _hh(row: Record) -> Pair:
    before, chosen = split_marked(text_of(row["chosen"], "chosen"), "chosen")
    other, rejected = split_marked(text_of(row["rejected"], "rejected"), "rejected")
    if before != other:
        raise BadRow("chosen and rejected answer different conversations (their text before the last reply differs)")
    return _pair(row, marked_messages(before), chosen, rejected)


def _hh_prompt(row: Record) -> Pair:
    before, started = split_marked(text_of(row["prompt"], "prompt"), "prompt")
    if started:
        raise BadRow("'prompt' does not end at an open assistant turn")
    return _pair(row, marked_messages(before), text_of(row["chosen"], "chosen").strip(), _text(row, "rejected").strip())


def _pandalm(row: Record) -> Pair:
    """Three annotators vote 1, 2 or 0 (tie). P(response1 better) = (votes for 1 + half the ties) / votes."""
    names = [key for key in row if key.startswith("annotator")]
    votes = [row[key] for key in names]
    for name, vote in zip(names, votes, strict=True):
        if vote not in (0, 1, 2):
            raise BadRow(f"{name!r} is {vote!r}; a vote is 1, 2 or 0 (tie)")
    p_first = (votes.count(1) + 0.5 * votes.count(0)) / len(votes)
    said = _instruction(row)
    replies = _reply(row, "response1"), _reply(row, "response2")
    # cmp_key names two models, in alphabetical order and not in the responses': so it names no writer.
    return _labelled(said, replies, p_first, None, group=_text(row, "instruction"))


def _alpaca_eval(row: Record) -> Pair:
    """`preference` is 1 or 2 (which output is better), between them where weighted, 0 or 1.5 for a tie."""
    label = row["preference"]
    if label is None:
        raise BadRow("'preference' is null: the annotator gave no verdict")
    if isinstance(label, bool) or not isinstance(label, int | float):
        raise BadRow(f"'preference' is {label!r}, not a number")
    if not (label == 0 or 1 <= label <= 2):
        raise BadRow(f"'preference' is {label}; it is 1, 2, a number between them, or 0 for a tie")
    p_first = 0.5 if label == 0 else 2.0 - label
    named = "generator_1" in row and "generator_2" in row
    writers = (str(row["generator_1"]), str(row["generator_2"])) if named else None
    replies = _reply(row, "output_1"), _reply(row, "output_2")
    return _labelled(_instruction(row), replies, p_first, writers, group=_text(row, "instruction"))


def _llmbar(row: Record) -> Pair:
    """`label` is 1 or 2: which output is better, a fact of the instruction and no matter of taste."""
    if row["label"] not in (1, 2) or isinstance(row["label"], bool):
        raise BadRow(f"'label' is {row['label']!r}; it is 1 or 2, the number of the better output")
    said = _text(row, "input")
    if not said.strip():
        raise BadRow("'input' is empty: there is nothing to answer")
    replies = _reply(row, "output_1"), _reply(row, "output_2")
    return _labelled((user(said),), replies, float(row["label"] == 1), None, group=said)


def _labelled(
    said: tuple[Message, ...],
    replies: tuple[tuple[Message, ...], tuple[Message, ...]],
    p_first: float,
    writers: tuple[str, str] | None,
    *,
    group: str,
) -> Pair:
    first, second = replies
    value = preference(said, first, second, p_first=p_first)
    if writers and p_first < 0.5:
        writers = (writers[1], writers[0])
    return Pair(value, group, writers)


def _strings(row: Record) -> Pair:
    chosen, rejected = _text(row, "chosen"), _text(row, "rejected")
    return _pair(row, _instruction(row), chosen, rejected)


def _conversational(row: Record) -> Pair:
    """Lists of turns, with the prompt apart (a list or a string), or as the shared opening of both sides."""
    chosen, rejected = messages_of(row["chosen"], "chosen"), messages_of(row["rejected"], "rejected")
    apart = next((row[key] for key in ("prompt", "messages", "conversations") if row.get(key)), None)
    opens = chosen[0].role in ("user", "system")
    if apart is not None and not opens:
        said = (user(apart),) if isinstance(apart, str) else messages_of(apart, "prompt")
        return _pair(row, with_system(row, said), chosen, rejected)
    before, reply = split_at_reply(chosen, "chosen")
    other, second = split_at_reply(rejected, "rejected")
    if before != other:
        raise BadRow("chosen and rejected answer different conversations (their turns before the reply differ)")
    return _pair(row, with_system(row, before), reply, second)


def _openai(row: Record) -> Pair:
    said = messages_of(row["input"].get("messages"), "input.messages")
    chosen = messages_of(row["preferred_output"], "preferred_output")
    return _pair(row, said, chosen, messages_of(row["non_preferred_output"], "non_preferred_output"))


def _pair(
    row: Record, said: tuple[Message, ...], chosen: str | tuple[Message, ...], rejected: str | tuple[Message, ...]
) -> Pair:
    first = (assistant(chosen),) if isinstance(chosen, str) else chosen
    second = (assistant(rejected),) if isinstance(rejected, str) else rejected
    value = Preference(said, first, second, margin=_margin(row))
    named = [row.get(f"{side}_model") or "" for side in ("chosen", "rejected")]
    return Pair(value, "", (str(named[0]), str(named[1])) if any(named) else None)


def _margin(row: Record) -> float | None:
    if row.get("margin") is not None:
        return _number(row, "margin")
    if row.get("score_chosen") is not None and row.get("score_rejected") is not None:
        return _number(row, "score_chosen") - _number(row, "score_rejected")
    return None


def _number(row: Record, key: str) -> float:
    value = row[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRow(f"{key!r} is {type(value).__name__}, not a number")
    return float(value)


def _text(row: Record, key: str) -> str:
    if key not in row:
        raise BadRow(f"the row has no {key!r}; its keys are {', '.join(map(str, row))}")
    return text_of(row[key], key)


def _reply(row: Record, key: str) -> tuple[Message, ...]:
    return (assistant(_text(row, key)),)


_PROMPT_KEYS = ("prompt", "instruction", "question")


def _prompt_key(row: Record) -> str | None:
    return next((key for key in _PROMPT_KEYS if isinstance(row.get(key), str)), None)


def _instruction(row: Record) -> tuple[Message, ...]:
    """The prompt string, with an Alpaca `input` joined by a blank line, and a `system` string before it."""
    key = _prompt_key(row)
    if key is None:
        raise BadRow(f"the row has no prompt text (none of {', '.join(_PROMPT_KEYS)})")
    extra = row.get("input")
    text = row[key] if not extra else f"{row[key]}\n\n{text_of(extra, 'input')}"
    if not text.strip():
        raise BadRow(f"{key!r} is empty: there is nothing to answer")
    return with_system(row, (user(text),))


def with_system(row: Record, said: tuple[Message, ...]) -> tuple[Message, ...]:
    """A prompt behind the row's own `system` text, where it has one."""
    return (system(text_of(row["system"], "system")), *said) if row.get("system") else said


def _has(*keys: str) -> Callable[[Record], bool]:
    return lambda row: all(key in row for key in keys)


def _lists(*keys: str) -> Callable[[Record], bool]:
    return lambda row: all(isinstance(row.get(key), list | dict) for key in keys)


def _texts(*keys: str) -> Callable[[Record], bool]:
    return lambda row: all(isinstance(row.get(key), str) for key in keys)


def _own_turns(row: Record, *keys: str) -> bool:
    turns = [row[key][0] for key in keys if isinstance(row.get(key), list) and row[key]]
    return len(turns) == len(keys) and all(isinstance(turn, Mapping) and "parts" in turn for turn in turns)


PREFERENCES: tuple[Shape[Pair], ...] = (
    Shape("fairlead", "messages, chosen and rejected are turns with parts",
          lambda r: _own_turns(r, "messages", "chosen", "rejected"), _own_pair),
    Shape("hh-rlhf", "chosen and rejected are whole dialogues in Human:/Assistant: markers",
          lambda r: is_marked(r.get("chosen")) and is_marked(r.get("rejected")), _hh),
    Shape("hh-rlhf with prompt", "the prompt is a dialogue in Human:/Assistant: markers",
          lambda r: _texts("chosen", "rejected")(r) and is_marked(r.get("prompt")), _hh_prompt),
    Shape("pandalm", "instruction, response1, response2 and annotators' votes",
          _has("instruction", "response1", "response2", "annotator1"), _pandalm),
    Shape("llmbar", "input, output_1, output_2 and a label",
          _has("input", "output_1", "output_2", "label"), _llmbar),
    Shape("alpaca-eval", "instruction, output_1, output_2 and a preference",
          _has("instruction", "output_1", "output_2", "preference"), _alpaca_eval),
    Shape("openai preference", "input, preferred_output and non_preferred_output",
          lambda r: isinstance(r.get("input"), dict) and _has("preferred_output", "non_preferred_output")(r), _openai),
    Shape("conversational", "chosen and rejected are lists of turns", _lists("chosen", "rejected"), _conversational),
    Shape("prompt/chosen/rejected", "a prompt text with chosen and rejected texts",
          lambda r: _prompt_key(r) is not None and _texts("chosen", "rejected")(r), _strings),
)  # fmt: skip

# ----------------------------------------------------------------------------------------- demonstrations


def _own_exchange(row: Record) -> Exchange:
    return _own(Exchange, row)


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
    return Exchange(_instruction(row), (assistant(row[key]),))


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
          lambda r: _own_turns(r, "messages", "reply"), _own_exchange),
    Shape("messages", "a list of turns that ends with the reply",
          lambda r: isinstance(r.get("messages"), list), _conversation),
    Shape("sharegpt", "conversations of from/value turns",
          lambda r: isinstance(r.get("conversations"), list), _conversation),
    Shape("prompt/completion turns", "prompt and completion are lists of turns",
          _lists("prompt", "completion"), _prompt_turns),
    Shape("prompt/completion", "a prompt text with a reply text",
          lambda r: _prompt_key(r) is not None and _reply_key(r) is not None, _prompt_text),
)  # fmt: skip

# ------------------------------------------------------------------------------------------------ prompts


def _prompt_only(row: Record) -> tuple[Message, ...]:
    if is_marked(row.get("prompt")):
        before, _ = split_marked(row["prompt"], "prompt")
        return marked_messages(before)
    return _instruction(row)


def _prompt_messages(row: Record) -> tuple[Message, ...]:
    key = next(k for k in ("messages", "prompt", "conversations") if isinstance(row.get(k), list))
    said = messages_of(row[key], key)
    if said[-1].role == "assistant":
        raise BadRow(f"{key!r} ends with an assistant turn; a prompt ends with what the model is to answer")
    return with_system(row, said)


PROMPTS: tuple[Shape[tuple[Message, ...]], ...] = (
    Shape("turns", "a list of turns that the model is to answer",
          lambda r: any(isinstance(r.get(k), list) for k in ("messages", "prompt", "conversations")), _prompt_messages),
    Shape("prompt", "a prompt text", lambda r: _prompt_key(r) is not None, _prompt_only),
)  # fmt: skip

# ------------------------------------------------------------------------------------------ rated replies

# Each reader gives the replies of one row with what their places are called: one, or both sides of a pair, or none.
Rates: TypeAlias = tuple[tuple[str, Rated], ...]


def _own_rated(row: Record) -> Rates:
    return (("", _own(Rated, row)),)


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
          lambda r: "good" in r and _own_turns(r, "messages", "reply"), _own_rated),
    Shape("messages/label", "a list of turns that ends with the reply, and a label",
          lambda r: _labelled_row(r) and any(isinstance(r.get(k), list) for k in ("messages", "conversations")),
          _labelled_reply(_conversation)),
    Shape("prompt/completion/label turns", "prompt and completion are lists of turns, and a label",
          lambda r: _labelled_row(r) and _lists("prompt", "completion")(r), _labelled_reply(_prompt_turns)),
    Shape("prompt/completion/label", "a prompt text with a reply text, and a label",
          lambda r: _labelled_row(r) and _prompt_key(r) is not None and _reply_key(r) is not None,
          _labelled_reply(_prompt_text)),
)  # fmt: skip

RATED: tuple[Shape[Rates], ...] = (*LABELLED, *map(_as_two, PREFERENCES))
