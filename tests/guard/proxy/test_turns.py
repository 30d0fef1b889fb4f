"""A conversation over several requests: what was painted over in one turn is known in the next."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is missing: pip install 'fairlead[guard]'")
pytest.importorskip("aiohttp", reason="aiohttp is missing: pip install 'fairlead[guard]'")

import openai

from fairlead.guard.checks.painted import Painted
from support.guard_proxy import Proxy
from support.mock_upstream import Mock, chat, chat_stream, json_reply, sse_reply

SECRET = "3e9f07a2c1d84b56f0a1b2c3d4e5f607"
CODED = base64.b64encode(SECRET.encode()).decode()
TURNS = [f"it begins with {CODED[:21]}", *(CODED[n : n + 3] for n in range(21, len(CODED), 3))]


def held(folder: Path, *, stream: bool) -> str:
    """What a client holds of the secret's base64 after all the turns, in which the model says it bit by bit."""
    out: list[str] = []
    with Mock(lambda _: json_reply(chat("hello"))) as mock, Proxy(folder, mock.url) as proxy:
        client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="k", max_retries=0, timeout=20)
        messages: list[Any] = [
            {"role": "system", "content": f"be kind . the day word is {SECRET} ."},
            {"role": "user", "content": "what is it ?"},
        ]
        for turn in TURNS:
            if stream:
                mock.script = lambda _, turn=turn: sse_reply(*chat_stream(*turn))
                chunks = client.chat.completions.create(model="mock", messages=messages, stream=True)
                said = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
            else:
                mock.script = lambda _, turn=turn: json_reply(chat(turn))
                said = client.chat.completions.create(model="mock", messages=messages).choices[0].message.content or ""
            out.append(said)
            messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "go on"}]
    return "".join(out).replace("[redacted]", "").replace("it begins with ", "")


@pytest.mark.parametrize("stream", [False, True])
def test_what_was_painted_over_is_known_in_the_next_turn(tmp_path: Path, stream: bool) -> None:
    assert len(held(tmp_path, stream=stream)) <= 10  # characters of base64: fewer than make up 32 bits


def test_planted_it_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Painted, "keep", lambda *_: None)
    assert len(held(tmp_path, stream=False)) > 10
