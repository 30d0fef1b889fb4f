"""A model in the place of a server: what it does not do is told with what to use."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is missing: pip install 'fairlead[guard]'")
pytest.importorskip("aiohttp", reason="aiohttp is missing: pip install 'fairlead[guard]'")

from fairlead.guard.proxy.headers import read_head
from fairlead.guard.proxy.local import Local
from fairlead.guard.proxy.settings import Limits
from fairlead.guard.proxy.upstream import Broken
from fairlead.models import wanted
from guard.helpers import ScriptedModel


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
