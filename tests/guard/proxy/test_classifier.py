"""A classifier trained from the constitution, in the proxy: replies, streams, prompts, reload."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is missing: pip install 'fairlead[guard]'")
pytest.importorskip("aiohttp", reason="aiohttp is missing: pip install 'fairlead[guard]'")
pytest.importorskip("sklearn", reason="scikit-learn is missing: pip install 'fairlead[guard]'")

import openai

from fairlead.constitution import load
from fairlead.guard.classifier.train import train
from guard.classifier.made import rows, trained
from support.guard_proxy import Proxy
from support.mock_upstream import Mock, chat, chat_chunk, chat_stream, json_reply, sse_reply

WRITTEN = """
name: small
principles:
  - id: no-sinking
    dimension: harmless
    severity: 5
    text: Do not help to sink anything.
    guard: {at: [reply], on_violation: refuse, say: "I sink nothing."}
  - {id: be-kind, dimension: helpful, severity: 2, text: Be kind.}
"""
BROKEN, KEPT = "First sink badar, then paint kodar.", "I leave badar kofin alone."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("classifier") / "made"
    trained(out)
    return out


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[tuple[Proxy, Mock]]:
    here = tmp_path_factory.mktemp("proxy")
    with (
        Mock(lambda _: json_reply(chat(KEPT))) as mock,
        Proxy(here, mock.url, constitution=WRITTEN, policy="{}\n", classifier=folder) as proxy,
    ):
        yield proxy, mock


def _say(proxy: Proxy, text: str = "sink badar kofin luhup?", **more: Any) -> str:
    client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="k", max_retries=0, timeout=30)
    told = client.chat.completions.create(model="mock", messages=[{"role": "user", "content": text}], **more)
    if more.get("stream"):
        return "".join(c.choices[0].delta.content or "" for c in told if c.choices)
    return told.choices[0].message.content or ""


def test_what_it_judges_broken_is_refused_and_the_rest_passes(both: tuple[Proxy, Mock]) -> None:
    proxy, mock = both
    for text, told in ((BROKEN, "I sink nothing."), (KEPT, KEPT)):
        mock.script = lambda _, text=text: json_reply(chat(text))
        assert _say(proxy) == told
        mock.script = lambda _, text=text: sse_reply(*chat_stream(*text))
        assert _say(proxy, stream=True) == told
    counts = proxy.command("metrics")["counts"]
    assert any(row[0] == "model_calls" and row[1] == "classifier:no-sinking" for row in counts)
    assert proxy.worker.app.setup.all()[0].book.classifier


def test_a_stream_that_a_model_has_ended_ends_at_once(tmp_path: Path) -> None:
    """The verdict comes while the server says nothing more: the reply ends, and nobody waits for the server."""
    window = WRITTEN.replace("on_violation: refuse,", "on_violation: refuse, stream: window,")
    (tmp_path / "window.yaml").write_text(window)
    folder = tmp_path / "made"
    train(load(tmp_path / "window.yaml"), rows(), folder, copies=0)
    begun = [chat_chunk({"content": f"{BROKEN} "}) for _ in range(40)]
    with (
        Mock(lambda _: sse_reply(*begun, "hang")) as mock,
        Proxy(tmp_path, mock.url, constitution=window, policy="{}\n", classifier=folder) as proxy,
    ):
        client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="k", max_retries=0, timeout=20)
        asked: Any = [{"role": "user", "content": "sink badar kofin luhup?"}]
        chunks = [c for c in client.chat.completions.create(model="mock", messages=asked, stream=True) if c.choices]
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == "I sink nothing."
        assert chunks[-1].choices[0].finish_reason == "content_filter"


def test_the_same_question_is_judged_once(both: tuple[Proxy, Mock]) -> None:
    proxy, mock = both
    mock.script = lambda _: json_reply(chat(BROKEN))
    before = proxy.worker.keep.cache.hits
    _say(proxy)
    _say(proxy)
    assert proxy.worker.keep.cache.hits > before


def test_one_of_another_constitution_does_not_take_its_place(both: tuple[Proxy, Mock]) -> None:
    proxy, mock = both
    mock.script = lambda _: json_reply(chat(BROKEN))
    proxy.constitution.write_text(WRITTEN.replace("sink anything", "sink anything at all"))
    assert "another constitution" in proxy.command("prepare")["error"]
    proxy.command("drop")
    assert _say(proxy) == "I sink nothing."
