"""Requests drawn at random against a proxy, over one connection that is kept as long as it is: what is wrong with the
answers is counted, by words."""

from __future__ import annotations

import copy
import json
import random
import re
import socket
import string
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httptools

from support.guard_proxy import POLICY, Proxy
from support.mock_upstream import (
    Asked,
    Mock,
    Step,
    chat,
    chat_stream,
    completion,
    json_reply,
    message,
    message_stream,
    response,
    response_stream,
    sse_reply,
)

SECRET = "falcon-7781-heron"
LIMITS = "limits: {first_byte: 2, idle: 2, total: 10, request: 2, body: 200000, header: 8192, headers: 40}\n"

_TOOL = {"type": "function", "function": {"name": "send", "parameters": {"type": "object", "properties": {}}}}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "mock", "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}],
        "temperature": 0.5, "n": 1, "stream": False, "tools": [_TOOL], "max_tokens": 30,
    },
    "/v1/completions": {"model": "mock", "prompt": "hello", "stream": False, "max_tokens": 30, "echo": False},
    "/v1/responses": {
        "model": "mock", "input": [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}],
        "stream": False, "tools": [{"type": "function", "name": "send", "parameters": {}}],
    },
    "/v1/messages": {
        "model": "mock", "max_tokens": 20, "system": "be brief", "stream": False,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
    },
}  # fmt: skip
_NAMES = [
    "previous_response_id",
    "conversation",
    "background",
    "store",
    "prompt",
    "file_id",
    "container",
    "mcp_servers",
    "image_url",
    "audio",
    "modalities",
    "stop",
    "logprobs",
    "logit_bias",
    "functions",
    "response_format",
    "reasoning",
    "metadata",
    "user",
    "type",
    "role",
    "content",
    "text",
    "id",
    "name",
    "input",
]
_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 10**30, 1e308, "", "hello", "\x00", "\ud800".encode("utf-16", "surrogatepass").hex(),
    "🜁" * 50, "a" * 5000, [], {}, [[]], [None], [{}], {"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}},
    {"type": "tool_result", "tool_use_id": "x", "content": "y"}, {"role": "user", "content": "again"},
]  # fmt: skip


@dataclass
class Seen:
    requests: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0


def fuzz(folder: Path, *, requests: int, seed: int) -> Seen:
    """So many requests; the server answers with the secret, whole or in pieces, or with something odd."""
    draw, seen = random.Random(seed), Seen()
    odd = random.Random(seed + 1)
    with (
        Mock(lambda asked: _answer(asked, odd), keep=False) as mock,
        Proxy(folder, mock.url, policy=POLICY + LIMITS) as proxy,
    ):
        line = _Line(proxy.port)
        for _ in range(requests):
            route, data = _request(draw)
            began = time.monotonic()
            status, body = line.ask(data)
            seen.slowest = max(seen.slowest, time.monotonic() - began)
            seen.requests += 1
            seen.statuses[status] += 1
            if problem := _wrong(status, body):
                seen.wrong.append(f"{problem}: {status} {body[:200]!r} to {route} {data[:300]!r}")
        line.close()
        if proxy.worker.app.in_flight:
            seen.wrong.append(f"{proxy.worker.app.in_flight} requests are still in flight")
    return seen


def _wrong(status: int, body: bytes) -> str:
    if SECRET.encode() in body:
        return "the secret left"
    if status == 0:
        return "no answer"
    if status == 500 and b"fault inside" in body:
        return "a fault inside"
    if b"Traceback" in body:
        return "a traceback"
    if status != 200:
        try:
            told = json.loads(body)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            return "an error without a message"
        return "" if len(told) > 10 else "an error without a reason"
    return ""


def _request(draw: random.Random) -> tuple[str, bytes]:
    route = draw.choice(list(BODIES))
    body: Any = copy.deepcopy(BODIES[route])
    body["stream"] = draw.random() < 0.4
    for _ in range(draw.choice((0, 0, 1, 1, 2, 4))):
        body = _changed(body, draw)
    raw = json.dumps(body).encode()
    if draw.random() < 0.1:
        raw = _damaged(raw, draw)
    head = f"POST {route} HTTP/1.1\r\nhost: a\r\n"
    if draw.random() < 0.9:
        head += "content-type: application/json\r\n"
    if draw.random() < 0.1:
        head += _header(draw)
    if draw.random() < 0.2:
        half = len(raw) // 2
        body_ = (
            b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (raw[:half], raw[half:]) if part) + b"0\r\n\r\n"
        )
        return route, f"{head}transfer-encoding: chunked\r\n\r\n".encode() + body_
    return route, f"{head}content-length: {len(raw)}\r\n\r\n".encode() + raw


def _changed(body: Any, draw: random.Random) -> Any:
    """One place of the body holds something else, is gone, or has a neighbour."""
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in list(pairs):
            places.append((value, key))
            walk(inner)

    walk(body)
    if not places or draw.random() < 0.02:
        return draw.choice(_VALUES)
    holder, key = draw.choice(places)
    match draw.randrange(4):
        case 0:
            holder[key] = copy.deepcopy(draw.choice(_VALUES))
        case 1:
            del holder[key]
        case 2 if isinstance(holder, dict):
            holder[draw.choice(_NAMES)] = copy.deepcopy(draw.choice(_VALUES))
        case _ if isinstance(holder, list):
            holder.append(copy.deepcopy(draw.choice([*_VALUES, holder[0]])))
        case _:
            holder["".join(draw.choices(string.ascii_lowercase, k=6))] = copy.deepcopy(draw.choice(_VALUES))
    return body


def _damaged(raw: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(raw) + 1)
    return (
        raw[:at]
        + draw.choice((b"\xff", b"\x00", b"{", b'"', b"]" * 300, b"[" * 2000, b""))
        + raw[at + draw.randrange(5) :]
    )


def _header(draw: random.Random) -> str:
    return draw.choice((
        "authorization: Bearer x\r\n", "x-api-key: y\r\n", "authorization: Basic eDp5\r\n", "expect: 100-continue\r\n",
        "anthropic-version: 2023-06-01\r\n", "anthropic-version: tomorrow\r\n", "anthropic-beta: x\r\n",
        "traceparent: 00-x\r\n", "x-a: " + "b" * 3000 + "\r\n", "connection: close\r\n", "upgrade: websocket\r\n",
        "content-encoding: gzip\r\n", "transfer-encoding: identity\r\n", "x-forwarded-for: 1.2.3.4\r\n",
    ))  # fmt: skip


def _answer(asked: Asked, odd: random.Random) -> list[Step]:
    text = odd.choice(("hello", f"the code is {SECRET} .", f"{SECRET[::-1]}", "say abracadabra", "arsenic", ""))
    if odd.random() < 0.05:
        return odd.choice((
            json_reply(b"{}"), json_reply(b"\xff"), json_reply({"error": {"message": SECRET}}, 500), ["close"],
            json_reply({"choices": [{"message": {"content": [SECRET]}}]}), sse_reply(f"data: {SECRET}\n\n"),
        ))  # fmt: skip
    stream = b'"stream":true' in asked.raw
    whole: dict[str, Callable[[str], Any]] = {
        "/v1/chat/completions": chat, "/v1/completions": completion, "/v1/responses": response, "/v1/messages": message,
    }  # fmt: skip
    pieces = re.findall(r".{1,3}", text, re.S)
    streams: dict[str, Callable[..., list[Any]]] = {
        "/v1/chat/completions": chat_stream, "/v1/responses": response_stream, "/v1/messages": message_stream
    }  # fmt: skip
    if stream and asked.path in streams:
        return sse_reply(*streams[asked.path](*pieces))
    return json_reply(whole[asked.path](text))


class _Line:
    """One connection, opened anew when the proxy has closed it."""

    def __init__(self, port: int) -> None:
        self.port, self.sock = port, None

    sock: socket.socket | None

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None

    def ask(self, data: bytes) -> tuple[int, bytes]:
        """Status and body; 0 where there was no whole answer within 15 seconds."""
        for _ in range(2):  # a connection that was kept may be closed just now
            fresh = self.sock is None
            if self.sock is None:
                self.sock = socket.create_connection(("127.0.0.1", self.port), timeout=15)
            reading = _Reading()
            parser = reading.parser = httptools.HttpResponseParser(reading)
            try:
                self.sock.sendall(data)
                while not reading.done and (part := self.sock.recv(1 << 16)):
                    parser.feed_data(part)
            except (OSError, httptools.HttpParserError):
                pass
            status = parser.get_status_code() if reading.begun else 0
            if not reading.done or not parser.should_keep_alive():
                self.close()
            if status or fresh:
                return (status if reading.done else 0), b"".join(reading.parts)
        return 0, b""


class _Reading:
    parser: httptools.HttpResponseParser

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.begun = self.done = False

    def on_message_begin(self) -> None:
        self.begun = True

    def on_body(self, body: bytes) -> None:
        self.parts.append(body)

    def on_message_complete(self) -> None:
        self.done = self.parser.get_status_code() != 100  # "continue" comes before the answer
