"""The official SDKs over a canned answer: what they make of the bytes that the guard writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anthropic
import httpx2
import openai
import orjson

from guard.wire.samples import CHAT, COMPLETIONS, MESSAGES, RESPONSES

Answer = Callable[[httpx2.Request], httpx2.Response]


def stream(data: bytes) -> Answer:
    return lambda request: httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=data)


def body(value: dict[str, Any], status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    head = {"content-type": "application/json", **dict(headers)}
    return lambda request: httpx2.Response(status, headers=head, content=orjson.dumps(value))


class _Canned(httpx2.BaseTransport):
    """Answers with whatever was set last: a client costs tens of milliseconds to make, so that there is one of each."""

    answer: Answer

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        return self.answer(request)


_CANNED = _Canned()
_HTTP = httpx2.Client(transport=_CANNED)
_OPENAI = openai.OpenAI(api_key="k", base_url="http://guard.test/v1", http_client=_HTTP, max_retries=0)
_ANTHROPIC = anthropic.Anthropic(api_key="k", base_url="http://guard.test", http_client=_HTTP, max_retries=0)


def openai_client(answer: Answer, retries: int = 0) -> openai.OpenAI:
    _CANNED.answer = answer
    return _OPENAI.with_options(max_retries=retries) if retries else _OPENAI


def anthropic_client(answer: Answer, retries: int = 0) -> anthropic.Anthropic:
    _CANNED.answer = answer
    return _ANTHROPIC.with_options(max_retries=retries) if retries else _ANTHROPIC


def whole(route: str, answer: Answer) -> Any:
    """The SDK's object for an answer in one body."""
    if route == MESSAGES:
        return anthropic_client(answer).messages.create(
            model="m", max_tokens=9, messages=[{"role": "user", "content": "x"}]
        )
    client = openai_client(answer)
    if route == CHAT:
        return client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
    if route == COMPLETIONS:
        return client.completions.create(model="m", prompt="x")
    assert route == RESPONSES
    return client.responses.create(model="m", input="x")


def streamed(route: str, data: bytes) -> tuple[Any, list[Any]]:
    """What the SDK's own accumulator makes of a stream, and the events it saw."""
    if route == MESSAGES:
        client = anthropic_client(stream(data))
        with client.messages.stream(model="m", max_tokens=9, messages=[{"role": "user", "content": "x"}]) as seen:
            events = list(seen)
            return seen.get_final_message(), events
    other = openai_client(stream(data))
    if route == CHAT:
        with other.chat.completions.stream(model="m", messages=[{"role": "user", "content": "x"}]) as chat:
            events = list(chat)
            return chat.current_completion_snapshot, events  # the final one is an exception where it was cut
    if route == COMPLETIONS:
        events = list(other.completions.create(model="m", prompt="x", stream=True))
        return None, events
    with other.responses.stream(model="m", input="x") as responses:
        events = list(responses)
    last = events[-1]
    return (responses.get_final_response() if last.type == "response.completed" else last.response), events


def texts(route: str, found: Any) -> dict[tuple[int, str], str]:
    """The texts of an SDK's object, by alternative and place."""
    out: dict[tuple[int, str], str] = {}

    def add(choice: int, place: str, text: str | None) -> None:
        if text:
            out[choice, place] = out.get((choice, place), "") + text

    if route == CHAT:
        for choice in found.choices:
            add(choice.index, "reply", choice.message.content)
            add(choice.index, "refusal", choice.message.refusal)
            add(choice.index, "reasoning", getattr(choice.message, "reasoning_content", None))
            for call in choice.message.tool_calls or []:
                add(choice.index, f"call {call.function.name}", call.function.arguments)
    elif route == COMPLETIONS:
        for choice in found.choices:
            add(choice.index, "reply", choice.text)
    elif route == RESPONSES:
        for item in found.output:
            if item.type == "message":
                for part in item.content:
                    add(
                        0,
                        "reply" if part.type == "output_text" else "refusal",
                        getattr(part, "text", None) or getattr(part, "refusal", None),
                    )
            elif item.type == "function_call":
                add(0, f"call {item.name}", item.arguments)
            else:
                for part in [*item.summary, *(item.content or [])]:
                    add(0, "reasoning", part.text)
    else:
        for block in found.content:
            if block.type == "text":
                add(0, "reply", block.text)
            elif block.type == "thinking":
                add(0, "reasoning", block.thinking)
            elif block.type == "tool_use":
                add(0, f"call {block.name}", orjson.dumps(block.input).decode())
    return out
