"""Bodies and streams: what the providers wrote, read into events, and written again for the official SDKs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import orjson
import pytest
from anthropic.types import Message as AnthropicMessage
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from fairlead.guard.wire import FORMATS
from fairlead.guard.wire.asked import Allow, Asked
from fairlead.guard.wire.events import (
    About,
    Channel,
    Close,
    Delta,
    End,
    Event,
    Failed,
    Finish,
    Opaque,
    Open,
    Place,
    Reason,
    Told,
    Unknown,
)
from guard.wire import samples, sdk
from guard.wire.samples import CHAT, COMPLETIONS, MESSAGES, RESPONSES, ROUTES

MODELS: dict[str, Any] = {
    CHAT: ChatCompletion,
    COMPLETIONS: Completion,
    RESPONSES: Response,
    MESSAGES: AnthropicMessage,
}
TOLD = Told("refuse", "keep-secrets", "v-0123456789ab")
CALL = '{"at": "the sea"}'


def asked(route: str, policy: Allow | None = None, **more: Any) -> Asked:
    more = {"n": 2, **more} if route == CHAT else more
    return FORMATS[route].read_request(samples.request(route, **more), policy or Allow())


def read(route: str, pieces: Iterable[bytes]) -> list[Event]:
    reader = FORMATS[route].reader()
    out = [event for data in pieces for event in reader.feed(data)]
    return out + reader.eof()


def write(route: str, events: Iterable[Event], want: Asked) -> bytes:
    writer = FORMATS[route].writer(want)
    return b"".join([writer.write(event) for event in events]) + writer.end()


def texts(events: Iterable[Event]) -> dict[tuple[int, str], str]:
    """What was said at each place, the parts of a place joined; calls by the name of their tool."""
    places: dict[Channel, str] = {}
    out: dict[tuple[int, str], str] = {}
    for event in events:
        if isinstance(event, Open):
            places[event.channel] = f"call {event.name}" if event.place == "tool_call" else event.place
        elif isinstance(event, Delta):
            key = event.channel.choice, places[event.channel]
            out[key] = out.get(key, "") + event.text
    return out


def said(route: str) -> dict[tuple[int, str], str]:
    """What the samples say."""
    if route == COMPLETIONS:
        return {(0, "reply"): " upon a time"}
    out = {
        (0, "reasoning"): "They greetme." if route == RESPONSES else "They greet me.",
        (0, "reply"): "Good day ☀",
        (0, "call look"): CALL,
        (0, "call wait"): "{}",
    }
    if route != MESSAGES:
        out[1 if route == CHAT else 0, "refusal"] = "I will not."
    return out


def spaced(found: dict[tuple[int, str], str]) -> dict[tuple[int, str], str]:
    """With the arguments of calls written alike: a body of Anthropic's holds an object, not its text."""
    return {key: text.replace('":"', '": "') if "call" in key[1] else text for key, text in found.items()}


def plain(found: dict[tuple[int, str], str]) -> dict[tuple[int, str], str]:
    return {key: text for key, text in spaced(found).items() if key[1] != "citation"}


# ---------------------------------------------------------------------------------------------------- bodies


@pytest.mark.parametrize("route", ROUTES)
def test_a_body_is_read_into_what_it_says(route: str) -> None:
    events = FORMATS[route].events(samples.BODIES[route])
    assert plain(texts(events)) == said(route)
    assert isinstance(events[0], About) and events[0].numbers
    assert isinstance(events[-1], End)
    assert not any(isinstance(event, Unknown | Failed) for event in events)


@pytest.mark.parametrize("route", ROUTES)
def test_a_body_written_again_is_the_sdk_s_own_type(route: str) -> None:
    form = FORMATS[route]
    body = form.body(form.events(samples.BODIES[route]), asked(route, Allow(opaque=True)), ())
    MODELS[route].model_validate(body)  # strict about what has to be there
    found = sdk.whole(route, sdk.body(body))
    assert plain(sdk.texts(route, found)) == said(route)
    assert found.model in ("m", "m-2026-01-02")
    assert "fairlead" not in body


@pytest.mark.parametrize("route", ROUTES)
def test_a_body_and_a_stream_say_the_same(route: str) -> None:
    one, other = FORMATS[route].events(samples.BODIES[route]), read(route, [samples.STREAMS[route]])
    assert spaced(texts(one)) == spaced(texts(other))
    ends = [{event for event in events if isinstance(event, Finish)} for events in (one, other)]
    assert ends[0] == ends[1]


def test_usage_and_log_probs_and_citations_come_through() -> None:
    chat = FORMATS[CHAT].body(FORMATS[CHAT].events(samples.CHAT_BODY), asked(CHAT), ())
    assert chat["usage"] == samples.CHAT_USAGE
    first, second = chat["choices"]
    assert [entry["token"] for entry in first["logprobs"]["content"]] == ["Good", " day", " ☀"]
    assert first["logprobs"]["content"][0]["top_logprobs"] == [] and second["logprobs"] is None
    assert first["message"]["annotations"][0]["url_citation"]["url"] == "https://a.example/x"
    columns = FORMATS[COMPLETIONS].body(FORMATS[COMPLETIONS].events(samples.COMPLETIONS_BODY), asked(COMPLETIONS), ())
    assert columns["choices"][0]["logprobs"]["text_offset"] == [0, 5]
    assert columns["choices"][0]["logprobs"]["top_logprobs"] is None
    message = FORMATS[MESSAGES].body(FORMATS[MESSAGES].events(samples.MESSAGES_BODY), asked(MESSAGES), ())
    assert message["content"][2]["citations"][0]["cited_text"] == "the sea is calm"
    response = FORMATS[RESPONSES].body(FORMATS[RESPONSES].events(samples.RESPONSES_BODY), asked(RESPONSES), ())
    assert response["output"][1]["content"][0]["annotations"][0]["title"] == "X"
    assert response["output"][1]["phase"] == "final_answer"


def test_alternatives_of_tokens_pass_by_policy_alone() -> None:
    for route in (CHAT, COMPLETIONS, RESPONSES):
        form = FORMATS[route]
        for policy, shown in ((Allow(), False), (Allow(top_logprobs=True), True)):
            want = asked(route, policy)
            body = orjson.dumps(form.body(form.events(samples.BODIES[route]), want, ()))
            stream = write(route, read(route, [samples.STREAMS[route]]), want)
            assert (b"ALTERNATIVE" in body) is shown and (b"ALTERNATIVE" in stream) is shown


def test_log_probs_that_spell_another_text_are_withheld() -> None:
    chunk = samples.chat_chunk(0, {"content": "day"}, None, {"content": [samples.token("night")], "refusal": None})
    events = read(CHAT, [samples.sse(chunk)])
    assert Unknown("log-probs of another text") in events
    assert b"night" not in write(CHAT, events, asked(CHAT))
    released = [Open(Channel(0, 0), "reply"), Delta(Channel(0, 0), "day", (samples.token("night"),))]
    assert b"night" not in write(CHAT, released, asked(CHAT))
    assert b"night" not in write(RESPONSES, released, asked(RESPONSES))
    assert b"night" not in write(COMPLETIONS, released, asked(COMPLETIONS))


def test_the_letters_of_a_token_are_those_of_its_bytes() -> None:
    halves = [
        {**samples.token(""), "token": "SMUGGLED", "bytes": list(raw)}
        for raw in ("☀".encode()[:2], "☀".encode()[2:], b"!")
    ]
    events = read(CHAT, [samples.sse(samples.chat_chunk(0, {"content": "☀!"}, "stop", {"content": halves}))])
    body = FORMATS[CHAT].body(events, asked(CHAT), ())
    tokens = [entry["token"] for entry in body["choices"][0]["logprobs"]["content"]]
    assert tokens == ["bytes:\\xe2\\x98", "bytes:\\x80", "!"]
    assert b"SMUGGLED" not in write(CHAT, events, asked(CHAT))


@pytest.mark.parametrize("route", ROUTES)
def test_opaque_reasoning_is_an_event_of_its_own(route: str) -> None:
    found = [event.kind for event in read(route, [samples.STREAMS[route]]) if isinstance(event, Opaque)]
    expected = {MESSAGES: ["signature", "redacted_thinking"], RESPONSES: ["encrypted_content"]}
    assert found == expected.get(route, [])


# --------------------------------------------------------------------------------------------------- streams


@pytest.mark.parametrize("route", ROUTES)
def test_a_stream_written_again_is_what_the_sdk_accumulates(route: str) -> None:
    data = write(route, read(route, [samples.STREAMS[route]]), asked(route, Allow(opaque=True)))
    final, events = sdk.streamed(route, data)
    if route == COMPLETIONS:
        assert "".join(chunk.choices[0].text for chunk in events if chunk.choices) == " upon a time"
        assert events[-1].usage.total_tokens == 5 and events[-2].choices[0].finish_reason == "length"
        return
    assert plain(sdk.texts(route, final)) == said(route)
    MODELS[route].model_validate(final.model_dump(warnings=False, by_alias=True))
    if route == MESSAGES:
        assert final.content[0].signature == "c2lnbmF0dXJl" and final.content[1].data == "b3BhcXVl"
        assert final.content[2].citations[0].cited_text == "the sea is calm"
        assert final.usage.input_tokens == 9 and final.usage.output_tokens == 5 and final.stop_reason == "tool_use"
    elif route == RESPONSES:
        assert final.output[0].encrypted_content == "b3BhcXVl" and final.usage.total_tokens == 14
        assert final.output[1].content[0].annotations[0].url == "https://a.example/x"
        assert [event.sequence_number for event in events] == sorted(event.sequence_number for event in events)
    else:
        assert final.usage.total_tokens == 14
        assert [choice.finish_reason for choice in final.choices] == ["tool_calls", "stop"]
        assert [entry.token for entry in final.choices[0].logprobs.content] == ["Good", " day", " ☀"]


@pytest.mark.parametrize("route", ROUTES)
def test_a_stream_read_again_after_writing_says_the_same(route: str) -> None:
    first = read(route, [samples.STREAMS[route]])
    again = read(route, [write(route, first, asked(route, Allow(opaque=True)))])
    assert texts(again) == texts(first)
    assert not any(isinstance(event, Unknown | Failed) for event in again)


@st.composite
def cuts(draw: st.DrawFn) -> tuple[str, list[bytes]]:
    route = draw(st.sampled_from(ROUTES))
    data = samples.STREAMS[route]
    if draw(st.booleans()):
        data = data.replace(b"\n", draw(st.sampled_from([b"\r\n", b"\r"])))
    at = sorted(draw(st.lists(st.integers(0, len(data)), max_size=30)))
    return route, [data[a:b] for a, b in zip([0, *at], [*at, len(data)], strict=True)]


@settings(max_examples=80, deadline=None)
@given(cuts())
def test_where_a_stream_is_cut_makes_no_difference(cut: tuple[str, list[bytes]]) -> None:
    route, pieces = cut
    assert read(route, pieces) == read(route, [samples.STREAMS[route]])


WORDS = st.text(min_size=1, max_size=6).filter(lambda text: text.isprintable())


@st.composite
def replies(draw: st.DrawFn) -> tuple[str, list[Event]]:
    """A reply in any order of its parts' pieces, as a release might give it."""
    route = draw(st.sampled_from(ROUTES))
    places: list[Place] = ["reply", "reasoning", "refusal", "tool_call"]
    if route == COMPLETIONS:
        places = ["reply"]
    elif route == MESSAGES:
        places.remove("refusal")
    events: list[Event] = [About("up-1", "m", 7, {})]
    for choice in range(draw(st.integers(1, 2)) if route == CHAT else 1):
        chosen = draw(st.lists(st.sampled_from(places), max_size=4))
        if route in (CHAT, COMPLETIONS):  # one text of each place
            chosen = list(dict.fromkeys(chosen))
        for part, place in enumerate(chosen):
            channel = Channel(choice, part)
            events.append(
                Open(channel, place, f"call_{part}", "look") if place == "tool_call" else Open(channel, place)
            )
            said = (
                [orjson.dumps({"at": draw(WORDS)}).decode()]
                if place == "tool_call"
                else draw(st.lists(WORDS, min_size=1, max_size=4))
            )
            events += [Delta(channel, text) for text in said]
            events.append(Close(channel))
        reason: Reason = draw(st.sampled_from(("stop", "length", "content_filter")))
        events.append(Finish(choice, reason))
    return route, [*events, End()]


@settings(max_examples=40, deadline=None)
@given(replies())
def test_any_reply_goes_through_body_and_stream(reply: tuple[str, list[Event]]) -> None:
    route, events = reply
    want = asked(route)
    form = FORMATS[route]
    expected = texts(events)
    assert spaced(texts(form.events(orjson.loads(orjson.dumps(form.body(events, want, ())))))) == spaced(expected)
    data = write(route, events, want)
    assert texts(read(route, [data])) == expected
    if route != COMPLETIONS:
        final, _ = sdk.streamed(route, data)
        assert spaced(sdk.texts(route, final)) == spaced(expected)


# ---------------------------------------------------------------------------------------------------- endings


def spoken(text: str = "I keep that one to myself. ") -> list[Event]:
    return [Open(Channel(0, 0), "reply"), Delta(Channel(0, 0), text)]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("before", (0, 1, 2))
def test_a_stop_in_the_middle_ends_well(route: str, before: int) -> None:
    writer = FORMATS[route].writer(asked(route, n=1) if route == CHAT else asked(route))
    data = b"".join(writer.write(event) for event in spoken()[:before])
    data += writer.ping() + writer.stop(0, "content_filter", TOLD)
    late = writer.write(Delta(Channel(0, 0), "LATE")) if before else b""
    late += writer.write(Finish(0, "stop")) + writer.stop(0, "refusal", TOLD)
    assert late == b""
    data += writer.end()
    assert writer.end() == (b"data: [DONE]\n\n" if route in (CHAT, COMPLETIONS) else b"")
    expected = {"decision": "refuse", "principle": "keep-secrets", "verdict": "v-0123456789ab"}
    final, events = sdk.streamed(route, data)
    if route == COMPLETIONS:
        assert [chunk.choices[0].finish_reason for chunk in events][-1] == "content_filter"
        assert events[-1].fairlead == expected
        return
    assert sdk.texts(route, final) == ({(0, "reply"): spoken()[1].text} if before == 2 else {})  # type: ignore[union-attr]
    if route == CHAT:
        assert final.choices[0].finish_reason == "content_filter"
        chunks = [event.chunk for event in events if event.type == "chunk"]
        assert chunks[-1].fairlead == expected
    elif route == MESSAGES:
        assert final.stop_reason == "refusal"
        assert orjson.dumps(expected) in data
    else:
        assert final.status == "incomplete" and final.incomplete_details.reason == "content_filter"
        assert final.fairlead == expected


@pytest.mark.parametrize("route", ROUTES)
def test_what_was_done_on_the_way_is_told(route: str) -> None:
    form, want = FORMATS[route], asked(route)
    done = Told("redact", "p", "v-1")
    writer = form.writer(want)
    data = b"".join(writer.write(event) for event in spoken()) + writer.told(0, done)
    data += writer.write(Close(Channel(0, 0))) + writer.write(Finish(0, "stop")) + writer.end()
    assert data.count(b'"fairlead":{"decision":"redact","principle":"p","verdict":"v-1"}') == 1
    sdk.streamed(route, data)
    body = form.body([*spoken(), Close(Channel(0, 0)), Finish(0, "stop")], want, ((0, done), (0, TOLD)))
    assert body["fairlead"]["decision"] == "refuse" and body["fairlead"]["others"][0]["verdict"] == "v-1"


@pytest.mark.parametrize("route", ROUTES)
def test_a_break_is_an_error_event_without_the_provider_s_words(route: str) -> None:
    events = [*spoken(), Failed("the provider broke off")]
    data = write(route, events, asked(route))
    if route == RESPONSES:
        final, _ = sdk.streamed(route, data)
        assert final.status == "failed" and final.error.message == "the provider broke off"
        assert final.output[0].status == "incomplete"
    else:
        with pytest.raises(Exception, match="the provider broke off"):
            sdk.streamed(route, data)
    with pytest.raises(ValueError, match="error"):
        FORMATS[route].body(events, asked(route), ())


@pytest.mark.parametrize("route", ROUTES)
def test_an_end_that_nobody_gave_is_said_to_be_a_cut(route: str) -> None:
    data = write(route, spoken(), asked(route))
    final, events = sdk.streamed(route, data)
    if route == CHAT:
        assert {choice.finish_reason for choice in final.choices} == {"content_filter"}
    elif route == COMPLETIONS:
        assert events[-1].choices[0].finish_reason == "content_filter"
    elif route == MESSAGES:
        assert final.stop_reason == "refusal"
    else:
        assert final.incomplete_details.reason == "content_filter"


@pytest.mark.parametrize("route", (CHAT, COMPLETIONS))
def test_usage_ends_a_stream_where_it_was_asked_for(route: str) -> None:
    events = read(route, [samples.STREAMS[route]])
    assert b'"usage"' in write(route, events, asked(route))
    assert b'"usage"' not in write(route, events, asked(route, stream_options=None))


def test_a_stop_sequence_is_echoed_to_anthropic() -> None:
    body = {**samples.MESSAGES_BODY, "stop_reason": "stop_sequence", "stop_sequence": "###"}
    events = FORMATS[MESSAGES].events(body)
    assert Finish(0, "stop", "###") in events
    assert FORMATS[MESSAGES].body(events, asked(MESSAGES), ())["stop_sequence"] == "###"


def test_older_functions_are_answered_in_their_own_terms() -> None:
    want = asked(CHAT, functions=[{"name": "look", "parameters": {}}], n=1)
    assert want.tools == ("look",)
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": CALL}},
        "finish_reason": "function_call",
    }
    events = FORMATS[CHAT].events({**samples.CHAT_BODY, "choices": [choice]})
    body = FORMATS[CHAT].body(events, want, ())
    assert body["choices"][0]["message"]["function_call"] == {"name": "look", "arguments": CALL}
    assert body["choices"][0]["finish_reason"] == "function_call"
    final, _ = sdk.streamed(CHAT, write(CHAT, events, want))
    assert final.choices[0].message.function_call.arguments == CALL


def test_no_id_is_the_provider_s_and_those_of_calls_do_not_hang_on_it() -> None:
    form = FORMATS[CHAT]
    one, two = (form.body(form.events(samples.CHAT_BODY), asked(CHAT), ()) for _ in range(2))
    assert one["id"] == two["id"]
    made = [call["id"] for body in (one, two) for call in body["choices"][0]["message"]["tool_calls"]]
    assert len(set(made)) == 4  # nobody can try ids that a model may have written against what left
    assert not {"chatcmpl-7Q", "call_a", "call_b"} & set(re.findall(r"[\w-]+", orjson.dumps(one).decode()))
    mistral = {**samples.CHAT_BODY["choices"][0]["message"]["tool_calls"][0], "id": "Ab3dE6gH9"}
    kimi = {**mistral, "id": "functions.look:0"}
    smuggled = {**mistral, "id": "functions.look:0 SECRET"}
    calls = [{**call} for call in (mistral, kimi, smuggled)]
    choice = {"index": 0, "message": {"role": "assistant", "tool_calls": calls}, "finish_reason": "tool_calls"}
    body = form.body(form.events({**samples.CHAT_BODY, "choices": [choice]}), asked(CHAT), ())
    found = [call["id"] for call in body["choices"][0]["message"]["tool_calls"]]
    assert re.fullmatch(r"[0-9a-f]{9}", found[0]) and found[1] == "functions.look:0"
    assert re.fullmatch(r"call_[0-9a-f]{24}", found[2])
