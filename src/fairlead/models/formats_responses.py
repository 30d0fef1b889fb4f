"""OpenAI's responses format, as a served model speaks it: requests to prompts, replies to JSON."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any

from fairlead.exchange import Message, Refusal, Role, Text, ToolCall, ToolResult
from fairlead.models.protocol import Prompt, Reply
from fairlead.models.spelling import spelling

FIELDS = {
    "model", "input", "instructions", "max_output_tokens", "temperature", "top_p", "top_logprobs", "store", "include",
    "metadata",
}  # fmt: skip
LOGPROBS = "message.output_text.logprobs"  # in `include`


def prompt_of(body: Mapping[str, Any]) -> Prompt:
    """Messages of a responses request. Raises ValueError naming the item that cannot be read."""
    out: list[Message] = []
    if body.get("instructions"):
        out.append(Message("system", (Text(str(body["instructions"])),)))
    given = body.get("input")
    if isinstance(given, str):
        return (*out, Message("user", (Text(given),)))
    if not isinstance(given, list) or not given:
        raise ValueError("input: expected a string or a non-empty list")
    for i, item in enumerate(given):
        kind = item.get("type", "message") if isinstance(item, Mapping) else None
        if kind == "function_call":
            call = ToolCall(str(item.get("call_id")), str(item.get("name")), str(item.get("arguments")))
            out.append(Message("assistant", (call,)))
        elif kind == "function_call_output":
            out.append(Message("tool", (ToolResult(str(item.get("call_id")), (Text(str(item.get("output"))),)),)))
        elif kind == "message" and item.get("role") in ("system", "developer", "user", "assistant"):
            role: Role = "system" if item["role"] == "developer" else item["role"]
            content = item.get("content")
            pieces = [content] if isinstance(content, str) else [str(b.get("text")) for b in content or ()]
            out.append(Message(role, (Text("".join(pieces)),)))
        elif kind != "reasoning":
            raise ValueError(f"input[{i}]: an item of type {kind!r} is not supported here")
    return tuple(out)


def answer(name: str, reply: Reply, body: Mapping[str, Any], tokenizer: Any = None) -> dict[str, Any]:
    """The response object of one reply. The model's tokenizer tells which token has which log-prob."""
    wanted = reply.top_logprobs is not None or LOGPROBS in (body.get("include") or ())
    told = told_tokens(reply, tokenizer) if wanted else []
    output: list[dict[str, Any]] = []
    content: list[dict[str, Any]] = []
    for part in (part for message in reply.messages for part in message.parts):
        if isinstance(part, Text) and part.text:
            content.append({"type": "output_text", "text": part.text, "annotations": [], "logprobs": told})
        elif isinstance(part, Refusal) and reply.finish != "filter":
            content.append({"type": "refusal", "refusal": part.text})
        elif isinstance(part, ToolCall):
            output.append({
                "type": "function_call", "id": f"fc_{uuid.uuid4().hex}", "call_id": part.id, "name": part.name,
                "arguments": part.arguments, "status": "completed",
            })  # fmt: skip
    cut = {"length": "max_output_tokens", "filter": "content_filter"}.get(reply.finish)
    status = "incomplete" if cut else "completed"
    if content:
        message = {"type": "message", "id": f"msg_{uuid.uuid4().hex}", "role": "assistant", "status": status}
        output.insert(0, {**message, "content": content})
    used = reply.usage
    return {
        "id": f"resp_{uuid.uuid4().hex}", "object": "response", "created_at": time.time(), "model": name,
        "status": status, "error": None, "incomplete_details": {"reason": cut} if cut else None, "output": output,
        "instructions": body.get("instructions"), "metadata": {}, "parallel_tool_calls": True, "tool_choice": "auto",
        "tools": [], "temperature": body.get("temperature"), "top_p": body.get("top_p"),
        "max_output_tokens": body.get("max_output_tokens"),
        "usage": {
            "input_tokens": used.prompt_tokens, "output_tokens": used.completion_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": used.prompt_tokens + used.completion_tokens,
        },
    }  # fmt: skip


def told_tokens(reply: Reply, tokenizer: Any) -> list[dict[str, Any]]:
    """One entry per token that the reply's text is spelled by: it, its log-prob, and the likeliest in its place where
    the model told them. By the tokenizer where the model has one; else the token is that of the alternatives which has
    its log-prob, and "" where none has."""
    values = reply.logprobs or ()
    top = reply.top_logprobs or ((),) * len(values)
    rows = list(zip(values, top, strict=True))
    if tokenizer is not None and reply.tokens is not None:
        tokens = spelling(tokenizer, reply.tokens, reply.text) or []
    else:
        tokens = [next((o.token for o in others if o.logprob == value), "") for value, others in rows]
    return [
        {
            "token": token, "logprob": value, "bytes": list(token.encode()),
            "top_logprobs": [{"token": o.token, "logprob": o.logprob, "bytes": list(o.token.encode())} for o in others],
        }
        for token, (value, others) in zip(tokens, rows, strict=False)  # what ended the reply has no text
    ]  # fmt: skip
