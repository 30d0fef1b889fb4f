"""The same of the Responses API, which says every text four times: where it repeats itself, other words stand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from guard.conformance.cells import Cell
from guard.conformance.markers import mark
from guard.conformance.said import URL, Said, calls
from guard.conformance.upstream_chat import COUNT, HIDDEN, Event, fake, pieces, tokens

_ABOUT: dict[str, Any] = {
    "id": f"resp_{mark('id')}", "object": "response", "created_at": 1_800_000_000, "model": f"mock-{mark('model')}",
    "instructions": mark("instructions"), "metadata": {"a": mark("metadata")}, "tools": [], "tool_choice": "auto",
    "parallel_tool_calls": True, "error": None, "incomplete_details": None, "surprise": {"x": mark("unknown field")},
}  # fmt: skip
_USAGE = {
    "input_tokens": 9, "output_tokens": 5, "total_tokens": 14, "note": mark("usage"), "odd": COUNT,
    "input_tokens_details": {"cached_tokens": 1, "why": mark("usage details")},
    "output_tokens_details": {"reasoning_tokens": 2},
}  # fmt: skip


def _cites(said: Said) -> list[dict[str, Any]]:
    cited = [
        {"type": "url_citation", "url": URL, "title": title, "start_index": 0, "end_index": 4,
         "note": mark("field of a citation")}
        for title in said.titles
    ]  # fmt: skip
    return [*cited, {"type": "file_citation", "file_id": mark("file citation"), "index": 0, "filename": "a"}]


def _items(cell: Cell, said: Said) -> list[dict[str, Any]]:
    """The items as they end."""
    out: list[dict[str, Any]] = []
    if cell.reasoning != "none":
        summary = [{"type": "summary_text", "text": said.reasoning}] if said.reasoning else []
        item = {"type": "reasoning", "id": f"rs_{mark('id of an item')}", "summary": summary}
        out.append({**item, "encrypted_content": HIDDEN} if cell.reasoning == "opaque" else item)
    text: dict[str, Any] = {"type": "output_text", "text": said.text, "annotations": []}
    text["logprobs"] = tokens(said.text) if cell.logprobs == "on" else []
    if cell.tools == "none":
        text["annotations"] = _cites(said)
    content = [{**text, "note": mark("field of a part")}]
    if said.refusal:
        content.append({"type": "refusal", "refusal": said.refusal})
    out.append({"type": "message", "id": f"msg_{mark('id of an item')}", "role": "assistant", "status": "completed",
                "content": content, "note": mark("field of an item")})  # fmt: skip
    out.append({"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"q": mark("unknown item")}})
    out += [
        {"type": "function_call", "id": f"fc_{mark('id of an item')}{n}", "call_id": f"call_{mark('id of a call')}{n}",
         "name": name, "arguments": arguments, "status": "completed"}
        for n, (name, arguments) in enumerate(calls(said))
    ]  # fmt: skip
    return out


def body(cell: Cell, alternatives: Sequence[Said]) -> dict[str, Any]:
    [said] = alternatives
    return {**_ABOUT, "status": "completed", "output": _items(cell, said), "usage": _USAGE,
            "output_text": mark("repeated text")}  # fmt: skip


def stream(cell: Cell, alternatives: Sequence[Said]) -> Iterator[Event]:
    [said] = alternatives
    events = _events(cell, said)
    for number, event in enumerate(events):
        yield {**event, "sequence_number": number, "obfuscation": mark("obfuscation")}


def _events(cell: Cell, said: Said) -> Iterator[dict[str, Any]]:
    begun = {**_ABOUT, "status": "in_progress", "output": [], "usage": None}
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    yield {"type": "response.odd_event", "text": mark("unknown event")}
    items = _items(cell, said)
    repeated = []
    for index, item in enumerate(items):
        at = {"item_id": item["id"], "output_index": index}
        start, ended = dict(item), dict(item)
        match item["type"]:
            case "reasoning":
                start |= {"summary": [], "encrypted_content": None}
                inner = _reasoning(at, item, ended)
            case "message":
                start |= {"content": [], "status": "in_progress"}
                inner = _parts(cell, at, item, ended)
            case "function_call":
                start |= {"arguments": "", "status": "in_progress"}
                inner = _call(cell, at, item, ended)
            case _:
                inner = [{"type": "response.web_search_call.searching", **at, "q": mark("event of an unknown item")}]
        yield {"type": "response.output_item.added", "output_index": index, "item": start}
        yield from inner
        yield {"type": "response.output_item.done", "output_index": index, "item": ended}
        repeated.append(ended)
    yield {"type": "response.completed", "response": {**_ABOUT, "status": "completed", "output": repeated,
                                                      "usage": _USAGE}}  # fmt: skip


def _reasoning(at: dict[str, Any], item: dict[str, Any], ended: dict[str, Any]) -> Iterator[dict[str, Any]]:
    ended["summary"] = [{**part, "text": fake(part["text"], "repeated reasoning")} for part in item["summary"]]
    for i, part in enumerate(item["summary"]):
        here = {**at, "summary_index": i}
        empty = {"type": "summary_text", "text": ""}
        yield {"type": "response.reasoning_summary_part.added", **here, "part": empty}
        for piece in pieces(part["text"]):
            yield {"type": "response.reasoning_summary_text.delta", **here, "delta": piece}
        other = fake(part["text"], "repeated reasoning")
        yield {"type": "response.reasoning_summary_text.done", **here, "text": other}
        yield {"type": "response.reasoning_summary_part.done", **here, "part": {**empty, "text": other}}


def _parts(cell: Cell, at: dict[str, Any], item: dict[str, Any], ended: dict[str, Any]) -> Iterator[dict[str, Any]]:
    ended["content"] = []
    for i, part in enumerate(item["content"]):
        here = {**at, "content_index": i}
        name = "text" if part["type"] == "output_text" else "refusal"
        kind = "response.output_text" if name == "text" else "response.refusal"
        begun = {**part, name: ""} if name == "refusal" else {**part, "text": "", "annotations": [], "logprobs": []}
        yield {"type": "response.content_part.added", **here, "part": begun}
        for piece in pieces(part[name]):
            delta = {"type": f"{kind}.delta", **here, "delta": piece, "note": mark("field of an event")}
            if name == "text":
                delta["logprobs"] = tokens(piece) if cell.logprobs == "on" else []
            yield delta
        for n, cited in enumerate(part.get("annotations", ())):
            yield {"type": "response.output_text.annotation.added", **here, "annotation_index": n, "annotation": cited}
        other = {**part, name: fake(part[name], "repeated text")}
        yield {"type": f"{kind}.done", **here, name: other[name], **({"logprobs": []} if name == "text" else {})}
        yield {"type": "response.content_part.done", **here, "part": other}
        ended["content"].append(other)


def _call(cell: Cell, at: dict[str, Any], item: dict[str, Any], ended: dict[str, Any]) -> Iterator[dict[str, Any]]:
    ended["arguments"] = fake(item["arguments"], "repeated arguments")
    parts = pieces(item["arguments"], 5) if cell.tools == "split" else [item["arguments"]]
    for part in parts:
        yield {"type": "response.function_call_arguments.delta", **at, "delta": part}
    yield {"type": "response.function_call_arguments.done", **at, "name": item["name"], "arguments": ended["arguments"]}
