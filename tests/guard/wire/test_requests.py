"""Requests: who says what, what passes the allow-list, and what is refused by its name."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from fairlead.exchange import Media, Message, Reasoning, Refusal, Text, ToolCall, ToolResult
from fairlead.guard.decision import Span
from fairlead.guard.pieces import pieces, redact
from fairlead.guard.wire import FORMATS, chat_request, completions, messages_request, responses_request
from fairlead.guard.wire.asked import Allow, Asked, Refused, with_messages
from fairlead.guard.wire.beside import beside, with_beside
from guard.wire.fuzz import changed_at_random, something
from guard.wire.requests import RICH
from guard.wire.samples import CHAT, COMPLETIONS, MESSAGES, RESPONSES, ROUTES, request

CALL = ToolCall("call_1", "look", '{"at": "the sea"}')
NONE = Allow()


def ask(route: str, body: Any, policy: Allow = NONE) -> Asked:
    return FORMATS[route].read_request(body, policy)


def refused(route: str, body: Any, policy: Allow = NONE) -> Refused:
    with pytest.raises(Refused) as caught:
        ask(route, body, policy)
    assert caught.value.status == 400
    assert caught.value.field in caught.value.sentence
    return caught.value


# ----------------------------------------------------------------------------------------- who says what


def test_chat() -> None:
    asked = ask(CHAT, RICH[CHAT])
    assert asked.messages == (
        Message("system", (Text("system text"),), "operator"),
        Message("system", (Text("developer text"),), "operator"),
        Message("user", (Text("user text"),), "user"),
        Message("assistant", (Reasoning("thought"), Text("answer"), CALL), "model"),
        Message("tool", (ToolResult("call_1", (Text("found a boat"),)),), "tool"),
        Message("tool", (ToolResult("call_1", (Text("and a gull"),)),), "tool"),
        Message("assistant", (Refusal("no"),), "model"),
        Message("user", (Text("last"),), "user"),
    )
    assert (asked.format, asked.stream, asked.n, asked.tools) == ("chat", True, 2, ("look",))
    assert asked.include_usage and asked.upstream == RICH[CHAT] and asked.upstream is not RICH[CHAT]


def test_responses() -> None:
    asked = ask(RESPONSES, RICH[RESPONSES])
    assert asked.messages == (
        Message("system", (Text("system text"),), "operator"),
        Message("system", (Text("developer text"),), "operator"),
        Message("user", (Text("user text"),), "user"),
        Message("assistant", (Text("answer"),), "model"),
        Message("assistant", (CALL,), "model"),
        Message("tool", (ToolResult("call_1", (Text("found a boat"),)),), "tool"),
        Message("tool", (ToolResult("call_1", (Text("and a gull"),)),), "tool"),
        Message("assistant", (Refusal("no"),), "model"),
        Message("user", (Text("last"),), "user"),
    )
    assert asked.tools == ("look",) and asked.upstream["store"] is False
    assert ask(RESPONSES, {"model": "m", "input": "hi"}).upstream["store"] is False
    # ids of items could call up what is stored: items go without, and an earlier reply goes as its text
    assert asked.upstream["input"][2] == {"type": "message", "role": "assistant", "content": "answer"}
    assert "id" not in asked.upstream["input"][3] and asked.upstream["input"][3]["call_id"] == "call_1"
    stateful = ask(RESPONSES, RICH[RESPONSES], Allow(fields=frozenset(("previous_response_id",))))
    assert stateful.upstream["input"] == RICH[RESPONSES]["input"]


def test_messages() -> None:
    asked = ask(MESSAGES, RICH[MESSAGES])
    found = Text("Log"), Text("of the ship"), Text("document text"), Text("chunk")
    call = ToolCall("toolu_1", "look", '{"at":"the sea"}')
    results = ToolResult("toolu_1", (Text("found a boat"),)), ToolResult("toolu_1", (Text("and a gull"),), True)
    assert asked.messages == (
        Message("system", (Text("system text"),), "operator"),
        Message("user", (*found, Text("https://a.example"), Text("Sea"), Text("search text")), "retrieved"),
        Message("user", (Text("user text"),), "user"),
        Message("assistant", (Text("answer"), call), "model"),
        Message("tool", results, "tool"),
        Message("user", (Text("last"),), "user"),
        Message("system", (Text("more from the operator"),), "operator"),
    )
    assert asked.tools == ("look",) and asked.upstream == RICH[MESSAGES]


def test_completions() -> None:
    asked = ask(COMPLETIONS, RICH[COMPLETIONS])
    assert [m.text for m in asked.messages] == ["Once", "the end"] and asked.upstream == RICH[COMPLETIONS]
    assert ask(COMPLETIONS, {"model": "m", "prompt": ["Once"]}).messages[0].text == "Once"
    for prompt in ([1, 2], [[1]], ["a", "b"], [], None, 7, {"a": 1}):
        assert refused(COMPLETIONS, {"model": "m", "prompt": prompt}).field == "prompt"


@pytest.mark.parametrize("route", ROUTES)
def test_what_goes_upstream_can_be_written(route: str) -> None:
    assert orjson.loads(orjson.dumps(ask(route, RICH[route]).upstream))["model"] == "m"


@pytest.mark.parametrize("route", ROUTES)
def test_the_body_that_was_read_is_not_changed(route: str) -> None:
    before = copy.deepcopy(RICH[route])
    ask(route, RICH[route])
    assert RICH[route] == before


# ------------------------------------------------------------------------------------------ the allow-list

NESTED = {"x": {"y": "hidden"}}
LONG = "hidden " * 40
OPEN = ("parameters", "schema", "input_schema", "json_schema", "format", "response_format", "prediction", "tool_choice",
        "output_config", "input", "text", "metadata", "logit_bias", "chat_template_kwargs")  # fmt: skip


def objects(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every object in a request whose fields are typed."""
    if isinstance(value, dict):
        yield path
        for name, inner in value.items():
            if name not in OPEN or isinstance(inner, list):
                yield from objects(inner, (*path, name))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from objects(inner, (*path, i))


def with_field(body: dict[str, Any], path: tuple[Any, ...], name: str, value: Any) -> dict[str, Any]:
    out = copy.deepcopy(body)
    at: Any = out
    for step in path:
        at = at[step]
    at[name] = value
    return out


PLACES = [(route, path) for route in ROUTES for path in objects(RICH[route])]


@pytest.mark.parametrize(("route", "path"), PLACES, ids=str)
def test_no_object_takes_an_unknown_object_or_a_long_text(route: str, path: tuple[Any, ...]) -> None:
    for value in (NESTED, LONG, [NESTED], ["hidden"]):
        found = refused(route, with_field(RICH[route], path, "new_field", value))
        assert "new_field" in found.field or (path[-1:] and str(path[-1]) in found.field)
        assert "hidden" not in found.sentence


@pytest.mark.parametrize(("route", "path"), PLACES, ids=str)
def test_unknown_scalars_pass(route: str, path: tuple[Any, ...]) -> None:
    strict = {"stream_options", "cache_control", "thinking", "reasoning", "citations"}  # objects of switches
    for value in (1, 0.5, True, None, *(() if path and path[-1] in strict else ("short",))):
        body = with_field(RICH[route], path, "new_field", value)
        asked = ask(route, body)
        at: Any = asked.upstream
        for step in path:
            at = at[step]
        assert at["new_field"] == value


def names() -> list[str]:
    """Every name that any of the formats knows anything by."""
    found: set[str] = {"x_new"}
    for module in (chat_request, completions, messages_request, responses_request):
        for table in vars(module).values():
            found |= set(table) if isinstance(table, dict) else set()
    for body in RICH.values():
        for path in objects(body):
            found |= {step for step in path if isinstance(step, str)} | set(at(body, path))
    return sorted(name for name in found if isinstance(name, str) and "/" not in name)


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


MARK = "XMARKERX" * 30
NOT_READ = {"stop", "stop_sequences", "metadata", "model"}  # no model reads these


@pytest.mark.parametrize("route", ROUTES)
def test_no_long_text_goes_upstream_that_no_check_can_read(route: str) -> None:
    """A marker under every known name in every object: refused, left out, or shown to the checks."""
    shapes: list[Any] = [
        MARK,
        {"k": MARK},
        {MARK: 1},
        [MARK],
        [{"type": "text", "text": MARK}],
        {"type": "text", "text": MARK, "url": MARK},
    ]
    passed = 0
    for path in objects(RICH[route]):
        for name in [*names(), MARK]:
            for shape in shapes if name != MARK else [1, True, None, "x"]:
                if name in NOT_READ:
                    continue
                try:
                    asked = ask(route, with_field(RICH[route], path, name, shape))
                except Refused:
                    continue
                passed += 1
                shown = "\n".join(piece.text for piece in pieces((*asked.messages, *beside(asked).messages)))
                assert MARK not in orjson.dumps(asked.upstream).decode() or MARK in shown, (path, name, shape)
    assert passed


HIDDEN = {
    CHAT: {
        "store": True, "audio": {"voice": "x"}, "modalities": ["text", "audio"], "web_search_options": {}, "moderation": {"model": "x"},
        "chat_template": "{{ x }}", "documents": [{"text": "x"}], "prompt": "x", "previous_response_id": "x", "system": "x",
        "enable_search": True, "plugins": [{"id": "web"}], "search_parameters": {"mode": "on"}, "guided_json": {"a": 1},
    },
    COMPLETIONS: {"store": True, "documents": [{}], "chat_template": "x"},
    RESPONSES: {
        "store": True, "background": True, "previous_response_id": "resp_1", "conversation": "conv_1", "prompt": {"id": "pmpt_1"},
        "context_management": [{"type": "compaction"}], "moderation": {"model": "x"}, "image": {"context_compression": "auto"},
        "access_programs": {"cyber": "standard"}, "background_options": {"continuation_id": "x"},
        "prompt_cache_options": {"comparison_response_id": "resp_0123456789abcdef"},
    },
    MESSAGES: {
        "container": "container_1", "mcp_servers": [{"url": "https://x"}], "context_management": {"edits": []},
        "diagnostics": {"previous_message_id": "msg_1"},
    },
}  # fmt: skip


@pytest.mark.parametrize(("route", "name"), [(route, name) for route in ROUTES for name in HIDDEN[route]])
def test_hidden_state_is_refused_by_name_unless_allowed(route: str, name: str) -> None:
    value = HIDDEN[route][name]
    body = request(route, **{name: value})
    found = refused(route, body)
    assert found.field.split(".")[0] == name and repr(name) in found.sentence
    allowed = Allow(fields=frozenset((name,)))
    assert ask(route, body, allowed).upstream[name] == value
    assert ask(route, request(route, **{name: None})).upstream[name] in (None, False)


TOOLS = {
    CHAT: [{"type": "custom", "custom": {"name": "x"}}, {"type": "web_search"}, {"type": "mcp"}, {"name": "x"}],
    RESPONSES: [
        {"type": kind}
        for kind in (
            "web_search", "web_search_preview", "file_search", "code_interpreter", "computer_use_preview", "computer", "mcp",
            "image_generation", "local_shell", "shell", "apply_patch", "custom", "namespace", "tool_search", "new_tool",
        )
    ],
    MESSAGES: [
        {"type": kind, "name": "x"}
        for kind in (
            "web_search_20250305", "web_fetch_20250910", "code_execution_20250825", "computer_20250124", "bash_20250124",
            "memory_20250818", "text_editor_20250728", "tool_search_tool_regex_20251119", "mcp_toolset", "new_tool",
        )
    ],
}  # fmt: skip


@pytest.mark.parametrize(("route", "tool"), [(r, t) for r, tools in TOOLS.items() for t in tools], ids=str)
def test_tools_that_the_provider_runs_are_refused(route: str, tool: dict[str, Any]) -> None:
    body = request(route, tools=[tool])
    assert refused(route, body).field.startswith("tools[0]")
    if "type" in tool:
        allowed = Allow(fields=frozenset((f"tools.{tool['type']}",)))
        named = (tool["name"],) if "name" in tool else ()  # some of them are called like functions
        assert ask(route, body, allowed).tools == named


def one_message(route: str, content: Any) -> dict[str, Any]:
    name = "input" if route == RESPONSES else "messages"
    return request(route, **{name: [{"role": "user", "content": content}]})


BLOCKS = [
    (CHAT, {"type": "file", "file": {"file_id": "x"}}, "messages.content.file"),
    (CHAT, {"type": "input_audio", "input_audio": {"data": "x"}}, "messages.content.input_audio"),
    (CHAT, {"type": "video_url", "video_url": {"url": "x"}}, "messages.content.video_url"),
    (RESPONSES, {"type": "input_file", "file_id": "x"}, "input.content.input_file"),
    (RESPONSES, {"type": "input_audio", "input_audio": {}}, "input.content.input_audio"),
    (MESSAGES, {"type": "container_upload", "file_id": "x"}, "messages.content.container_upload"),
    (MESSAGES, {"type": "server_tool_use", "id": "x", "name": "web_search", "input": {}}, "messages.content.server_tool_use"),
    (MESSAGES, {"type": "web_search_tool_result", "content": []}, "messages.content.web_search_tool_result"),
    (MESSAGES, {"type": "mcp_tool_use"}, "messages.content.mcp_tool_use"),
    (MESSAGES, {"type": "document", "source": {"type": "file", "file_id": "x"}}, "messages.content.document.file"),
    (MESSAGES, {"type": "document", "source": {"type": "url", "url": "x"}}, "messages.content.document.url"),
    (MESSAGES, {"type": "document", "source": {"type": "base64", "data": "x"}}, "messages.content.document.base64"),
]  # fmt: skip


@pytest.mark.parametrize(("route", "block", "name"), BLOCKS, ids=lambda value: str(value)[:40])
def test_blocks_that_cannot_be_read_are_refused(route: str, block: dict[str, Any], name: str) -> None:
    body = one_message(route, [block])
    assert refused(route, body).field.startswith(("messages[0].content[0]", "input[0].content[0]"))
    asked = ask(route, body, Allow(fields=frozenset((name,))))
    assert all(isinstance(part, Media) for part in asked.messages[-1].parts)


ITEMS = ("item_reference", "file_search_call", "computer_call", "computer_call_output", "web_search_call", "mcp_call",
         "code_interpreter_call", "mcp_approval_request", "image_generation_call", "custom_tool_call", "compaction",
         "local_shell_call", "configuration_update", "new_item")  # fmt: skip


@pytest.mark.parametrize("kind", ITEMS)
def test_items_that_cannot_be_read_are_refused(kind: str) -> None:
    body = request(RESPONSES, input=[{"type": kind, "id": "x"}])
    assert refused(RESPONSES, body).field == "input[0]"
    assert ask(RESPONSES, body, Allow(fields=frozenset((f"input.{kind}",)))).upstream["input"] == body["input"]


IMAGES = [
    (CHAT, {"type": "image_url", "image_url": {"url": "https://a.example/x.png", "detail": "low"}}),
    (RESPONSES, {"type": "input_image", "image_url": "https://a.example/x.png", "detail": "low"}),
    (MESSAGES, {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}),
]


@pytest.mark.parametrize(("route", "image"), IMAGES, ids=lambda value: str(value)[:20])
def test_images_pass_by_policy_alone(route: str, image: dict[str, Any]) -> None:
    body = one_message(route, [image])
    refused(route, body)
    asked = ask(route, body, Allow(images=True))
    [part] = asked.messages[-1].parts
    assert isinstance(part, Media) and len(part.digest) == 64


def test_an_image_by_the_id_of_a_file_is_refused_with_images_allowed() -> None:
    body = one_message(RESPONSES, [{"type": "input_image", "file_id": "file_1"}])
    assert refused(RESPONSES, body, Allow(images=True)).field == "input[0].content[0].file_id"


# -------------------------------------------------------------------------------------- opaque reasoning

THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "c2ln"}
REDACTED = {"type": "redacted_thinking", "data": "b3BhcXVl"}


def test_thinking_of_earlier_turns_is_dropped_and_counted() -> None:
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [THOUGHT, REDACTED, {"type": "text", "text": "hello"}]},
        {"role": "assistant", "content": [THOUGHT]},
        {"role": "user", "content": "and?"},
    ]
    asked = ask(MESSAGES, request(MESSAGES, messages=turns))
    assert asked.upstream["messages"][1]["content"] == [{"type": "text", "text": "hello"}]
    assert len(asked.upstream["messages"]) == 3 and asked.dropped == ("thinking of an earlier turn",) * 3
    assert [m.text for m in asked.messages] == ["Be kind.", "hi", "hello", "and?"]
    assert asked.paths[3, 0] == ("messages", 2, "content")
    kept = ask(MESSAGES, request(MESSAGES, messages=turns), Allow(opaque=True))
    assert kept.upstream["messages"] == turns and not kept.dropped
    assert kept.messages[2].parts[:2] == (Reasoning("hm", "c2ln"), Reasoning(None, "b3BhcXVl"))


def test_reasoning_items_are_dropped_and_counted() -> None:
    item = {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": "hm"}],
        "encrypted_content": "b3BhcXVl",
    }
    body = request(RESPONSES, input=[item, {"role": "user", "content": "hi"}], include=["reasoning.encrypted_content"])
    asked = ask(RESPONSES, body)
    assert [one.get("type") for one in asked.upstream["input"]] == [None] and asked.upstream["include"] == []
    assert set(asked.dropped) == {"reasoning of an earlier turn", "wish for encrypted reasoning"}
    kept = ask(RESPONSES, body, Allow(opaque=True))
    assert kept.upstream["include"] == body["include"] and not kept.dropped
    assert kept.messages[1].parts == (Reasoning("hm"), Reasoning(None, "b3BhcXVl"))
    bare = request(RESPONSES, input=[{**item, "encrypted_content": None}, {"role": "user", "content": "hi"}])
    assert ask(RESPONSES, bare, Allow(opaque=True)).dropped == ("reasoning of an earlier turn",)


def test_citations_and_annotations_of_earlier_replies_are_dropped_and_counted() -> None:
    cited = {"type": "text", "text": "a", "citations": [{"type": "char_location", "cited_text": "hidden"}]}
    asked = ask(MESSAGES, request(MESSAGES, messages=[{"role": "assistant", "content": [cited]}]))
    assert asked.dropped and b"hidden" not in orjson.dumps(asked.upstream)
    said = {"type": "output_text", "text": "a", "annotations": [{"url": "hidden"}], "logprobs": [{"token": "hidden"}]}
    asked = ask(RESPONSES, request(RESPONSES, input=[{"role": "assistant", "content": [said]}]))
    assert asked.dropped and b"hidden" not in orjson.dumps(asked.upstream)
    turn = {
        "role": "assistant",
        "content": "a",
        "annotations": [{"type": "url_citation", "url_citation": {"url": "hidden"}}],
    }
    asked = ask(CHAT, request(CHAT, messages=[turn]))
    assert asked.dropped and b"hidden" not in orjson.dumps(asked.upstream)


# --------------------------------------------------------------------------------------------- mistakes

MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    *((route, {"model": None}, "model") for route in ROUTES),
    *((route, {"model": 7}, "model") for route in ROUTES),
    *((route, {"stream": "yes"}, "stream") for route in ROUTES),
    (CHAT, {"n": 0}, "n"),
    (CHAT, {"n": 1.5}, "n"),
    (CHAT, {"n": 10**6}, "n"),
    (CHAT, {"messages": []}, "messages"),
    (CHAT, {"messages": "hi"}, "messages"),
    (CHAT, {"messages": ["hi"]}, "messages[0]"),
    (CHAT, {"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    (CHAT, {"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
    (CHAT, {"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": [7]}]}, "messages[0].content[0]"),
    (CHAT, {"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0]"),
    (CHAT, {"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    (CHAT, {"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}]}, "messages[0].tool_calls[0].function"),
    (CHAT, {"tools": {}}, "tools"),
    (CHAT, {"tools": ["x"]}, "tools[0]"),
    (CHAT, {"tools": [{"type": "function"}]}, "tools[0].function"),
    (CHAT, {"stop": [1]}, "stop"),
    (CHAT, {"logit_bias": {"1": "x"}}, "logit_bias"),
    (CHAT, {"temperature": "hot"}, "temperature"),
    (MESSAGES, {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0]"),
    (
        MESSAGES,
        {"messages": [{"role": "user", "content": [{"type": "tool_use", "name": "x", "input": "y"}]}]},
        "messages[0].content[0]",
    ),
    (
        MESSAGES,
        {"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]},
        "messages[0].content[0].tool_use_id",
    ),
    (MESSAGES, {"system": 7}, "system"),
    (MESSAGES, {"system": [{"type": "image"}]}, "system[0]"),
    (MESSAGES, {"tools": [{"description": "x"}]}, "tools[0].name"),
    (RESPONSES, {"input": []}, "input"),
    (RESPONSES, {"input": [7]}, "input[0]"),
    (RESPONSES, {"input": [{"x": 7}]}, "input[0]"),
    (RESPONSES, {"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
    (RESPONSES, {"input": [{"type": "function_call", "name": "x"}]}, "input[0]"),
    (RESPONSES, {"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
    (RESPONSES, {"include": ["web_search_call.results"]}, "include[0]"),
    (RESPONSES, {"tools": [{"type": "function"}]}, "tools[0].name"),
]


@pytest.mark.parametrize(("route", "change", "field"), MISTAKES, ids=lambda value: str(value)[:50])
def test_a_mistake_is_named(route: str, change: dict[str, Any], field: str) -> None:
    assert refused(route, request(route, **change)).field == field


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("body", [None, 7, "x", [], [{}], {}])
def test_a_body_of_another_shape_is_refused(route: str, body: Any) -> None:
    refused(route, body)


@pytest.mark.parametrize("route", ROUTES)
def test_what_could_not_be_written_again_is_refused(route: str) -> None:
    deep: Any = "x"
    for _ in range(250):
        deep = {"a": deep}
    places = {CHAT: "response_format", COMPLETIONS: "response_format", RESPONSES: "text", MESSAGES: "output_config"}
    assert refused(route, request(route, **{places[route]: deep})).field == places[route]
    name = "x" * 5000
    assert len(refused(route, request(route, **{name: NESTED})).sentence) < 400


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("policy", [NONE, Allow(images=True, opaque=True)], ids=["nothing", "images and opaque"])
def test_a_request_is_read_or_refused_and_nothing_else(route: str, policy: Allow) -> None:
    chance, read = random.Random(9), 0
    for i in range(2000):
        body = changed_at_random(chance, RICH[route] if i % 4 else {**something(chance), "model": "m"})
        body = orjson.loads(json.dumps(body))  # as it comes over the wire
        try:
            asked = ask(route, body, policy)
        except Refused as refused:
            assert refused.status == 400 and refused.field in refused.sentence and len(refused.sentence) < 600
            continue
        read += 1
        orjson.dumps(asked.upstream)
        beside(asked)
        for piece in pieces(asked.messages):
            found: Any = asked.upstream
            for step in asked.paths[piece.at]:
                found = found[step]
            assert piece.place == "tool_call" or found == piece.text
    assert read > 100


# -------------------------------------------------------------------------------------------- redaction


@pytest.mark.parametrize("route", ROUTES)
def test_every_text_can_be_changed_on_its_way_upstream(route: str) -> None:
    asked = ask(route, RICH[route])
    for piece in pieces(asked.messages):
        if piece.place == "tool_call":
            continue  # its arguments are changed whole, below
        spans = [Span(piece.at, 0, len(piece.text))]
        changed = with_messages(asked, redact(asked.messages, spans, "CHANGED"))
        sent, before = orjson.dumps(changed.upstream).decode(), orjson.dumps(asked.upstream).decode()
        assert sent == before.replace(orjson.dumps(piece.text).decode(), '"CHANGED"', 1) or sent.count("CHANGED") == 1
        assert asked.upstream == ask(route, RICH[route]).upstream


@pytest.mark.parametrize("route", (CHAT, RESPONSES, MESSAGES))
def test_the_arguments_of_a_call_can_be_changed(route: str) -> None:
    asked = ask(route, RICH[route])
    new = tuple(
        Message(
            m.role,
            tuple(ToolCall(p.id, p.name, '{"at":"CHANGED"}') if isinstance(p, ToolCall) else p for p in m.parts),
            m.origin,
        )
        for m in asked.messages
    )
    sent = with_messages(asked, new).upstream
    assert orjson.dumps(sent).decode().count("CHANGED") == 1
    if route == MESSAGES:
        assert sent["messages"][1]["content"][1]["input"] == {"at": "CHANGED"}


def test_only_texts_can_be_changed() -> None:
    asked = ask(CHAT, RICH[CHAT])
    with pytest.raises(ValueError, match="messages in place of"):
        with_messages(asked, asked.messages[1:])
    with pytest.raises(ValueError, match="parts in place of"):
        with_messages(asked, (Message("system", (Text("a"), Text("b"))), *asked.messages[1:]))
    with pytest.raises(ValueError, match="only texts"):
        with_messages(asked, (Message("system", (ToolCall("", "x", "{}"),)), *asked.messages[1:]))


def test_what_stands_beside_the_conversation_can_be_read() -> None:
    def shown(route: str) -> str:
        return "\n".join(piece.text for piece in pieces(beside(ask(route, RICH[route])).messages))

    assert "looks" in shown(CHAT) and "the sea is" in shown(CHAT) and "ann" in shown(CHAT)
    assert "where" in shown(MESSAGES) and "where" in shown(RESPONSES) and "harbour" in shown(RESPONSES)
    assert beside(ask(CHAT, request(CHAT))).messages == ()


SHORT = "qmark7 and seven more"


@pytest.mark.parametrize("route", ROUTES)
def test_no_short_text_of_an_unknown_field_goes_upstream_unread(route: str) -> None:
    passed = 0
    for path in objects(RICH[route]):
        try:
            asked = ask(route, with_field(RICH[route], path, "hint", SHORT))
        except Refused:
            continue
        more = beside(asked)
        passed += 1
        shown = "\n".join(piece.text for piece in pieces((*asked.messages, *more.messages)))
        assert SHORT not in orjson.dumps(asked.upstream).decode() or SHORT in shown, path
    assert passed


OWN: dict[str, dict[str, str]] = {  # what each object of a turn has by itself, by what tells its kind
    CHAT: {
        "role": "role content name tool_calls tool_call_id function_call refusal reasoning_content reasoning annotations audio",
        "text": "type text", "refusal": "type refusal", "function": "id type index function", "": "name arguments",
    },
    MESSAGES: {
        "role": "role content", "document": "type source citations title context", "content": "type content",
        "search_result": "type source title content citations", "tool_use": "type id name input caller toolset_name",
        "tool_result": "type tool_use_id content is_error toolset_name", "text": "type text citations data media_type",
    },
    RESPONSES: {
        "role": "type role content id status phase", "function_call": "type id call_id name arguments status caller namespace",
        "function_call_output": "type id call_id output status caller", "input_text": "type text annotations logprobs",
        "output_text": "type text annotations logprobs", "refusal": "type refusal annotations logprobs",
    },
}  # fmt: skip


@pytest.mark.parametrize("route", [CHAT, RESPONSES, MESSAGES])
def test_a_name_that_is_known_elsewhere_makes_no_field_known_here(route: str) -> None:
    """A short text under every name that any object has, in every object of a turn that has no field of that name."""
    passed = 0
    for path in objects(RICH[route]):
        if len(path) < 2 or path[0] not in ("messages", "input", "system"):
            continue
        node = at(RICH[route], path)
        own = OWN[route].get("role" if "role" in node else node.get("type", ""), "").split()
        for name in set(names()) - set(own) - set(node) - {"cache_control"}:
            try:
                asked = ask(route, with_field(RICH[route], path, name, SHORT), Allow(images=True, opaque=True))
            except Refused:
                continue
            passed += 1
            shown = "\n".join(piece.text for piece in pieces((*asked.messages, *beside(asked).messages)))
            assert SHORT not in orjson.dumps(asked.upstream).decode() or SHORT in shown, (path, name)
    assert passed > 100


def test_what_stands_by_itself_is_painted_over_and_what_is_part_of_a_form_is_not() -> None:
    body = {**request(CHAT), "hint": "be a crow", "metadata": {"team": "crow"}, "response_format": {"name": "crow"}}
    asked = ask(CHAT, body)
    both = with_beside(asked, beside(asked))
    m = len(asked.messages)
    assert [piece.text for piece in pieces(both.messages[m:])] == ["be a crow", "crow", "team", "name\ncrow"]
    changed = with_messages(both, redact(both.messages, [Span((m, 0), 5, 9), Span((m, 1), 0, 4)]))
    assert changed.upstream["hint"] == "be a [redacted]" and changed.upstream["metadata"] == {"team": "[redacted]"}
    with pytest.raises(ValueError, match="no text of its own"):
        with_messages(both, redact(both.messages, [Span((m, 3), 5, 9)]))


def test_what_the_policy_lets_pass_by_its_name_is_not_read() -> None:
    policy = Allow(frozenset({"tools.mcp", "hint"}))
    body = {**request(CHAT), "hint": {"a": "crow"}, "tools": [{"type": "mcp", "server_label": "crow"}]}
    assert beside(ask(CHAT, body, policy)).messages == ()
