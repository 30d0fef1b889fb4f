"""Replies and streams of Anthropic's `/v1/messages` as events, by `Message` and `RawMessageStreamEvent` (2.14)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from fairlead.guard.wire import citation, reply, sse
from fairlead.guard.wire.chat_read import REPORTED, count
from fairlead.guard.wire.events import (
    About,
    Channel,
    Close,
    Delta,
    End,
    Event,
    Failed,
    Finish,
    Opaque,
    Open,
    Place,
    Reason,
    Unknown,
)

USAGE: dict[str, Any] = {
    "input_tokens": None, "output_tokens": None, "cache_creation_input_tokens": None, "cache_read_input_tokens": None,
    "cache_creation": dict.fromkeys(("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")),
    "output_tokens_details": dict.fromkeys(("thinking_tokens", "text_tokens")),
    "server_tool_use": dict.fromkeys(("web_search_requests", "web_fetch_requests")),
}  # fmt: skip
REASONS: dict[str, Reason] = {
    "end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls",
    "pause_turn": "pause", "refusal": "refusal", "model_context_window_exceeded": "length",
}  # fmt: skip
_STATUS = {
    "invalid_request_error": 400, "authentication_error": 401, "permission_error": 403, "not_found_error": 404,
    "request_too_large": 413, "rate_limit_error": 429, "timeout_error": 504, "overloaded_error": 529,
}  # fmt: skip

_MESSAGE = frozenset(("id", "type", "role", "model", "content", "stop_reason", "stop_sequence", "usage"))
_DELTA = frozenset(("stop_reason", "stop_sequence"))
_BLOCKS: dict[str, frozenset[str]] = {
    "text": frozenset(("type", "text", "citations")),
    "thinking": frozenset(("type", "thinking", "signature")),
    "redacted_thinking": frozenset(("type", "data")),
    "tool_use": frozenset(("type", "id", "name", "input")),
}
_PLACES: dict[str, Place] = {"text": "reply", "thinking": "reasoning", "tool_use": "tool_call"}
_DELTAS = {  # type of a delta: type of its block, field of its text
    "text_delta": ("text", "text"), "thinking_delta": ("thinking", "thinking"),
    "input_json_delta": ("tool_use", "partial_json"),
}  # fmt: skip


@dataclass(slots=True)
class _Block:
    kind: str  # "" for one that is withheld
    channel: Channel
    some: bool = False  # whether any text came
    open: bool = True


class Reads:
    """Stream events to events. The blocks of a whole message are read as blocks that start with all their content."""

    def __init__(self) -> None:
        self._blocks: dict[int, _Block] = {}
        self._parts = 0
        self._finished = False

    def take(self, said: dict[str, Any], out: list[Event]) -> None:
        match said.get("type"):
            case "content_block_delta":
                self._delta(said, out)
            case "content_block_start":
                self._block(said.get("index"), said.get("content_block"), out)
            case "content_block_stop":
                block = self._at(said.get("index"), out)
                if block is not None:
                    self._close(block, out)
            case "message_start":
                self._head(said.get("message"), out)
            case "message_delta":
                self._last(said, out)
            case "message_stop":
                self.done(out)
            case "error":
                out.append(failure(said))
            case "ping":
                pass
            case _:
                out.append(Unknown("event of an unknown type"))

    def message(self, said: dict[str, Any], out: list[Event]) -> None:
        """A whole message."""
        self._head({**said, "content": []}, out)
        content = said.get("content")
        for index, one in enumerate(content if isinstance(content, list) else ()):
            self._block(index, one, out)
            self._close(self._blocks[index], out)
        self._stop(said, out)
        self.done(out)

    def _head(self, said: Any, out: list[Event]) -> None:
        if not isinstance(said, dict):
            out.append(Unknown("message that is no object"))
            return
        given, model = said.get("id"), said.get("model")
        out.append(
            About(
                given if isinstance(given, str) else "",
                model if isinstance(model, str) else "",
                0,
                reply.numbers(said.get("usage"), USAGE),
            )
        )
        count(said, _MESSAGE, "field of a message", out)
        if said.get("content"):
            out.append(Unknown("content before the first block"))

    def _block(self, index: Any, given: Any, out: list[Event]) -> None:
        if type(index) is not int or not 0 <= index < 100_000 or index in self._blocks:
            out.append(Unknown("content block without a place of its own"))
            return
        kind = given.get("type") if isinstance(given, dict) else None
        block = self._blocks[index] = _Block("", Channel(0, self._parts))
        if self._finished:
            out.append(Unknown("text after the end of an alternative"))
            return
        if not isinstance(kind, str) or kind not in _BLOCKS:
            out.append(Unknown("content block of an unknown type"))
            return
        count(given, _BLOCKS[kind], "field of a content block", out)
        if kind == "redacted_thinking":
            out.append(Opaque(0, kind, given.get("data")))
            return
        given_id, name = given.get("id"), given.get("name")
        if kind == "tool_use" and not (isinstance(name, str) and name):
            out.append(Unknown("tool call without a name"))
            return
        block.kind = kind
        self._parts += 1
        if kind == "tool_use":
            out.append(Open(block.channel, "tool_call", given_id if isinstance(given_id, str) else "", name))
            if given.get("input"):
                self._text(block, orjson.dumps(given["input"]).decode(), out)
            return
        out.append(Open(block.channel, _PLACES[kind]))
        self._text(block, given.get(kind), out)
        if kind == "thinking" and given.get("signature"):
            out.append(Opaque(0, "signature", given["signature"]))
        if kind == "text" and given.get("citations"):
            cited = given["citations"]
            for one in cited if isinstance(cited, list) else (None,):
                self._cite(one, out)

    def _delta(self, said: dict[str, Any], out: list[Event]) -> None:
        block = self._at(said.get("index"), out)
        delta = said.get("delta")
        if block is None or not block.kind:
            return
        kind = delta.get("type") if isinstance(delta, dict) else None
        wanted, name = _DELTAS.get(kind, ("", "")) if isinstance(kind, str) else ("", "")
        if not block.open:
            out.append(Unknown("text after the end of a content block"))
        elif wanted == block.kind and isinstance(delta, dict):
            self._text(block, delta.get(name), out)
            if len(delta) > 2:
                out.append(Unknown("field of a delta"))
        elif kind == "signature_delta" and block.kind == "thinking" and isinstance(delta, dict):
            if delta.get("signature"):
                out.append(Opaque(0, "signature", delta["signature"]))
        elif kind == "citations_delta" and block.kind == "text" and isinstance(delta, dict):
            self._cite(delta.get("citation"), out)
        else:
            out.append(Unknown("delta of an unknown type"))

    def _text(self, block: _Block, text: Any, out: list[Event]) -> None:
        if isinstance(text, str):
            if text:
                block.some = True
                out.append(Delta(block.channel, text))
        elif text is not None:
            out.append(Unknown("text that is none"))

    def _cite(self, given: Any, out: list[Event]) -> None:
        for text in citation.read_messages(given, out):
            channel = Channel(0, self._parts)
            self._parts += 1
            out += Open(channel, "citation"), Delta(channel, text), Close(channel)

    def _at(self, index: Any, out: list[Event]) -> _Block | None:
        block = self._blocks.get(index) if type(index) is int else None
        if block is None:
            out.append(Unknown("event of a content block that was not started"))
        return block

    def _close(self, block: _Block, out: list[Event]) -> None:
        if block.open and block.kind:
            if block.kind == "tool_use" and not block.some:
                out.append(Delta(block.channel, "{}"))  # a call without arguments
            out.append(Close(block.channel))
        block.open = False

    def _last(self, said: dict[str, Any], out: list[Event]) -> None:
        numbers = reply.numbers(said.get("usage"), USAGE)
        if numbers:
            out.append(About(numbers=numbers))
        delta = said.get("delta")
        if isinstance(delta, dict):
            count(delta, _DELTA, "field of a message", out)
            self._stop(delta, out)

    def _stop(self, said: dict[str, Any], out: list[Event]) -> None:
        reason, stop = said.get("stop_reason"), said.get("stop_sequence")
        if reason is None or self._finished:
            return
        known = REASONS.get(reason) if isinstance(reason, str) else None
        if known is None:
            out.append(Unknown("stop_reason"))
        self._finish(known or "stop", stop if isinstance(stop, str) else "", out)

    def _finish(self, reason: Reason, stop: str, out: list[Event]) -> None:
        self._finished = True
        for block in self._blocks.values():
            self._close(block, out)
        out.append(Finish(0, reason, stop))

    def done(self, out: list[Event]) -> None:
        if not self._finished:
            self._finish("stop", "", out)
        out.append(End())

    def eof(self, out: list[Event]) -> None:
        out.append(End() if self._finished else Failed(sse.BROKE_OFF))


def failure(said: dict[str, Any]) -> Failed:
    error = said.get("error")
    kind = error.get("type") if isinstance(error, dict) else None
    return Failed(REPORTED, _STATUS.get(kind, 502) if isinstance(kind, str) else 502)


def events(body: Any) -> list[Event]:
    """The events of a reply in one body."""
    if isinstance(body, dict) and (body.get("type") == "error" or body.get("error")):
        return [failure(body)]
    if not isinstance(body, dict) or not isinstance(body.get("content"), list):
        return [Failed("the provider's reply is not a message")]
    out: list[Event] = []
    Reads().message(body, out)
    return out
