"""Nothing leaves that was not released as text: a marker is planted into every place of a reply, one at a time."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from fairlead.guard.wire import FORMATS, sse
from fairlead.guard.wire.asked import Allow
from fairlead.guard.wire.events import Delta, End, Event, Failed, Finish, Opaque, Open, Unknown
from guard.wire.requests import RICH
from guard.wire.samples import BODIES, CHAT, COMPLETIONS, MESSAGES, RESPONSES, ROUTES, STREAMS
from guard.wire.samples import sse as stream

MARK = "XMARKERX"


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything in a JSON value."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def put(value: Any, path: tuple[Any, ...], new: Any, name: str | None = None) -> Any:
    """`value` with `new` at `path`, or as the field `name` of the object there."""
    out = copy.deepcopy(value)
    at = out
    for step in path if name is not None else path[:-1]:
        at = at[step]
    at[path[-1] if name is None else name] = new
    return out


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


def scanned(events: list[Event]) -> str:
    """All that a release lets checks read."""
    out = []
    for event in events:
        if isinstance(event, Delta):
            out.append(event.text)
        elif isinstance(event, Open) and event.place == "tool_call":
            out.append(event.name)
        elif isinstance(event, Finish):
            out.append(event.stop)
    return "\n".join(out)


def written(route: str, events: list[Event]) -> bytes:
    """What leaves where opaque reasoning is dropped, in one body and as a stream."""
    form = FORMATS[route]
    want = form.read_request(RICH[route], Allow())
    released = [event for event in events if not isinstance(event, Opaque)]
    writer = form.writer(want)
    out = [writer.write(event) for event in released] + [writer.ping(), writer.end()]
    if not any(isinstance(event, Failed) for event in released):
        try:
            out.append(orjson.dumps(form.body(released, want, ())))
        except ValueError as error:  # the marker made the arguments of a call something else than JSON
            assert "no JSON object" in str(error) and MARK not in str(error)
    return b"".join(out)


def no_leak(route: str, events: list[Event]) -> None:
    if MARK not in scanned(events):
        assert MARK.encode() not in written(route, events)
    for event in events:
        if isinstance(event, Unknown | Failed):
            assert MARK not in repr(event)


def streamed(route: str, said: list[Any]) -> list[Event]:
    reader = FORMATS[route].reader()
    return [*reader.feed(stream(*said, done=route.endswith("completions"))), *reader.eof()]


def said(route: str) -> list[Any]:
    return [orjson.loads(one) for one in sse.Lines().feed(STREAMS[route]) if one != sse.DONE]


SHAPES: list[Any] = [MARK, {"k": MARK}, {MARK: 1}, [MARK], [{"type": "text", "text": MARK}]]


@pytest.mark.parametrize("route", ROUTES)
def test_a_marker_in_the_place_of_anything_in_a_body(route: str) -> None:
    body = BODIES[route]
    for path in places(body):
        for shape in SHAPES:
            no_leak(route, FORMATS[route].events(put(body, path, shape)))


@pytest.mark.parametrize("route", ROUTES)
def test_a_marker_in_the_place_of_anything_in_a_stream(route: str) -> None:
    events = said(route)
    for path in places(events):
        if len(path) > 1:
            for shape in SHAPES[:4] if path[-1] != "type" else SHAPES[:1]:
                no_leak(route, streamed(route, put(events, path, shape)))


# objects whose fields are the model's own words: their names and values are read as text
TEXTS = {"input"}


@pytest.mark.parametrize("route", ROUTES)
def test_an_unknown_field_anywhere_in_a_body_is_withheld(route: str) -> None:
    body = BODIES[route]
    for path in [(), *places(body)]:
        if isinstance(at(body, path), dict) and not TEXTS & set(path):
            for name, value in (("x_new", MARK), (MARK, "x"), ("x_new", {"text": MARK}), ("x_new", [MARK])):
                events = FORMATS[route].events(put(body, path, value, name))
                assert MARK not in scanned(events)
                assert MARK.encode() not in written(route, events)


@pytest.mark.parametrize("route", ROUTES)
def test_an_unknown_field_anywhere_in_a_stream_is_withheld(route: str) -> None:
    events = said(route)
    for path in places(events):
        if isinstance(at(events, path), dict) and not TEXTS & set(path):
            for name, value in (("x_new", MARK), (MARK, "x"), ("x_new", {"text": MARK})):
                found = streamed(route, put(events, path, value, name))
                assert MARK not in scanned(found)
                assert MARK.encode() not in written(route, found)


@pytest.mark.parametrize("route", ROUTES)
def test_an_unknown_event_anywhere_is_withheld_and_counted(route: str) -> None:
    events = said(route)
    strange: list[dict[str, Any]] = [
        {"type": "x.new", "delta": MARK, "text": MARK},
        {"type": "response.web_search_call.completed", "item_id": MARK, "output_index": 0},
        {"type": "response.mcp_call_arguments.delta", "delta": MARK, "output_index": 0},
        {"type": "response.output_text.delta", "delta": MARK, "output_index": 77, "content_index": 0},
        {"type": "content_block_delta", "index": 77, "delta": {"type": "text_delta", "text": MARK}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "x_delta", "text": MARK}},
        {"type": "content_block_start", "index": 78, "content_block": {"type": "server_tool_use", "input": {"q": MARK}}},
        {"type": "response.output_item.added", "output_index": 78, "item": {"type": "mcp_call", "arguments": MARK}},
        {"choices": [{"index": 0, "delta": {"x": MARK}}]},
        {"choices": [{"index": 0, "delta": {"audio": {"transcript": MARK}}}]},
        {"choices": [{"index": 0, "text": {"x": MARK}, "delta": {"tool_calls": [{"type": "custom", "custom": {"input": MARK}}]}}]},
        {"choices": {"x": MARK}},
        {"moderation": {"x": MARK}},
    ]  # fmt: skip
    usual = len([event for event in streamed(route, events) if isinstance(event, Unknown)])
    for one in strange:
        for place in range(len(events) - 1):
            found = streamed(route, [*events[:place], one, *events[place:]])
            assert MARK not in scanned(found) and MARK.encode() not in written(route, found)
            assert isinstance(found[-1], End)
            if route not in (MESSAGES, RESPONSES) or "type" in one:
                assert len([event for event in found if isinstance(event, Unknown)]) > usual or "choices" not in one


@pytest.mark.parametrize("route", (CHAT, MESSAGES, RESPONSES))
def test_opaque_reasoning_goes_where_it_was_released_alone(route: str) -> None:
    events = FORMATS[route].events(BODIES[route])
    for secret in (b"c2lnbmF0dXJl", b"b3BhcXVl"):
        assert secret not in written(route, events)


def test_repeated_text_that_differs_is_counted_and_never_used() -> None:
    events = said(RESPONSES)
    for place, one in enumerate(events):
        if (one["type"].endswith(".done") and "text" in one) or one["type"] == "response.refusal.done":
            name = "refusal" if "refusal" in one else "text"
            found = streamed(RESPONSES, put(events, (place, name), MARK))
            assert MARK not in scanned(found) and Unknown("repeated text that differs") in found


def test_text_that_was_said_in_the_last_event_alone_is_read() -> None:
    """A server that streams no deltas: what it says once is text like any other."""
    events = [one for one in said(RESPONSES) if not one["type"].endswith(".delta")]
    assert "Good day" in scanned(streamed(RESPONSES, events)) and "the sea" in scanned(streamed(RESPONSES, events))
    assert "Good day" in scanned(streamed(RESPONSES, [events[0], events[-1]]))


LATE: dict[str, list[dict[str, Any]]] = {
    CHAT: [
        {"choices": [{"index": 0, "delta": {"content": MARK}}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 9, "id": "x", "function": {"name": MARK}}]}}]},
    ],
    COMPLETIONS: [{"choices": [{"index": 0, "text": MARK}]}],
    MESSAGES: [
        {"type": "content_block_start", "index": 9, "content_block": {"type": "text", "text": MARK}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "text_delta", "text": MARK}},
    ],
}


@pytest.mark.parametrize("route", list(LATE))
def test_text_after_the_end_of_an_alternative_is_withheld_and_counted(route: str) -> None:
    for late in LATE[route]:
        found = streamed(route, [*said(route)[:-1], late, said(route)[-1]])
        assert MARK not in scanned(found)
        assert any(isinstance(event, Unknown) and event.what.startswith("text after the end") for event in found)


def test_reasoning_as_vllm_streams_it() -> None:
    at = {"item_id": "r", "output_index": 0, "content_index": 0}
    part, item = {"type": "reasoning_text", "text": ""}, {"type": "reasoning", "id": "r", "summary": []}
    events = [
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.reasoning_part.added", **at, "part": part},
        {"type": "response.reasoning_text.delta", **at, "delta": "hm"},
        {"type": "response.reasoning_text.done", **at, "text": "hm"},
        {"type": "response.reasoning_part.done", **at, "part": {**part, "text": "hm"}},
        {"type": "response.output_item.done", "output_index": 0, "item": {**item, "content": [{**part, "text": "hm"}]}},
        {"type": "response.completed", "response": {"id": "x", "status": "completed", "output": []}},
    ]
    found = streamed(RESPONSES, events)
    assert scanned(found).strip() == "hm" and not [event for event in found if isinstance(event, Unknown)]
    assert b'"type":"reasoning_text","text":"hm"' in written(RESPONSES, found)


def test_an_error_of_the_provider_is_not_repeated() -> None:
    cases = [
        (CHAT, {"error": {"message": MARK, "type": MARK, "code": MARK}}),
        (CHAT, {"error": MARK}),
        (CHAT, {"choices": [{"index": 0, "delta": {"content": None}, "finish_reason": "error", "x": MARK}]}),
        (COMPLETIONS, {"choices": [{"index": 0, "text": "", "finish_reason": "error", "x": MARK}]}),
        (MESSAGES, {"type": "error", "error": {"type": "overloaded_error", "message": MARK}}),
        (RESPONSES, {"type": "error", "code": MARK, "message": MARK}),
        (
            RESPONSES,
            {"type": "response.failed", "response": {"status": "failed", "error": {"message": MARK}, "output": []}},
        ),
    ]
    for route, one in cases:
        found = streamed(route, [one])
        assert isinstance(found[-1], Failed) and found[-1].status in (502, 529)
        assert MARK.encode() not in written(route, found)
        whole = FORMATS[route].events(one.get("response", one))
        assert isinstance(whole[-1], Failed) and MARK not in repr(whole)


@pytest.mark.parametrize("route", ROUTES)
def test_nothing_of_a_request_comes_out_with_its_reply(route: str) -> None:
    """Instructions, tools and texts of a request are not repeated, whatever the route usually does."""
    said = orjson.dumps(RICH[route]).decode()
    for text in ("system text", "developer text", "user text", "looks", "Once", "the end", "harbour", "document text"):
        if text in said:
            assert text.encode() not in written(route, FORMATS[route].events(BODIES[route]))
