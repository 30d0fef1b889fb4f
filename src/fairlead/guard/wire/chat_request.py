"""Requests to `/v1/chat/completions`, by the fields of `CompletionCreateParams` (openai 3.57) and those of vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fairlead.exchange import Origin, Reasoning, Refusal, Role, Text, ToolCall, ToolResult
from fairlead.guard.wire import fields
from fairlead.guard.wire.asked import Allow, Asked, Path, Refused
from fairlead.guard.wire.fields import (
    ANYTHING,
    FLAG,
    FLAT,
    LABEL,
    NUMBER,
    NUMBERS,
    READ,
    SWITCHES,
    TEXT,
    TEXTS,
    Fields,
    Kind,
    Placed,
)

ROUTE = "/v1/chat/completions"

_SERVER = "the provider would run a tool that the guard cannot see"
_STORED = "the provider would keep the reply, unguarded, for others to read"
_CONTEXT = "it is context that the guard cannot see"

FIELDS: dict[str, Kind] = {
    "model": TEXT, "messages": READ, "stream": FLAG, "n": NUMBER, "tools": READ, "functions": READ,
    "stream_options": SWITCHES, "tool_choice": ANYTHING, "function_call": ANYTHING, "response_format": ANYTHING,
    "prediction": ANYTHING, "stop": TEXTS, "logit_bias": NUMBERS, "logprobs": FLAG, "top_logprobs": NUMBER,
    "temperature": NUMBER, "top_p": NUMBER, "frequency_penalty": NUMBER, "presence_penalty": NUMBER, "seed": NUMBER,
    "max_tokens": NUMBER, "max_completion_tokens": NUMBER, "parallel_tool_calls": FLAG, "metadata": FLAT, "user": LABEL,
    "safety_identifier": LABEL, "prompt_cache_key": LABEL, "prompt_cache_retention": LABEL,
    "prompt_cache_options": SWITCHES, "reasoning_effort": LABEL, "service_tier": LABEL, "verbosity": LABEL,
    "modalities": Kind((), rule=lambda value, field, name, policy: _modalities(value, field, name, policy)),
    "store": fields.off(_STORED),
    "audio": fields.hidden("sound is not checked"),
    "web_search_options": fields.hidden(_SERVER),
    "enable_search": fields.off(_SERVER),  # DashScope
    "moderation": fields.hidden("its findings are withheld from the reply"),
    "chat_template": fields.hidden(_CONTEXT),
    "chat_template_kwargs": SWITCHES,
    "documents": fields.hidden(_CONTEXT),
    "prompt": fields.hidden(_CONTEXT),
    "previous_response_id": fields.hidden(_CONTEXT),
    "system": fields.hidden(_CONTEXT),
    "instructions": fields.hidden(_CONTEXT),
}  # fmt: skip

_MESSAGE = {
    "role": LABEL, "content": READ, "name": LABEL, "tool_calls": READ, "tool_call_id": LABEL, "function_call": READ,
    "refusal": TEXT, "reasoning_content": TEXT, "reasoning": TEXT, "annotations": READ,
    "audio": fields.hidden("sound is not checked"),
}  # fmt: skip
_USUAL = frozenset(("role", "content"))
_MARKS = {"type": LABEL, "cache_control": SWITCHES, "prompt_cache_breakpoint": SWITCHES}
_PARTS = {kind: {**_MARKS, kind: READ} for kind in ("text", "refusal", "image_url")}
_IMAGE = {"url": TEXT, "detail": LABEL}
_CALL = {"id": LABEL, "type": LABEL, "index": NUMBER, "function": READ}
_CALLED = {"name": LABEL, "arguments": TEXT}
_TOOL = {"type": LABEL, "function": READ, "cache_control": SWITCHES}
_FUNCTION = {"name": LABEL, "description": TEXT, "parameters": ANYTHING, "strict": FLAG}
_ROLES: dict[str, tuple[Role, Origin]] = {
    "system": ("system", "operator"), "developer": ("system", "operator"), "user": ("user", "user"),
    "assistant": ("assistant", "model"), "tool": ("tool", "tool"), "function": ("tool", "tool"),
}  # fmt: skip


def table(node: Mapping[str, Any], under: str, around: Fields | None) -> Fields | None:
    """The fields that are known of an object inside a turn, by the field that holds it (`messages` a turn); None
    for what a policy lets pass unread. `around` are those of the object that holds it."""
    inside = {
        "messages": _MESSAGE,
        "image_url": _IMAGE,
        "tool_calls": _CALL,
        "function": _CALLED,
        "function_call": _CALLED,
    }
    return inside.get(under) or _PARTS.get(str(node.get("type")))


def read_request(body: Any, policy: Allow) -> Asked:
    """Raises `Refused`, naming the field."""
    model = fields.model_of(body)
    fields.check(body, FIELDS, policy)
    upstream = dict(body)
    turns = fields.Turns()
    given = body.get("messages")
    if not isinstance(given, list) or not given:
        raise fields.wrong("messages", "a list of messages", given)
    for index, message in enumerate(given):
        _message(message, index, turns, policy, upstream)
    tools = *tool_names(body.get("tools"), policy), *_functions(body.get("functions"), policy)
    options = body.get("stream_options")
    return Asked(
        ROUTE,
        "chat",
        model,
        tuple(turns.messages),
        fields.flag_of(body, "stream"),
        fields.count_of(body, "n"),
        tools,
        isinstance(options, dict) and options.get("include_usage") is True,
        upstream,
        turns.paths,
        tuple(turns.dropped),
        policy,
    )


def _message(message: Any, index: int, turns: fields.Turns, policy: Allow, upstream: dict[str, Any]) -> None:
    path = f"messages[{index}]"
    if not isinstance(message, dict):
        raise fields.wrong(path, "a message", message)
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise Refused(400, f"{path}.role", f"{path}.role: use one of {', '.join(_ROLES)}")
    ours, origin = _ROLES[role]
    content = message.get("content")
    if ours != "tool" and isinstance(content, str) and message.keys() == _USUAL:
        turns.text(ours, origin, content, ("messages", index, "content"))
        return
    fields.check(message, _MESSAGE, policy, f"{path}.", "messages.")
    here: Path = ("messages", index)
    if message.get("annotations"):
        kept = {name: value for name, value in message.items() if name != "annotations"}
        upstream["messages"] = [kept if i == index else one for i, one in enumerate(upstream["messages"])]
        turns.dropped.append("annotations of an earlier reply")
    parts: list[Placed] = []
    thought = [name for name in ("reasoning_content", "reasoning") if message.get(name)]
    parts += [(Reasoning(message[name]), (*here, name)) for name in thought]
    parts += _content(content, f"{path}.content", (*here, "content"), policy)
    if message.get("refusal"):
        parts.append((Refusal(message["refusal"]), (*here, "refusal")))
    if ours == "tool":
        for name in ("tool_calls", "function_call"):
            if message.get(name) is not None:
                raise Refused(400, f"{path}.{name}", f"{path}.{name}: the result of a tool has none")
        call = message.get("tool_call_id") or message.get("name")
        if not isinstance(call, str):
            raise fields.wrong(f"{path}.tool_call_id", "the id of a call", call)
        result = ToolResult(call, tuple(part for part, _ in parts))
        turns.add("tool", "tool", [(result, [place for _, place in parts])])  # type: ignore[misc]
        return
    parts += _calls(message.get("tool_calls"), f"{path}.tool_calls", (*here, "tool_calls"), policy)
    if message.get("function_call") is not None:
        called = _called(message["function_call"], f"{path}.function_call", policy)
        parts.append((ToolCall("", *called), (*here, "function_call", "arguments")))
    turns.add(ours, origin, parts)


def _content(content: Any, path: str, here: Path, policy: Allow) -> list[Placed]:
    if content is None:
        return []
    if isinstance(content, str):
        return [(Text(content), here)]
    if not isinstance(content, list):
        raise fields.wrong(path, "a text or a list of parts", content)
    return [_part(part, f"{path}[{i}]", (*here, i), policy) for i, part in enumerate(content)]


def _part(part: Any, path: str, here: Path, policy: Allow) -> Placed:
    if not isinstance(part, dict):
        raise fields.wrong(path, "a part of a message", part)
    kind = part.get("type")
    if kind in ("text", "refusal") and isinstance(part.get(kind), str):
        fields.check(part, _PARTS[kind], policy, f"{path}.", "messages.content.")
        return (Text(part[kind]) if kind == "text" else Refusal(part[kind])), (*here, kind)
    if kind == "image_url" and isinstance(part.get("image_url"), dict):
        fields.image(path, policy)
        fields.check(part, _PARTS[kind], policy, f"{path}.", "messages.content.")
        fields.check(part["image_url"], _IMAGE, policy, f"{path}.image_url.", "messages.content.image_url.")
        return fields.media("image", part["image_url"].get("url") or ""), ()
    return unseen(part, kind, path, "messages.content", policy)


def unseen(part: Any, kind: Any, path: str, where: str, policy: Allow) -> Placed:
    """A part of a kind that the guard cannot read: refused, or by its digest where the policy allows its kind."""
    word = kind[:64] if isinstance(kind, str) else "without a type"
    fields.refuse(path, f"{where}.{word}", f"a part of the kind {word!r} is not one that the guard can read", policy)
    fields.shallow(part, path)
    return fields.media(word, part), ()


def _calls(given: Any, path: str, here: Path, policy: Allow) -> list[Placed]:
    if given is None:
        return []
    if not isinstance(given, list):
        raise fields.wrong(path, "a list of calls", given)
    out: list[Placed] = []
    for i, call in enumerate(given):
        at = f"{path}[{i}]"
        if not isinstance(call, dict) or call.get("type", "function") != "function":
            out.append(
                unseen(call, call.get("type") if isinstance(call, dict) else None, at, "messages.tool_calls", policy)
            )
            continue
        fields.check(call, _CALL, policy, f"{at}.", "messages.tool_calls.")
        name, arguments = _called(call.get("function"), f"{at}.function", policy)
        out.append((ToolCall(call.get("id") or "", name, arguments), (*here, i, "function", "arguments")))
    return out


def _called(given: Any, path: str, policy: Allow) -> tuple[str, str]:
    if (
        not isinstance(given, dict)
        or not isinstance(given.get("name"), str)
        or not isinstance(given.get("arguments"), str)
    ):
        raise fields.wrong(path, "an object with the texts `name` and `arguments`", given)
    fields.check(given, _CALLED, policy, f"{path}.", "messages.tool_calls.function.")
    return given["name"], given["arguments"]


def tool_names(given: Any, policy: Allow) -> list[str]:
    """The names of the functions that the model may call; other tools are refused."""

    def name_of(tool: dict[str, Any], path: str) -> str:
        fields.check(tool, _TOOL, policy, f"{path}.", "tools.")
        return _function(tool.get("function"), f"{path}.function", policy)

    return fields.tools_of(given, policy, "function", name_of)


def _functions(given: Any, policy: Allow) -> list[str]:
    if given is None:
        return []
    if not isinstance(given, list):
        raise fields.wrong("functions", "a list of functions", given)
    return [_function(one, f"functions[{i}]", policy) for i, one in enumerate(given)]


def _function(given: Any, path: str, policy: Allow) -> str:
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        raise fields.wrong(path, "a function with a name", given)
    fields.check(given, _FUNCTION, policy, f"{path}.", "tools.function.")
    return str(given["name"])


def _modalities(value: Any, field: str, name: str, policy: Allow) -> None:
    if value != ["text"]:
        fields.refuse(field, name, "only text is checked", policy)
