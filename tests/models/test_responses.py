"""OpenAI's responses API: what is sent, and what each way of ending means."""

from __future__ import annotations

import json

import pytest

from fairlead.errors import InputError
from fairlead.exchange import Message, Reasoning, Refusal, Text, ToolCall, ToolResult, system, user
from fairlead.models import CapabilityError, Reply, Sampling, open_model
from fairlead.models.remote import Limits
from support.bodies import response
from support.fakes import YES_OR_NO, Echo, Fault, Faulty, Told

QUICK = Limits(backoff=0.01, backoff_cap=0.05, attempts=2)


def opened(server: Faulty):
    return open_model(f"openai-responses/echo@{server.url}/v1", limits=QUICK)


def said(**parts: object) -> Reply:
    """The reply to an answer with these fields."""
    body = json.dumps(response(**parts)).encode()
    with Faulty(Echo(), lambda i, sent: Fault(200, body)) as server:
        return opened(server).generate([[user("hi")]])[0][0]


def test_what_is_sent() -> None:
    reasoning = {"id": "rs_1", "type": "reasoning", "summary": [], "encrypted_content": "xyz"}
    prompt = [
        system("be kind"),
        user("add"),
        Message("assistant", (Reasoning(opaque=json.dumps(reasoning)), ToolCall("c1", "add", '{"a": 1}'))),
        Message("tool", (ToolResult("c1", (Text("2"),)),)),
        Message("assistant", (Reasoning(text="thought aloud"), Text("it is 2"))),
        user("and now?"),
    ]
    with Faulty(Echo(), lambda i, body: None) as server:
        opened(server).generate([prompt], Sampling(max_tokens=9, temperature=0.5, top_p=0.9))
    body = json.loads(server.seen[0])
    assert {k: v for k, v in body.items() if k != "input"} == {
        "model": "echo", "store": False, "max_output_tokens": 9, "temperature": 0.5, "top_p": 0.9,
        "include": ["reasoning.encrypted_content"],
    }  # fmt: skip
    assert body["input"] == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "add"},
        reasoning,
        {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 1}'},
        {"type": "function_call_output", "call_id": "c1", "output": "2"},
        {"role": "assistant", "content": "it is 2"},
        {"role": "user", "content": "and now?"},
    ]


def test_endings() -> None:
    message = {"type": "message", "id": "m", "role": "assistant", "status": "completed"}
    text = {**message, "content": [{"type": "output_text", "text": "half", "annotations": []}]}
    whole = said(output=[text])
    assert (whole.finish, whole.text) == ("stop", "half") and whole.usage.completion_tokens == 4
    cut = said(output=[text], status="incomplete", incomplete_details={"reason": "max_output_tokens"})
    assert (cut.finish, cut.text) == ("length", "half")
    nothing = said(output=[], status="incomplete", incomplete_details={"reason": "max_output_tokens"})
    assert (nothing.finish, nothing.messages[0].parts) == ("length", (Text(""),)), "all of it went into reasoning"
    filtered = said(output=[], status="incomplete", incomplete_details={"reason": "content_filter"})
    assert filtered.finish == "filter" and isinstance(filtered.messages[0].parts[0], Refusal)
    declined = said(output=[{**message, "content": [{"type": "refusal", "refusal": "not that"}]}])
    assert (declined.finish, declined.messages[0].parts) == ("refusal", (Refusal("not that"),))
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "id": "x", "status": "completed"}
    called = said(output=[call])
    assert (called.finish, called.messages[0].parts) == ("tool_calls", (ToolCall("c", "f", "{}"),))
    refused = said(output=[], status="failed", error={"code": "bio_policy", "message": "not answered"})
    assert refused.finish == "filter" and refused.messages[0].parts == (Refusal("not answered"),)
    busy = said(output=[], status="failed", error={"code": "server_error", "message": "broke"})
    assert busy.finish == "error" and "broke" in busy.error
    with pytest.raises(InputError, match=r"invalid_image.*no image"):
        said(output=[], status="failed", error={"code": "invalid_image", "message": "no image"})


def test_reasoning_goes_back_as_it_came() -> None:
    item = {
        "id": "rs",
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": "a sum"}],
        "encrypted_content": "e",
    }
    text = {"type": "message", "id": "m", "role": "assistant", "status": "completed",
            "content": [{"type": "output_text", "text": "2", "annotations": []}]}  # fmt: skip
    reply = said(output=[item, text])
    assert reply.text == "2" and reply.messages[0].parts[0].text == "a sum"
    with Faulty(Echo(), lambda i, body: None) as server:
        opened(server).generate([[user("hi"), *reply.messages, user("on")]])
    assert json.loads(server.seen[0])["input"][1:3] == [item, {"role": "assistant", "content": "2"}]


def test_n_replies_are_n_calls_and_what_the_api_lacks_is_named() -> None:
    with Faulty(Echo(), lambda i, body: None) as server:
        model = opened(server)
        assert [r.text for r in model.generate([[user("hi")]], Sampling(n=3))[0]] == ["hi #0"] * 3 and server.count == 3
        for field, value in {"stop": ("a",), "seed": 1, "top_k": 3}.items():
            with pytest.raises(CapabilityError, match=field):
                model.generate([[user("hi")]], Sampling(**{field: value}))
        assert server.count == 3, "refused before it is sent, never dropped"


@pytest.mark.parametrize("provider", ["openai", "openai-responses"])
def test_log_probs_where_offered(provider: str) -> None:
    with Faulty(Told(capabilities=frozenset({"max_tokens", "top_logprobs"})), lambda i, body: None) as server:
        model = open_model(f"{provider}/echo@{server.url}/v1", limits=QUICK)
        ((reply,),) = model.generate([[user("hi")]], Sampling(top_logprobs=2))
        ((plain,),) = model.generate([[user("hi")]])
    assert reply.logprobs == (-0.1, -0.01) and reply.top_logprobs[0] == YES_OR_NO
    assert plain.top_logprobs is None
    with Faulty(Echo(), lambda i, body: None) as server, pytest.raises(CapabilityError, match="top_logprobs"):
        open_model(f"anthropic/echo@{server.url}").generate([[user("hi")]], Sampling(top_logprobs=2))
