"""Feedback in the files that providers of managed fine-tuning take, each row read back and compared before it counts.

One `Format` per published format: where it is published, which turns it can hold, and the body of a row of each kind.
What a format has no place for (tool calls, reasoning, media, a reply in several turns) is refused by row, or left out
and counted. None of them holds a soft label, a margin, a principle or a source: pairs are written as if their order
were certain, ties and pairs below a given strength are left out, and all of it is counted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from fairlead.errors import InputError
from fairlead.exchange import Exchange, Message, Preference, Reasoning, Refusal, Text
from fairlead.feedback.files import BadRow
from fairlead.feedback.write import write_rows

Kind: TypeAlias = Literal["sft", "dpo"]
Turn: TypeAlias = tuple[str, str]  # role, text
Plain: TypeAlias = tuple[tuple[Turn, ...], ...]  # the prompt's turns, then those of each reply
Body: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Format:
    """One published format.

    source     where it is published
    bodies     by kind, from the turns of a row to what stands in its line
    readers    the way back, written apart from `bodies`: raises BadRow for anything but exactly that shape
    strict     whether user and assistant must take turns after an optional system message
    weighs     whether an assistant turn of the prompt can be marked as one that is not to be imitated
    least      rows below which the provider refuses the file
    """

    name: str
    source: str
    bodies: Mapping[Kind, Callable[[Plain], Body]]
    readers: Mapping[Kind, Callable[[Body], Plain]]
    strict: bool = True
    weighs: bool = False
    least: int = 1


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, and what became of the other rows. `lines()` says it; it never holds a row's text.

    ties         pairs of which neither reply is better, left out
    weak         pairs below the asked strength, left out
    soft         pairs whose strength is below 1, written as if it were 1
    identical    pairs of two identical replies, left out
    refused      rows the format has no place for, left out (`skip_bad_rows`)
    earlier      rows with earlier replies of the assistant, which this format cannot keep from being imitated too
    """

    format: str
    kind: Kind
    path: Path
    sha256: str
    bytes: int
    rows: int
    ties: int = 0
    weak: int = 0
    soft: int = 0
    identical: int = 0
    refused: int = 0
    first_refused: str = ""
    earlier: int = 0

    def lines(self, called: str = "") -> tuple[str, ...]:
        """`called` stands in the place of the path, for a file that nobody is to look for."""
        said = [
            f"{called or self.path}: {self.rows:,} rows in the format {self.format} ({self.kind}), "
            f"{self.bytes:,} bytes, sha256 {self.sha256[:16]}…, read back and compared"
        ]
        counts = {
            "ties left out: the format has no label but an order": self.ties,
            "pairs left out, their strength below the one asked for": self.weak,
            "pairs of a strength below 1 written as certain: the format holds no soft labels": self.soft,
            "pairs of two identical replies left out": self.identical,
            f"rows left out that the format cannot hold, the first: {self.first_refused}": self.refused,
            "rows hold earlier replies, which are imitated too: the format cannot mark them": self.earlier,
        }
        return (*said, *(f"{count:,} {what}" for what, count in counts.items() if count))


def export(
    path: Path,
    name: str,
    kind: Kind,
    rows: Sequence[Exchange | Preference],
    places: Sequence[str],
    *,
    min_strength: float = 0.5,
    skip_bad_rows: bool = False,
) -> Exported:
    """Write rows in a format, read the file back, compare every row, and say what was written.

    rows          exchanges for `sft`, preferences for `dpo`; `places` says where each stands
    min_strength  pairs below it are left out; 0.5 leaves out ties alone, of which no format can say which is better

    Raises InputError (exit 2) for an unknown format, one that has no such kind, a row it cannot hold (named, unless
    `skip_bad_rows`), too few rows, and a file that does not read back as what was written.
    """
    form = format_for(name, kind)
    if not 0.5 <= min_strength <= 1:
        raise InputError(f"the least strength of a pair is {min_strength}; it lies in [0.5, 1]")
    counts = dict.fromkeys(("ties", "weak", "soft", "identical", "refused", "earlier"), 0)
    first_refused = ""
    kept: list[Plain] = []
    for row, place in zip(rows, places, strict=True):
        why = _left_out(row, min_strength) if isinstance(row, Preference) else ""
        if why:
            counts[why] += 1
            continue
        try:
            plain = plain_of(row, form)
        except BadRow as error:
            if not skip_bad_rows:
                raise InputError(
                    f"{place}: {error}, so the format {form.name} cannot hold this row; "
                    "leave it out, or pass --skip-bad-rows"
                ) from error
            counts["refused"] += 1
            first_refused = first_refused or f"{place}: {error}"
            continue
        kept.append(plain)
        counts["soft"] += isinstance(row, Preference) and row.strength < 1
        counts["earlier"] += kind == "sft" and not form.weighs and any(role == "assistant" for role, _ in plain[0])
    if len(kept) < form.least:
        other = "; ".join(f"{count:,} {what}" for what, count in counts.items() if count and what not in _WRITTEN)
        raise InputError(
            f"{len(kept):,} rows are left to write, and {form.name} takes files of {form.least} rows or more"
            + (f" (left out: {other})" if other else "")
        )
    body = form.bodies[kind]
    write_rows(path, (body(plain) for plain in kept))
    digest, size = _compared(path, form, kind, kept)
    return Exported(form.name, kind, path, digest, size, len(kept), first_refused=first_refused, **counts)


_WRITTEN = ("soft", "earlier")  # counts of rows that are in the file all the same


def format_for(name: str, kind: Kind) -> Format:
    """A format by name. Raises InputError for an unknown one, and for one that holds no rows of this kind."""
    form = FORMATS.get(name)
    if form is None:
        raise InputError(f"no export format {name!r}; known: {', '.join(FORMATS)}")
    if kind not in form.bodies:
        able = ", ".join(other.name for other in FORMATS.values() if kind in other.bodies)
        raise InputError(f"the format {name} holds no {_ROWS[kind]} ({form.source}); these do: {able}")
    return form


_ROWS: Mapping[Kind, str] = {"sft": "conversations", "dpo": "preference pairs"}


def _left_out(row: Preference, least: float) -> str:
    if row.strength == 0.5:
        return "ties"
    if row.strength < least:
        return "weak"
    return "identical" if row.chosen == row.rejected else ""


# ------------------------------------------------------------------------------------------------ turns


def plain_of(row: Exchange | Preference, form: Format) -> Plain:
    """The roles and texts of a row. Raises BadRow for what the format has no place for."""
    said = tuple(_turn(message) for message in row.messages)
    _check_prompt(said, form)
    if isinstance(row, Preference):
        return (said, _reply(row.chosen, "the chosen reply"), _reply(row.rejected, "the rejected reply"))
    return (said, _reply(row.reply, "the reply"))


def _turn(message: Message) -> Turn:
    if message.role == "tool":
        raise BadRow("it holds a tool's result")
    for part in message.parts:
        if isinstance(part, Reasoning):
            raise BadRow("it holds reasoning beside its text")
        if not isinstance(part, Text | Refusal):
            raise BadRow(f"its {message.role} turn holds a {type(part).__name__}, and text alone is written")
    return message.role, message.text


def _reply(turns: Sequence[Message], what: str) -> tuple[Turn, ...]:
    if len(turns) != 1 or turns[0].role != "assistant":
        raise BadRow(f"{what} has {len(turns)} turns; one of the assistant is written")
    turn = _turn(turns[0])
    if not turn[1].strip():
        raise BadRow(f"{what} is empty")
    return (turn,)


def _check_prompt(said: Sequence[Turn], form: Format) -> None:
    roles = [role for role, _ in said]
    talk = roles[1:] if roles[:1] == ["system"] else roles
    if not talk or talk[-1] == "assistant":
        raise BadRow("its prompt does not end with what the assistant is to answer")
    if not form.strict:
        return
    if any(role != ("user", "assistant")[i % 2] for i, role in enumerate(talk)):
        raise BadRow(f"its turns are {', '.join(roles)}; user and assistant must take turns, after one system message")
    empty = next((role for role, text in said if not text.strip()), None)
    if empty is not None:
        raise BadRow(f"its {empty} turn is empty")


# ------------------------------------------------------------------------------------------------ writing


def _message(turn: Turn) -> dict[str, Any]:
    return {"role": turn[0], "content": turn[1]}


def _chat(plain: Plain) -> Body:
    """`messages`; where the prompt holds earlier replies, a weight of 0 keeps them from being imitated."""
    said, reply = plain
    out = [_message(turn) for turn in (*said, *reply)]
    if any(role == "assistant" for role, _ in said):
        for message in out[:-1]:
            if message["role"] == "assistant":
                message["weight"] = 0
        out[-1]["weight"] = 1
    return {"messages": out}


def _pair(plain: Plain) -> Body:
    said, chosen, rejected = plain
    return {
        "input": {"messages": [_message(turn) for turn in said]},
        "preferred_output": [_message(turn) for turn in chosen],
        "non_preferred_output": [_message(turn) for turn in rejected],
    }


def _openai_pair(plain: Plain) -> Body:
    body = dict(_pair(plain))
    body["input"] = {**body["input"], "tools": [], "parallel_tool_calls": True}  # as in the published example
    return body


def _claude(plain: Plain) -> Body:
    turns = [turn for part in plain for turn in part]
    first = {"system": turns[0][1]} if turns[0][0] == "system" else {}
    return {**first, "messages": [_message(turn) for turn in turns if turn[0] != "system"]}


def _bedrock(plain: Plain) -> Body:
    turns = [turn for part in plain for turn in part]
    first = {"system": [{"text": turns[0][1]}]} if turns[0][0] == "system" else {}
    said = [{"role": role, "content": [{"text": text}]} for role, text in turns if role != "system"]
    return {"schemaVersion": "bedrock-conversation-2024", **first, "messages": said}


# ------------------------------------------------------------------------------------------------ reading back


def _compared(path: Path, form: Format, kind: Kind, kept: Sequence[Plain]) -> tuple[str, int]:
    """(sha256, bytes) of the file, once every line of it reads as the row it was made of."""
    digest, size, number = hashlib.sha256(), 0, 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            digest.update(line)
            size += len(line)
            try:
                back = form.readers[kind](json.loads(line.decode("utf-8")))
            except (BadRow, ValueError, KeyError, TypeError, IndexError) as error:
                raise InputError(f"{path}:{number}: does not read back as {form.name}: {error}") from error
            if number > len(kept) or back != kept[number - 1]:
                raise InputError(f"{path}:{number}: reads back as another row than was written")
    if number != len(kept):
        raise InputError(f"{path}: holds {number:,} rows, but {len(kept):,} were written")
    return digest.hexdigest(), size


def read_back(path: Path, name: str, kind: Kind) -> Iterator[Plain]:
    """The rows of a file this module wrote, one by one."""
    reader = FORMATS[name].readers[kind]
    with path.open("rb") as file:
        for line in file:
            yield reader(json.loads(line))


def _only(body: Any, needed: set[str], optional: frozenset[str] = frozenset()) -> Body:
    if not isinstance(body, Mapping):
        raise BadRow(f"an object was expected, not {type(body).__name__}")
    odd = (needed - body.keys()) | (body.keys() - needed - optional)
    if odd:
        raise BadRow(f"keys {', '.join(sorted(body))}: {sorted(odd)[0]!r} is missing, or has no place here")
    return body


def _turns_back(value: Any) -> tuple[Turn, ...]:
    if not isinstance(value, list) or not value:
        raise BadRow("a list of messages was expected")
    out = []
    for message in value:
        body = _only(message, {"role", "content"}, frozenset({"weight"}))
        if body["role"] not in ("system", "user", "assistant") or not isinstance(body["content"], str):
            raise BadRow(f"a message of role {body['role']!r} with content of type {type(body['content']).__name__}")
        if "weight" in body and (body["weight"] not in (0, 1) or body["role"] != "assistant"):
            raise BadRow("a weight is 0 or 1, on a message of the assistant")
        out.append((body["role"], body["content"]))
    return tuple(out)


def _chat_back(body: Body) -> Plain:
    messages = _only(body, {"messages"})["messages"]
    turns = _turns_back(messages)
    weights = [m.get("weight", 1) for m in messages if m["role"] == "assistant"]
    if turns[-1][0] != "assistant" or weights != [0] * (len(weights) - 1) + [1]:
        raise BadRow("the last message, and no other, is the reply to imitate")
    return turns[:-1], turns[-1:]


def _pair_back(body: Body) -> Plain:
    _only(body, {"input", "preferred_output", "non_preferred_output"})
    said = _only(body["input"], {"messages"}, frozenset({"tools", "parallel_tool_calls"}))["messages"]
    sides = [_turns_back(body[key]) for key in ("preferred_output", "non_preferred_output")]
    if any(len(side) != 1 or side[0][0] != "assistant" for side in sides):
        raise BadRow("each output is one message of the assistant")
    return (_turns_back(said), *sides)


def _claude_back(body: Body) -> Plain:
    _only(body, {"messages"}, frozenset({"system"}))
    turns = _turns_back(body["messages"])
    head: tuple[Turn, ...] = (("system", body["system"]),) if "system" in body else ()
    return (*head, *turns[:-1]), turns[-1:]


def _bedrock_back(body: Body) -> Plain:
    _only(body, {"schemaVersion", "messages"}, frozenset({"system"}))
    if body["schemaVersion"] != "bedrock-conversation-2024":
        raise BadRow(f"schemaVersion is {body['schemaVersion']!r}")

    def text(blocks: Any) -> str:
        (block,) = blocks
        return str(_only(block, {"text"})["text"])

    turns = tuple((str(_only(m, {"role", "content"})["role"]), text(m["content"])) for m in body["messages"])
    head: tuple[Turn, ...] = (("system", text(body["system"])),) if "system" in body else ()
    return (*head, *turns[:-1]), turns[-1:]


FORMATS: Mapping[str, Format] = {
    form.name: form
    for form in (
        Format("openai", "https://developers.openai.com/api/docs/guides/supervised-fine-tuning and "
               "https://developers.openai.com/api/docs/guides/direct-preference-optimization",
               {"sft": _chat, "dpo": _openai_pair}, {"sft": _chat_back, "dpo": _pair_back},
               strict=False, weighs=True, least=10),
        Format("together", "https://docs.together.ai/docs/fine-tuning/data-preparation and "
               "https://docs.together.ai/docs/fine-tuning/preference-tuning",
               {"sft": _chat, "dpo": _pair}, {"sft": _chat_back, "dpo": _pair_back}, weighs=True),
        Format("fireworks", "https://docs.fireworks.ai/fine-tuning/supervised-fine-tuning and "
               "https://docs.fireworks.ai/fine-tuning/dpo-fine-tuning",
               {"sft": _chat, "dpo": _pair}, {"sft": _chat_back, "dpo": _pair_back}, weighs=True, least=3),
        Format("bedrock", "https://docs.aws.amazon.com/bedrock/latest/userguide/preparing-text-data.html",
               {"sft": _bedrock}, {"sft": _bedrock_back}),
        Format("bedrock-claude", "https://platform.claude.com/cookbook/finetuning-finetuning-on-bedrock",
               {"sft": _claude}, {"sft": _claude_back}),
    )
}  # fmt: skip
