"""`/v1/chat/completions`: bodies and streams from events. Reasoning is written as `reasoning_content`."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fairlead.guard.wire import chat_request, citation, errors, ids, reply, sse
from fairlead.guard.wire.asked import Asked
from fairlead.guard.wire.chat_read import Reads, events
from fairlead.guard.wire.events import (
    About,
    Channel,
    Close,
    Delta,
    Event,
    Failed,
    Finish,
    Opaque,
    Open,
    Place,
    Reason,
    Told,
)
from fairlead.guard.wire.format import Format, Tolds

FINISHES: dict[Reason, str] = {
    "stop": "stop", "length": "length", "tool_calls": "tool_calls", "content_filter": "content_filter",
    "refusal": "content_filter", "pause": "stop",
}  # fmt: skip


def body(released: Iterable[Event], asked: Asked, told: Tolds = ()) -> dict[str, Any]:
    """The reply in one body. Raises ValueError where the provider broke off."""
    found = reply.gathered(released)
    legacy = _legacy(asked)
    out: dict[str, Any] = {
        "id": ids.made("chatcmpl-", found.about.id, bool(asked.policy.fields & _REFERS)),
        "object": "chat.completion",
        "created": found.about.created or int(time.time()),
        "model": ids.model(asked.model, found.about.model),
        "choices": [_choice_of(index, one, asked, legacy) for index, one in sorted(found.alternatives.items())],
    }
    if found.about.numbers:
        out["usage"] = found.about.numbers
    said = reply.note(told)
    if said:
        out["fairlead"] = said
    return out


_REFERS = frozenset(("store", "previous_response_id"))


def _legacy(asked: Asked) -> bool:
    """Whether the client speaks the older `functions`, and reads `function_call`."""
    return "functions" in asked.upstream and "tools" not in asked.upstream


def _choice_of(index: int, one: reply.Alternative, asked: Asked, legacy: bool) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
    calls: list[dict[str, Any]] = []
    logprobs: dict[str, Any] = {}
    for part in one.parts:
        if isinstance(part, Opaque):
            continue  # the format has none
        text = part.text
        match part.place:
            case "reply" | "refusal":
                name = "content" if part.place == "reply" else "refusal"
                message[name] = (message[name] or "") + text
                if part.logprobs:
                    logprobs[name] = reply.written(part.logprobs, text, asked.policy.top_logprobs) or None
            case "reasoning":
                message["reasoning_content"] = message.get("reasoning_content", "") + text
            case "citation":
                if cited := citation.write_chat(text):
                    message.setdefault("annotations", []).append(cited)
            case "tool_call" if legacy:
                message["function_call"] = {"name": part.name, "arguments": text}
            case "tool_call":
                called = {"name": part.name, "arguments": text}
                calls.append({"id": ids.of_call("call_", part.id, part.name), "type": "function", "function": called})
    if calls:
        message["tool_calls"] = calls
    reason = FINISHES[one.finish.reason] if one.finish else "content_filter"
    if legacy and reason == "tool_calls":
        reason = "function_call"
    shown = {"content": None, "refusal": None, **logprobs} if any(logprobs.values()) else None
    return {"index": index, "message": message, "logprobs": shown, "finish_reason": reason}


@dataclass(slots=True)
class _Written:
    """One alternative of a stream that is being written."""

    places: dict[int, Place] = field(default_factory=dict)  # of open parts, by their number
    numbers: dict[int, int] = field(default_factory=dict)  # of tool calls
    cited: dict[int, list[str]] = field(default_factory=dict)
    citations: int = 0
    over: bool = False


class Writer:
    """`format.Writer`. All alternatives are opened at the start, in order: the SDK keeps them in a list."""

    __slots__ = ("_about", "_asked", "_choices", "_head", "_legacy", "_over")

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._about = About()
        self._choices: dict[int, _Written] = {index: _Written() for index in range(asked.n)}
        self._head: dict[str, Any] = {}
        self._legacy = _legacy(asked)
        self._over = False

    def write(self, event: Event) -> bytes:
        if self._over:
            return b""
        match event:
            case Delta():
                return self._delta(event)
            case Open():
                return self._opened(event)
            case Close():
                return self._closed(event.channel)
            case Finish():
                reason = FINISHES[event.reason]
                if self._legacy and reason == "tool_calls":
                    reason = "function_call"
                return self._finish(event.choice, reason, None)
            case About():
                self._about = reply.joined(self._about, event)
            case Failed():
                start, self._over = self._start(), True
                return start + sse.data(errors.openai(event.status, event.why, "upstream"))
        return b""

    def _opened(self, event: Open) -> bytes:
        start, one = self._start(), self._one(event.channel.choice)
        one.places[event.channel.part] = event.place
        if event.place == "citation":
            one.cited[event.channel.part] = []
        if event.place != "tool_call" or one.over:
            return start
        if self._legacy:
            return start + self._chunk(event.channel.choice, {"function_call": {"name": event.name, "arguments": ""}})
        number = one.numbers[event.channel.part] = len(one.numbers)
        call = {
            "index": number,
            "id": ids.of_call("call_", event.id, event.name),
            "type": "function",
            "function": {"name": event.name, "arguments": ""},
        }
        return start + self._chunk(event.channel.choice, {"tool_calls": [call]})

    def _delta(self, event: Delta) -> bytes:
        index, part = event.channel.choice, event.channel.part
        one = self._one(index)
        if one.over or not event.text:
            return b""
        match one.places[part]:
            case "reply":
                delta: dict[str, Any] = {"content": event.text}
            case "refusal":
                delta = {"refusal": event.text}
            case "reasoning":
                return self._chunk(index, {"reasoning_content": event.text})
            case "citation":
                one.cited[part].append(event.text)
                return b""
            case "tool_call":
                if self._legacy:
                    return self._chunk(index, {"function_call": {"arguments": event.text}})
                return self._chunk(
                    index, {"tool_calls": [{"index": one.numbers[part], "function": {"arguments": event.text}}]}
                )
        found = event.logprobs and reply.written(event.logprobs, event.text, self._asked.policy.top_logprobs)
        return self._chunk(
            index, delta, {"content": None, "refusal": None, next(iter(delta)): found} if found else None
        )

    def _closed(self, channel: Channel) -> bytes:
        one = self._one(channel.choice)
        pieces = one.cited.pop(channel.part, None)
        cited = citation.write_chat("".join(pieces)) if pieces and not one.over else None
        if not cited:
            return b""
        number, one.citations = one.citations, one.citations + 1
        return self._chunk(
            channel.choice, {"annotations": [{"index": number, **cited}]}
        )  # the SDK joins lists by index

    def _one(self, index: int) -> _Written:
        return self._choices.get(index) or self._choices.setdefault(index, _Written())

    def _start(self) -> bytes:
        if self._head:
            return b""
        self._head = {
            "id": ids.made("chatcmpl-", self._about.id, bool(self._asked.policy.fields & _REFERS)),
            "object": "chat.completion.chunk",
            "created": self._about.created or int(time.time()),
            "model": ids.model(self._asked.model, self._about.model),
        }
        opening: dict[str, Any] = {"role": "assistant", "content": "", "refusal": None}
        return b"".join(self._chunk(index, opening) for index in self._choices)

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        reason: str | None = None,
        told: Told | None = None,
    ) -> bytes:
        choice: dict[str, Any] = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        chunk = {**self._head, "choices": [choice]}
        if told is not None:
            chunk["fairlead"] = reply.said(told)
        return sse.data(chunk)

    def _finish(self, index: int, reason: str, told: Told | None) -> bytes:
        start, one = self._start(), self._one(index)
        if one.over:
            return start
        one.over = True
        return start + self._chunk(index, {}, None, reason, told)

    def ping(self) -> bytes:
        return b": wait\n\n"

    def told(self, choice: int, told: Told) -> bytes:
        return b"" if self._over else self._start() + self._chunk(choice, {}, told=told)

    def stop(self, choice: int, reason: Reason, told: Told) -> bytes:
        return b"" if self._over else self._finish(choice, FINISHES[reason], told)

    def end(self) -> bytes:
        """Alternatives without an end are said to have been cut: `content_filter`."""
        out = []
        if not self._over:
            out = [self._start(), *(self._finish(index, "content_filter", None) for index in self._choices)]
            if self._asked.include_usage and self._about.numbers:
                out.append(sse.data({**self._head, "choices": [], "usage": self._about.numbers}))
        self._over = True
        return b"".join((*out, b"data: [DONE]\n\n"))


FORMAT = Format("chat", chat_request.read_request, events, body, lambda: sse.Stream(Reads()), Writer, errors.openai)
