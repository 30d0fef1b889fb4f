"""What was said, turn by turn, as text to be shown; hidden where the copy is to hold none of it."""

from __future__ import annotations

from dataclasses import dataclass

from fairlead.exchange import Exchange, Media, Message, Part, Reasoning, Refusal, Text, ToolCall, ToolResult


@dataclass(frozen=True, slots=True)
class Turn:
    role: str
    text: str
    reply: bool


def turns(item: Exchange | None, hide_text: bool, *, reply_only: bool = False) -> list[Turn]:
    if item is None:
        return []
    said = [] if reply_only else [(message, False) for message in item.messages]
    return [
        Turn(message.role, _hidden(message) if hide_text else _text(message), reply)
        for message, reply in [*said, *((message, True) for message in item.reply)]
    ]


def _hidden(message: Message) -> str:
    return f"(hidden: {len(_text(message))} characters)"


def _text(message: Message) -> str:
    return "\n".join(filter(None, (_part(part) for part in message.parts))) or "(empty)"


def _part(part: Part) -> str:
    match part:
        case Text(text) | Refusal(text):
            return text
        case ToolCall(_, name, arguments):
            return f"(calls {name} with {arguments})"
        case ToolResult(_, parts, is_error):
            inner = "\n".join(map(_part, parts))
            return f"(error: {inner})" if is_error else f"(result: {inner})"
        case Reasoning(text, opaque):
            return f"(thinks: {text})" if text is not None else "(opaque reasoning)" if opaque else ""
        case Media(kind, digest):
            return f"({kind} {digest})"
