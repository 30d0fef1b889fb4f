"""Checks of code have a deadline too, through the running proxy; and long texts do not hold up others."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is missing: pip install 'fairlead[guard]'")
pytest.importorskip("aiohttp", reason="aiohttp is missing: pip install 'fairlead[guard]'")

import openai

from support.guard_proxy import POLICY, RULES, Proxy
from support.mock_upstream import Mock, chat, chat_stream, json_reply, sse_reply


def _say(proxy: Proxy, text: str = "hello", *, stream: bool = False) -> str:
    client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="k", max_retries=0, timeout=60)
    given = client.chat.completions.create(model="mock", messages=[{"role": "user", "content": text}], stream=stream)
    if stream:
        return "".join(c.choices[0].delta.content or "" for c in given if c.choices)  # type: ignore[union-attr]
    return given.choices[0].message.content or ""  # type: ignore[union-attr]


@pytest.mark.parametrize("on_error", ["refuse", "allow"])
def test_code_that_is_late_is_what_the_settings_say(tmp_path: Path, on_error: str) -> None:
    """No check is done in a nanosecond: every one of them is late, in replies, in streams and in what is asked."""
    late = f"  code: {{deadline: 1.0e-9, on_error: {on_error}}}\n"
    at_prompts = RULES.replace("on_violation: refuse,", "at: [prompt, reply], on_violation: refuse,")
    for constitution in (RULES, at_prompts):
        with (
            Mock(lambda _: json_reply(chat("a little arsenic"))) as mock,
            Proxy(tmp_path, mock.url, constitution=constitution, policy=POLICY + late) as proxy,
        ):
            for stream in (False, True):
                if stream:
                    mock.script = lambda _: sse_reply(*chat_stream("a little ", "arse", "nic"))
                if on_error == "allow":
                    assert _say(proxy, stream=stream) == "a little arsenic"
                    continue
                with pytest.raises(openai.InternalServerError, match="a check of this guard is broken"):
                    _say(proxy, stream=stream)
            closed = "open" if on_error == "allow" else "closed"
            failures = [row for row in proxy.command("metrics")["counts"] if row[0] == "check_failures"]
            assert failures and all(row[2] == closed for row in failures)


def test_others_are_served_while_a_long_reply_is_read(tmp_path: Path) -> None:
    """A reply of a million characters is read in slices; a conversation of as many in threads."""
    text = "the keeper of the harbour counts the boats . " * 23_000
    with Mock(lambda _: json_reply(chat(text))) as mock, Proxy(tmp_path, mock.url) as proxy:
        assert _say(proxy) == text
        mock.script = lambda _: json_reply(chat("hello"))
        assert _say(proxy, text[:200_000]) == "hello"
    assert {thread.name for thread in threading.enumerate()} >= {"guard check"}
