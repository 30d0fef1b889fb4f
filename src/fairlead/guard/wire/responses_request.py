"""Requests to OpenAI's `/v1/responses`, by the fields of `ResponseCreateParams` (openai 3.57).

The route keeps state at the provider unless told not to, and refers to it by ids. Here a request stands for itself:
`store` is false, and items go without their ids, which could call up what the guard has not read (and which a provider
that has stored nothing answers with 404).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fairlead.exchange import Origin, Reasoning, Refusal, Role, Text, ToolCall, ToolResult
from fairlead.guard.wire import fields
from fairlead.guard.wire.asked import Allow, Asked, Path, Refused
from fairlead.guard.wire.chat_request import unseen
from fairlead.guard.wire.fields import ANYTHING, FLAG, FLAT, LABEL, NUMBER, READ, SWITCHES, TEXT, Fields, Kind, Placed

ROUTE = "/v1/responses"

_STATE = "it continues what the guard cannot see; send the whole conversation"
_CHANGES = "the provider would change the conversation after the guard has read it"

FIELDS: dict[str, Kind] = {
    "model": TEXT, "input": READ, "instructions": TEXT, "stream": FLAG, "tools": READ, "include": READ,
    "tool_choice": ANYTHING, "text": ANYTHING, "reasoning": SWITCHES, "max_output_tokens": NUMBER,
    "max_tool_calls": NUMBER, "metadata": FLAT, "parallel_tool_calls": FLAG, "temperature": NUMBER, "top_p": NUMBER,
    "top_logprobs": NUMBER, "truncation": LABEL, "user": LABEL, "safety_identifier": LABEL, "service_tier": LABEL,
    "prompt_cache_key": LABEL, "prompt_cache_retention": LABEL, "prompt_cache_options": SWITCHES,
    "stream_options": SWITCHES,
    "store": fields.off("the provider would keep the reply, unguarded, for others to read"),
    "background": fields.off("the reply would be fetched later, past the guard"),
    "background_options": fields.hidden("the reply would be fetched later, past the guard"),
    "previous_response_id": fields.hidden(_STATE),
    "conversation": fields.hidden(_STATE),
    "prompt": fields.hidden("a stored prompt is context that the guard cannot see"),
    "context_management": fields.hidden(_CHANGES),
    "moderation": fields.hidden("its findings are withheld from the reply"),
}  # fmt: skip

_MESSAGE = {"type": LABEL, "role": LABEL, "content": READ, "id": LABEL, "status": LABEL, "phase": LABEL}
_MARKS = {"type": LABEL, "prompt_cache_breakpoint": SWITCHES}
_TEXT = {**_MARKS, "text": TEXT, "annotations": READ, "logprobs": READ}
_PLAIN = frozenset(("type", "text", "annotations"))
_REFUSAL = {**_MARKS, "refusal": TEXT, "annotations": READ, "logprobs": READ}
_IMAGE = {
    **_MARKS, "image_url": TEXT, "detail": LABEL,
    "file_id": fields.hidden("it refers to a file that the guard cannot see"),
}  # fmt: skip
_CALL = {
    "type": LABEL, "id": LABEL, "call_id": LABEL, "name": LABEL, "arguments": TEXT, "status": LABEL, "caller": SWITCHES,
    "namespace": fields.hidden("it names tools that the guard cannot see"),
}  # fmt: skip
_RESULT = {"type": LABEL, "id": LABEL, "call_id": LABEL, "output": READ, "status": LABEL, "caller": SWITCHES}
_REASONING = {"type": LABEL, "id": LABEL, "summary": READ, "content": READ, "encrypted_content": TEXT, "status": LABEL}
_THOUGHT = {"type": LABEL, "text": TEXT}
_TOOL = {
    "type": LABEL, "name": LABEL, "description": TEXT, "parameters": ANYTHING, "strict": FLAG, "defer_loading": FLAG,
    "output_schema": ANYTHING, "allowed_callers": fields.hidden("the provider's own tools would call it"),
}  # fmt: skip
_ITEMS: dict[str, Fields] = {
    "message": _MESSAGE, "function_call": _CALL, "function_call_output": _RESULT, "reasoning": _REASONING,
}  # fmt: skip
_PARTS: dict[str, Fields] = {
    "input_text": _TEXT, "output_text": _TEXT, "text": _TEXT, "refusal": _REFUSAL, "input_image": _IMAGE,
}  # fmt: skip
_ROLES: dict[str, tuple[Role, Origin]] = {
    "system": ("system", "operator"), "developer": ("system", "operator"), "user": ("user", "user"),
    "assistant": ("assistant", "model"),
}  # fmt: skip
_STATEFUL = frozenset(("store", "previous_response_id", "conversation"))  # where a policy allows these, ids stay
_KINDS = frozenset(("message", "function_call", "function_call_output", "reasoning"))
_LOGPROBS = "message.output_text.logprobs"
_ENCRYPTED = "reasoning.encrypted_content"


def table(node: Mapping[str, Any], under: str, around: Fields | None) -> Fields | None:
    """The fields that are known of an object inside an item, by the field that holds it (`input` an item); None
    for what a policy lets pass unread. `around` are those of the object that holds it."""
    kind = str(node.get("type", "message" if "role" in node else ""))
    if under == "input":
        return _ITEMS.get(kind)
    return _THOUGHT if around is _REASONING else _PARTS.get(kind)


def read_request(body: Any, policy: Allow) -> Asked:
    """Raises `Refused`, naming the field."""
    model = fields.model_of(body)
    fields.check(body, FIELDS, policy)
    upstream = dict(body)
    turns = fields.Turns()
    if isinstance(body.get("instructions"), str):
        turns.text("system", "operator", body["instructions"], ("instructions",))
    given = body.get("input")
    if isinstance(given, str):
        turns.text("user", "user", given, ("input",))
    elif isinstance(given, list) and given:
        kept: list[Any] = []
        for index, item in enumerate(given):
            _item(item, index, kept, turns, policy)
        upstream["input"] = kept
    else:
        raise fields.wrong("input", "a text or a list of items", given)
    if "store" not in policy.fields:
        upstream["store"] = False
    if body.get("include") is not None:
        upstream["include"] = _include(body["include"], turns.dropped, policy)
    return Asked(
        ROUTE,
        "responses",
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


def _include(given: Any, dropped: list[str], policy: Allow) -> list[str]:
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise fields.wrong("include", "a list of names", given)
    kept: list[str] = []
    for i, name in enumerate(given):
        if name == _ENCRYPTED and not policy.opaque:
            dropped.append("wish for encrypted reasoning")
            continue
        if name not in (_ENCRYPTED, _LOGPROBS):
            fields.refuse(f"include[{i}]", f"include.{name[:64]}", "it asks for what the guard cannot read", policy)
        kept.append(name)
    return kept


def _item(item: Any, index: int, kept: list[Any], turns: fields.Turns, policy: Allow) -> None:
    path = f"input[{index}]"
    if not isinstance(item, dict):
        raise fields.wrong(path, "an item", item)
    kind = item.get("type") or ("message" if "role" in item else None)
    here: Path = ("input", len(kept))
    if "id" in item and isinstance(kind, str) and kind in _KINDS and not policy.fields & _STATEFUL:
        item = {name: value for name, value in item.items() if name not in ("id", "status")}
    match kind:
        case "message":
            kept.append(_message(item, path, here, turns, policy))
        case "function_call":
            fields.check(item, _CALL, policy, f"{path}.", "input.function_call.")
            name, arguments = item.get("name"), item.get("arguments")
            if not isinstance(name, str) or not isinstance(arguments, str):
                raise fields.wrong(path, "a call with the texts `name` and `arguments`", item)
            call = ToolCall(item.get("call_id") or "", name, arguments)
            turns.add("assistant", "model", [(call, (*here, "arguments"))])
            kept.append(item)
        case "function_call_output":
            fields.check(item, _RESULT, policy, f"{path}.", "input.function_call_output.")
            if not isinstance(item.get("call_id"), str):
                raise fields.wrong(f"{path}.call_id", "the id of a call", item.get("call_id"))
            inner, output = _content(item.get("output"), f"{path}.output", (*here, "output"), turns, policy)
            result = ToolResult(item["call_id"], tuple(part for part, _ in inner))
            turns.add("tool", "tool", [(result, [place for _, place in inner])])  # type: ignore[misc]
            kept.append({**item, "output": output})
        case "reasoning":
            if policy.opaque and (item.get("encrypted_content") or item.get("content") or "id" in item):
                _reasoning(item, path, here, turns, policy)
                kept.append(item)
            else:
                turns.dropped.append("reasoning of an earlier turn")
        case _:
            turns.add("user", "user", [unseen(item, kind, path, "input", policy)])
            kept.append(item)


def _message(item: dict[str, Any], path: str, here: Path, turns: fields.Turns, policy: Allow) -> dict[str, Any]:
    side = item.get("role")
    if not isinstance(side, str) or side not in _ROLES:
        raise Refused(400, f"{path}.role", f"{path}.role: use one of {', '.join(_ROLES)}")
    role, origin = _ROLES[side]
    fields.check(item, _MESSAGE, policy, f"{path}.", "input.message.")
    parts, content = _content(item.get("content"), f"{path}.content", (*here, "content"), turns, policy)
    only = parts[0][0] if len(parts) == 1 and isinstance(content, list) and content[0].keys() <= _PLAIN else None
    if role == "assistant" and "id" not in item and isinstance(only, Text):
        content = only.text  # without an id some servers take no list of an earlier reply's parts
        parts = [(only, (*here, "content"))]
    turns.add(role, origin, parts)
    return {**item, "content": content}


def _content(
    content: Any, path: str, here: Path, turns: fields.Turns, policy: Allow
) -> tuple[list[Placed], list[Any] | str]:
    """The parts of a message or of a tool's output, and the same to send on."""
    if isinstance(content, str):
        return [(Text(content), here)], content
    if not isinstance(content, list):
        raise fields.wrong(path, "a text or a list of parts", content)
    parts: list[Placed] = []
    kept: list[Any] = []
    for i, part in enumerate(content):
        at, there = f"{path}[{i}]", (*here, i)
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(part, dict):
            part = _without_past(part, turns.dropped)
        match kind:
            case "input_text" | "output_text" | "text" if isinstance(part.get("text"), str):
                fields.check(part, _TEXT, policy, f"{at}.", "input.content.")
                parts.append((Text(part["text"]), (*there, "text")))
            case "refusal" if isinstance(part.get("refusal"), str):
                fields.check(part, _REFUSAL, policy, f"{at}.", "input.content.")
                parts.append((Refusal(part["refusal"]), (*there, "refusal")))
            case "input_image":
                fields.image(at, policy)
                fields.check(part, _IMAGE, policy, f"{at}.", "input.content.")
                parts.append((fields.media("image", part.get("image_url") or ""), ()))
            case _:
                parts.append(unseen(part, kind, at, "input.content", policy))
        kept.append(part)
    return parts, kept


def _without_past(part: dict[str, Any], dropped: list[str]) -> dict[str, Any]:
    """A part of an earlier reply without its annotations and log-probs, which no check reads."""
    if not (part.get("annotations") or part.get("logprobs")):
        return part
    dropped.append("annotations of an earlier reply")
    return {**{name: value for name, value in part.items() if name != "logprobs"}, "annotations": []}


def _reasoning(item: dict[str, Any], path: str, here: Path, turns: fields.Turns, policy: Allow) -> None:
    fields.check(item, _REASONING, policy, f"{path}.", "input.reasoning.")
    parts: list[Placed] = []
    for name in ("summary", "content"):
        given = item.get(name) or []
        for i, thought in enumerate(given if isinstance(given, list) else [given]):
            at = f"{path}.{name}[{i}]"
            if not isinstance(thought, dict) or not isinstance(thought.get("text"), str):
                raise fields.wrong(at, "an object with a text", thought)
            fields.check(thought, _THOUGHT, policy, f"{at}.", "input.reasoning.")
            parts.append((Reasoning(thought["text"]), (*here, name, i, "text")))
    if item.get("encrypted_content"):
        parts.append((Reasoning(None, item["encrypted_content"]), ()))
    turns.add("assistant", "model", parts)


def _tools(given: Any, policy: Allow) -> tuple[str, ...]:
    """The names of the functions that the client runs; what the provider runs is refused."""

    def name_of(tool: dict[str, Any], path: str) -> str:
        name = tool.get("name")
        if not isinstance(name, str):
            raise fields.wrong(f"{path}.name", "the name of a function", name)
        fields.check(tool, _TOOL, policy, f"{path}.", "tools.")
        return name

    return tuple(fields.tools_of(given, policy, "function", name_of))
