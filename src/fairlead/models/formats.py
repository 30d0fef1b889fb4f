"""What a served model says in each format: requests to prompts, replies to JSON and to streams of events."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from fairlead.exchange import Refusal, Text, ToolCall
from fairlead.models import formats_responses, wire
from fairlead.models.formats_responses import told_tokens
from fairlead.models.protocol import Model, Prompt, Reply, Sampling, require

Events = Iterator[tuple[str, Any]]
"""Server-sent events: name ("" for none) and data, JSON or text."""


class HttpError(Exception):
    """An answer other than 200. `kind` is the error type both formats name."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


class Backend(Protocol):
    """The model behind a server, as the formats use it."""

    model: Model
    name: str
    lock: threading.Lock

    def ask(self, prompt: Prompt, sampling: Sampling) -> tuple[Reply, ...]: ...


# ---------------------------------------------------------------------------------------------- OpenAI


def models(backend: Backend) -> dict[str, Any]:
    entry = {
        "id": backend.name,
        "object": "model",
        "created": 0,
        "owned_by": "fairlead",
        "max_model_len": backend.model.context,
    }
    return {"object": "list", "data": [entry]}


_CHAT = {
    "model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "stop", "seed", "n",
    "stream", "stream_options", "logprobs", "top_logprobs", "return_token_ids", "user", "metadata", "store",
}  # fmt: skip


def _chat(backend: Backend, body: dict[str, Any], headers: Mapping[str, str]) -> dict[str, Any] | Events:
    _known(body, _CHAT)
    try:
        messages = wire.from_openai(body.get("messages"))
    except ValueError as error:
        raise HttpError(400, str(error)) from None
    sampling = _sampling(body, limit=body.get("max_completion_tokens", body.get("max_tokens")))
    replies = _ask(backend, messages, sampling)
    usage = _count(replies)
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": backend.name}
    told = [_told(backend, reply) if body.get("logprobs") else None for reply in replies]
    if body.get("stream"):
        return _chat_events(head, replies, told, usage, bool((body.get("stream_options") or {}).get("include_usage")))
    choices = []
    for i, reply in enumerate(replies):
        message = _openai_message(reply)
        choice = {"index": i, "message": message, "finish_reason": _FINISH_OPENAI[reply.finish], "logprobs": None}
        if told[i] is not None:
            choice["logprobs"] = {"content": told[i], "refusal": None}
        if body.get("return_token_ids") and reply.tokens is not None:
            choice["token_ids"] = list(reply.tokens)
        choices.append(choice)
    return {**head, "object": "chat.completion", "choices": choices, "usage": usage}


_FINISH_OPENAI = {
    "stop": "stop", "length": "length", "refusal": "stop", "filter": "content_filter", "tool_calls": "tool_calls"
}  # fmt: skip


def _openai_message(reply: Reply) -> dict[str, Any]:
    parts = [part for message in reply.messages for part in message.parts]
    text = "".join(p.text for p in parts if isinstance(p, Text))
    refusal = "".join(p.text for p in parts if isinstance(p, Refusal))
    calls = [
        {"id": p.id, "type": "function", "function": {"name": p.name, "arguments": p.arguments}}
        for p in parts
        if isinstance(p, ToolCall)
    ]
    message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls or refusal else "")}
    if refusal:
        message["refusal"] = refusal
    if calls:
        message["tool_calls"] = calls
    return message


def _told(backend: Backend, reply: Reply) -> list[dict[str, Any]] | None:
    """The log-probs of a reply's tokens; None where the model tells none."""
    if reply.logprobs is None:
        return None
    return told_tokens(reply, getattr(backend.model, "tokenizer", None))


def _chat_events(
    head: dict[str, Any], replies: Sequence[Reply], told: Sequence[list[dict[str, Any]] | None], usage: dict[str, int],
    with_usage: bool,
) -> Events:  # fmt: skip
    chunk = {**head, "object": "chat.completion.chunk"}
    for i, reply in enumerate(replies):
        yield (
            "",
            {**chunk, "choices": [{"index": i, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]},
        )
        entries = told[i] or []
        if "".join(entry["token"] for entry in entries) == reply.text:  # each with the text that it is told of
            for entry in entries:
                choice = {"index": i, "delta": {"content": entry["token"]}, "finish_reason": None}
                yield "", {**chunk, "choices": [{**choice, "logprobs": {"content": [entry], "refusal": None}}]}
        else:
            for piece in _pieces(reply.text):
                yield "", {**chunk, "choices": [{"index": i, "delta": {"content": piece}, "finish_reason": None}]}
        finish = _FINISH_OPENAI[reply.finish]
        yield "", {**chunk, "choices": [{"index": i, "delta": {}, "finish_reason": finish}]}
    if with_usage:
        yield "", {**chunk, "choices": [], "usage": usage}
    yield "", "[DONE]"


def _completions(backend: Backend, body: dict[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
    """Log-probs of a prompt of token ids, as vLLM gives them; continuing plain text is not a chat model's trade."""
    score = getattr(backend.model, "score_tokens", None)
    prompts = _token_prompts(body.get("prompt"))
    if score is None or body.get("prompt_logprobs") is None or not prompts:
        raise HttpError(400, "/v1/completions takes prompts of token ids with prompt_logprobs, for models with tokens")
    with backend.lock:
        rows = score(prompts)
    choices = []
    for i, (tokens, values) in enumerate(zip(prompts, rows, strict=True)):
        table = [None, *({str(t): {"logprob": v}} for t, v in zip(tokens[1:], values, strict=True))]
        choice = {"index": i, "text": "", "finish_reason": "length", "logprobs": None, "prompt_logprobs": table}
        choices.append(choice)
    read = sum(map(len, prompts))
    usage = {"prompt_tokens": read, "completion_tokens": 0, "total_tokens": read}
    head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time())}
    return {**head, "model": backend.name, "choices": choices, "usage": usage}


def _token_prompts(prompt: Any) -> list[tuple[int, ...]]:
    """One list of token ids, or several; empty for anything else."""
    rows = prompt if isinstance(prompt, list) and prompt and isinstance(prompt[0], list) else [prompt]
    if not all(isinstance(row, list) and row and all(type(token) is int for token in row) for row in rows):
        return []
    return [tuple(row) for row in rows]


def _tokenize(backend: Backend, body: dict[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
    tokenizer = getattr(backend.model, "tokenizer", None)
    if tokenizer is None:
        raise HttpError(400, "this model has no tokenizer to show")
    if "messages" in body:
        tokens = list(backend.model.render(wire.from_openai(body["messages"])))  # type: ignore[attr-defined]
    else:
        tokens = list(tokenizer(str(body.get("prompt", "")), add_special_tokens=False)["input_ids"])
    return {"tokens": tokens, "count": len(tokens), "max_model_len": backend.model.context}


def _responses(backend: Backend, body: dict[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
    _known(body, formats_responses.FIELDS)
    try:
        messages = formats_responses.prompt_of(body)
    except ValueError as error:
        raise HttpError(400, str(error)) from None
    reply = _ask(backend, messages, _sampling(body, limit=body.get("max_output_tokens")))[0]
    return formats_responses.answer(backend.name, reply, body, getattr(backend.model, "tokenizer", None))


# ------------------------------------------------------------------------------------------- Anthropic

_MESSAGES = {"model", "messages", "system", "max_tokens", "stop_sequences", "stream", "metadata"}
_OLD_MESSAGES = {"temperature", "top_p", "top_k"}
_FINISH_ANTHROPIC = {  # this format knows no filter beside the model's own refusal
    "stop": "end_turn", "length": "max_tokens", "refusal": "refusal", "filter": "refusal", "tool_calls": "tool_use"
}  # fmt: skip


def _messages(backend: Backend, body: dict[str, Any], headers: Mapping[str, str]) -> dict[str, Any] | Events:
    old = {k.lower(): v for k, v in headers.items()}.get("anthropic-version", "") < "2026-10-21"
    _known(body, _MESSAGES | (_OLD_MESSAGES if old else set()), "{}: Extra inputs are not permitted")
    if not isinstance(body.get("max_tokens"), int) or body["max_tokens"] < 1:
        raise HttpError(400, "max_tokens: a number of at least 1 is required")
    try:
        messages = wire.from_anthropic(body.get("system"), body.get("messages"))
    except ValueError as error:
        raise HttpError(400, str(error)) from None
    fields = {**body, "stop": body.get("stop_sequences")}
    reply = _ask(backend, messages, _sampling(fields, limit=body["max_tokens"]))[0]
    content: list[dict[str, Any]] = []
    for part in (part for message in reply.messages for part in message.parts):
        if isinstance(part, Text) and part.text:
            content.append({"type": "text", "text": part.text})
        elif isinstance(part, ToolCall):
            content.append({"type": "tool_use", "id": part.id, "name": part.name, "input": json.loads(part.arguments)})
    refusal = "".join(p.text for m in reply.messages for p in m.parts if isinstance(p, Refusal))
    details = {"type": "refusal", "category": None, "explanation": refusal} if refusal else None
    message = {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": backend.name,
        "content": content,
        "stop_reason": _FINISH_ANTHROPIC[reply.finish],
        "stop_sequence": None,
        "stop_details": details,
        "usage": {"input_tokens": reply.usage.prompt_tokens, "output_tokens": reply.usage.completion_tokens},
    }
    return _message_events(message) if body.get("stream") else message


def _message_events(message: dict[str, Any]) -> Events:
    empty: dict[str, Any] = {"stop_reason": None, "content": [], "usage": {**message["usage"], "output_tokens": 0}}
    yield "message_start", {"type": "message_start", "message": {**message, **empty}}
    for i, block in enumerate(message["content"]):
        text = block["type"] == "text"
        start = {"type": "text", "text": ""} if text else {**block, "input": {}}
        yield "content_block_start", {"type": "content_block_start", "index": i, "content_block": start}
        pieces = _pieces(block["text"]) if text else [json.dumps(block["input"])]
        for piece in pieces:
            delta = (
                {"type": "text_delta", "text": piece} if text else {"type": "input_json_delta", "partial_json": piece}
            )
            yield "content_block_delta", {"type": "content_block_delta", "index": i, "delta": delta}
        yield "content_block_stop", {"type": "content_block_stop", "index": i}
    delta = {key: message[key] for key in ("stop_reason", "stop_sequence", "stop_details")}
    yield "message_delta", {"type": "message_delta", "delta": delta, "usage": message["usage"]}
    yield "message_stop", {"type": "message_stop"}


# ---------------------------------------------------------------------------------------------- shared


def _known(body: dict[str, Any], fields: set[str], message: str = "unsupported parameter: {}") -> None:
    unknown = sorted(set(body) - fields)
    if unknown:
        raise HttpError(400, message.format(unknown[0]))


def _sampling(body: dict[str, Any], *, limit: Any) -> Sampling:
    """The request's sampling. Refuses values of the wrong kind."""
    stop = body.get("stop")
    kinds: dict[str, tuple[type, ...]] = {
        "temperature": (int, float),
        "top_p": (int, float),
        "top_k": (int,),
        "seed": (int,),
        "top_logprobs": (int,),
    }
    values: dict[str, Any] = {}
    for field, types in kinds.items():
        value = body.get(field)
        if value is not None and (isinstance(value, bool) or not isinstance(value, types)):
            raise HttpError(400, f"{field}: expected a number")
        values[field] = value
    n = 1 if body.get("n") is None else body["n"]
    if not isinstance(n, int) or not 1 <= n <= 64 or not (limit is None or (isinstance(limit, int) and limit >= 1)):
        raise HttpError(400, "n must lie between 1 and 64, and max_tokens be a number of at least 1")
    stops = (stop,) if isinstance(stop, str) else tuple(map(str, stop)) if stop else None
    return Sampling(n=n, max_tokens=limit, stop=stops, **values)


def _ask(backend: Backend, messages: Prompt, sampling: Sampling) -> tuple[Reply, ...]:
    if sampling.top_logprobs == 0 and "top_logprobs" not in backend.model.capabilities:
        sampling = replace(sampling, top_logprobs=None)  # the chosen tokens' alone, which needs nothing of it
    require(backend.model, *sampling.asked())
    replies = backend.ask(messages, sampling)
    for reply in replies:
        if reply.finish == "error":
            raise HttpError(502, reply.error, "api_error")
    return replies


def _count(replies: Sequence[Reply]) -> dict[str, int]:
    prompt = max((r.usage.prompt_tokens for r in replies), default=0)
    completion = sum(r.usage.completion_tokens for r in replies)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _pieces(text: str) -> list[str]:
    words = text.split(" ")
    return [w if i == 0 else f" {w}" for i, w in enumerate(words)] if text else []


ROUTES: Mapping[str, Callable[[Backend, dict[str, Any], Mapping[str, str]], dict[str, Any] | Events]] = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completions,
    "/v1/responses": _responses,
    "/v1/messages": _messages,
    "/tokenize": _tokenize,
}
