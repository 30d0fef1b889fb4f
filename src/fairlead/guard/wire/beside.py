"""What the model may read beside the conversation: definitions of tools, the form of the answer, a prediction, names of
speakers, metadata, and short texts of fields that have no name here. As messages, for the checks of what is asked.

They have the role `system`, so that no check takes them for the user's turn. What tools say of themselves is of origin
`retrieved`: it may come from strangers. What a policy lets pass by its name is not read, as for the conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from fairlead.exchange import Message, Text
from fairlead.guard.wire import chat_request, completions, messages_request, responses_request
from fairlead.guard.wire.asked import Asked, At, Path
from fairlead.guard.wire.fields import ANYTHING, FLAT, UNKNOWN, Fields

_FIELDS: Mapping[str, Fields] = {
    "chat": chat_request.FIELDS, "completions": completions.FIELDS, "responses": responses_request.FIELDS,
    "messages": messages_request.FIELDS,
}  # fmt: skip
Table: TypeAlias = Callable[[Mapping[str, Any], str, Fields | None], Fields | None]
_TABLES: Mapping[str, Table] = {  # what the format reads itself, or ids and words that nobody reads
    "chat": chat_request.table, "responses": responses_request.table, "messages": messages_request.table,
}  # fmt: skip
_READ = (UNKNOWN, ANYTHING, FLAT)
_TEMPLATE = "chat_template_kwargs"  # switches that the conversation is written with
_TOOLS = ("tools", "functions")
_TURNS = ("messages", "input", "system")
_USUAL = frozenset(("role", "content"))


@dataclass(frozen=True, slots=True)
class Beside:
    """`paths` of those texts alone that can be changed by themselves: a hole in a schema would be another schema."""

    messages: tuple[Message, ...] = ()
    paths: Mapping[At, Path] | None = None


NOTHING = Beside()


def beside(asked: Asked) -> Beside:
    """Their places go on where the conversation's end: (message, part) after `asked.messages`."""
    known, allowed = _FIELDS[asked.format], asked.policy.fields
    plain: list[tuple[str, Path]] = []
    formed: list[str] = []
    tools: list[str] = []
    for name, value in asked.upstream.items():
        if not isinstance(value, str | dict | list) or not value or name in allowed:
            continue
        if name in _TURNS:
            if isinstance(value, list):
                _turns(value, name, _TABLES[asked.format], plain)
        elif name in _TOOLS:
            tools += ["\n".join(_strings(tool)) for tool in value if not _unread(tool, allowed)]
        elif (kind := known.get(name, UNKNOWN)) in _READ or name == _TEMPLATE:
            if isinstance(value, str):
                plain.append((value, (name,)))
            elif kind is FLAT and isinstance(value, dict):
                plain += [(text, (name, key)) for key, text in value.items() if isinstance(text, str)]
                formed.append("\n".join(value))
            elif text := "\n".join(_strings(value)):
                formed.append(text)
    if not (plain or formed or tools):
        return NOTHING
    m = len(asked.messages)
    messages = []
    if plain or formed:
        messages.append(Message("system", tuple(Text(text) for text in (*(t for t, _ in plain), *formed)), "user"))
    if tools:
        messages.append(Message("system", tuple(map(Text, tools)), "retrieved"))
    return Beside(tuple(messages), {(m, p): path for p, (_, path) in enumerate(plain)})


def with_beside(asked: Asked, more: Beside) -> Asked:
    """The request with these messages behind its own, so that they can be changed with them (`with_messages`)."""
    return replace(asked, messages=(*asked.messages, *more.messages), paths={**asked.paths, **(more.paths or {})})


def _unread(tool: Any, allowed: frozenset[str]) -> bool:
    return bool(allowed) and isinstance(tool, dict) and f"tools.{tool.get('type')}" in allowed


def _strings(value: Any) -> Iterator[str]:
    """Every text and every name in a tree of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _turns(turns: list[Any], name: str, table: Table, out: list[tuple[str, Path]]) -> None:
    for i, turn in enumerate(turns):
        if isinstance(turn, dict) and not (turn.keys() == _USUAL and isinstance(turn["content"], str)):
            _loose(turn, name, None, (name, i), table, out)


_INSIDE = frozenset(
    ("content", "tool_calls", "function", "function_call", "output", "summary", "source", "image_url", "cache_control")
)  # what the formats read by its parts


def _loose(
    node: dict[str, Any], under: str, around: Fields | None, path: Path, table: Table, out: list[tuple[str, Path]]
) -> None:
    """Texts of a turn, or of what its field `under` holds, that are none of the known fields; the name of a speaker."""
    known = table(node, under, around) if under != "cache_control" else {}
    if known is None:
        return
    for name, value in node.items():
        if isinstance(value, str):
            if name not in known or (name == "name" and "role" in node):
                out.append((value, (*path, name)))
        elif name in _INSIDE:
            for i, inner in enumerate(value) if isinstance(value, list) else ((None, value),):
                if isinstance(inner, dict):
                    _loose(inner, name, known, (*path, name) if i is None else (*path, name, i), table, out)
