"""Everything that breaks becomes a well-formed answer with a reason, in time, and nothing unread leaves."""

from __future__ import annotations

import dataclasses
import gc
import logging
import re
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is missing: pip install 'fairlead[guard]'")
pytest.importorskip("aiohttp", reason="aiohttp is missing: pip install 'fairlead[guard]'")

import openai
import orjson

from fairlead.guard.proxy.guarding import Guarding
from fairlead.guard.release import Release
from support.guard_proxy import NOTHING, POLICY, RULES, WINDOWED, Proxy
from support.mock_upstream import (
    Mock,
    Script,
    Step,
    chat,
    chat_chunk,
    chat_stream,
    chunked,
    head,
    json_reply,
    message_stream,
    response_stream,
    sse_reply,
)

LIMITS = (
    "limits: {first_byte: 0.6, idle: 0.6, total: 5, request: 1.5, stalled: 1.5, connect: 1, drain: 2, reply: 200000, "
    "body: 100000, header: 4096, headers: 30}\nheartbeat: 0.2\n"
)
ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "mock", "messages": [{"role": "user", "content": "hello"}]},
    "/v1/completions": {"model": "mock", "prompt": "hello"},
    "/v1/responses": {"model": "mock", "input": "hello"},
    "/v1/messages": {"model": "mock", "max_tokens": 20, "messages": [{"role": "user", "content": "hello"}]},
}
SECRET = "arsenic-by-the-spoonful"  # text of a server that never may pass


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Proxy, Mock]]:
    folder = tmp_path_factory.mktemp("faults")
    with (
        Mock(lambda _: json_reply(chat("hello"))) as mock,
        Proxy(folder, mock.url, constitution=WINDOWED, policy=POLICY + LIMITS) as proxy,
    ):
        yield proxy, mock


def ask(proxy: Proxy, route: str = ROUTES[0], wait: float = 8.0, **more: Any) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body; the body of a stream as it came, its chunks joined."""
    data = orjson.dumps({**BODIES[route], **more})
    raw = proxy.raw(
        f"POST {route} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\nconnection: close\r\n"
        f"content-length: {len(data)}\r\n\r\n".encode()
        + data,
        wait=wait,
    )
    start, _, body = raw.partition(b"\r\n\r\n")
    lines = start.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    if headers.get("transfer-encoding") == "chunked":
        assert body.endswith(b"0\r\n\r\n"), "the stream did not end well-formed"
        body = b"".join(part for i, part in enumerate(_chunks(body)) if i % 2)
    return int(lines[0].split()[1]), headers, body


def _chunks(body: bytes) -> Iterator[bytes]:
    while body:
        size, _, rest = body.partition(b"\r\n")
        n = int(size, 16)
        yield size
        yield rest[:n]
        body = rest[n + 2 :]


def bad_answers() -> dict[str, tuple[Script, int, bool]]:
    """What a server may do, the status that a client gets, and whether SDKs may try again."""
    invalid = b'{"choices": "\xff\xfe' + SECRET.encode() + b'"}'
    endless = [head(200, "application/json", None), *([chunked(b"x" * 60_000)] * 40), "hang"]
    kinds: dict[str, tuple[Sequence[Step], int, bool]] = {
        "hangs": (["hang"], 504, True),
        "hangs in the headers": ([b"HTTP/1.1 200 OK\r\ncontent-", "hang"], 504, True),
        "hangs in the body": ([head(200, "application/json", 100), b'{"a', "hang"], 504, True),
        "resets": (["reset"], 502, True),
        "resets in the body": ([head(200, "application/json", 100), b'{"a', 0.05, "reset"], 502, True),
        "closes in the body": ([head(200, "application/json", 100), b'{"a', 0.05, "close"], 502, True),
        "sends no HTTP": ([b"\x16\x03\x01 nothing\r\n\r\n", "close"], 502, True),
        "sends invalid UTF-8": (json_reply(invalid), 502, True),
        "sends no JSON": (json_reply(SECRET.encode()), 502, True),
        "sends a list": (json_reply([SECRET]), 502, True),
        "sends another object": (json_reply({"text": SECRET}), 502, True),
        "sends HTML": ([head(200, "text/html", 9) + b"<p>hi</p>"], 502, True),
        "sends gzip": (json_reply(b"\x1f\x8b", more="content-encoding: gzip\r\n"), 502, True),
        "says it is long": ([head(200, "application/json", 10**9), b"{", "hang"], 502, False),
        "is endless": (endless, 502, False),
        "redirects": ([head(302, "text/plain", 0, "location: http://127.0.0.1:9/\r\n")], 502, False),
        "does not take the key": (json_reply({"error": {"message": SECRET}}, 401), 502, False),
        "has no such model": (json_reply({"error": {"message": SECRET}}, 404), 404, False),
        "refuses": (json_reply({"error": {"message": SECRET}}, 400), 400, False),
        "is over its rate": (json_reply({"error": {"message": SECRET}}, 429, "retry-after: 7\r\n"), 429, True),
        "fails": (json_reply({"error": {"message": SECRET}}, 500), 500, True),
        "is overloaded": (json_reply({"error": {"message": SECRET}}, 529), 529, True),
        "says an error with 200": (json_reply({"error": {"message": SECRET}}), 502, True),
    }
    return {name: (lambda _, steps=steps: steps, status, again) for name, (steps, status, again) in kinds.items()}


@pytest.mark.parametrize("name", bad_answers())
def test_a_server_that_misbehaves(both: tuple[Proxy, Mock], name: str) -> None:
    proxy, mock = both
    mock.script, status, again = bad_answers()[name]
    began = time.monotonic()
    found, headers, body = ask(proxy)
    assert time.monotonic() - began < 6
    assert found == status, body
    told = orjson.loads(body)
    assert len(told["error"]["message"]) > 20
    assert SECRET.encode() not in body and b"Traceback" not in body
    assert headers.get("x-should-retry", "true") == ("true" if again else "false")
    assert len(headers["x-request-id"]) == 16
    if status == 429:
        assert headers["retry-after"] == "7"


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_in_the_words_of_each_format(both: tuple[Proxy, Mock], route: str, stream: bool) -> None:
    proxy, mock = both
    mock.script = lambda _: json_reply({"error": {"message": SECRET}}, 500)
    status, _, body = ask(proxy, route, stream=stream)
    told = orjson.loads(body)
    assert status == 500 and told["error"]["message"] and told["error"]["type"]
    assert (told.get("type") == "error") == (route == "/v1/messages")


_BEGUN: dict[str, list[Any]] = {
    "/v1/chat/completions": list(chat_stream("good morning, this is a longer text to begin with, as it were", " now"))[
        :2
    ],
    "/v1/responses": response_stream("good morning, this is a longer text to begin with, as it were", " now")[:4],
    "/v1/messages": message_stream("good morning, this is a longer text to begin with, as it were", " now")[:3],
}


@pytest.mark.parametrize("route", _BEGUN)
@pytest.mark.parametrize("how", ["hang", "reset", "close", "garbage", "not utf-8"])
def test_a_stream_that_breaks_ends_well_formed_with_a_reason(both: tuple[Proxy, Mock], route: str, how: str) -> None:
    proxy, mock = both
    last: Any = {"garbage": "data: {{{\n\n", "not utf-8": b"data: \xff\xfe\n\n"}.get(how, how)
    mock.script = lambda _: sse_reply(*_BEGUN[route], 0.05, last, end=how in ("garbage", "not utf-8"))
    status, _, body = ask(proxy, route, stream=True)
    if status == 200:
        assert b"error" in body or b"failed" in body
    else:
        assert status in (502, 504) and orjson.loads(body)["error"]["message"]


def test_an_event_that_nobody_knows_does_not_leave(both: tuple[Proxy, Mock]) -> None:
    proxy, mock = both
    odd = {"type": "response.odd.delta", "delta": SECRET, "sequence_number": 3}
    stream = response_stream("hello there", " you")
    mock.script = lambda _: sse_reply(*stream[:4], odd, *stream[4:])
    status, _, body = ask(proxy, "/v1/responses", stream=True)
    assert status in (200, 502) and SECRET.encode() not in body


def test_nobody_there(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Proxy(tmp_path, f"http://127.0.0.1:{port}", policy=POLICY + LIMITS) as proxy:
        status, _, body = ask(proxy)
        assert status == 502 and b"could not be reached" in body


# ------------------------------------------------------------------------------------------------ clients


def test_a_client_that_leaves_ends_the_question(both: tuple[Proxy, Mock]) -> None:
    proxy, mock = both
    for stream in (False, True):
        before, gone = mock.left, proxy.count("turned_away", "client left")
        mock.script = lambda _: sse_reply(chat_chunk({"content": "hello"}), "hang")
        data = orjson.dumps({**BODIES[ROUTES[0]], "stream": stream})
        sock = socket.create_connection(("127.0.0.1", proxy.port))
        start = f"POST {ROUTES[0]} HTTP/1.1\r\nhost: a\r\ncontent-length: {len(data)}\r\n\r\n"
        sock.sendall(start.encode() + data)
        time.sleep(0.2)
        sock.close()
        until = time.monotonic() + 0.4  # well before the bound on silence
        while mock.left == before and time.monotonic() < until:
            time.sleep(0.01)
        assert mock.left == before + 1
        assert proxy.count("turned_away", "client left") == gone + 1 or not stream
        assert proxy.worker.app.in_flight == 0


def _models(proxy: Proxy, wait: float = 10.0) -> bytes:
    return proxy.raw(b"GET /v1/models HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", wait=wait)


def test_the_list_of_models_ends_with_its_client_its_server_and_its_errors(
    both: tuple[Proxy, Mock], recwarn: pytest.WarningsRecorder
) -> None:
    proxy, mock = both
    before = proxy.count("requests", "/v1/models", "local", "200", "")
    mock.script = lambda _: json_reply({"object": "list", "data": [{"id": "mock"}]})
    assert b'"mock"' in _models(proxy)
    assert proxy.count("requests", "/v1/models", "local", "200", "") == before + 1
    for steps in (json_reply(b"x" * 300_000), json_reply(b"no json"), json_reply({}, 500), ["hang"]):
        mock.script = lambda _, steps=steps: steps
        left, failed = mock.left, _failures(proxy)
        assert _models(proxy).startswith((b"HTTP/1.1 502", b"HTTP/1.1 500", b"HTTP/1.1 504"))
        assert _failures(proxy) == failed + 1 and mock.left >= left
    mock.script = lambda _: ["hang"]
    left, gone = mock.left, proxy.count("turned_away", "client left")
    with socket.create_connection(("127.0.0.1", proxy.port)) as sock:
        sock.sendall(b"GET /v1/models HTTP/1.1\r\nhost: a\r\n\r\n")
        time.sleep(0.2)
    until = time.monotonic() + 0.35  # well before the bound on silence
    while mock.left == left and time.monotonic() < until:
        time.sleep(0.01)
    assert mock.left == left + 1
    while proxy.count("turned_away", "client left") == gone and time.monotonic() < until + 5:
        time.sleep(0.01)
    assert proxy.count("turned_away", "client left") == gone + 1
    gc.collect()
    assert not [one for one in recwarn if "nclosed" in str(one.message)]


def _failures(proxy: Proxy) -> float:
    return sum(n for key, n in list(proxy.worker.app.metrics.counts.items()) if key[0] == "upstream_failures")


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_request_held_is_free_when_it_ends_without_the_collector(tmp_path: Path, stream: bool) -> None:
    """With an audit log, where the release can hand an exchange to people: the two know each other."""
    audit = POLICY + f"audit: {{file: {tmp_path}/audit.db}}\n"
    script: Script = lambda _: sse_reply(*chat_stream("hello")) if stream else json_reply(chat("hello"))  # noqa: E731
    with Mock(script) as mock, Proxy(tmp_path, mock.url, constitution=WINDOWED, policy=audit) as proxy:
        gc.collect()
        gc.disable()
        try:
            assert all(ask(proxy, stream=stream)[0] == 200 for _ in range(3))
            until = time.monotonic() + 5
            while (left := _alive()) and time.monotonic() < until:
                time.sleep(0.01)
            assert not left
        finally:
            gc.enable()


def _alive() -> int:
    return sum(type(one) in (Guarding, Release) for one in gc.get_objects())


def test_a_client_that_does_not_read_is_cut_off(tmp_path: Path) -> None:
    piece = chunked(b"data: " + orjson.dumps(chat_chunk({"content": "hello there " * 400})) + b"\n\n")
    endless = [head(200, "text/event-stream", None), *([piece] * 5000)]
    policy = POLICY + LIMITS.replace("reply: 200000", "reply: 200000000").replace("total: 5", "total: 30")
    policy = policy.replace(POLICY, "")
    with Mock(lambda _: endless) as mock, Proxy(tmp_path, mock.url, constitution=NOTHING, policy=policy) as proxy:
        data = orjson.dumps({**BODIES[ROUTES[0]], "stream": True})
        proxy._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", proxy.port))
            sock.sendall(f"POST {ROUTES[0]} HTTP/1.1\r\nhost: a\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data)
            until = time.monotonic() + 12
            while not proxy.count("turned_away", "client stalled") and time.monotonic() < until:
                time.sleep(0.05)
        assert proxy.count("turned_away", "client stalled") == 1
        assert proxy.worker.app.in_flight == 0


def test_a_client_waits_with_signs_of_life(tmp_path: Path) -> None:
    """The reply is held back whole; in the meantime something comes at least every 0.2 seconds."""
    slow: list[Any] = [chat_chunk({"content": "a"}), 0.3, chat_chunk({"content": "b"}), 0.3, *chat_stream("c")[1:]]
    with Mock(lambda _: sse_reply(*slow)) as mock, Proxy(tmp_path, mock.url, policy=POLICY + LIMITS) as proxy:
        _, _, body = ask(proxy, stream=True)
        assert body.startswith(b":")
        assert body.index(b"content") > body.index(b":")
        reply = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="k").chat.completions.create(
            model="mock", messages=[{"role": "user", "content": "hello"}], stream=True
        )
        assert "".join(c.choices[0].delta.content or "" for c in reply if c.choices) == "abc"


# ------------------------------------------------------------------------------------------- requests


def _post(headers: str, body: bytes = b"{}") -> bytes:
    return f"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\n{headers}\r\n".encode() + body


@pytest.mark.parametrize(
    ("data", "statuses"),
    [
        (_post("content-length: 2\r\ncontent-length: 3\r\n"), {400}),
        (_post("content-length: 2\r\ncontent-length: 2\r\n"), {400}),
        (_post("content-length: 2\r\ntransfer-encoding: chunked\r\n", b"2\r\n{}\r\n0\r\n\r\n"), {400}),
        (_post("transfer-encoding: chunked, gzip\r\n", b"2\r\n{}\r\n0\r\n\r\n"), {400}),
        (_post("transfer-encoding: xchunked\r\n", b"2\r\n{}\r\n0\r\n\r\n"), {400}),
        (_post("content-length : 2\r\n"), {400}),
        (_post("content-length: 2\r\n folded: 1\r\n"), {400, 415}),
        (_post("x: " + "a" * 5000 + "\r\ncontent-length: 2\r\n"), {431}),
        (_post("".join(f"x{i}: a\r\n" for i in range(40)) + "content-length: 2\r\n"), {431}),
        (b"POST /" + b"a" * 9000 + b" HTTP/1.1\r\nhost: a\r\n\r\n", {414, 431}),
        (b"x" * 20_000, {400, 431}),
        (_post("content-length: 200000\r\n"), {413}),
        (_post("transfer-encoding: chunked\r\n", chunked(b"x" * 60_000, b"x" * 60_000) + b"0\r\n\r\n"), {413}),
        (_post("content-length: 2\r\ncontent-encoding: gzip\r\n"), {415}),
        (_post("content-length: 2\r\ncontent-type: text/plain\r\n"), {415}),
        (_post("content-length: 4\r\n", b"\xff\xfe{}"), {400}),
        (_post("content-length: 4\r\n", b"[[]]"), {400}),
        (_post("content-length: 2\r\nauthorization: Bearer a\r\nx-api-key: b\r\n"), {400}),
        (_post("content-length: 2\r\norigin: http://page.example\r\n"), {403}),
        (_post("content-length: 100\r\n", b"{"), {408}),
        (b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nx: ", {408}),
        (b"POST /v1/chat/completions?stream=1 HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}", {400}),
        (b"PUT /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}", {405}),
    ],
)
def test_what_is_malformed_smuggled_or_too_large_is_refused(
    both: tuple[Proxy, Mock], data: bytes, statuses: set[int]
) -> None:
    proxy, mock = both
    mock.seen.clear()
    mock.script = lambda _: json_reply(chat("hello"))
    back = proxy.raw(data, wait=3.0)
    assert back.startswith(b"HTTP/1.1 "), back
    assert int(back.split()[1]) in statuses, back
    assert len(re.findall(rb"HTTP/1.1 \d", back)) == 1, "one request was read as two"
    told = orjson.loads(back.partition(b"\r\n\r\n")[2])
    assert len(told["error"]["message"]) > 15
    assert not mock.seen


def test_more_than_it_holds_is_turned_away_at_once(tmp_path: Path) -> None:
    policy = POLICY + "limits: {in_flight: 1, retry_after: 3}\n"
    with Mock(lambda _: ["hang"]) as mock, Proxy(tmp_path, mock.url, policy=policy) as proxy:
        data = orjson.dumps(BODIES[ROUTES[0]])
        with socket.create_connection(("127.0.0.1", proxy.port)) as first:
            first.sendall(
                f"POST {ROUTES[0]} HTTP/1.1\r\nhost: a\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data
            )
            while not mock.seen:
                time.sleep(0.01)
            status, headers, body = ask(proxy)
            assert (status, headers["retry-after"], headers.get("x-should-retry")) == (503, "3", None), body
            assert b" 503 " in proxy.raw(b"GET /readyz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            assert b" 200 " in proxy.raw(b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")


# --------------------------------------------------------------------------------------------- checks


def _with_check(proxy: Proxy, start: Any) -> None:
    """Puts another watch in the place of the first check of the proxy."""
    account = proxy.worker.app.setup.anyone
    assert account is not None
    for name in ("plan", "whole"):
        plan = getattr(account.book, name)
        changed = dataclasses.replace(plan.followed[0], start=start)
        swapped = dataclasses.replace(plan, followed=(changed, *plan.followed[1:]))
        account.book = dataclasses.replace(account.book, **{name: swapped})


class _Raises:
    def feed(self, seen: Any) -> Any:
        raise RuntimeError(SECRET)

    def finish(self, choice: int) -> Any:
        raise RuntimeError(SECRET)


class _NotANumber:
    def feed(self, seen: Any) -> Any:
        return float("nan")

    finish = feed


@pytest.mark.parametrize("watch", [_Raises, _NotANumber])
@pytest.mark.parametrize("stream", [False, True])
def test_a_broken_check_is_a_503_that_sdks_do_not_try_again(tmp_path: Path, watch: type, stream: bool) -> None:
    with Mock(lambda _: json_reply(chat(SECRET))) as mock, Proxy(tmp_path, mock.url) as proxy:
        if stream:
            mock.script = lambda _: sse_reply(*chat_stream("some", "thing"))
        _with_check(proxy, lambda _: watch())
        status, headers, body = ask(proxy, stream=stream)
        assert (status, headers["x-should-retry"]) == (503, "false"), body
        assert SECRET.encode() not in body
        mock.seen.clear()
        mock.script = lambda _: json_reply(chat(SECRET))
        with pytest.raises(openai.InternalServerError):
            openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="k", max_retries=4).chat.completions.create(
                model="mock", messages=[{"role": "user", "content": "hello"}]
            )
        assert len(mock.seen) == 1


class _FullDisk:
    accepting = False


def test_a_log_that_cannot_be_written_stops_new_requests(tmp_path: Path) -> None:
    with Mock(lambda _: json_reply(chat("hello"))) as mock, Proxy(tmp_path, mock.url) as proxy:
        proxy.worker.app.log = _FullDisk()  # type: ignore[assignment]
        status, headers, body = ask(proxy)
        assert (status, "retry-after" in headers) == (503, True) and b"audit" in body and not mock.seen
        told = proxy.command("status")
        assert (told["ready"], told["busy"]) == (False, ["audit log"]), "operators hear what clients hear"
        assert proxy.raw(b"GET /readyz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").startswith(b"HTTP/1.1 503")
        proxy.worker.app.log = None
        assert proxy.command("status")["ready"]


def test_a_fault_inside_is_a_500_with_a_reason_and_without_the_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with Mock(lambda _: json_reply(chat(SECRET))) as mock, Proxy(tmp_path, mock.url) as proxy:

        def broken(*_: Any, **__: Any) -> Any:
            raise ValueError(SECRET)

        proxy.worker.app.setup.anyone.upstream.ask = broken  # type: ignore[union-attr, method-assign]
        status, _, body = ask(proxy)
        assert status == 500 and b"ValueError" in body and SECRET.encode() not in body
        assert SECRET not in caplog.text and "failed inside: ValueError at" in caplog.text


def test_no_key_and_no_text_in_any_log(
    both: tuple[Proxy, Mock], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    proxy, mock = both
    for script, _, _ in bad_answers().values():
        if "hang" not in script(None):  # type: ignore[arg-type]
            mock.script = script
            ask(proxy, messages=[{"role": "user", "content": SECRET}])
    proxy.raw(_post("content-length: 2\r\nauthorization: Bearer sk-client-key\r\nx-api-key: sk-other-key\r\n"))
    out, err = capfd.readouterr()
    for text in (caplog.text, out, err):
        assert SECRET not in text and "sk-client" not in text and "sk-other" not in text


# --------------------------------------------------------------------------------------------- reload


def test_a_broken_constitution_does_not_take_the_place_of_a_whole_one(tmp_path: Path) -> None:
    with Mock(lambda _: json_reply(chat("say abracadabra"))) as mock, Proxy(tmp_path, mock.url) as proxy:
        before = proxy.command("status")["constitutions"]
        proxy.constitution.write_text(RULES.replace("severity: 2", "severity: many"))
        told = proxy.command("prepare")
        assert "constitution.yaml:6" in told["error"]
        proxy.command("drop")
        assert proxy.command("status")["constitutions"] == before
        assert b"[redacted]" in ask(proxy)[2]
        proxy.constitution.write_text(RULES.replace("on_violation: redact", "on_violation: refuse", 1))
        assert "error" not in proxy.command("prepare")
        assert b"[redacted]" in ask(proxy)[2], "prepared is not yet in use"
        proxy.command("commit")
        assert proxy.command("status")["constitutions"] != before
        assert b"i will not say it ." in ask(proxy)[2]


def test_limits_do_not_change_while_it_runs(tmp_path: Path) -> None:
    with Mock(lambda _: json_reply(chat("hello"))) as mock, Proxy(tmp_path, mock.url) as proxy:
        proxy.policy.write_text(POLICY + "limits: {in_flight: 3}\n")
        assert "limits cannot change" in proxy.command("prepare")["error"]


def test_a_reply_that_is_refused_is_not_waited_for(tmp_path: Path) -> None:
    """The server would go on for ever; it is told to stop once the secret has begun to show, and the stream ends."""
    begun = [chat_chunk({"content": "the code is falcon-7781-heron and so on "})]
    constitution = RULES.replace('guard: {on_violation: redact, say: "that', 'guard: {on_violation: refuse, say: "that')
    with (
        Mock(lambda _: sse_reply(*begun, *[chat_chunk({"content": "and so on "})] * 20, "hang")) as mock,
        Proxy(
            tmp_path, mock.url, constitution=constitution.replace(", stream: window}\nsecrets", "}\nsecrets")
        ) as proxy,
    ):
        began = time.monotonic()
        status, _, body = ask(proxy, stream=True)
        assert status == 200 and b"falcon" not in body and b"that stays with me" in body
        assert time.monotonic() - began < 5
        while not mock.left and time.monotonic() - began < 5:
            time.sleep(0.01)
        assert mock.left == 1


def test_the_usage_behind_a_changed_reply_still_comes(tmp_path: Path) -> None:
    usage = {**chat_chunk({}), "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}}
    told = chat_stream("say ", "abracadabra", " now")
    with (
        Mock(lambda _: sse_reply(*told[:-1], usage, told[-1])) as mock,
        Proxy(tmp_path, mock.url) as proxy,
    ):
        _, _, body = ask(proxy, stream=True, stream_options={"include_usage": True})
        assert b'"total_tokens":12' in body and b"[redacted]" in body
        assert proxy.count("tokens", "local", "total_tokens") == 12 and mock.left == 0
