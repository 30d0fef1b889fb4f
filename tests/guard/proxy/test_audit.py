"""What left, and what the audit log says of it: every byte under a verdict, by the log's own verifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is missing: pip install 'fairlead[guard]'")
pytest.importorskip("aiohttp", reason="aiohttp is missing: pip install 'fairlead[guard]'")

import openai

from fairlead.guard.audit.verify import verify
from support.guard_proxy import POLICY, RULES, Proxy
from support.mock_upstream import Mock, chat, chat_stream, json_reply, sse_reply

ASKED: list[Any] = [{"role": "user", "content": "hello"}]
TEXTS = ("good morning", "say abracadabra now", "a little arsenic", "the code is falcon-7781-heron indeed", "grüße ✓")


def _ask(url: str, **more: Any) -> str:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0, timeout=30)
    told = client.chat.completions.create(model="mock", messages=ASKED, **more)
    if more.get("stream"):
        return "".join(c.choices[0].delta.content or "" for c in told if c.choices)
    return "".join(choice.message.content or "" for choice in told.choices)


@pytest.mark.parametrize("policy", ["", "audit: {strict: true}\n"])
def test_every_byte_that_left_stands_under_a_verdict(tmp_path: Path, policy: str) -> None:
    log, said = tmp_path / "audit.db", 0
    with (
        Mock(lambda _: json_reply(chat("hello"))) as mock,
        Proxy(tmp_path, mock.url, audit=log, policy=POLICY + policy) as proxy,
    ):
        for text in TEXTS:
            mock.script = lambda _, text=text: json_reply(chat(text))
            said += len(_ask(proxy.url).encode())
            mock.script = lambda _, text=text: sse_reply(*chat_stream(*text))
            said += len(_ask(proxy.url, stream=True).encode())
        mock.script = lambda _: json_reply(chat(*TEXTS))
        said += len(_ask(proxy.url, n=len(TEXTS)).encode())
        mock.script = lambda _: json_reply({}, 500)
        with pytest.raises(openai.InternalServerError):
            _ask(proxy.url)
    report = verify(log, log.with_suffix(".key"), log.with_suffix(".heads"))
    assert report.whole, report.breaks
    assert (report.exchanges, report.bytes, report.uncovered, report.uncounted) == (2 * len(TEXTS) + 2, said, 0, 0)
    assert report.unsent == 0
    stored = log.read_bytes()
    for text in ("falcon", "good morning", "grüße"):
        assert text.encode() not in stored


def test_a_stream_that_nobody_finished_is_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "audit.db"
    stream = chat_stream("good morning to all of you and to the keeper of the harbour")[:2]
    with (
        Mock(lambda _: sse_reply(*stream, "reset", end=False)) as mock,
        Proxy(tmp_path, mock.url, audit=log) as proxy,
        pytest.raises(openai.APIError),
    ):
        _ask(proxy.url, stream=True)
    report = verify(log, log.with_suffix(".key"), log.with_suffix(".heads"))
    assert report.whole and report.exchanges == 1


def test_an_escalated_exchange_waits_for_a_person(tmp_path: Path) -> None:
    from fairlead.guard.audit import queue, store

    log = tmp_path / "audit.db"
    constitution = RULES.replace("on_violation: refuse", "on_violation: escalate")
    with (
        Mock(lambda _: json_reply(chat("a little arsenic"))) as mock,
        Proxy(tmp_path, mock.url, audit=log, constitution=constitution) as proxy,
    ):
        assert _ask(proxy.url) == "i keep silent about that ."
    [waiting] = queue.waiting(store.connect(log))
    assert waiting.principle == "no-poison"
    assert waiting.exchange is not None and waiting.exchange.reply_text == "a little arsenic"


def test_texts_are_kept_where_that_is_asked_for(tmp_path: Path) -> None:
    from fairlead.guard.audit import store, texts

    log = tmp_path / "audit.db"
    with (
        Mock(lambda _: json_reply(chat("hello"))) as mock,
        Proxy(tmp_path, mock.url, audit=log, policy=POLICY + "audit: {store_text: true}\n") as proxy,
    ):
        _ask(proxy.url)
    db = store.connect(log)
    [(request,)] = db.execute("select distinct request from texts").fetchall()
    assert [(kept.what, "hello" in kept.text) for kept in texts.kept(db, request)] == [("asked", True)]
