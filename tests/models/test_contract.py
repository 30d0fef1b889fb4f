"""The contract of remote models against a real model on loopback, and the bodies of our servers against the SDKs' types."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import anthropic
import openai
import pytest

from fairlead.exchange import Message, Refusal, Text, ToolCall, user
from fairlead.models import Reply, Usage, open_model
from fairlead.models.apprentice import NumpyApprentice
from fairlead.models.protocol import Alternative
from support import tiny
from support.bodies import CLAUDE, drift, error_body, response
from support.contract import CONTRACT
from support.fakes import Echo, Fault, Faulty


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    pytest.importorskip("torch")
    model = NumpyApprentice(tiny.apprentice(tmp_path_factory.mktemp("apprentice")))
    with Faulty(model, lambda i, body: None) as served:
        yield served


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
@pytest.mark.parametrize("provider", ["openai", "openai-responses", "vllm", "anthropic"])
def test_the_apprentice_behind_every_format_keeps_the_contract(
    provider: str, check, server: Faulty, tmp_path: Path
) -> None:
    if check.__name__.startswith("what_it_can"):
        pytest.skip("its own parameters are fewer than its format's: see the next test")
    url = server.url + ("" if provider == "anthropic" else "/v1")
    check(open_model(f"{provider}/apprentice@{url}", records=tmp_path))


@pytest.mark.parametrize("provider", ["openai", "openai-responses", "vllm", "anthropic"])
def test_parameters_are_taken_or_refused_by_name(provider: str, tmp_path: Path) -> None:
    """A served model that takes all of them, so that each format's own list decides."""

    class Taking(Echo):
        def generate(self, prompts, sampling=None):
            top = ((Alternative("a", -0.1), Alternative("b", -2.0)),) if sampling.top_logprobs else None
            more = {"logprobs": (-0.1,), "top_logprobs": top, "tokens": (1,)}
            said = [Message("assistant", (Text("a"),))]
            return [(Reply(tuple(said), "stop", usage=Usage(3, 1), **more),) * sampling.n for _ in prompts]

    fields = frozenset({"max_tokens", "temperature", "top_p", "top_k", "stop", "seed", "top_logprobs"})
    check = next(check for check in CONTRACT if check.__name__.startswith("what_it_can"))
    with Faulty(Taking(capabilities=fields), lambda i, body: None) as taking:
        url = taking.url + ("" if provider == "anthropic" else "/v1")
        check(open_model(f"{provider}/echo@{url}", records=tmp_path))


def test_streams_too_are_in_the_providers_form() -> None:
    """What they stream is held to the types event by event (support/fakes.py)."""
    with Faulty(Echo(), lambda i, body: None) as served:
        gpt = openai.OpenAI(api_key="none", base_url=f"{served.url}/v1")
        messages = [{"role": "user", "content": "good day"}]
        chunks = gpt.chat.completions.create(model="echo", messages=messages, stream=True)
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == "good day #0"
        claude = anthropic.Anthropic(api_key="none", base_url=served.url)
        with claude.messages.stream(model="echo", messages=messages, max_tokens=9) as stream:
            assert stream.get_final_text() == "good day #0"


def test_a_body_that_drifts_is_found() -> None:
    """The guard of the guards: a server whose body no longer fits the SDK's type fails the test that uses it."""
    good = response(output=[])
    assert drift("POST", "/v1/responses", 200, good) == ""
    assert "status" in drift("POST", "/v1/responses", 200, good | {"status": "finished"})
    assert "choices" in drift("POST", "/v1/chat/completions", 200, {"id": "x"})
    assert drift("POST", "/v1/messages", 400, {"error": {"message": "m"}})
    assert drift("POST", "/v1/chat/completions", 400, {"error": {"message": "m"}}), "an error has a type"
    with pytest.raises(AssertionError, match="error"), Faulty(Echo(), lambda i, b: Fault(400, b'{"error": {}}')) as bad:
        request = urllib.request.Request(f"{bad.url}/v1/chat/completions", b"{}", {"Content-Type": "application/json"})
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(request)


@pytest.mark.parametrize("provider", ["openai", *CLAUDE])
def test_errors_in_the_providers_form(provider: str) -> None:
    path = "/v1/messages" if provider in CLAUDE else "/v1/responses"
    for status, kind in ((400, "invalid_request_error"), (429, "rate_limit_error"), (500, "api_error")):
        assert drift("POST", path, status, json.loads(error_body(provider, "m", kind))) == ""


def test_every_ending_of_a_reply_fits_the_types() -> None:
    """Each finish and part, in all three formats: what is sent is held to the types as it goes out."""
    replies = {
        "stop": (Text("a"),), "length": (Text("a"),), "refusal": (Refusal("no"),), "filter": (Refusal("no"),),
        "tool_calls": (ToolCall("c1", "f", '{"a": 1}'),),
    }  # fmt: skip

    class Ending(Echo):
        def generate(self, prompts, sampling=None):
            finish = prompts[0][-1].text
            message = Message("assistant", replies[finish])
            return [(Reply((message,), finish, usage=Usage(1, 1)),) for _ in prompts]

    with Faulty(Ending(), lambda i, body: None) as served:
        for provider in ("openai", "openai-responses", "anthropic"):
            url = served.url + ("" if provider == "anthropic" else "/v1")
            model = open_model(f"{provider}/echo@{url}")
            for finish, parts in replies.items():
                ((reply,),) = model.generate([[user(finish)]])
                merged = provider == "anthropic" and finish == "filter"  # this format has refusals only
                assert reply.finish == ("refusal" if merged else finish), (provider, finish)
                if finish == "tool_calls":
                    assert reply.messages[0].parts == parts
