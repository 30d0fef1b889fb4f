"""A provider's answers on `/v1/messages`, with marks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from guard.conformance.cells import Cell
from guard.conformance.markers import CANARY, mark
from guard.conformance.said import CITED, Said, calls
from guard.conformance.upstream_chat import COUNT, HIDDEN, Event, pieces


def _located(said: Said) -> list[dict[str, Any]]:
    return [
        {"type": "char_location", "cited_text": CITED, "document_index": 0, "document_title": title,
         "start_char_index": 3, "end_char_index": 9, "file_id": mark("field of a citation")}
        for title in said.titles
    ]  # fmt: skip


def _blocks(cell: Cell, said: Said) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Blocks as they start, with the deltas that fill them."""
    out: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    if said.reasoning:
        deltas = [{"type": "thinking_delta", "thinking": piece} for piece in pieces(said.reasoning)]
        signed = {"type": "signature_delta", "signature": mark("signature")}
        out.append(({"type": "thinking", "thinking": "", "signature": ""}, [*deltas, signed]))
    if cell.reasoning == "opaque":
        out.append(({"type": "redacted_thinking", "data": HIDDEN}, []))
    texts = [{"type": "text_delta", "text": piece} for piece in pieces(said.text)]
    cited = [{"type": "citations_delta", "citation": one} for one in _located(said)]
    unknown = {"type": "odd_delta", "text": mark("unknown delta")}
    out.append(({"type": "text", "text": ""}, [*texts, *cited, unknown]))
    search = {"type": "server_tool_use", "id": "srv_1", "name": "web_search", "input": {"q": mark("unknown block")}}
    out.append((search, []))
    for n, (name, arguments) in enumerate(calls(said)):
        parts = pieces(arguments, 5) if cell.tools == "split" else [arguments]
        block = {"type": "tool_use", "id": f"toolu_{mark('id of a call')}{n}", "name": name, "input": {}}
        out.append((block, [{"type": "input_json_delta", "partial_json": part} for part in parts]))
    return out


def _message(**more: Any) -> dict[str, Any]:
    usage = {"input_tokens": 9, "output_tokens": 5, "service_tier": mark("usage"), "odd": COUNT}
    return {
        "id": f"msg_{mark('id')}", "type": "message", "role": "assistant", "model": f"mock-{mark('model')}",
        "container": {"id": mark("unknown field")}, "content": [], "stop_reason": None, "stop_sequence": None,
        "usage": usage, **more,
    }  # fmt: skip


def _ending(cell: Cell, said: Said) -> dict[str, Any]:
    if said.calls:
        return {"stop_reason": "tool_use", "stop_sequence": None}
    if cell.reasoning == "none":
        return {"stop_reason": "stop_sequence", "stop_sequence": CANARY if cell.decision == "redact" else "END"}
    return {"stop_reason": "end_turn", "stop_sequence": None}


def body(cell: Cell, alternatives: Sequence[Said]) -> dict[str, Any]:
    [said] = alternatives
    content = []
    for block, deltas in _blocks(cell, said):
        whole = dict(block)
        text = "".join(str(d.get("text", d.get("thinking", d.get("partial_json", "")))) for d in deltas
                       if d["type"] != "odd_delta")  # fmt: skip
        match block["type"]:
            case "text":
                whole |= {"text": text, "citations": _located(said) or None}
            case "thinking":
                whole |= {"thinking": text, "signature": mark("signature")}
            case "tool_use":
                whole["input"] = json.loads(text)
        content.append({**whole, "note": mark("field of a block")})
    return _message(content=content, **_ending(cell, said))


def stream(cell: Cell, alternatives: Sequence[Said]) -> Iterator[Event]:
    [said] = alternatives
    yield {"type": "message_start", "message": _message()}
    yield {"type": "ping", "note": mark("ping")}
    yield {"type": "odd_event", "text": mark("unknown event")}
    for index, (block, deltas) in enumerate(_blocks(cell, said)):
        yield {"type": "content_block_start", "index": index, "content_block": {**block, "note": mark("block field")}}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta, "note": mark("field of an event")}
        yield {"type": "content_block_stop", "index": index}
    yield {"type": "message_delta", "delta": {**_ending(cell, said), "container": {"id": mark("unknown field")}},
           "usage": {"output_tokens": 5, "note": mark("usage")}}  # fmt: skip
    yield {"type": "message_stop", "note": mark("last event")}
