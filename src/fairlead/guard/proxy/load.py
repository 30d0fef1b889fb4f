"""What a measurement of the proxy needs beside it: a model's server that answers at once, and a client that asks.

Each runs in a process of its own (`python -m fairlead.guard.proxy.load serve|ask …`), on asyncio with httptools, so
that neither shares a core's time with the proxy by accident of threads.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import httptools
import orjson

_SAYS = re.compile(rb'"content":\s*"[^"]')
_WORDS = "The harbour opens at six, the ferry leaves on the hour, and the keeper logs each boat by name. "


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of request.

    asked, answered  characters of the conversation and of the reply
    chunks           0 for a reply in one body, else the chunks of a stream
    turns            messages that the conversation is cut into
    every            milliseconds from one chunk to the next, as a model writes; 0 for all of them at once
    """

    name: str
    asked: int = 1_000
    answered: int = 1_000
    chunks: int = 0
    turns: int = 1
    every: float = 0.0


WORKS: dict[str, Work] = {
    "chat": Work("chat"),
    "stream": Work("stream", chunks=200),
    "paced": Work("paced", chunks=60, every=5.0),
    "long": Work("long", asked=32_000, turns=40),
}


def _text(characters: int) -> str:
    return (_WORDS * (characters // len(_WORDS) + 1))[:characters]


def request(work: Work, port: int) -> bytes:
    """The bytes of one request."""
    size = work.asked // work.turns
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": _text(size)} for i in range(work.turns)]
    body = orjson.dumps({"model": "mock", "messages": messages, "stream": work.chunks > 0})
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer sk-unused\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def texts(work: Work) -> list[str]:
    """What a stream says, chunk by chunk."""
    text = _text(work.answered)
    size = max(1, -(-len(text) // max(1, work.chunks)))
    return [text[i : i + size] for i in range(0, len(text), size)]


def answers(work: Work) -> tuple[bytes, list[bytes]]:
    """The bytes of a reply in one body, and of a stream, write by write: one where it is not paced, else its first
    chunk of text with what comes before it, and one for each chunk after."""
    text = _text(work.answered)
    ids = {"id": "chatcmpl-mock", "created": 1700000000, "model": "mock"}
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    usage = {"prompt_tokens": 250, "completion_tokens": 250, "total_tokens": 500}
    body = orjson.dumps({**ids, "object": "chat.completion", "choices": [choice], "usage": usage})
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    deltas: list[tuple[dict[str, Any], str | None]] = [({"role": "assistant", "content": ""}, None)]
    deltas += [({"content": piece}, None) for piece in texts(work)]
    deltas.append(({}, "stop"))
    events = [
        orjson.dumps({
            **ids, "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        })
        for delta, finish in deltas
    ]  # fmt: skip
    parts = [b"data: %b\n\n" % event for event in (*events, b"[DONE]")]
    stream = [b"%x\r\n%b\r\n" % (len(part), part) for part in parts]
    opened = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    writes = [opened + stream[0] + stream[1], *stream[2:-2], b"".join(stream[-2:]) + b"0\r\n\r\n"]
    return head % len(body) + body, writes if work.every else [b"".join(writes)]


class _Serving(asyncio.Protocol):
    def __init__(self, replies: tuple[bytes, list[bytes]], every: float) -> None:
        self.replies, self.every = replies, every / 1e3
        self.next: asyncio.TimerHandle | None = None
        self.parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.stream = False

    def on_body(self, body: bytes) -> None:
        self.stream = self.stream or b'"stream":true' in body

    def on_message_complete(self) -> None:
        whole, writes = self.replies
        if self.stream:
            self._write(writes, 0, asyncio.get_running_loop().time())
        else:
            self.transport.write(whole)

    def _write(self, writes: list[bytes], n: int, began: float) -> None:
        """The nth write, and the one after when it is due: counted from the beginning, so that no delay adds up."""
        self.transport.write(writes[n])
        if n + 1 < len(writes):
            due = began + self.every * (n + 1)
            self.next = asyncio.get_running_loop().call_at(due, self._write, writes, n + 1, began)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.next is not None:
            self.next.cancel()


class _Asking(asyncio.Protocol):
    """One connection that asks again as soon as it was answered."""

    def __init__(self, data: bytes, times: _Times) -> None:
        self.data, self.times = data, times
        self.parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._ask()

    def _ask(self) -> None:
        self.first, self.began, self.before = 0.0, time.perf_counter(), b""
        self.transport.write(self.data)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.times.lost += 1

    def on_body(self, body: bytes) -> None:
        """The first byte of text counts: the event that opens a stream says nothing yet."""
        if not self.first:
            self.before += body
            if _SAYS.search(self.before):
                self.first = time.perf_counter()

    def on_message_complete(self) -> None:
        now = time.perf_counter()
        self.first = self.first or now
        if self.times.counting:
            if self.parser.get_status_code() != 200:
                self.times.refused += 1
            self.times.whole.append(now - self.began)
            self.times.first.append(self.first - self.began)
        self._ask()


class _Times:
    def __init__(self) -> None:
        self.whole: list[float] = []
        self.first: list[float] = []
        self.counting = False
        self.refused = self.lost = 0


async def ask(port: int, work: Work, depth: int, warm: float, seconds: float) -> dict[str, Any]:
    """Asks with `depth` requests in flight: `warm` seconds uncounted, then `seconds` counted. Times in milliseconds."""
    times, data = _Times(), request(work, port)
    loop = asyncio.get_running_loop()
    for _ in range(depth):
        await loop.create_connection(lambda: _Asking(data, times), "127.0.0.1", port)
    await asyncio.sleep(warm)
    times.counting = True
    began = time.perf_counter()
    await asyncio.sleep(seconds)
    times.counting = False
    took = time.perf_counter() - began
    return {
        "requests": len(times.whole), "requests_per_second": len(times.whole) / took, "in_flight": depth,
        "not_200": times.refused, "connections_lost": times.lost,
        "ms": _percentiles(times.whole), "first_byte_ms": _percentiles(times.first),
    }  # fmt: skip


def _percentiles(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    if not ordered:
        return {}
    at = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
    return {name: 1e3 * ordered[min(len(ordered) - 1, int(q * len(ordered)))] for name, q in at.items()}


async def serve(work: Work, port: int) -> None:
    """Answers until it is ended; prints its port."""
    replies = answers(work)
    server = await asyncio.get_running_loop().create_server(
        lambda: _Serving(replies, work.every), "127.0.0.1", port, backlog=2048
    )
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


def main(argv: list[str]) -> int:
    """`serve WORK PORT` or `ask WORK PORT DEPTH WARM SECONDS`; WORK is JSON or a name."""
    import uvloop

    work = WORKS[argv[1]] if argv[1] in WORKS else Work(**json.loads(argv[1]))
    if argv[0] == "serve":
        uvloop.run(serve(work, int(argv[2])))
        return 0
    found = uvloop.run(ask(int(argv[2]), work, int(argv[3]), float(argv[4]), float(argv[5])))
    sys.stdout.write(json.dumps({"work": asdict(work), **found}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
