"""Replies and streams of `/v1/chat/completions` as events, by `ChatCompletion` and `ChatCompletionChunk` (openai 3.57).

Read beyond those: `reasoning_content` and `reasoning` (DeepSeek, vLLM, OpenRouter).
"""

from __future__ import annotations

from typing import Any

import orjson

from fairlead.guard.wire import citation, reply, sse
from fairlead.guard.wire.events import (
    About,
    Channel,
    Close,
    Delta,
    End,
    Event,
    Failed,
    Finish,
    Open,
    Place,
    Reason,
    Unknown,
)

USAGE: dict[str, Any] = {
    "prompt_tokens": None, "completion_tokens": None, "total_tokens": None,
    "prompt_tokens_details": dict.fromkeys(
        ("audio_tokens", "cache_write_tokens", "cached_tokens", "image_tokens", "text_tokens")),
    "completion_tokens_details": dict.fromkeys((
        "accepted_prediction_tokens", "audio_tokens", "reasoning_tokens", "rejected_prediction_tokens", "text_tokens")),
}  # fmt: skip
REASONS: dict[str, Reason] = {
    "stop": "stop", "length": "length", "tool_calls": "tool_calls", "function_call": "tool_calls",
    "content_filter": "content_filter", "eos": "stop", "eos_token": "stop", "max_tokens": "length", "abort": "length",
}  # fmt: skip

REPORTED = "the provider reported an error"

# What is known and says nothing that a client needs: dropped, and not counted.
_BODY = frozenset((
    "id", "object", "created", "model", "choices", "usage", "system_fingerprint", "service_tier", "obfuscation",
    "metadata", "provider", "prompt_filter_results", "x_groq", "timings", "stats", "prompt",
))  # fmt: skip
_CHOICE = frozenset((
    "index", "delta", "message", "finish_reason", "logprobs", "stop_reason", "matched_stop", "native_finish_reason",
    "content_filter_results", "seed",
))  # fmt: skip
_MESSAGE = frozenset(
    ("role", "content", "refusal", "tool_calls", "function_call", "annotations", "reasoning_content", "reasoning")
)
_NOTHING: tuple[Any, ...] = (None, [], {}, "")
_TEXTS: tuple[tuple[str, Place], ...] = (
    ("reasoning_content", "reasoning"),
    ("reasoning", "reasoning"),
    ("content", "reply"),
    ("refusal", "refusal"),
)


class Reads:
    """Chunks to events. A whole message is read as one chunk."""

    def __init__(self) -> None:
        self._about = False
        self._parts: dict[int, int] = {}  # parts opened, by choice
        self._open: dict[tuple[int, str, int], Channel] = {}  # by choice, place and index of the call
        self._called: set[Channel] = set()  # calls whose arguments have begun
        self._finished: set[int] = set()

    def take(self, said: dict[str, Any], out: list[Event]) -> None:
        if head(said, self._about, out):
            self._about = True
            for choice in listed(said, out):
                self._choice(choice, out)
                if out and isinstance(out[-1], Failed):
                    return

    def _choice(self, choice: Any, out: list[Event]) -> None:
        index = index_of(choice, out)
        if index is None:
            return
        count(choice, _CHOICE, "field of a choice", out)
        message = choice.get("delta")
        if not message:
            message = choice.get("message")
        elif choice.get("message"):
            out.append(Unknown("message beside a delta"))
        if isinstance(message, dict):
            if index in self._finished:
                if any(message.get(name) for name in _MESSAGE if name != "role"):
                    out.append(Unknown("text after the end of an alternative"))
            else:
                self._message(index, message, choice.get("logprobs"), out)
        elif message:
            out.append(Unknown("message that is no object"))
        reason = choice.get("finish_reason")
        if reason and index not in self._finished:
            stop = choice.get("stop_reason")
            self._finish(index, reason, stop if isinstance(stop, str) else "", out)

    def _message(self, index: int, message: dict[str, Any], logprobs: Any, out: list[Event]) -> None:
        count(message, _MESSAGE, "field of a message", out)
        for name, place in _TEXTS:
            text = message.get(name)
            if not text:
                continue
            if not isinstance(text, str):
                out.append(Unknown(f"{name} that is no text"))
                continue
            if name == "reasoning" and text == message.get("reasoning_content"):
                continue  # some servers say it under both names
            found: tuple[dict[str, Any], ...] = ()
            if logprobs and place != "reasoning":
                found = _entries(logprobs, name, text, out)
            out.append(Delta(self._channel(index, place, 0, out), text, found))
        if logprobs and not (message.get("content") or message.get("refusal")):
            _entries(logprobs, "content", "", out)
        if message.get("tool_calls"):
            self._calls(index, message["tool_calls"], out)
        if message.get("function_call"):
            self._call(index, {"function": message["function_call"]}, -1, out)
        if message.get("annotations"):
            for text in citation.read_chat(message["annotations"], out):
                channel = self._new(index)
                out += Open(channel, "citation"), Delta(channel, text), Close(channel)

    def _calls(self, index: int, calls: Any, out: list[Event]) -> None:
        if not isinstance(calls, list):
            out.append(Unknown("tool calls that are no list"))
            return
        for i, call in enumerate(calls):
            if not isinstance(call, dict) or call.get("type") not in (None, "", "function"):
                out.append(Unknown("tool call that is not of a function"))
                continue
            number = call.get("index", i)
            self._call(index, call, number if type(number) is int and number >= 0 else i, out)

    def _call(self, index: int, call: dict[str, Any], number: int, out: list[Event]) -> None:
        called = call.get("function")
        if not isinstance(called, dict):
            called = {}
        channel = self._open.get((index, "tool_call", number))
        if channel is None:
            name, given = called.get("name"), call.get("id")
            if not isinstance(name, str) or not name:
                out.append(Unknown("tool call without a name"))
                return
            self._thought(index, out)
            channel = self._open[index, "tool_call", number] = self._new(index)
            out.append(Open(channel, "tool_call", given if isinstance(given, str) else "", name))
        arguments = called.get("arguments")
        if isinstance(arguments, dict):  # some servers send the object itself
            arguments = orjson.dumps(arguments).decode()
        if isinstance(arguments, str) and arguments:
            self._called.add(channel)
            out.append(Delta(channel, arguments))

    def _channel(self, index: int, place: Place, number: int, out: list[Event]) -> Channel:
        channel = self._open.get((index, place, number))
        if channel is None:
            if place != "reasoning":
                self._thought(index, out)
            channel = self._open[index, place, number] = self._new(index)
            out.append(Open(channel, place))
        return channel

    def _thought(self, index: int, out: list[Event]) -> None:
        """The reply begins, so the reasoning before it is whole: nothing of the reply has to wait for its end."""
        channel = self._open.pop((index, "reasoning", 0), None)
        if channel is not None:
            out.append(Close(channel))

    def _new(self, index: int) -> Channel:
        part = self._parts.get(index, 0)
        self._parts[index] = part + 1
        return Channel(index, part)

    def _finish(self, index: int, reason: Any, stop: str, out: list[Event]) -> None:
        self._finished.add(index)
        if reason == "error":
            out.append(Failed(REPORTED))
            return
        for (choice, place, _), channel in self._open.items():
            if choice == index:
                if place == "tool_call" and channel not in self._called:
                    out.append(Delta(channel, "{}"))  # a call without arguments
                out.append(Close(channel))
        out.append(Finish(index, reason_of(reason, out), stop))

    def done(self, out: list[Event]) -> None:
        for index in self._parts:
            if index not in self._finished:
                self._finish(index, "stop", "", out)
        out.append(End())

    def eof(self, out: list[Event]) -> None:
        whole = self._finished and self._finished >= self._parts.keys()
        out.append(End() if whole else Failed(sse.BROKE_OFF))


def head(said: dict[str, Any], known: bool, out: list[Event]) -> bool:
    """What a reply or a chunk says beside its choices. False where it says that the provider failed."""
    error = said.get("error")
    if error:
        code = error.get("code") if isinstance(error, dict) else None
        out.append(Failed(REPORTED, code if type(code) is int and 400 <= code < 600 else 502))
        return False
    found = reply.numbers(said["usage"], USAGE) if said.get("usage") else {}
    if not known:
        given, model, created = said.get("id"), said.get("model"), said.get("created")
        out.append(
            About(
                given if isinstance(given, str) else "",
                model if isinstance(model, str) else "",
                created if type(created) is int and created >= 0 else 0,
                found,
            )
        )
    elif found:
        out.append(About(numbers=found))
    count(said, _BODY, "field of a reply", out)
    return True


def listed(said: dict[str, Any], out: list[Event]) -> list[Any]:
    choices = said.get("choices")
    if isinstance(choices, list):
        return choices
    if choices is not None:
        out.append(Unknown("choices that are no list"))
    return []


def index_of(choice: Any, out: list[Event]) -> int | None:
    index = choice.get("index", 0) if isinstance(choice, dict) else None
    if type(index) is int and 0 <= index < 1024:
        return index
    out.append(Unknown("choice without an index"))
    return None


def reason_of(given: Any, out: list[Event]) -> Reason:
    known = REASONS.get(given) if isinstance(given, str) else None
    if known is None:
        out.append(Unknown("finish_reason"))
    return known or "stop"


def count(said: dict[str, Any], known: frozenset[str], what: str, out: list[Event]) -> None:
    """Counts what is not known, each field once. Its name is the provider's text, and is not repeated."""
    if not said.keys() <= known:
        out.extend(Unknown(what) for name, value in said.items() if name not in known and value not in _NOTHING)


def _entries(logprobs: Any, name: str, text: str, out: list[Event]) -> tuple[dict[str, Any], ...]:
    given = logprobs.get(name) if isinstance(logprobs, dict) else None
    if not given:
        return ()
    found = reply.entries(given)
    if found is None or reply.spelled(found) != text.encode():
        out.append(Unknown("log-probs of another text"))
        return ()
    return found


def events(body: Any) -> list[Event]:
    """The events of a reply in one body."""
    out: list[Event] = []
    if not isinstance(body, dict) or not (isinstance(body.get("choices"), list) or body.get("error")):
        return [Failed("the provider's reply is not a chat completion")]
    reads = Reads()
    reads.take(body, out)
    if not isinstance(out[-1], Failed):
        reads.done(out)
    return out
