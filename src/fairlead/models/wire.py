"""Messages on the wire: OpenAI's chat completions and Anthropic's messages, read and written by client and server."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fairlead.errors import InputError
from fairlead.exchange import Media, Message, Part, Reasoning, Refusal, Role, Text, ToolCall, ToolResult

# ---------------------------------------------------------------------------------------------- OpenAI


def to_openai(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Chat-completions messages. Reasoning has no place in this format's requests and stays behind by design."""
    out: list[dict[str, Any]] = []
    for message in messages:
        results = [p for p in message.parts if isinstance(p, ToolResult)]
        out += [
            {"role": "tool", "tool_call_id": p.call_id, "content": text_of(p, "OpenAI's chat completions")}
            for p in results
        ]
        if results and len(results) == len(message.parts):
            continue
        calls = [
            {"id": p.id, "type": "function", "function": {"name": p.name, "arguments": p.arguments}}
            for p in message.parts
            if isinstance(p, ToolCall)
        ]
        refuse_media(message)
        entry: dict[str, Any] = {"role": message.role, "content": message.text}
        if calls:
            entry["tool_calls"] = calls
            entry["content"] = message.text or None
        out.append(entry)
    return out


_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


def from_openai(data: Any) -> tuple[Message, ...]:
    """Messages of a chat-completions request. Raises ValueError naming the message that cannot be read."""
    if not isinstance(data, list) or not data:
        raise ValueError("messages: expected a non-empty list")
    return tuple(_from_openai(i, entry) for i, entry in enumerate(data))


def _from_openai(i: int, entry: Any) -> Message:
    if not isinstance(entry, Mapping):
        raise ValueError(f"messages[{i}]: expected an object")
    role = _ROLES.get(str(entry.get("role")))
    text = _content(entry.get("content"), f"messages[{i}].content")
    parts: list[Part] = [Text(text)] if text else []
    if role == "tool":
        return Message("tool", (ToolResult(str(entry.get("tool_call_id", "")), tuple(parts)),))
    for call in entry.get("tool_calls") or ():
        function = call.get("function", {})
        parts.append(ToolCall(str(call.get("id", "")), str(function.get("name")), str(function.get("arguments"))))
    if role is None:
        raise ValueError(f"messages[{i}].role: {entry.get('role')!r} is not system, user, assistant or tool")
    return Message(role, tuple(parts) or (Text(""),))


def parts_from_openai(message: Any) -> tuple[Part, ...]:
    """The parts of a chat-completions answer (an SDK object or anything with its attributes)."""
    parts: list[Part] = []
    reasoning = getattr(message, "reasoning", None) or getattr(message, "reasoning_content", None)
    if isinstance(reasoning, str):
        parts.append(Reasoning(text=reasoning))
    if message.content:
        parts.append(Text(str(message.content)))
    if message.refusal:
        parts.append(Refusal(str(message.refusal)))
    for call in message.tool_calls or ():
        function = getattr(call, "function", None)
        if function is not None:
            parts.append(ToolCall(str(call.id), str(function.name), str(function.arguments)))
    return tuple(parts)


# ------------------------------------------------------------------------------------------- Anthropic


def to_anthropic(messages: Sequence[Message]) -> tuple[str, list[dict[str, Any]]]:
    """(system, messages) of a messages request. A system message after the first turn has no place there."""
    system: list[str] = []
    out: list[dict[str, Any]] = []
    for i, message in enumerate(messages):
        refuse_media(message)
        if message.role == "system":
            if out:
                raise InputError(f"message {i} is a system message after the first turn; Anthropic's format has none")
            system.append(message.text)
            continue
        role = "assistant" if message.role == "assistant" else "user"
        blocks = [block for part in message.parts if (block := _block(part)) is not None]
        if all(b["type"] == "text" for b in blocks):
            out.append({"role": role, "content": "".join(b["text"] for b in blocks)})
        else:
            out.append({"role": role, "content": blocks})
    return "\n\n".join(system), out


def _block(part: Part) -> dict[str, Any] | None:
    if isinstance(part, Text | Refusal):
        return {"type": "text", "text": part.text}
    if isinstance(part, ToolCall):
        try:
            arguments = json.loads(part.arguments or "{}")
        except json.JSONDecodeError as error:
            raise InputError(f"tool call {part.id!r}: its arguments are not JSON ({error})") from None
        return {"type": "tool_use", "id": part.id, "name": part.name, "input": arguments}
    if isinstance(part, ToolResult):
        content = text_of(part, "Anthropic's messages")
        return {"type": "tool_result", "tool_use_id": part.call_id, "content": content, "is_error": part.is_error}
    if isinstance(part, Reasoning) and part.opaque is not None:  # goes back unchanged, as the provider asks
        if part.text is None:
            return {"type": "redacted_thinking", "data": part.opaque}
        return {"type": "thinking", "thinking": part.text, "signature": part.opaque}
    return None  # readable reasoning without a signature is not accepted back


def from_anthropic(system: Any, data: Any) -> tuple[Message, ...]:
    """Messages of a messages request. Raises ValueError naming the message that cannot be read."""
    if not isinstance(data, list) or not data:
        raise ValueError("messages: expected a non-empty list")
    out: list[Message] = [Message("system", (Text(_content(system, "system")),))] if system else []
    for i, entry in enumerate(data):
        role = entry.get("role") if isinstance(entry, Mapping) else None
        if role not in ("user", "assistant"):
            raise ValueError(f"messages[{i}].role: {role!r} is not user or assistant")
        content = entry.get("content")
        blocks = content if isinstance(content, list) else [{"type": "text", "text": content}]
        parts = [_from_block(block, f"messages[{i}].content") for block in blocks]
        results = tuple(p for p in parts if isinstance(p, ToolResult))
        rest = tuple(p for p in parts if not isinstance(p, ToolResult))
        if results:
            out.append(Message("tool", results))
        if rest:
            out.append(Message(role, rest))
    return tuple(out)


def _from_block(block: Any, where: str) -> Part:
    kind = block.get("type") if isinstance(block, Mapping) else None
    if kind == "text" and isinstance(block.get("text"), str):
        return Text(block["text"])
    if kind == "tool_use":
        return ToolCall(str(block.get("id")), str(block.get("name")), json.dumps(block.get("input", {})))
    if kind == "tool_result":
        text = _content(block.get("content"), where)
        return ToolResult(str(block.get("tool_use_id")), (Text(text),), bool(block.get("is_error")))
    raise ValueError(f"{where}: block of type {kind!r} is not supported here")


def parts_from_anthropic(blocks: Sequence[Any]) -> tuple[Part, ...]:
    """The parts of a messages answer (SDK objects). A kind of block we do not know is kept as opaque reasoning."""
    parts: list[Part] = []
    for block in blocks:
        if block.type == "text":
            parts.append(Text(block.text))
        elif block.type == "thinking":
            parts.append(Reasoning(text=block.thinking, opaque=block.signature))
        elif block.type == "redacted_thinking":
            parts.append(Reasoning(opaque=block.data))
        elif block.type == "tool_use":
            parts.append(ToolCall(block.id, block.name, json.dumps(block.input)))
        else:
            parts.append(Reasoning(opaque=json.dumps(block.to_dict(mode="python"))))
    return tuple(parts)


# ---------------------------------------------------------------------------------------------- shared

_LONE = re.compile("[\ud800-\udfff]")
_LONE_ESCAPE = re.compile(  # in JSON text, as tool calls carry it; an escaped backslash before it makes it no escape
    r"(?<!\\)((?:\\\\)*)(?:\\u[dD][89abAB][\da-fA-F]{2}(?!\\u[dD][c-fC-F])"
    r"|(?<!\\u[dD][89abAB][\da-fA-F]{2})\\u[dD][c-fC-F][\da-fA-F]{2})"
)


def mended(parts: Sequence[Part]) -> tuple[tuple[Part, ...], int]:
    """The parts of an answer with \ufffd for every lone surrogate, and how many there were.

    JSON can spell half of a surrogate pair (`\\ud800`), as a model does whose reply ends inside an emoji. It is no
    character: it cannot be written as UTF-8, so nothing that hashes, keeps or forwards the text could go on.
    """
    out: list[Part] = []
    count = 0
    for part in parts:
        texts = {f.name: t for f in dataclasses.fields(part) if isinstance(t := getattr(part, f.name), str)}
        for name, text in texts.items():
            texts[name], n = _LONE.subn("\ufffd", text)
            if isinstance(part, ToolCall) and name == "arguments":
                texts[name], more = _LONE_ESCAPE.subn("\\1\ufffd", texts[name])
                n += more
            count += n
        out.append(dataclasses.replace(part, **texts))  # type: ignore[arg-type]  # no field of texts is anything else
    return tuple(out), count


def whole(text: str) -> str:
    """The text with \ufffd for every lone surrogate."""
    return _LONE.sub("\ufffd", text)


def _content(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(b, Mapping) and isinstance(b.get("text"), str) for b in content):
        return "".join(b["text"] for b in content)
    raise ValueError(f"{where}: expected a string or a list of text parts")


def text_of(result: ToolResult, wire: str) -> str:
    if any(not isinstance(p, Text) for p in result.parts):
        raise InputError(f"the result of tool call {result.call_id!r} holds more than text; {wire} get text only here")
    return "".join(p.text for p in result.parts if isinstance(p, Text))


def refuse_media(message: Message) -> None:
    for part in message.parts:
        if isinstance(part, Media):
            raise InputError(f"a {message.role} message holds {part.kind} content; remote models get text only here")
