"""Anthropic's `/v1/messages`: bodies and streams from events.

A block of text or thinking is closed on the wire only when the next one begins: citations and signatures are released
after the text they belong to, and have to stand in its block.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fairlead.guard.wire import citation, errors, ids, messages_request, reply, sse
from fairlead.guard.wire.asked import Asked
from fairlead.guard.wire.events import About, Close, Delta, Event, Failed, Finish, Opaque, Open, Place, Reason, Told
from fairlead.guard.wire.format import Format, Tolds
from fairlead.guard.wire.messages_read import Reads, events

FINISHES: dict[Reason, str] = {
    "stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal",
    "refusal": "refusal", "pause": "pause_turn",
}  # fmt: skip


def _head(about: About, asked: Asked) -> dict[str, Any]:
    return {
        "id": ids.made("msg_", about.id, "diagnostics" in asked.policy.fields),
        "type": "message",
        "role": "assistant",
        "model": ids.model(asked.model, about.model),
    }


def _ending(finish: Finish | None) -> dict[str, Any]:
    """The end of a reply; one without is said to have been cut, by `refusal`."""
    if finish is None:
        return {"stop_reason": "refusal", "stop_sequence": None}
    if finish.reason == "stop" and finish.stop:
        return {"stop_reason": "stop_sequence", "stop_sequence": finish.stop}
    return {"stop_reason": FINISHES[finish.reason], "stop_sequence": None}


def body(released: Iterable[Event], asked: Asked, told: Tolds = ()) -> dict[str, Any]:
    """The reply in one body. Raises ValueError where the provider broke off or a tool's arguments are no object."""
    found = reply.gathered(released)
    one = found.alternatives.get(0, reply.Alternative())
    out = {
        **_head(found.about, asked),
        "content": _content(one),
        **_ending(one.finish),
        "usage": {"input_tokens": 0, "output_tokens": 0, **found.about.numbers},
    }
    said = reply.note(told)
    if said:
        out["fairlead"] = said
    return out


def _content(one: reply.Alternative) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = []
    last: dict[str, dict[str, Any]] = {}  # the latest block of each type
    for part in one.parts:
        if isinstance(part, Opaque):
            if part.kind == "signature" and "thinking" in last:
                last["thinking"]["signature"] = part.data
            elif part.kind == "redacted_thinking":
                content.append({"type": "redacted_thinking", "data": part.data})
            continue
        text = part.text
        match part.place:
            case "citation":
                cited = citation.write_messages(text)
                if cited and "text" in last:
                    last["text"].setdefault("citations", []).append(cited)
                continue
            case "reasoning":
                block: dict[str, Any] = {"type": "thinking", "thinking": text, "signature": ""}
            case "tool_call":
                arguments = reply.parsed(text)
                if not isinstance(arguments, dict):
                    raise ValueError(
                        f"the arguments of tool call {len(content)} are no JSON object: release it whole or not"
                    )
                given = ids.of_call("toolu_", part.id, part.name)
                block = {"type": "tool_use", "id": given, "name": part.name, "input": arguments}
            case _:
                block = {"type": "text", "text": text}
        last[block["type"]] = block
        content.append(block)
    return content


@dataclass(slots=True)
class _Block:
    index: int
    place: Place
    whole: bool = False  # no more text comes
    shut: bool = False  # its end stands on the wire


class Writer:
    """`format.Writer`. The decisions about a reply stand in its `message_delta`, under `fairlead`."""

    __slots__ = (
        "_about",
        "_asked",
        "_blocks",
        "_cited",
        "_ended",
        "_finish",
        "_last",
        "_next",
        "_open",
        "_over",
        "_started",
        "_told",
    )

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._about = About()
        self._blocks: dict[int, _Block] = {}  # by part
        self._open: list[_Block] = []  # those that are not shut
        self._last: dict[Place, _Block] = {}
        self._cited: dict[int, list[str]] = {}
        self._next = 0  # index of the next block
        self._started = self._over = self._ended = False
        self._finish: Finish | None = None
        self._told: list[tuple[int, Told]] = []

    def write(self, event: Event) -> bytes:
        if self._over and not isinstance(event, About):
            return b""
        match event:
            case Delta():
                return self._delta(event)
            case Open():
                return self._opened(event)
            case Close():
                return self._closed(event.channel.part)
            case About():
                self._about = reply.joined(self._about, event)
            case Opaque():
                return self._opaque(event)
            case Finish():
                return self._cut(event)
            case Failed():
                self._over = self._ended = True
                return self._start() + sse.named(errors.anthropic(event.status, event.why, "upstream"))
        return b""

    def _start(self) -> bytes:
        if self._started:
            return b""
        self._started = True
        usage = {"input_tokens": 0, "output_tokens": 0, **self._about.numbers}
        message: dict[str, Any] = {**_head(self._about, self._asked), "content": [], "usage": usage}
        return sse.named({"type": "message_start", "message": {**message, "stop_reason": None, "stop_sequence": None}})

    def _opened(self, event: Open) -> bytes:
        part, place = event.channel.part, event.place
        match place:
            case "citation":
                self._cited[part] = []
                return b""
            case "reasoning":
                block: dict[str, Any] = {"type": "thinking", "thinking": "", "signature": ""}
            case "tool_call":
                given = ids.of_call("toolu_", event.id, event.name)
                block = {"type": "tool_use", "id": given, "name": event.name, "input": {}}
            case _:
                block = {"type": "text", "text": ""}
        begun = self._begin(block)
        self._blocks[part] = self._last[place] = block_of = _Block(self._next - 1, place)
        self._open.append(block_of)
        return begun

    def _begin(self, block: dict[str, Any]) -> bytes:
        """The start of the next block, after the ends of those that are whole."""
        before, index = self._start() + self._shut(whole=True), self._next
        self._next += 1
        return before + sse.named({"type": "content_block_start", "index": index, "content_block": block})

    def _delta(self, event: Delta) -> bytes:
        part = event.channel.part
        if part in self._cited:
            self._cited[part].append(event.text)
            return b""
        block = self._blocks[part]
        if not event.text:
            return b""
        match block.place:
            case "reasoning":
                delta = {"type": "thinking_delta", "thinking": event.text}
            case "tool_call":
                delta = {"type": "input_json_delta", "partial_json": event.text}
            case _:
                delta = {"type": "text_delta", "text": event.text}
        return _piece(block, delta)

    def _closed(self, part: int) -> bytes:
        if part not in self._cited:
            block = self._blocks[part]
            block.whole = True
            return self._shut(whole=True) if block.place == "tool_call" else b""
        cited = citation.write_messages("".join(self._cited.pop(part)))
        block_of = self._last.get("reply")
        if cited is None or block_of is None or block_of.shut:
            return b""
        return _piece(block_of, {"type": "citations_delta", "citation": cited})

    def _opaque(self, event: Opaque) -> bytes:
        if not isinstance(event.data, str):
            return b""
        if event.kind == "redacted_thinking":
            begun, index = self._begin({"type": "redacted_thinking", "data": event.data}), self._next - 1
            return begun + sse.named({"type": "content_block_stop", "index": index})
        thinking = self._last.get("reasoning")
        if event.kind != "signature" or thinking is None or thinking.shut:
            return b""
        return _piece(thinking, {"type": "signature_delta", "signature": event.data})

    def _shut(self, whole: bool = False) -> bytes:
        """The ends of the blocks that are whole, or of all."""
        ends = [block for block in self._open if block.whole or not whole]
        for block in ends:
            block.shut = True
            self._open.remove(block)
        return b"".join(sse.named({"type": "content_block_stop", "index": block.index}) for block in ends)

    def ping(self) -> bytes:
        return b'event: ping\ndata: {"type":"ping"}\n\n'

    def told(self, choice: int, told: Told) -> bytes:
        self._told.append((choice, told))
        return b""

    def stop(self, choice: int, reason: Reason, told: Told) -> bytes:
        if self._over:
            return b""
        self._told.append((choice, told))
        return self._cut(Finish(choice, reason))

    def _cut(self, finish: Finish) -> bytes:
        self._finish, self._over = finish, True
        return self._start() + self._shut()

    def end(self) -> bytes:
        if self._ended:
            return b""
        self._over = self._ended = True
        out = self._start() + self._shut()
        numbers = {"output_tokens": 0, **self._about.numbers}
        last: dict[str, Any] = {"type": "message_delta", "delta": _ending(self._finish), "usage": numbers}
        said = reply.note(self._told)
        if said:
            last["fairlead"] = said
        return out + sse.named(last) + sse.named({"type": "message_stop"})


def _piece(block: _Block, delta: dict[str, Any]) -> bytes:
    return sse.named({"type": "content_block_delta", "index": block.index, "delta": delta})


FORMAT = Format(
    "messages",
    messages_request.read_request,
    events,
    body,
    lambda: sse.Stream(Reads()),
    Writer,
    errors.anthropic,
)
