"""A model's server that does what a script says: answer, stream, stall, reset, send what is no HTTP.

    with Mock(lambda asked: json_reply(chat("hello"))) as mock:
        mock.url, mock.seen, mock.left

It runs in a thread of its own; alone (`python mock_upstream.py PORT CHARACTERS CHUNKS`) it is the server of the bench.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import httptools

Step: TypeAlias = bytes | float | Literal["reset", "close", "hang"]
"""Bytes to send, seconds to wait, or how the connection ends."""


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw)


Script: TypeAlias = Callable[[Asked], Sequence[Step]]


class _Talk(asyncio.Protocol):
    def __init__(self, mock: Mock) -> None:
        self.mock = mock
        self.parser = httptools.HttpRequestParser(self)
        self.transport: Any = None
        self.playing: asyncio.Task[None] | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.mock.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:
        if self.playing is not None and not self.playing.done():
            self.playing.cancel()
            self.mock.left += 1

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.url, self.headers, self.parts = b"", {}, []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self.parts.append(body)

    def on_message_complete(self) -> None:
        method = self.parser.get_method().decode()
        steps = self.mock.answer(Asked(method, self.url.decode(), self.headers, b"".join(self.parts)))
        if len(steps) == 1 and isinstance(steps[0], bytes):
            self.transport.write(steps[0])
        else:
            self.playing = asyncio.get_running_loop().create_task(self.play(steps))

    async def play(self, steps: Sequence[Step]) -> None:
        for step in steps:
            if isinstance(step, bytes):
                self.transport.write(step)
                await asyncio.sleep(0)
            elif isinstance(step, float):
                await asyncio.sleep(step)
            elif step == "hang":
                await asyncio.sleep(3600)
            elif step == "close":
                self.transport.close()
            else:
                linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"  # on, 0 seconds: closing sends a reset
                self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.transport.abort()


class Mock:
    """`script` may be set anew between requests. `left` counts connections that the other side ended in an answer."""

    def __init__(self, script: Script, port: int = 0, *, keep: bool = True) -> None:
        self.script, self.keep = script, keep
        self.seen: list[Asked] = []
        self.left = self.connections = 0
        self._socket = socket.create_server(("127.0.0.1", port), backlog=1024)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def answer(self, asked: Asked) -> Sequence[Step]:
        if self.keep:
            self.seen.append(asked)
        return self.script(asked)

    def __enter__(self) -> Mock:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        with contextlib.suppress(OSError):
            self._socket.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(self._loop.create_server(lambda: _Talk(self), sock=self._socket))
        with contextlib.suppress(KeyboardInterrupt):
            self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()


# ------------------------------------------------------------------------------------------------ answers


def head(status: int, kind: str, length: int | None, more: str = "") -> bytes:
    size = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    return f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\n{size}\r\n{more}\r\n".encode()


def json_reply(body: Any, status: int = 200, more: str = "") -> list[Step]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return [head(status, "application/json", len(data), more) + data]


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


def sse_reply(*steps: Step | str | dict[str, Any], end: bool = True) -> list[Step]:
    """A stream: dicts become `data: …` (with `event:` where they have a type), texts are sent as they are."""
    told: list[Step] = [head(200, "text/event-stream", None)]
    for step in steps:
        if isinstance(step, dict):
            name = f"event: {step['type']}\n" if "type" in step else ""
            told.append(chunked(f"{name}data: {json.dumps(step)}\n\n".encode()))
        elif isinstance(step, bytes):
            told.append(chunked(step))
        elif isinstance(step, str) and step not in ("reset", "close", "hang"):
            told.append(chunked(step.encode()))
        else:
            told.append(step)  # type: ignore[arg-type]
    return [*told, *([b"0\r\n\r\n"] if end else [])]


def chat(*texts: str, **message: Any) -> dict[str, Any]:
    """A whole chat completion, one alternative for each text."""
    choices = [
        {"index": i, "message": {"role": "assistant", "content": text, **message}, "finish_reason": "stop"}
        for i, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    ids = {"id": "chatcmpl-mock", "object": "chat.completion", "created": 1700000000, "model": "mock"}
    return {**ids, "choices": choices, "usage": usage}


def chat_chunk(delta: dict[str, Any], finish: str | None = None, index: int = 0) -> dict[str, Any]:
    ids = {"id": "chatcmpl-mock", "object": "chat.completion.chunk", "created": 1700000000, "model": "mock"}
    return {**ids, "choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


def chat_stream(*pieces: str) -> list[dict[str, Any] | str]:
    first = chat_chunk({"role": "assistant", "content": ""})
    return [first, *(chat_chunk({"content": p}) for p in pieces), chat_chunk({}, "stop"), "data: [DONE]\n\n"]


def completion(text: str) -> dict[str, Any]:
    choice = {"index": 0, "text": text, "finish_reason": "stop", "logprobs": None}
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    ids = {"id": "cmpl-mock", "object": "text_completion", "created": 1700000000, "model": "mock"}
    return {**ids, "choices": [choice], "usage": usage}


def message(text: str) -> dict[str, Any]:
    return {
        "id": "msg_mock", "type": "message", "role": "assistant", "model": "mock",
        "content": [{"type": "text", "text": text}], "stop_reason": "end_turn", "stop_sequence": None,
        "usage": {"input_tokens": 9, "output_tokens": 3},
    }  # fmt: skip


def message_stream(*pieces: str) -> list[dict[str, Any] | str]:
    start = {**message(""), "content": [], "stop_reason": None}
    return [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": p}} for p in pieces),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None},
         "usage": {"output_tokens": 3}},
        {"type": "message_stop"},
    ]  # fmt: skip


def response(text: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": []}
    item = {"id": "msg_mock", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    usage = {
        "input_tokens": 9, "output_tokens": 3, "total_tokens": 12,
        "input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0},
    }  # fmt: skip
    ids = {"id": "resp_mock", "object": "response", "created_at": 1700000000, "model": "mock", "status": "completed"}
    flags = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
    return {**ids, **flags, "output": [item], "usage": usage}


def response_stream(*pieces: str) -> list[dict[str, Any] | str]:
    text = "".join(pieces)
    whole = response(text)
    item = whole["output"][0]
    at = {"item_id": "msg_mock", "output_index": 0, "content_index": 0}
    empty = {**whole, "status": "in_progress", "output": [], "usage": None}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": empty},
        {"type": "response.output_item.added", "output_index": 0,
         "item": {**item, "status": "in_progress", "content": []}},
        {"type": "response.content_part.added", **at, "part": {"type": "output_text", "text": "", "annotations": []}},
        *({"type": "response.output_text.delta", **at, "delta": p, "logprobs": []} for p in pieces),
        {"type": "response.output_text.done", **at, "text": text, "logprobs": []},
        {"type": "response.content_part.done", **at, "part": item["content"][0]},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": whole},
    ]  # fmt: skip
    return [{**event, "sequence_number": i} for i, event in enumerate(events)]


def bench_script(characters: int, chunks: int) -> Script:
    """A reply of so many characters; streamed in so many chunks where a stream is asked for."""
    text = ("The harbour opens at six and the ferry leaves on the hour. " * (characters // 50 + 1))[:characters]
    size = max(1, len(text) // max(1, chunks))
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    whole = json_reply(chat(text))
    stream = [b"".join(step for step in sse_reply(*chat_stream(*pieces)) if isinstance(step, bytes))]
    return lambda asked: stream if b'"stream":true' in asked.raw.replace(b" ", b"") else whole


if __name__ == "__main__":
    _port, _characters, _chunks = (int(argument) for argument in sys.argv[1:4])
    _mock = Mock(bench_script(_characters, _chunks), _port, keep=False)
    print(_mock.url, flush=True)
    with contextlib.suppress(ImportError):
        import uvloop

        _mock._loop = uvloop.new_event_loop()
    _mock._run()
