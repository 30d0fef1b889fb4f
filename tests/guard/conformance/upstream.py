"""A provider's answer to a cell, as the steps of the mock server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from guard.conformance import upstream_chat, upstream_messages, upstream_responses
from guard.conformance.cells import Cell
from guard.conformance.markers import mark
from guard.conformance.said import Said, spoken
from guard.conformance.upstream_chat import Event
from support.mock_upstream import Step, json_reply, sse_reply

BODIES: dict[str, Callable[[Cell, Sequence[Said]], dict[str, Any]]] = {
    "chat": upstream_chat.chat_body, "completions": upstream_chat.completions_body,
    "messages": upstream_messages.body, "responses": upstream_responses.body,
}  # fmt: skip
STREAMS: dict[str, Callable[[Cell, Sequence[Said]], Iterable[Event]]] = {
    "chat": upstream_chat.chat_stream, "completions": upstream_chat.completions_stream,
    "messages": upstream_messages.stream, "responses": upstream_responses.stream,
}  # fmt: skip
HEADERS = (
    f"x-request-id: {mark('upstream request id')}\r\nx-note: {mark('upstream header')}\r\n"
    f"retry-after: {mark('retry-after')}\r\nset-cookie: a={mark('cookie')}\r\n"
)


def answer(cell: Cell) -> Sequence[Step]:
    """The steps of the mock server."""
    said = spoken(cell)
    if not cell.stream:
        return json_reply(BODIES[cell.endpoint](cell, said), more=HEADERS)
    noise = f": {mark('comment')}\n\n", f"id: {mark('event id')}\nretry: 10\nevent: {mark('event name')}\n: a\n\n"
    head, *steps = sse_reply(*noise, *STREAMS[cell.endpoint](cell, said))
    assert isinstance(head, bytes)
    start, _, rest = head.partition(b"\r\n")
    together = b"".join(step for step in steps if isinstance(step, bytes))
    return [start + b"\r\n" + HEADERS.encode() + rest + together]
