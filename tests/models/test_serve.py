"""The loopback server: both wire formats as other clients see them."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request

import pytest

from fairlead.exchange import Message, Text, ToolCall, ToolResult, assistant, system, user
from fairlead.models import Sampling, wire
from fairlead.models.protocol import Reply
from fairlead.models.serve import Server
from support.fakes import Echo


def call(server: Server, path: str, body: object, **headers: str) -> tuple[int, dict]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
MESSAGES = {**CHAT, "max_tokens": 9}


def test_lists_its_model() -> None:
    with Server(Echo()) as server, urllib.request.urlopen(server.url + "/v1/models", timeout=5) as answer:
        assert [m["id"] for m in json.load(answer)["data"]] == ["echo"]


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/v1/chat/completions", b"{", 400, "not JSON"),
        ("/v1/chat/completions", b"[]", 400, "JSON object"),
        ("/v1/chat/completions", {"model": "echo"}, 400, "messages"),
        ("/v1/chat/completions", {**CHAT, "messages": [{"role": "boss", "content": "x"}]}, 400, "boss"),
        ("/v1/chat/completions", {**CHAT, "frequency_penalty": 1}, 400, "frequency_penalty"),
        ("/v1/chat/completions", {**CHAT, "temperature": "hot"}, 400, "temperature"),
        ("/v1/chat/completions", {**CHAT, "n": 0}, 400, "n must lie"),
        ("/v1/chat/completions", {**CHAT, "top_k": 3}, 400, "top_k"),
        ("/v1/chat/completions", {**CHAT, "model": "other"}, 404, "other"),
        ("/v1/nothing", CHAT, 404, "/v1/nothing"),
        ("/v1/messages", CHAT, 400, "max_tokens"),
        ("/v1/messages", {**MESSAGES, "seed": 1}, 400, "seed"),
        ("/v1/messages", {**MESSAGES, "messages": [{"role": "system", "content": "x"}]}, 400, "system"),
    ],
)
def test_bad_requests_are_told_why(path: str, body: object, status: int, words: str) -> None:
    with Server(Echo()) as server:
        got, answer = call(server, path, body)
    assert got == status and words in answer["error"]["message"]


def test_sampling_fields_left_the_messages_api_in_its_newer_version() -> None:
    with Server(Echo()) as server:
        warm = {**MESSAGES, "temperature": 0.5}
        assert call(server, "/v1/messages", warm, **{"anthropic-version": "2026-10-21"})[0] == 400
        assert call(server, "/v1/messages", warm, **{"anthropic-version": "2023-06-01"})[0] == 200


def test_keys_are_checked() -> None:
    with Server(Echo(), key="right") as server:
        assert call(server, "/v1/chat/completions", CHAT)[0] == 401
        assert call(server, "/v1/chat/completions", CHAT, Authorization="Bearer wrong")[0] == 401
        assert call(server, "/v1/chat/completions", CHAT, Authorization="Bearer right")[0] == 200
        assert call(server, "/v1/messages", MESSAGES, **{"x-api-key": "right"})[0] == 200


def test_streams_are_read_by_both_sdks() -> None:
    import anthropic
    import openai

    with Server(Echo()) as server:
        client = openai.OpenAI(api_key="k", base_url=server.url + "/v1", max_retries=0)
        stream = client.chat.completions.create(
            model="echo",
            messages=[{"role": "user", "content": "a b"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "a b #0"
        assert chunks[-1].usage.completion_tokens == 2 and chunks[-2].choices[0].finish_reason == "stop"
        other = anthropic.Anthropic(api_key="k", base_url=server.url, max_retries=0)
        with other.messages.stream(model="echo", max_tokens=9, messages=[{"role": "user", "content": "a b"}]) as events:
            assert "".join(events.text_stream) == "a b #0"
            assert events.get_final_message().stop_reason == "end_turn"


def test_concurrent_requests_are_batched_and_each_gets_its_own_answer() -> None:
    sizes: list[int] = []
    hold = threading.Event()

    class Slow(Echo):
        def generate(self, prompts, sampling=Sampling()):  # noqa: B008
            sizes.append(len(prompts))
            hold.wait(5)
            return super().generate(prompts, sampling)

    with Server(Slow()) as server:
        answers: dict[int, str] = {}

        def ask(i: int) -> None:
            body = {**CHAT, "messages": [{"role": "user", "content": f"m {i}"}]}
            answers[i] = call(server, "/v1/chat/completions", body)[1]["choices"][0]["message"]["content"]

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(20)]
        for t in threads:
            t.start()
        while sum(sizes) + server.batcher._jobs.qsize() < 20:
            time.sleep(0.01)
        hold.set()
        for t in threads:
            t.join()
    assert answers == {i: f"m {i} #0" for i in range(20)}
    assert sum(sizes) == 20 and len(sizes) == 2


def test_one_bad_prompt_does_not_take_its_batch_along() -> None:
    class Picky(Echo):
        def generate(self, prompts, sampling=Sampling()):  # noqa: B008
            if any("bad" in p[-1].text for p in prompts):
                raise RuntimeError("boom")
            return super().generate(prompts, sampling)

    with Server(Picky()) as server:
        bodies = [{**CHAT, "messages": [{"role": "user", "content": t}]} for t in ("a", "bad", "b")]
        status: dict[int, int] = {}

        def ask(i: int) -> None:
            status[i] = call(server, "/v1/chat/completions", bodies[i])[0]

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(3)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert status == {0: 200, 1: 500, 2: 200}


def test_a_missing_answer_is_an_error_and_not_an_empty_reply() -> None:
    class Mute(Echo):
        def generate(self, prompts, sampling=Sampling()):  # noqa: B008
            return [(Reply((), "error", error="gone"),) for _ in prompts]

    with Server(Mute()) as server:
        assert call(server, "/v1/chat/completions", CHAT)[0] == 502


TALK = (
    system("be kind"),
    user("price of the boat ?"),
    Message("assistant", (Text("i look ."), ToolCall("c1", "price", '{"item": "boat"}'))),
    Message("tool", (ToolResult("c1", (Text("40"),)),)),
    assistant("it is 40 ."),
    user("thanks"),
)


def test_both_formats_round_trip() -> None:
    assert wire.from_openai(wire.to_openai(TALK)) == TALK
    head, rest = wire.to_anthropic(TALK)
    assert wire.from_anthropic(head, rest) == TALK
