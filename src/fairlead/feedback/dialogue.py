"""Published spellings of a conversation become messages: HH text markers, role/content lists, ShareGPT lists."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fairlead.exchange import Message, from_json
from fairlead.feedback.files import BadRow

_MARK = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_LAST = "\n\nAssistant:"
_ROLES: Mapping[str, str] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}


def is_marked(text: object) -> bool:
    """Whether a string is a dialogue in HH-RLHF's markers: it opens with a Human turn and has an Assistant's."""
    return isinstance(text, str) and text.lstrip("\n").startswith("Human:") and _LAST in text


def split_marked(text: str, key: str) -> tuple[str, str]:
    """An HH dialogue cut at its last assistant turn: (everything before it, the reply's text)."""
    before, mark, reply = text.rpartition(_LAST)
    if not mark:
        raise BadRow(f"{key!r} has no assistant turn (no {_LAST!r})")
    if "\n\nHuman:" in reply:
        raise BadRow(f"{key!r} ends with a Human turn, so there is no reply to learn from")
    return before, reply.strip()


def marked_messages(text: str) -> tuple[Message, ...]:
    """The turns of an HH dialogue. Turns of one speaker in a row are joined by a blank line: they are one turn
    whose text happened to hold a blank line, and chat templates expect the roles to alternate."""
    if not text.strip():
        raise BadRow("the dialogue has no turn before its reply")
    pieces = _MARK.split(text.lstrip("\n"))
    if pieces[0].strip():
        raise BadRow("the dialogue does not open with a marked turn ('Human:')")
    turns: list[tuple[str, str]] = []
    for speaker, said in zip(pieces[1::2], pieces[2::2], strict=True):
        role = "user" if speaker == "Human" else "assistant"
        if turns and turns[-1][0] == role:
            turns[-1] = (role, f"{turns[-1][1]}\n\n{said.strip()}")
        else:
            turns.append((role, said.strip()))
    return tuple(Message(role, said) for role, said in turns)  # type: ignore[arg-type]  # strings become Text parts


def messages_of(value: Any, key: str) -> tuple[Message, ...]:
    """A list of turns in any published spelling: {role, content}, {from, value}, or this project's own {role, parts}.

    One turn given as a plain object counts as a list of one. Content may be a string or a list of text parts.
    """
    turns = [value] if isinstance(value, Mapping) else value
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise BadRow(f"{key!r} should be a list of turns, not {_kind(value)}")
    if not turns:
        raise BadRow(f"{key!r} is an empty list")
    return tuple(_message(turn, f"{key}[{i}]") for i, turn in enumerate(turns))


def _message(turn: Any, key: str) -> Message:
    if not isinstance(turn, Mapping):
        raise BadRow(f"{key} should be an object with role and content, not {_kind(turn)}")
    if "parts" in turn:
        try:
            return from_json(Message, turn)
        except (ValueError, TypeError) as error:
            raise BadRow(f"{key}: {error}") from error
    role_key, text_key = ("from", "value") if "from" in turn else ("role", "content")
    for needed in (role_key, text_key):
        if needed not in turn:
            raise BadRow(f"{key} has no {needed!r}; its keys are {', '.join(map(str, turn)) or 'none'}")
    said = str(turn[role_key]).lower()
    if said not in _ROLES:
        raise BadRow(f"{key} has the unknown role {turn[role_key]!r}; known: {', '.join(_ROLES)}")
    if turn.get("tool_calls") or turn.get("function_call"):
        raise BadRow(f"{key} holds tool calls, which this format's reader does not take; write them as parts")
    return Message(_ROLES[said], _content(turn[text_key], key))  # type: ignore[arg-type]


def _content(value: Any, key: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and all(isinstance(p, Mapping) and p.get("type") == "text" for p in value):
        return "".join(text_of(part.get("text"), f"{key}.text") for part in value)
    raise BadRow(f"{key} has content that is not text ({_kind(value)})")


def text_of(value: Any, key: str) -> str:
    """A string, or a `BadRow` that names the key and what stands there instead."""
    if not isinstance(value, str):
        raise BadRow(f"{key!r} should be text, not {_kind(value)}")
    return value


def split_at_reply(messages: tuple[Message, ...], key: str) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """A whole conversation cut after its last user (or system) turn: (what was said, the reply).

    Tool turns after that point belong to the reply.
    """
    last = max((i for i, m in enumerate(messages) if m.role in ("user", "system")), default=-1)
    if last == len(messages) - 1:
        raise BadRow(f"{key!r} ends with a {messages[-1].role} turn, so there is no reply to learn from")
    if last < 0:
        raise BadRow(f"{key!r} has no user turn")
    return messages[: last + 1], messages[last + 1 :]


def _kind(value: Any) -> str:
    names = {str: "text", list: "a list", dict: "an object", bool: "true/false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
