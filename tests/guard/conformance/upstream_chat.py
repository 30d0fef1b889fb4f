"""A provider's answers on `/v1/chat/completions` and `/v1/completions`, with marks wherever it can say something that no
check reads; and what other formats share with them."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from guard.conformance.cells import Cell
from guard.conformance.markers import CANARY, mark
from guard.conformance.said import URL, Said, calls

Event: TypeAlias = dict[str, Any] | str

HIDDEN = base64.b64encode(f"{mark('opaque reasoning')} {CANARY}".encode()).decode()
COUNT = 8_417_730_155  # a number under an unknown name


def pieces(text: str, size: int = 7) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]


def tokens(text: str) -> list[dict[str, Any]]:
    """Log-probs whose letters lie and whose bytes do not, with alternatives that were not chosen."""
    return [
        {
            "token": piece if i % 2 else mark("letters of a token"), "logprob": -0.25, "bytes": list(piece.encode()),
            "top_logprobs": [
                {"token": mark("alternative token"), "logprob": -3.0,
                 "bytes": list(mark("bytes of an alternative").encode())},
            ],
        }
        for i, piece in enumerate(pieces(text))
    ]  # fmt: skip


def fake(text: str, place: str) -> str:
    """Other words of the same length, where a provider repeats itself."""
    word = mark(place) + " "
    return (word * (len(text) // len(word) + 1))[: len(text)] if len(text) >= len(word) else text


# ----------------------------------------------------------------------------------------------------- chat

_USAGE = {
    "prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14, "note": mark("usage"), "odd": COUNT,
    "completion_tokens_details": {"reasoning_tokens": 2, "why": mark("usage details")},
}  # fmt: skip
_ABOUT = {"created": 1_800_000_000, "system_fingerprint": mark("fingerprint"), "surprise": {"x": mark("unknown field")}}


def _cites(said: Said) -> list[dict[str, Any]]:
    cited = [
        {"type": "url_citation", "url_citation": {"url": URL, "title": t, "start_index": 0, "end_index": 4,
                                                  "note": mark("field of a citation")}}
        for t in said.titles
    ]  # fmt: skip
    return [*cited, {"type": "file_citation", "file_citation": {"file_id": mark("file citation")}}]


def _called(cell: Cell, i: int, call: tuple[str, str]) -> dict[str, Any]:
    return {
        "id": f"call_{mark('id of a call')}{i}", "type": "function",
        "function": {"name": call[0], "arguments": call[1]},
    }  # fmt: skip


def _chat_beside(cell: Cell) -> dict[str, Any]:
    """Fields of a message that are not known."""
    out: dict[str, Any] = {"audio": {"transcript": mark("unknown field of a message")}}
    if cell.reasoning == "opaque":
        out["reasoning_details"] = [{"type": "reasoning.encrypted", "data": HIDDEN}]
    return out


def _finish(said: Said) -> str:
    return "tool_calls" if said.calls else "stop"


def chat_body(cell: Cell, alternatives: Sequence[Said]) -> dict[str, Any]:
    choices = []
    for i, said in enumerate(alternatives):
        message = {"role": "assistant", "content": said.text, "refusal": said.refusal or None, **_chat_beside(cell)}
        if said.reasoning:
            message["reasoning_content"] = said.reasoning
        custom = {"id": "call_x", "type": "custom", "custom": {"name": "x", "input": mark("custom call")}}
        message["tool_calls"] = [*(_called(cell, n, call) for n, call in enumerate(calls(said))), custom]
        if cell.tools == "none":
            message["annotations"] = _cites(said)
        logprobs = {"content": tokens(said.text), "refusal": None} if cell.logprobs == "on" else None
        choices.append({
            "index": i, "message": message, "finish_reason": _finish(said), "logprobs": logprobs,
            "native_finish_reason": mark("native finish"), "more": {"x": mark("unknown field of a choice")},
        })  # fmt: skip
    return {
        "id": f"chatcmpl-{mark('id')}", "object": "chat.completion", "model": f"mock-{mark('model')}", **_ABOUT,
        "choices": choices, "usage": _USAGE,
    }  # fmt: skip


def chat_stream(cell: Cell, alternatives: Sequence[Said]) -> Iterator[Event]:
    head = {
        "id": f"chatcmpl-{mark('id')}", "object": "chat.completion.chunk", "model": f"mock-{mark('model')}", **_ABOUT,
        "obfuscation": mark("obfuscation"),
    }  # fmt: skip
    rows = [_chat_deltas(cell, i, said) for i, said in enumerate(alternatives)]
    for row in itertools.zip_longest(*rows):
        for choice in filter(None, row):
            yield {**head, "choices": [choice]}
    yield {**head, "choices": [], "usage": _USAGE}
    yield "data: [DONE]\n\n"
    yield f"data: {mark('after the end')}\n\n"


def _chat_deltas(cell: Cell, index: int, said: Said) -> list[dict[str, Any]]:
    deltas: list[tuple[dict[str, Any], Any]] = [({"role": "assistant", "content": "", **_chat_beside(cell)}, None)]
    deltas += [({"reasoning_content": piece}, None) for piece in pieces(said.reasoning)]
    for piece in pieces(said.text):
        logprobs = {"content": tokens(piece), "refusal": None} if cell.logprobs == "on" else None
        deltas.append(({"content": piece}, logprobs))
    deltas += [({"refusal": piece}, None) for piece in pieces(said.refusal)]
    if cell.tools == "none":
        deltas.append(({"annotations": _cites(said)}, None))
    for n, call in enumerate(calls(said)):
        parts = pieces(call[1], 5) if cell.tools == "split" else [call[1]]
        first = _called(cell, n, (call[0], parts[0]))
        deltas.append(({"tool_calls": [{"index": n, **first}]}, None))
        deltas += [({"tool_calls": [{"index": n, "function": {"arguments": part}}]}, None) for part in parts[1:]]
    out = [{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None} for delta, logprobs in deltas]
    repeated = {"role": "assistant", "content": fake(said.text, "repeated text")}
    end = {"index": index, "delta": {}, "finish_reason": _finish(said), "stop_reason": None}
    late = {"index": index, "delta": {"content": mark("text after the end")}, "finish_reason": None}
    beside = {"index": index, "delta": {"content": ""}, "message": repeated, "finish_reason": None}
    return [*out, beside, end, late]


# ------------------------------------------------------------------------------------------------ completions


def _columns(text: str) -> dict[str, Any]:
    parts = pieces(text)
    return {
        "tokens": parts, "token_logprobs": [-0.25] * len(parts), "text_offset": [0] * len(parts),
        "top_logprobs": [{mark("alternative token"): -3.0}] * len(parts), "note": mark("field of log-probs"),
    }  # fmt: skip


def _text_choice(cell: Cell, index: int, text: str, finish: str | None) -> dict[str, Any]:
    return {
        "index": index, "text": text, "finish_reason": finish, "more": {"x": mark("unknown field of a choice")},
        "logprobs": _columns(text) if cell.logprobs == "on" and text else None,
    }  # fmt: skip


def completions_body(cell: Cell, alternatives: Sequence[Said]) -> dict[str, Any]:
    return {
        "id": f"cmpl-{mark('id')}", "object": "text_completion", "model": f"mock-{mark('model')}", **_ABOUT,
        "choices": [_text_choice(cell, i, said.text, "stop") for i, said in enumerate(alternatives)], "usage": _USAGE,
    }  # fmt: skip


def completions_stream(cell: Cell, alternatives: Sequence[Said]) -> Iterator[Event]:
    head = {"id": f"cmpl-{mark('id')}", "object": "text_completion", "model": f"mock-{mark('model')}", **_ABOUT}
    rows = [
        [_text_choice(cell, i, piece, None) for piece in pieces(said.text)] + [_text_choice(cell, i, "", "stop")]
        for i, said in enumerate(alternatives)
    ]
    for row in itertools.zip_longest(*rows):
        for choice in filter(None, row):
            yield {**head, "choices": [choice]}
    yield {**head, "choices": [], "usage": _USAGE}
    yield "data: [DONE]\n\n"
