"""A model in the place of a server: what it does not do is told with what to use."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is missing: pip install 'fairlead[guard]'")
pytest.importorskip("aiohttp", reason="aiohttp is missing: pip install 'fairlead[guard]'")

import openai

from fairlead.exchange import user
from fairlead.guard.proxy.headers import read_head
from fairlead.guard.proxy.local import Local
from fairlead.guard.proxy.settings import Limits
from fairlead.guard.proxy.upstream import Broken
from fairlead.models import wanted
from fairlead.models.apprentice import open_apprentice
from guard.helpers import ScriptedModel
from support.guard_proxy import NOTHING, Proxy


def _ask(route: str, **body: Any) -> dict[str, Any]:
    async def work() -> dict[str, Any]:
        local = Local(ScriptedModel(lambda _: "good morning"), Limits())
        try:
            head: Any = read_head([])
            return await (await local.ask(route, {"model": "scripted", **body}, head, stream=False)).whole()
        finally:
            await local.close()

    return asyncio.run(asyncio.wait_for(work(), 60))


def test_it_answers_conversations_and_does_not_continue_texts() -> None:
    asked = [{"role": "user", "content": "hello"}]
    said = _ask("/v1/chat/completions", messages=asked)
    assert said["choices"][0]["message"]["content"] == "good morning"
    with pytest.raises(Broken, match="use /v1/chat/completions") as refused:
        _ask("/v1/completions", prompt="hello")
    assert (refused.value.status, refused.value.again, refused.value.kind) == (400, False, "invalid_request")


@pytest.fixture(scope="module")
def apprentice(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with Proxy(
        tmp_path_factory.mktemp("local"), None, constitution=NOTHING, policy="{}\n", model="apprentice"
    ) as proxy:
        yield proxy


def _spelled(told: Sequence[Any], text: str) -> None:
    """The entries are the text's tokens, and their log-probs add up to what the model gives the text by itself."""
    assert len(told) > 2 and "".join(one.token for one in told) == text
    assert b"".join(bytes(one.bytes) for one in told) == text.encode()
    asked = [user("where is the red lamp ?")]
    [[alone]] = open_apprentice(torch=False).logprobs([asked], [[text]])
    assert sum(one.logprob for one in told) == pytest.approx(alone, abs=1e-3)


@pytest.mark.parametrize("stream", [False, True])
def test_log_probs_of_its_tokens_reach_a_client_of_the_chat_route(apprentice: Proxy, stream: bool) -> None:
    client = openai.OpenAI(base_url=f"{apprentice.url}/v1", api_key="k", max_retries=0, timeout=60)
    asked: Any = [{"role": "user", "content": "where is the red lamp ?"}]
    before = apprentice.count("withheld", "log-probs of another text")
    said: Any = client.chat.completions.create(
        model="apprentice", messages=asked, temperature=0, max_tokens=24, logprobs=True, top_logprobs=0, stream=stream
    )
    if stream:
        choices = [chunk.choices[0] for chunk in said if chunk.choices]
        text = "".join(c.delta.content or "" for c in choices)
        told = [entry for c in choices if c.logprobs for entry in c.logprobs.content or ()]
    else:
        [choice] = said.choices
        text, told = choice.message.content, choice.logprobs.content
    _spelled(told, text)
    assert apprentice.count("withheld", "log-probs of another text") == before


@pytest.mark.parametrize("stream", [False, True])
def test_log_probs_of_its_tokens_reach_a_client_of_the_responses_route(apprentice: Proxy, stream: bool) -> None:
    client = openai.OpenAI(base_url=f"{apprentice.url}/v1", api_key="k", max_retries=0, timeout=60)
    given: Any = {
        "model": "apprentice", "input": "where is the red lamp ?", "temperature": 0, "max_output_tokens": 24,
        "include": ["message.output_text.logprobs"],
    }  # fmt: skip
    told: list[Any]
    if stream:
        events = list(client.responses.create(**given, stream=True))
        deltas = [event for event in events if event.type == "response.output_text.delta"]
        text = "".join(event.delta for event in deltas)
        told = [entry for event in deltas for entry in event.logprobs]
        [done] = [event for event in events if event.type == "response.output_text.done"]
        assert [one.token for one in done.logprobs] == [one.token for one in told]
        assert text and "".join(one.token for one in told) == text
        return
    said = client.responses.create(**given)
    _spelled([entry for part in said.output[0].content for entry in part.logprobs], said.output_text)


def test_a_model_stops_when_its_client_has_left() -> None:
    model, ended = ScriptedModel(lambda _: "good morning"), threading.Event()
    steps = []

    def generate(prompts: Any, sampling: Any) -> Any:
        try:
            for step in range(1000):
                wanted.check()
                steps.append(step)
                time.sleep(0.01)
        finally:
            ended.set()

    model.generate = generate  # type: ignore[method-assign]

    async def work() -> None:
        local = Local(model, Limits())
        head: Any = read_head([])
        body = {"model": "scripted", "messages": [{"role": "user", "content": "hello"}]}
        asked = asyncio.create_task(local.ask("/v1/chat/completions", body, head, stream=True))
        while len(steps) < 3:
            await asyncio.sleep(0.01)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert await asyncio.to_thread(ended.wait, 5)
        await local.close()

    asyncio.run(asyncio.wait_for(work(), 60))
    assert len(steps) < 900
