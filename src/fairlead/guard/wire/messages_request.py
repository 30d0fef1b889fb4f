"""Requests to Anthropic's `/v1/messages`, by the fields of `MessageCreateParams` (anthropic 2.14).

One message on the wire may hold words of several origins: what the user says, documents and search results, results of
tools. They become messages of their own, in order, so that a check knows whom each text comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from fairlead.exchange import Origin, Reasoning, Role, Text, ToolCall, ToolResult
from fairlead.guard.wire import fields
from fairlead.guard.wire.asked import Allow, Asked, Path, Refused
from fairlead.guard.wire.chat_request import unseen
from fairlead.guard.wire.fields import (
    ANYTHING,
    FLAG,
    FLAT,
    LABEL,
    NUMBER,
    READ,
    SWITCHES,
    TEXT,
    TEXTS,
    Fields,
    Kind,
    Placed,
)

ROUTE = "/v1/messages"

_STATE = "it is context or state that the guard cannot see"

FIELDS: dict[str, Kind] = {
    "model": TEXT, "messages": READ, "system": READ, "stream": FLAG, "tools": READ, "tool_choice": FLAT,
    "max_tokens": NUMBER, "temperature": NUMBER, "top_p": NUMBER, "top_k": NUMBER, "stop_sequences": TEXTS,
    "metadata": FLAT, "service_tier": LABEL, "speed": LABEL, "inference_geo": LABEL, "user_profile_id": LABEL,
    "workspace_id": LABEL, "cache_control": SWITCHES, "thinking": SWITCHES, "output_config": ANYTHING,
    "output_format": ANYTHING,
    "container": fields.hidden(_STATE),
    "mcp_servers": fields.hidden("the provider would call servers that the guard cannot see"),
    "context_management": fields.hidden("the provider would change the conversation after the guard has read it"),
    "diagnostics": fields.hidden("it refers to a message that the guard cannot see"),
}  # fmt: skip

_MESSAGE = {"role": LABEL, "content": READ}
_USUAL = frozenset(("role", "content"))
_COMMON = {"type": LABEL, "cache_control": SWITCHES}
_TEXT = {**_COMMON, "text": TEXT, "citations": fields.empty("it quotes what the guard cannot see")}
_IMAGE = {**_COMMON, "source": READ, "transformations": SWITCHES}
_SOURCES = {
    "base64": {"type": LABEL, "data": TEXT, "media_type": LABEL},
    "url": {"type": LABEL, "url": TEXT},
    "text": {"type": LABEL, "data": TEXT, "media_type": LABEL},
    "content": {"type": LABEL, "content": READ},
}
_DOCUMENT = {**_COMMON, "source": READ, "citations": SWITCHES, "title": TEXT, "context": TEXT}
_FOUND = {**_COMMON, "source": TEXT, "title": TEXT, "content": READ, "citations": SWITCHES}
_USE = {**_COMMON, "id": LABEL, "name": LABEL, "input": READ, "caller": SWITCHES, "toolset_name": LABEL}
_RESULT = {**_COMMON, "tool_use_id": LABEL, "content": READ, "is_error": FLAG, "toolset_name": LABEL}
_TOOL = {
    **_COMMON, "name": LABEL, "description": TEXT, "input_schema": ANYTHING, "strict": FLAG, "defer_loading": FLAG,
    "eager_input_streaming": FLAG, "input_examples": ANYTHING,
}  # fmt: skip
_BLOCKS: dict[str, Fields] = {
    "text": _TEXT, "image": _IMAGE, "document": _DOCUMENT, "search_result": _FOUND, "tool_use": _USE,
    "tool_result": _RESULT,
}  # fmt: skip
_SIDES: dict[str, tuple[Role, Origin]] = {
    "user": ("user", "user"), "assistant": ("assistant", "model"), "system": ("system", "operator")
}  # fmt: skip
_NAME = "messages.content"

Block = tuple[Role, Origin, Placed]


def table(node: Mapping[str, Any], under: str, around: Fields | None) -> Fields | None:
    """The fields that are known of an object inside a turn, by the field that holds it (`messages` a turn); None
    for what a policy lets pass unread. `around` are those of the object that holds it."""
    if under == "messages":
        return _MESSAGE
    return (_SOURCES if under == "source" else _BLOCKS).get(str(node.get("type")))


def read_request(body: Any, policy: Allow) -> Asked:
    """Raises `Refused`, naming the field."""
    model = fields.model_of(body)
    fields.check(body, FIELDS, policy)
    upstream = dict(body)
    turns = fields.Turns()
    system = body.get("system")
    if isinstance(system, str):
        turns.text("system", "operator", system, ("system",))
    elif system is not None:
        if not isinstance(system, list):
            raise fields.wrong("system", "a text or a list of texts", system)
        turns.add("system", "operator", [_text(b, f"system[{i}]", ("system", i), policy) for i, b in enumerate(system)])
    given = body.get("messages")
    if not isinstance(given, list) or not given:
        raise fields.wrong("messages", "a list of messages", given)
    kept: list[Any] = []
    for index, message in enumerate(given):
        _message(message, index, kept, turns, policy)
    upstream["messages"] = kept
    return Asked(
        ROUTE,
        "messages",
        model,
        tuple(turns.messages),
        fields.flag_of(body, "stream"),
        1,
        _tools(body.get("tools"), policy),
        True,
        upstream,
        turns.paths,
        tuple(turns.dropped),
        policy,
    )


def _message(message: Any, index: int, kept: list[Any], turns: fields.Turns, policy: Allow) -> None:
    path = f"messages[{index}]"
    if not isinstance(message, dict):
        raise fields.wrong(path, "a message", message)
    side = message.get("role")
    if not isinstance(side, str) or side not in _SIDES:
        raise Refused(400, f"{path}.role", f"{path}.role: use one of {', '.join(_SIDES)}")
    role, origin = _SIDES[side]
    if not message.keys() <= _USUAL:
        fields.check(message, _MESSAGE, policy, f"{path}.", "messages.")
    content = message.get("content")
    here: Path = ("messages", len(kept), "content")
    if isinstance(content, str):
        turns.text(role, origin, content, here)
        kept.append(message)
        return
    if not isinstance(content, list):
        raise fields.wrong(f"{path}.content", "a text or a list of blocks", content)
    blocks: list[Any] = []
    read: list[Block] = []
    for i, given in enumerate(content):
        block = _without_past(given, turns.dropped, policy)
        if block is not None:
            read += _block(block, f"{path}.content[{i}]", (*here, len(blocks)), role, origin, policy)
            blocks.append(block)
    if blocks or not content:
        kept.append({**message, "content": blocks})
    start = 0
    for end in range(1, len(read) + 1):
        if end == len(read) or read[end][:2] != read[start][:2]:
            turns.add(*read[start][:2], [placed for _, _, placed in read[start:end]])
            start = end


def _without_past(block: Any, dropped: list[str], policy: Allow) -> Any:
    """The block without what an earlier reply held and nobody can check: None where nothing is left."""
    if not isinstance(block, dict):
        return block
    kind = block.get("type")
    if kind in ("thinking", "redacted_thinking") and not policy.opaque:
        dropped.append("thinking of an earlier turn")
        return None
    if kind == "text" and block.get("citations"):
        dropped.append("citations of an earlier reply")
        return {name: value for name, value in block.items() if name != "citations"}
    return block


def _block(block: Any, path: str, here: Path, role: Role, origin: Origin, policy: Allow) -> list[Block]:
    kind = block.get("type") if isinstance(block, dict) else None
    match kind:
        case "text":
            return [(role, origin, _text(block, path, here, policy))]
        case "image":
            return [(role, origin, _image(block, path, policy))]
        case "document" | "search_result":
            read = _document if kind == "document" else _search_result
            return [(role, "retrieved", placed) for placed in read(block, path, here, policy)]
        case "tool_result":
            return [("tool", "tool", _result(block, path, here, policy))]
        case "tool_use":
            return [(role, origin, _use(block, path, here, policy))]
        case "thinking" | "redacted_thinking":  # opaque reasoning passes, else it was dropped
            return [(role, origin, _thinking(block, path, here))]
        case _:
            return [(role, origin, unseen(block, kind, path, _NAME, policy))]


def _text(block: Any, path: str, here: Path, policy: Allow) -> Placed:
    if not isinstance(block, dict) or block.get("type") != "text" or not isinstance(block.get("text"), str):
        raise fields.wrong(path, "a block of text", block)
    fields.check(block, _TEXT, policy, f"{path}.", f"{_NAME}.")
    return Text(block["text"]), (*here, "text")


def _source(block: dict[str, Any], path: str, kinds: tuple[str, ...], policy: Allow) -> tuple[dict[str, Any], str]:
    source = block.get("source")
    kind = source.get("type") if isinstance(source, dict) else None
    if not isinstance(source, dict) or not isinstance(kind, str):
        raise fields.wrong(f"{path}.source", "a source with a type", source)
    if kind in kinds:
        fields.check(source, _SOURCES[kind], policy, f"{path}.source.", f"{_NAME}.{block['type']}.")
    else:
        name = f"{_NAME}.{block['type']}.{kind[:64]}"
        fields.refuse(f"{path}.source", name, f"a source of the type {kind[:64]!r} cannot be read by the guard", policy)
        fields.shallow(source, f"{path}.source")
    return source, kind


def _image(block: dict[str, Any], path: str, policy: Allow) -> Placed:
    fields.image(path, policy)
    fields.check(block, _IMAGE, policy, f"{path}.", f"{_NAME}.")
    source, _ = _source(block, path, ("base64", "url"), policy)
    return fields.media("image", source.get("data") or source.get("url") or ""), ()


def _document(block: dict[str, Any], path: str, here: Path, policy: Allow) -> list[Placed]:
    fields.check(block, _DOCUMENT, policy, f"{path}.", f"{_NAME}.document.")
    out: list[Placed] = [(Text(block[name]), (*here, name)) for name in ("title", "context") if block.get(name)]
    source, kind = _source(block, path, ("text", "content"), policy)
    if kind == "text":
        data = source.get("data")
        if not isinstance(data, str):
            raise fields.wrong(f"{path}.source.data", "a text", data)
        out.append((Text(data), (*here, "source", "data")))
    elif kind == "content":
        out += _inner(source.get("content"), f"{path}.source.content", (*here, "source", "content"), policy)
    else:
        out.append((fields.media("document", source), ()))
    return out


def _search_result(block: dict[str, Any], path: str, here: Path, policy: Allow) -> list[Placed]:
    fields.check(block, _FOUND, policy, f"{path}.", f"{_NAME}.search_result.")
    out: list[Placed] = [(Text(block[name]), (*here, name)) for name in ("source", "title") if block.get(name)]
    return out + _inner(block.get("content"), f"{path}.content", (*here, "content"), policy)


def _inner(content: Any, path: str, here: Path, policy: Allow) -> list[Placed]:
    """The texts inside a document, a search result or the result of a tool."""
    if content is None:
        return []
    if isinstance(content, str):
        return [(Text(content), here)]
    if not isinstance(content, list):
        raise fields.wrong(path, "a text or a list of blocks", content)
    out: list[Placed] = []
    for i, block in enumerate(content):
        at, there = f"{path}[{i}]", (*here, i)
        kind = block.get("type") if isinstance(block, dict) else None
        match kind:
            case "text":
                out.append(_text(block, at, there, policy))
            case "image":
                out.append(_image(block, at, policy))
            case "document":
                out += _document(block, at, there, policy)
            case "search_result":
                out += _search_result(block, at, there, policy)
            case _:
                out.append(unseen(block, kind, at, _NAME, policy))
    return out


def _result(block: dict[str, Any], path: str, here: Path, policy: Allow) -> Placed:
    fields.check(block, _RESULT, policy, f"{path}.", f"{_NAME}.tool_result.")
    call = block.get("tool_use_id")
    if not isinstance(call, str):
        raise fields.wrong(f"{path}.tool_use_id", "the id of a call", call)
    inner = _inner(block.get("content"), f"{path}.content", (*here, "content"), policy)
    result = ToolResult(call, tuple(part for part, _ in inner), block.get("is_error") is True)
    return result, [place for _, place in inner]  # type: ignore[misc]


def _use(block: dict[str, Any], path: str, here: Path, policy: Allow) -> Placed:
    fields.check(block, _USE, policy, f"{path}.", f"{_NAME}.tool_use.")
    name, given = block.get("name"), block.get("input")
    if not isinstance(name, str) or not isinstance(given, dict):
        raise fields.wrong(path, "a call with a `name` and an `input`", block)
    fields.shallow(given, f"{path}.input")
    return ToolCall(block.get("id") or "", name, orjson.dumps(given).decode()), (*here, "input")


def _thinking(block: dict[str, Any], path: str, here: Path) -> Placed:
    name = "thinking" if block["type"] == "thinking" else "data"
    hidden = block.get("signature") if name == "thinking" else block.get("data")
    if not isinstance(block.get(name), str) or not isinstance(hidden, str) or not block.keys() <= _THINKING:
        raise fields.wrong(path, f"a block of the type {block['type']} and nothing else in it", block)
    return (
        (Reasoning(block["thinking"], hidden), (*here, name)) if name == "thinking" else (Reasoning(None, hidden), ())
    )


_THINKING = frozenset(("type", "thinking", "signature", "data"))


def _tools(given: Any, policy: Allow) -> tuple[str, ...]:
    """The names of the tools that the client runs; those that the provider defines or runs are refused."""

    def name_of(tool: dict[str, Any], path: str) -> str:
        name = tool.get("name")
        if not isinstance(name, str):
            raise fields.wrong(f"{path}.name", "the name of a tool", name)
        fields.check(tool, _TOOL, policy, f"{path}.", "tools.")
        return name

    return tuple(fields.tools_of(given, policy, "custom", name_of, "custom"))
