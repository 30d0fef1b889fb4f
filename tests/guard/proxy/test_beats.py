"""Signs of life: before anything else is sent, whatever is waited for, and then errors are told in the stream."""

from __future__ import annotations

import dataclasses
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is missing: pip install 'fairlead[guard]'")
pytest.importorskip("aiohttp", reason="aiohttp is missing: pip install 'fairlead[guard]'")

import anthropic
import openai
import orjson

from fairlead.guard.audit import AuditClosed
from fairlead.guard.decision import ALLOW, Decision
from fairlead.guard.proxy import setup
from fairlead.guard.proxy.exchange import Exchange
from guard.helpers import ScriptedModel
from support.guard_proxy import POLICY, Proxy
from support.mock_upstream import Mock, chat_stream, json_reply, sse_reply

HEARTBEAT = POLICY + "heartbeat: 0.1\nlimits: {first_byte: 3, idle: 3, total: 30}\n"
SLOW = 0.35
ASKED: Any = [{"role": "user", "content": "hello"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "mock", "messages": ASKED},
    "/v1/completions": {"model": "mock", "prompt": "hello"},
    "/v1/responses": {"model": "mock", "input": "hello"},
    "/v1/messages": {"model": "mock", "max_tokens": 20, "messages": ASKED},
}


@dataclasses.dataclass
class _Slow:
    """A check of what is asked that takes its time, in the pool."""

    name: str = "slow"
    cost: int = 1
    principle: str = ""
    fails: bool = False

    def ask(self, messages: Sequence[Any]) -> Decision:
        time.sleep(SLOW)
        if self.fails:
            raise RuntimeError("broken")
        return ALLOW


def _with(proxy: Proxy, check: _Slow) -> None:
    account: Any = proxy.worker.app.setup.anyone
    checked = dataclasses.replace(account.book.checked, prompts=(check,))
    account.book = dataclasses.replace(account.book, checked=checked)


def _raw(proxy: Proxy, route: str) -> list[bytes]:
    """The stream as it came, its beats as b"beat" and everything else as the data of its events."""
    data = orjson.dumps({**BODIES[route], "stream": True})
    head = f"POST {route} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {len(data)}\r\n\r\n"
    start, _, rest = proxy.raw(head.encode() + data).partition(b"\r\n\r\n")
    assert start.startswith(b"HTTP/1.1 200") and b"text/event-stream" in start
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        if size == b"0":
            break
    else:
        raise AssertionError("the stream was broken off")
    assert body.endswith(b"\n\n")
    found = []
    for event in body.strip().split(b"\n\n"):
        lines = event.split(b"\n")
        if lines == [b": wait"] or lines[0] == b"event: ping":
            found.append(b"beat")
        else:
            found.append(b"".join(line.removeprefix(b"data: ") for line in lines if line.startswith(b"data: ")))
    return found


def _beats_first(told: list[bytes]) -> None:
    assert told.count(b"beat") >= 2 and told[:2] == [b"beat", b"beat"], told
    assert b"good" in b"".join(told)


def test_while_a_model_in_this_process_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def say(_: Any) -> str:
        time.sleep(SLOW)
        return "good morning"

    monkeypatch.setattr(setup, "open_model", lambda *_, **__: ScriptedModel(say))
    monkeypatch.setitem(BODIES["/v1/messages"], "model", "scripted")
    with Proxy(tmp_path, None, policy=HEARTBEAT, model="scripted") as proxy:
        _beats_first(_raw(proxy, "/v1/messages"))


def test_before_the_models_server_has_answered_and_while_what_is_asked_is_checked(tmp_path: Path) -> None:
    with Mock(lambda _: [SLOW, *sse_reply(*chat_stream("good"))]) as mock, Proxy(
        tmp_path, mock.url, policy=HEARTBEAT
    ) as proxy:  # fmt: skip
        _beats_first(_raw(proxy, "/v1/chat/completions"))
        mock.script = lambda _: sse_reply(*chat_stream("good"))
        _with(proxy, _Slow())
        _beats_first(_raw(proxy, "/v1/chat/completions"))
        client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="k", max_retries=0)
        said = client.chat.completions.create(model="mock", messages=ASKED, stream=True)
        assert "".join(c.choices[0].delta.content or "" for c in said if c.choices) == "good"


@pytest.mark.parametrize(
    ("route", "how"),
    [
        *(("/v1/chat/completions", how) for how in ("fails", "hangs", "check", "says an error", "fault")),
        *((route, how) for route in list(BODIES)[1:] for how in ("fails", "check")),
    ],
)
def test_what_breaks_after_a_beat_ends_the_stream_in_the_words_of_its_format(
    tmp_path: Path, route: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "audit.db"
    with Mock(lambda _: [SLOW, *json_reply({}, 500)]) as mock, Proxy(
        tmp_path, mock.url, policy=HEARTBEAT, audit=log
    ) as proxy:  # fmt: skip
        if how == "hangs":
            mock.script = lambda _: ["hang"]
        elif how == "says an error":
            error = {"type": "error", "error": {"type": "overloaded_error", "message": "x"}}
            mock.script = lambda _: [SLOW, *sse_reply(error)]
        elif how == "check":
            _with(proxy, _Slow(fails=True))
        elif how == "fault":
            real = Exchange.__init__

            def init(self: Any, *args: Any, **more: Any) -> None:
                real(self, *args, **more)
                monkeypatch.setattr(type(self.account.upstream), "ask", _fault)

            monkeypatch.setattr(Exchange, "__init__", init)
        *beats, last = [told for told in _raw(proxy, route) if told != b"[DONE]"]
        assert set(beats) >= {b"beat"}
        told = orjson.loads(last)
        words = told.get("error") or told.get("message") or told["response"]["error"]
        assert words, told
        assert how != "hangs" or b"did not answer within 3 seconds" in last
        with pytest.raises((openai.APIError, anthropic.APIError)) as raised:
            _sdk(proxy, route)
        assert len(str(raised.value)) > 20


async def _fault(*_: Any, **__: Any) -> Any:
    import asyncio

    await asyncio.sleep(SLOW)
    raise ValueError("nothing of this is told")


def _sdk(proxy: Proxy, route: str) -> None:
    one = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="k", max_retries=0)
    made: Any = {
        "/v1/chat/completions": one.chat.completions.create, "/v1/completions": one.completions.create,
        "/v1/responses": one.responses.create,
        "/v1/messages": anthropic.Anthropic(base_url=proxy.url, api_key="k", max_retries=0).messages.create,
    }  # fmt: skip
    for event in made[route](**BODIES[route], stream=True):
        if getattr(event, "type", "") == "response.failed":
            raise openai.APIError(str(event.response.error), request=None, body=None)  # type: ignore[arg-type]


def test_a_log_that_fails_after_a_beat_ends_the_stream_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a strict log nothing of the reply was sent: what is told is written as if there had been none."""
    policy = HEARTBEAT + "audit: {strict: true}\n"
    with Mock(lambda _: sse_reply(*chat_stream("good ", "day")[:2], SLOW, *chat_stream("day")[1:])) as mock, Proxy(
        tmp_path, mock.url, policy=policy, audit=tmp_path / "audit.db"
    ) as proxy:  # fmt: skip

        async def settled(number: int) -> None:
            raise AuditClosed("the disk is full")

        monkeypatch.setattr(proxy.worker.log, "settled", settled)
        *beats, last = [told for told in _raw(proxy, "/v1/chat/completions") if told != b"[DONE]"]
        assert b"beat" in beats and b"good" not in b"".join(beats) and b"audit log" in last


def test_a_client_that_leaves_while_only_beats_were_sent_ends_the_question(tmp_path: Path) -> None:
    with Mock(lambda _: ["hang"]) as mock, Proxy(
        tmp_path, mock.url, policy=HEARTBEAT.replace("first_byte: 3", "first_byte: 29")
    ) as proxy:  # fmt: skip
        data = orjson.dumps({**BODIES["/v1/messages"], "stream": True})
        with socket.create_connection(("127.0.0.1", proxy.port)) as sock:
            sock.sendall(
                f"POST /v1/messages HTTP/1.1\r\nhost: a\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data
            )
            assert b"event: ping" in sock.recv(1000) + sock.recv(1000)
        until = time.monotonic() + 5
        while not mock.left and time.monotonic() < until:
            time.sleep(0.01)
        assert mock.left == 1 and proxy.count("turned_away", "client left") == 1
