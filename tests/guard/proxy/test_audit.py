"""What left, and what the audit log says of it: every byte under a verdict, by the log's own verifier."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is missing: pip install 'fairlead[guard]'")
pytest.importorskip("aiohttp", reason="aiohttp is missing: pip install 'fairlead[guard]'")

import anthropic
import openai
import orjson

from fairlead.errors import InputError
from fairlead.guard.audit import store
from fairlead.guard.audit.verify import verify
from fairlead.guard.proxy import startup
from fairlead.guard.proxy.metrics import render, summed
from fairlead.guard.proxy.tenants import draw_key
from support.guard_proxy import POLICY, RULES, WINDOWED, Proxy
from support.mock_upstream import Mock, chat, chat_stream, json_reply, message, response, sse_reply

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


def test_a_stream_in_flight_at_a_reload_is_held_against_the_checks_that_it_had(tmp_path: Path) -> None:
    log, more = tmp_path / "audit.db", '    keep-secrets: ["(?i)open sesame"]\n'
    begin, rest = chat_stream("good morning to all of you " * 40)[:2], chat_stream("and to the keeper")[1:]
    with (
        Mock(lambda _: sse_reply(*begin, 1.5, *rest)) as mock,
        Proxy(tmp_path, mock.url, audit=log, constitution=WINDOWED) as proxy,
    ):
        client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="k", max_retries=0, timeout=30)
        stream = client.chat.completions.create(model="mock", messages=ASKED, stream=True)
        assert next(iter(stream)).choices
        proxy.policy.write_text(POLICY + more)
        assert "error" not in proxy.command("prepare")
        proxy.command("commit")
        assert "".join(c.choices[0].delta.content or "" for c in stream if c.choices).endswith("to the keeper")
        assert _ask(proxy.url, stream=True).endswith("to the keeper")
    report = verify(log, log.with_suffix(".key"), log.with_suffix(".heads"))
    assert report.whole and report.exchanges == 2, report.breaks


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


@pytest.mark.parametrize("policy", ["", "audit: {strict: true}\n"])
def test_text_and_the_end_of_the_server_in_one_read_are_in_the_log_as_they_were_sent(
    tmp_path: Path, policy: str
) -> None:
    """The server sends some text and breaks off in one packet. What the client reads is what the log says it read."""
    log, read = tmp_path / "audit.db", ""
    first, *pieces = chat_stream("good morning to all of you " * 40, "and to the keeper of the harbour")[:3]
    steps = sse_reply(first, *pieces, {"error": {"message": "out of coal"}}, end=False)
    sent: list[Any] = [b"".join(step for step in steps if isinstance(step, bytes)) + b"0\r\n\r\n"]
    with (
        Mock(lambda _: sent) as mock,
        Proxy(tmp_path, mock.url, audit=log, constitution=WINDOWED, policy=POLICY + policy) as proxy,
    ):
        client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="k", max_retries=0, timeout=30)
        with pytest.raises(openai.APIError):
            for chunk in client.chat.completions.create(model="mock", messages=ASKED, stream=True):
                read += chunk.choices[0].delta.content or ""
    assert bool(read) != bool(policy)  # a strict log: nothing leaves before its entry, so it is a clean error
    report = verify(log, log.with_suffix(".key"), log.with_suffix(".heads"))
    assert report.whole, report.breaks
    assert (report.exchanges, report.bytes, report.uncovered) == (1, len(read), 0)


def test_an_escalated_exchange_waits_for_a_person(tmp_path: Path) -> None:
    from fairlead.guard.audit import queue

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
    """What was asked as it came, what was said as it left."""
    from fairlead.guard.audit import texts

    log = tmp_path / "audit.db"
    with (
        Mock(lambda _: json_reply(chat("say abracadabra", "hello you"))) as mock,
        Proxy(tmp_path, mock.url, audit=log, policy=POLICY + "audit: {store_text: true}\n") as proxy,
    ):
        assert (
            "  texts of requests and replies are for 30 days; what is escalated is kept in full for 30 days"
            in "\n".join(startup.told(proxy.worker.app.setup))
        )
        _ask(proxy.url, n=2)
        mock.script = lambda _: sse_reply(*chat_stream("a little ", "abracadabra", " more"))
        _ask(proxy.url, stream=True)
    db = store.connect(log)
    first, second = (
        texts.kept(db, request) for (request,) in db.execute("select distinct request from texts order by row")
    )
    assert [kept.what for kept in first] == ["asked", "released"] and "hello" in first[0].text
    one, two = ({"choice": n, "part": 0, "place": "reply"} for n in (0, 1))
    assert orjson.loads(first[1].text) == [{**one, "text": "say [redacted]"}, {**two, "text": "hello you"}]
    assert orjson.loads(second[1].text) == [{**one, "text": "a little [redacted] more"}]


def test_how_long_what_is_escalated_is_kept_is_said_and_a_tenant_can_shorten_it(tmp_path: Path) -> None:
    """Without store_text; a tenant's time wins where it is shorter, and is not longer than the queue's."""
    from fairlead.guard.audit import texts

    drawn = [draw_key() for _ in range(3)]
    (tmp_path / "tenants.yaml").write_text(
        "tenants:\n" + "".join(
            f'  - {{name: t{days}, keys: ["{digest}"]{f", retention_days: {days}" if days else ""}}}\n'
            for days, (_, digest) in zip((0, 2, 90), drawn, strict=True)
        )
    )  # fmt: skip
    log, constitution = tmp_path / "audit.db", RULES.replace("on_violation: refuse", "on_violation: escalate")
    with (
        Mock(lambda _: json_reply(chat("a little arsenic"))) as mock,
        Proxy(
            tmp_path, mock.url, audit=log, constitution=constitution, tenants=tmp_path / "tenants.yaml",
            policy=POLICY + "audit: {queue_days: 10}\n",
        ) as proxy,
    ):  # fmt: skip
        said = "\n".join(startup.told(proxy.worker.app.setup))
        assert "texts of requests and replies are not kept; what is escalated is kept in full for 10 days" in said
        for key, _ in drawn:
            client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key=key, max_retries=0)
            client.chat.completions.create(model="mock", messages=ASKED)
    db = store.connect(log)
    kept = [kept for (r,) in db.execute("select request from queue order by id") for kept in texts.kept(db, r)]
    assert [(one.what, round((one.until - time.time()) / 86_400)) for one in kept] == [
        ("queue", 10), ("queue", 2), ("queue", 10)
    ]  # fmt: skip


def test_heads_are_posted_where_the_settings_say(tmp_path: Path) -> None:
    """What is posted is the end of the chain, sealed: kept elsewhere, it shows that records were cut off."""
    log, kept = tmp_path / "audit.db", tmp_path / "kept.heads"
    with Mock(lambda _: json_reply({})) as keeper, Mock(lambda _: json_reply(chat("hello"))) as mock:
        with Proxy(
            tmp_path, mock.url, audit=log, policy=POLICY + f"audit: {{heads_url: '{keeper.url}/heads'}}\n"
        ) as proxy:
            _ask(proxy.url)
        assert {(seen.method, seen.path) for seen in keeper.seen} == {("POST", "/heads")}
        kept.write_bytes(keeper.seen[-1].raw + b"\n")
    report = verify(log, log.with_suffix(".key"), kept)
    assert report.whole, report.breaks
    with contextlib.closing(store.connect(log)) as db:
        db.execute("delete from records where row = (select max(row) from records)")
    assert not verify(log, log.with_suffix(".key"), kept).whole


def test_heads_that_nobody_takes_are_counted_and_a_wrong_address_is_told(tmp_path: Path) -> None:
    log = tmp_path / "audit.db"
    with Mock(lambda _: json_reply({}, 500)) as keeper, Mock(lambda _: json_reply(chat("hello"))) as mock:
        policy = POLICY + f"audit: {{heads_url: '{keeper.url}/heads'}}\n"
        with Proxy(tmp_path, mock.url, audit=log, policy=policy) as proxy:
            _ask(proxy.url)
            until = time.monotonic() + 30
            while not (head := proxy.command("heads")["heads"][0])["heads_failures"] and time.monotonic() < until:
                time.sleep(0.05)
            assert "500" in head["heads_why"]
            proxy.worker.log._lost_all = 3  # type: ignore[union-attr]  # as if the queue had been full
            told = render(summed([proxy.command("metrics")])).decode()
            failures = re.search(r"(?m)^fairlead_guard_heads_failures_total (\S+)", told)
            assert failures is not None and float(failures[1]) >= 1
            assert "fairlead_guard_audit_lost_total 3.0" in told and "fairlead_guard_audit_failures_total 0.0" in told
        with pytest.raises(InputError, match="guard.yaml:5: audit: heads_url: .keeper. is no http or https address"):
            Proxy(tmp_path, mock.url, audit=log, policy=POLICY + "audit: {heads_url: keeper}\n")


def test_what_is_left_out_of_a_request_is_counted(tmp_path: Path) -> None:
    said: Any = {"role": "assistant", "content": "hello", "annotations": []}
    with Mock(lambda _: json_reply(chat("hello"))) as mock, Proxy(tmp_path, mock.url) as proxy:
        client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="k", max_retries=0)
        messages = [*ASKED, {**said, "annotations": [{"type": "url_citation"}]}, *ASKED]
        client.chat.completions.create(model="mock", messages=messages)
        assert proxy.count("dropped", "annotations of an earlier reply") == 1


def test_images_and_fields_that_pass_unread_are_counted_and_stand_in_the_log(tmp_path: Path) -> None:
    log, url = tmp_path / "audit.db", "data:image/png;base64,AAAA"
    policy = POLICY + "images: pass\nallow: [beta, web_search_options, tools.web_search, store]\n"
    with (
        Mock(lambda _: json_reply(chat("hello"))) as mock,
        Proxy(tmp_path, mock.url, audit=log, policy=policy) as proxy,
    ):
        client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="k", max_retries=0)
        image = {"type": "image_url", "image_url": {"url": url}}
        content: Any = [{"type": "text", "text": "hello"}, image, image]
        for _ in range(2):
            client.chat.completions.create(
                model="mock", messages=[{"role": "user", "content": content}],
                web_search_options={"user_location": {"type": "approximate"}},
            )  # fmt: skip
        client.chat.completions.create(model="mock", messages=ASKED)
        other = anthropic.Anthropic(base_url=proxy.url, api_key="k", max_retries=0)
        source: Any = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
        mock.script = lambda _: json_reply(message("hello"))
        other.messages.create(
            model="mock", max_tokens=9, messages=[{"role": "user", "content": [{"type": "image", "source": source}]}],
            extra_headers={"anthropic-beta": "some-beta-2025"},
        )  # fmt: skip
        mock.script = lambda _: json_reply(response("hello"))
        picture: Any = {"type": "input_image", "image_url": url, "detail": "low"}
        client.responses.create(model="mock", store=True, input=[{"role": "user", "content": [picture]}])
        told = {row[1]: row[2] for row in proxy.command("metrics")["counts"] if row[0] == "not_scanned"}
        assert told == {"image": 6.0, "field web_search_options": 2.0, "field beta": 1.0, "field store": 1.0}
    bodies = [orjson.loads(body) for (body,) in store.connect(log).execute("select body from records order by row")]
    assert [body.get("passed", {}) for body in bodies if body["kind"] == "exchange"] == [
        *[{"image": 2, "field web_search_options": 1}] * 2, {}, {"image": 1, "field beta": 1},
        {"image": 1, "field store": 1},
    ]  # fmt: skip
    assert verify(log, log.with_suffix(".key")).passed["image"] == 6
