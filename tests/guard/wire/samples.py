"""Replies as the providers write them, in one body and as a stream, with every kind of part that the formats know.

Written by hand after the providers' documentation; nothing here is made by the code under test.
"""

from __future__ import annotations

import json
from typing import Any

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"

REQUESTS: dict[str, dict[str, Any]] = {
    CHAT: {
        "model": "m",
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}],
        "stream_options": {"include_usage": True},
    },
    COMPLETIONS: {"model": "m", "prompt": "Once", "stream_options": {"include_usage": True}},
    RESPONSES: {"model": "m", "instructions": "Be kind.", "input": "Hello"},
    MESSAGES: {
        "model": "m",
        "max_tokens": 64,
        "system": "Be kind.",
        "messages": [{"role": "user", "content": "Hello"}],
    },
}


def request(route: str, **more: Any) -> dict[str, Any]:
    return {**REQUESTS[route], **more}


def sse(*said: dict[str, Any], done: bool = False) -> bytes:
    """A stream of these events."""
    out = [
        (b"event: " + one["type"].encode() + b"\n" if "type" in one else b"")
        + b"data: "
        + json.dumps(one).encode()
        + b"\n\n"
        for one in said
    ]
    return b"".join([*out, b"data: [DONE]\n\n"] if done else out)


def token(text: str, logprob: float = -0.5) -> dict[str, Any]:
    others = [{"token": "ALTERNATIVE", "logprob": -3.0, "bytes": list(b"ALTERNATIVE")}]
    return {"token": text, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": others}


# ------------------------------------------------------------------------------------------------------ chat

CHAT_USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 5,
    "total_tokens": 14,
    "completion_tokens_details": {"reasoning_tokens": 2},
}
_CHAT = {"id": "chatcmpl-7Q", "object": "chat.completion", "created": 1_800_000_000, "model": "m-2026-01-02"}
_CALLS = [
    {"id": "call_a", "type": "function", "function": {"name": "look", "arguments": '{"at": "the sea"}'}},
    {"id": "call_b", "type": "function", "function": {"name": "wait", "arguments": ""}},
]
_CITED = {
    "type": "url_citation",
    "url_citation": {"url": "https://a.example/x", "title": "X", "start_index": 0, "end_index": 4},
}

CHAT_BODY: dict[str, Any] = {
    **_CHAT,
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "Good day ☀",
                "refusal": None,
                "reasoning_content": "They greet me.",
                "annotations": [_CITED],
                "tool_calls": _CALLS,
            },
            "logprobs": {"content": [token("Good"), token(" day"), token(" ☀")], "refusal": None},
            "finish_reason": "tool_calls",
        },
        {
            "index": 1,
            "message": {"role": "assistant", "content": None, "refusal": "I will not."},
            "logprobs": None,
            "finish_reason": "stop",
        },
    ],
    "usage": CHAT_USAGE,
    "system_fingerprint": "fp_1",
}


def chat_chunk(index: int, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
    return {**_CHAT, "object": "chat.completion.chunk", "choices": [choice], "usage": None}


def _called(number: int, **more: Any) -> dict[str, Any]:
    return {"tool_calls": [{"index": number, **more}]}


CHAT_STREAM = sse(
    chat_chunk(0, {"role": "assistant", "content": ""}),
    chat_chunk(1, {"role": "assistant", "content": ""}),
    chat_chunk(0, {"reasoning_content": "They "}),
    chat_chunk(0, {"reasoning_content": "greet me."}),
    chat_chunk(0, {"content": "Good"}, None, {"content": [token("Good")], "refusal": None}),
    chat_chunk(1, {"refusal": "I will"}),
    chat_chunk(0, {"content": " day"}, None, {"content": [token(" day")], "refusal": None}),
    chat_chunk(1, {"refusal": " not."}),
    chat_chunk(0, {"content": " ☀"}, None, {"content": [token(" ☀")], "refusal": None}),
    chat_chunk(0, {"annotations": [_CITED]}),
    chat_chunk(1, {}, "stop"),
    chat_chunk(0, _called(0, id="call_a", type="function", function={"name": "look", "arguments": ""})),
    chat_chunk(0, _called(0, function={"arguments": '{"at": '})),
    chat_chunk(0, _called(0, function={"arguments": '"the sea"}'})),
    chat_chunk(0, _called(1, id="call_b", type="function", function={"name": "wait", "arguments": ""})),
    chat_chunk(0, {}, "tool_calls"),
    {**_CHAT, "object": "chat.completion.chunk", "choices": [], "usage": CHAT_USAGE},
    done=True,
)

# ----------------------------------------------------------------------------------------------- completions

_COMPLETION = {"id": "cmpl-7Q", "object": "text_completion", "created": 1_800_000_000, "model": "m"}
_COLUMNS = {
    "tokens": [" upon", " a time"],
    "token_logprobs": [-0.1, -0.2],
    "top_logprobs": [{" upon": -0.1, "ALTERNATIVE": -4.0}, {" a time": -0.2}],
    "text_offset": [0, 5],
}
_USAGE = {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5}

COMPLETIONS_BODY: dict[str, Any] = {
    **_COMPLETION,
    "choices": [{"index": 0, "text": " upon a time", "logprobs": _COLUMNS, "finish_reason": "length"}],
    "usage": _USAGE,
}


def _text(text: str, reason: str | None = None, logprobs: Any = None) -> dict[str, Any]:
    choice = {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason}
    return {**_COMPLETION, "choices": [choice]}


COMPLETIONS_STREAM = sse(
    _text(" upon", None, {name: column[:1] for name, column in _COLUMNS.items()}),
    _text(" a time", None, {name: column[1:] for name, column in _COLUMNS.items()}),
    _text("", "length"),
    {**_COMPLETION, "choices": [], "usage": _USAGE},
    done=True,
)

# ------------------------------------------------------------------------------------------------- messages

_THOUGHT = "They greet me."
_MESSAGE: dict[str, Any] = {"id": "msg_7Q", "type": "message", "role": "assistant", "model": "m"}
_PLACE = {
    "type": "char_location",
    "cited_text": "the sea is calm",
    "document_index": 0,
    "document_title": "Log",
    "start_char_index": 3,
    "end_char_index": 9,
}

MESSAGES_BODY: dict[str, Any] = {
    **_MESSAGE,
    "content": [
        {"type": "thinking", "thinking": _THOUGHT, "signature": "c2lnbmF0dXJl"},
        {"type": "redacted_thinking", "data": "b3BhcXVl"},
        {"type": "text", "text": "Good day ☀", "citations": [_PLACE]},
        {"type": "tool_use", "id": "toolu_a", "name": "look", "input": {"at": "the sea"}},
        {"type": "tool_use", "id": "toolu_b", "name": "wait", "input": {}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {"input_tokens": 9, "output_tokens": 5, "cache_read_input_tokens": 3, "service_tier": "standard"},
}


def block(index: int, content: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"type": "content_block_start", "index": index, "content_block": content},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def _json(text: str) -> dict[str, Any]:
    return {"type": "input_json_delta", "partial_json": text}


MESSAGES_EVENTS: list[dict[str, Any]] = [
    {
        "type": "message_start",
        "message": {
            **_MESSAGE,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 9, "output_tokens": 1, "cache_read_input_tokens": 3},
        },
    },
    *block(
        0,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "They "},
        {"type": "thinking_delta", "thinking": "greet me."},
        {"type": "signature_delta", "signature": "c2lnbmF0dXJl"},
    ),
    {"type": "ping"},
    *block(1, {"type": "redacted_thinking", "data": "b3BhcXVl"}),
    *block(
        2,
        {"type": "text", "text": ""},
        {"type": "text_delta", "text": "Good"},
        {"type": "text_delta", "text": " day ☀"},
        {"type": "citations_delta", "citation": _PLACE},
    ),
    *block(
        3, {"type": "tool_use", "id": "toolu_a", "name": "look", "input": {}}, _json('{"at": '), _json('"the sea"}')
    ),
    *block(4, {"type": "tool_use", "id": "toolu_b", "name": "wait", "input": {}}, _json("")),
    {
        "type": "message_delta",
        "delta": {"stop_reason": "tool_use", "stop_sequence": None},
        "usage": {"output_tokens": 5},
    },
    {"type": "message_stop"},
]
MESSAGES_STREAM = sse(*MESSAGES_EVENTS)

# ------------------------------------------------------------------------------------------------ responses

_RESPONSE: dict[str, Any] = {
    "id": "resp_7Q",
    "object": "response",
    "created_at": 1_800_000_000,
    "model": "m",
    "instructions": "Be kind.",
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "error": None,
    "incomplete_details": None,
}
_WEB = {"type": "url_citation", "url": "https://a.example/x", "title": "X", "start_index": 0, "end_index": 4}
_REASONED = {
    "type": "reasoning",
    "id": "rs_1",
    "summary": [{"type": "summary_text", "text": "They greet"}, {"type": "summary_text", "text": "me."}],
    "encrypted_content": "b3BhcXVl",
}
_SPOKEN = {
    "type": "message",
    "id": "msg_1",
    "role": "assistant",
    "status": "completed",
    "phase": "final_answer",
    "content": [
        {
            "type": "output_text",
            "text": "Good day ☀",
            "annotations": [_WEB],
            "logprobs": [token("Good"), token(" day"), token(" ☀")],
        }
    ],
}
_REFUSED = {
    "type": "message",
    "id": "msg_2",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "refusal", "refusal": "I will not."}],
}
_CALLED = {
    "type": "function_call",
    "id": "fc_1",
    "call_id": "call_a",
    "name": "look",
    "arguments": '{"at": "the sea"}',
    "status": "completed",
}
_WAITS = {**_CALLED, "id": "fc_2", "call_id": "call_b", "name": "wait", "arguments": ""}
RESPONSES_USAGE = {
    "input_tokens": 9,
    "output_tokens": 5,
    "total_tokens": 14,
    "input_tokens_details": {"cached_tokens": 1},
    "output_tokens_details": {"reasoning_tokens": 2},
}
RESPONSES_BODY: dict[str, Any] = {
    **_RESPONSE,
    "status": "completed",
    "output": [_REASONED, _SPOKEN, _REFUSED, _CALLED, _WAITS],
    "usage": RESPONSES_USAGE,
}


def _of(item: str, index: int, **more: Any) -> dict[str, Any]:
    return {"item_id": item, "output_index": index, **more}


def _item(index: int, item: dict[str, Any], begun: dict[str, Any], *between: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"type": "response.output_item.added", "output_index": index, "item": {**item, **begun}},
        *between,
        {"type": "response.output_item.done", "output_index": index, "item": item},
    ]


def _thought(number: int, text: str) -> list[dict[str, Any]]:
    at = _of("rs_1", 0, summary_index=number)
    part = {"type": "summary_text", "text": text}
    return [
        {"type": "response.reasoning_summary_part.added", **at, "part": {"type": "summary_text", "text": ""}},
        {"type": "response.reasoning_summary_text.delta", **at, "delta": text[:4]},
        {"type": "response.reasoning_summary_text.delta", **at, "delta": text[4:]},
        {"type": "response.reasoning_summary_text.done", **at, "text": text},
        {"type": "response.reasoning_summary_part.done", **at, "part": part},
    ]


_AT = _of("msg_1", 1, content_index=0)
_NO = _of("msg_2", 2, content_index=0)
RESPONSES_EVENTS: list[dict[str, Any]] = [
    {"type": "response.created", "response": {**_RESPONSE, "status": "in_progress", "output": []}},
    {"type": "response.in_progress", "response": {**_RESPONSE, "status": "in_progress", "output": []}},
    *_item(0, _REASONED, {"summary": [], "encrypted_content": None}, *_thought(0, "They greet"), *_thought(1, "me.")),
    *_item(
        1,
        _SPOKEN,
        {"content": [], "status": "in_progress"},
        {
            "type": "response.content_part.added",
            **_AT,
            "part": {"type": "output_text", "text": "", "annotations": [], "logprobs": []},
        },
        *(
            {"type": "response.output_text.delta", **_AT, "delta": text, "logprobs": [token(text)]}
            for text in ("Good", " day", " ☀")
        ),
        {"type": "response.output_text.annotation.added", **_AT, "annotation_index": 0, "annotation": _WEB},
        {"type": "response.output_text.done", **_AT, "text": "Good day ☀", "logprobs": []},
        {"type": "response.content_part.done", **_AT, "part": _SPOKEN["content"][0]},  # type: ignore[index]
    ),
    *_item(
        2,
        _REFUSED,
        {"content": [], "status": "in_progress"},
        {"type": "response.content_part.added", **_NO, "part": {"type": "refusal", "refusal": ""}},
        {"type": "response.refusal.delta", **_NO, "delta": "I will"},
        {"type": "response.refusal.delta", **_NO, "delta": " not."},
        {"type": "response.refusal.done", **_NO, "refusal": "I will not."},
        {"type": "response.content_part.done", **_NO, "part": _REFUSED["content"][0]},  # type: ignore[index]
    ),
    *_item(
        3,
        _CALLED,
        {"arguments": "", "status": "in_progress"},
        {"type": "response.function_call_arguments.delta", **_of("fc_1", 3), "delta": '{"at": '},
        {"type": "response.function_call_arguments.delta", **_of("fc_1", 3), "delta": '"the sea"}'},
        {"type": "response.function_call_arguments.done", **_of("fc_1", 3), "arguments": '{"at": "the sea"}'},
    ),
    *_item(4, _WAITS, {"status": "in_progress"}),
    {"type": "response.completed", "response": RESPONSES_BODY},
]
RESPONSES_STREAM = sse(*({**one, "sequence_number": i} for i, one in enumerate(RESPONSES_EVENTS)))

BODIES = {CHAT: CHAT_BODY, COMPLETIONS: COMPLETIONS_BODY, RESPONSES: RESPONSES_BODY, MESSAGES: MESSAGES_BODY}
STREAMS = {CHAT: CHAT_STREAM, COMPLETIONS: COMPLETIONS_STREAM, RESPONSES: RESPONSES_STREAM, MESSAGES: MESSAGES_STREAM}
ROUTES = tuple(BODIES)
