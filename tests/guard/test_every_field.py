"""A canary in the place of every value of a reply, in every format: nothing of it leaves. And calls of tools that nobody
declared, and what the ledger knows of names."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import orjson
import pytest

from fairlead.exchange import Message, Text, ToolCall, ToolResult, user
from fairlead.guard.calling import UNDECLARED
from fairlead.guard.checks.secrets import Secret, SecretsCheck
from fairlead.guard.ledger import faults
from fairlead.guard.plan import Plan
from fairlead.guard.proxy.exchange import _write
from fairlead.guard.proxy.guarding import whole
from fairlead.guard.release import Release
from fairlead.guard.released import Broken, Noted, Out, Stop
from fairlead.guard.wire import FORMATS, sse
from fairlead.guard.wire.asked import Allow, callable_tools
from fairlead.guard.wire.events import Channel, Close, Delta, End, Event, Failed, Finish, Open
from guard.streams import WINDOW, planned, said, text
from guard.wire import sdk
from guard.wire.samples import BODIES, CHAT, COMPLETIONS, MESSAGES, RESPONSES, ROUTES, STREAMS, request
from guard.wire.samples import sse as stream

CANARY = "c41d9e07b8f35a26e19470cd2b6f8a53"
SHORTEST = 8  # of its digits: 32 bits


def keeping() -> Plan:
    return planned(SecretsCheck((Secret("code", (CANARY,), anywhere=True),), "p"), policy=WINDOW, unknown="drop")


KEPT = keeping()


def asking(route: str, names: Sequence[str], **more: Any) -> dict[str, Any]:
    """A request that declares tools of these names."""
    if route == CHAT:
        more |= {"tools": [{"type": "function", "function": {"name": name}} for name in names], "n": 2}
    elif route == RESPONSES:
        more["tools"] = [{"type": "function", "name": name} for name in names]
    elif route == MESSAGES:
        more["tools"] = [{"name": name, "input_schema": {}} for name in names]
    return request(route, **{key: value for key, value in more.items() if value != []})


def released(body: dict[str, Any], route: str, events: Sequence[Event], policy: Allow | None = None) -> Any:
    """(release, what it let go, that in one body where there is one, that as a stream)."""
    form = FORMATS[route]
    asked = form.read_request(body, policy or Allow())
    release = Release(KEPT, asked.messages, n=asked.n, tools=callable_tools(asked))
    out = [item for event in events for item in release.feed(event)]
    assert faults(release.ledger, out) == []
    writer = form.writer(asked)
    written = b"".join(_write(writer, item) for item in out if not isinstance(item, Broken))
    written += writer.end()
    made: dict[str, Any] = {}
    if not any(isinstance(item, Failed | Broken) for item in out):
        try:
            made = form.body(whole(out), asked, [(o.choice, o.told) for o in out if isinstance(o, Noted | Stop)])
        except ValueError as problem:  # the canary made the arguments of a call something else than an object
            assert "no JSON object" in str(problem)
    return release, out, made, written


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything in a JSON value that holds nothing else, and to every object."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if inner is None or isinstance(value, dict):
        yield path
    for key, one in inner or ():
        yield from leaves(one, (*path, key))


def planted(value: Any, path: tuple[Any, ...]) -> Iterator[Any]:
    """`value` with the canary at `path`: instead of what stands there, behind it, or as a field of it."""
    *way, last = path
    found = value
    for step in path:
        found = found[step]
    if isinstance(found, dict):
        news: list[Any] = [{**found, CANARY: 1}, {**found, "x_new": CANARY}]
    else:
        news = [CANARY, *([f"{found}{CANARY}", f"{found}_{CANARY[:SHORTEST]}"] if isinstance(found, str) else [])]
    for new in news:
        out = copy.deepcopy(value)
        at = out
        for step in way:
            at = at[step]
        at[last] = new
        yield out


def leaked(written: bytes) -> bool:
    """Whether so many digits of the canary stand together, whatever stands between them."""
    packed = re.sub(rb"[^0-9a-z]", b"", written.lower())
    return any(CANARY[i : i + SHORTEST].encode() in packed for i in range(len(CANARY) - SHORTEST + 1))


def streamed(route: str, said: Sequence[Any]) -> list[Event]:
    reader = FORMATS[route].reader()
    return [*reader.feed(stream(*said, done=route.endswith("completions"))), *reader.eof()]


def spoken(route: str) -> list[Any]:
    return [orjson.loads(one) for one in sse.Lines().feed(STREAMS[route]) if one != sse.DONE]


# Every name that the canary makes is declared, so that the check has to see it.
NAMES = ("look", "wait", CANARY, *(f"{name}{more}" for name in ("look", "wait") for more in (CANARY, f"_{CANARY[:8]}")))


@pytest.mark.parametrize("route", ROUTES)
def test_a_canary_in_any_field_of_a_body_does_not_leave(route: str) -> None:
    asked, seen = asking(route, NAMES), 0
    for path in leaves(BODIES[route]):
        for body in planted(BODIES[route], path) if path else ():
            _, _, made, written = released(asked, route, FORMATS[route].events(body))
            assert not leaked(orjson.dumps(made)), path
            assert not leaked(written), path
            seen += 1
    assert seen > 30


@pytest.mark.parametrize("route", ROUTES)
def test_a_canary_in_any_field_of_a_stream_does_not_leave(route: str) -> None:
    asked, events = asking(route, NAMES), spoken(route)
    for path in leaves(events):
        for spoilt in islice(planted(events, path), 2) if len(path) > 1 else ():
            _, _, made, written = released(asked, route, streamed(route, spoilt))
            assert not leaked(orjson.dumps(made)), path
            assert not leaked(written), path


@pytest.mark.parametrize("route", ROUTES)
def test_what_holds_no_canary_leaves_with_its_names(route: str) -> None:
    """Else the tests above would hold of a guard that lets nothing go."""
    for events in (FORMATS[route].events(BODIES[route]), streamed(route, spoken(route))):
        release, out, made, written = released(asking(route, ("look", "wait")), route, events)
        words = ("upon a time",) if route == COMPLETIONS else ("look", "wait", "the sea", "Good day")
        assert all(word.encode() in orjson.dumps(made) for word in words)
        assert route == COMPLETIONS or b'"name":"look"' in written
        assert release.tally.withheld[UNDECLARED] == 0
        calls = {event.channel: event for event in out if isinstance(event, Open) and event.place == "tool_call"}
        read = sum(len(call.name) for call in calls.values()) + sum(
            len(event.text) for event in out if isinstance(event, Delta) and event.channel in calls
        )
        assert sum(r.bytes for r in release.ledger.ranges if r.place == "tool_call") == read
        assert len(calls) == (0 if route == COMPLETIONS else 2)


# --------------------------------------------------------------------------------------------- undeclared


OTHER = "i_am_not_declared.the_code_is_so"
UNSAID = {CHAT: "stop", MESSAGES: "end_turn", RESPONSES: "completed"}
SAID = {CHAT: "tool_calls", MESSAGES: "tool_use", RESPONSES: "completed"}


def finish(route: str, found: Any) -> str:
    if route == CHAT:
        return str(found.choices[0].finish_reason)
    return str(found.stop_reason if route == MESSAGES else found.status)


def calling(route: str, *names: str) -> dict[str, Any]:
    """A body of the sample, its calls by other names."""
    raw = orjson.dumps(BODIES[route]).decode()
    for before, after in zip(("look", "wait"), names, strict=True):
        raw = raw.replace(f'"name":"{before}"', f'"name":"{after}"')
    return orjson.loads(raw)  # type: ignore[no-any-return]


@pytest.mark.parametrize("route", [CHAT, RESPONSES, MESSAGES])
@pytest.mark.parametrize("declared", [("look",), ()], ids=["others declared", "none declared"])
def test_a_call_of_what_was_not_declared_is_withheld_and_the_reply_ends_well(
    route: str, declared: tuple[str, ...]
) -> None:
    body = calling(route, OTHER, f"{OTHER}.too")
    raw = STREAMS[route].replace(b'"name": "look"', f'"name": "{OTHER}"'.encode())
    raw = raw.replace(b'"name": "wait"', f'"name": "{OTHER}.too"'.encode())
    reader = FORMATS[route].reader()
    for events in (FORMATS[route].events(body), [*reader.feed(raw), *reader.eof()]):
        release, _, made, written = released(asking(route, declared), route, events)
        assert release.tally.withheld[UNDECLARED] == 2
        assert OTHER.encode() not in written + orjson.dumps(made)
        for found in (sdk.whole(route, sdk.body(made)), sdk.streamed(route, written)[0]):
            assert "Good day" in sdk.texts(route, found)[0, "reply"]
            assert not [place for _, place in sdk.texts(route, found) if place.startswith("call")]
            assert finish(route, found) == UNSAID[route]


@pytest.mark.parametrize("route", [CHAT, RESPONSES, MESSAGES])
def test_a_declared_call_beside_one_that_is_not_leaves(route: str) -> None:
    events = FORMATS[route].events(calling(route, OTHER, "wait"))
    release, _, made, written = released(asking(route, ("look", "wait")), route, events)
    assert (release.tally.withheld[UNDECLARED], OTHER.encode() in written) == (1, False)
    for found in (sdk.whole(route, sdk.body(made)), sdk.streamed(route, written)[0]):
        assert [place for _, place in sdk.texts(route, found) if place.startswith("call")] == ["call wait"]
        assert finish(route, found) == SAID[route]


def test_what_may_be_called_is_declared_in_every_way_that_there_is() -> None:
    def may(route: str, body: dict[str, Any], *allowed: str) -> Any:
        return callable_tools(FORMATS[route].read_request({**request(route), **body}, Allow(frozenset(allowed))))

    assert may(CHAT, {"functions": [{"name": "look"}]}) == {"look"}  # the older form
    assert may(CHAT, {}) == may(COMPLETIONS, {}) == may(MESSAGES, {"tools": []}) == frozenset()
    bash = {"tools": [{"type": "bash_20250124", "name": "bash"}, {"name": "look", "input_schema": {}}]}
    assert may(MESSAGES, bash, "tools.bash_20250124") == {"bash", "look"}
    group = {"type": "namespace", "name": "crm", "tools": [{"type": "function", "name": "find"}, "odd"]}
    assert may(RESPONSES, {"tools": [group]}, "tools.namespace") == {"crm", "find"}
    for name, value in (("prompt", {"id": "pmpt_1"}), ("previous_response_id", "resp_1"), ("conversation", "conv_1")):
        assert may(RESPONSES, {name: value}, name) is None  # it may bring tools that nobody here sees
    assert may(CHAT, {}, "tools.undeclared") is None


def test_the_older_functions_and_conversations_that_go_on_are_called_as_before() -> None:
    older = {"index": 0, "finish_reason": "function_call",
             "message": {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": "{}"}}}  # fmt: skip
    events = FORMATS[CHAT].events({**BODIES[CHAT], "choices": [older]})
    asked = request(CHAT, functions=[{"name": "look", "parameters": {}}])
    release, _, made, _ = released(asked, CHAT, events)
    assert made["choices"][0]["message"]["function_call"] == {"name": "look", "arguments": "{}"}
    assert made["choices"][0]["finish_reason"] == "function_call" and release.tally.withheld[UNDECLARED] == 0
    turns = [*asked["messages"], {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": "{}"}},
             {"role": "function", "name": "look", "content": "a boat"}]  # fmt: skip
    _, _, made, _ = released({**asked, "messages": turns}, CHAT, events)
    assert made["choices"][0]["message"]["function_call"]["name"] == "look"
    events = FORMATS[RESPONSES].events(BODIES[RESPONSES])
    policy = Allow(frozenset(("previous_response_id",)))
    _, _, made, _ = released(request(RESPONSES, previous_response_id="resp_1"), RESPONSES, events, policy)
    assert [item["name"] for item in made["output"] if item["type"] == "function_call"] == ["look", "wait"]


# -------------------------------------------------------------------------------------------- spelled out


def called(
    *names: str, arguments: str = "{}", messages: tuple[Message, ...] = (user("go"),), plan: Plan = KEPT
) -> list[Out]:
    """What leaves of a reply that makes these calls, one after the other, all of them declared."""
    release = Release(plan, messages, tools=frozenset(names))
    calls = [event for n, name in enumerate(names) for event in text(arguments, part=n, place="tool_call", name=name)]
    out = [item for event in (*calls, Finish(0, "tool_calls"), End()) for item in release.feed(event)]
    assert faults(release.ledger, out) == []
    return out


def names_in(out: Sequence[Out]) -> list[str]:
    return [event.name for event in out if isinstance(event, Open) and event.place == "tool_call"]


@pytest.mark.parametrize("form", ["{}", "t_{}", "tool.{}"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_canary_spelled_out_over_the_names_of_declared_tools_is_stopped(form: str, size: int) -> None:
    parts = [CANARY[i : i + size] for i in range(0, len(CANARY), size)]
    out = called(*(form.format(part) for part in parts))
    assert size * len(names_in(out)) < SHORTEST
    assert any(isinstance(item, Noted) and item.told.decision == "block_tool_call" for item in out)


def test_and_over_turns_of_one_call_each() -> None:
    messages, left, plan = (user("go"),), 0, keeping()
    for at in range(0, len(CANARY), 4):
        name = f"t_{CANARY[at : at + 4]}"
        out = called(name, messages=messages, plan=plan)
        gone = bool(names_in(out))
        left += 4 * gone
        made = (ToolCall("c", name, "{}"),) if gone else (Text(said(out)),)  # the client knows what it was sent
        messages += (Message("assistant", made), Message("tool", (ToolResult("c", ()),)) if gone else user("go on"))
    assert left < SHORTEST


def test_a_canary_that_begins_in_a_name_and_ends_in_the_arguments_takes_the_call_out() -> None:
    for cut in (4, 7, 16):
        out = called(f"look_{CANARY[:cut]}", arguments=orjson.dumps({"at": CANARY[cut:]}).decode())
        assert names_in(out) == [] and said(out) == WINDOW.say


def test_a_name_without_arguments_is_held_until_it_is_read_and_stands_in_the_ledger() -> None:
    assert names_in(called(f"do_{CANARY}", arguments="")) == []
    release = Release(KEPT, (user("go"),), tools=("look",))
    out = [item for event in text("", place="tool_call", name="look") for item in release.feed(event)]
    out += [*release.feed(Finish(0, "tool_calls")), *release.feed(End())]
    [stretch] = release.ledger.ranges
    assert (stretch.place, stretch.start, stretch.end, stretch.bytes) == ("tool_call", 0, 4, 4)
    assert names_in(out) == ["look"] and faults(release.ledger, out) == []
    assert faults(release.ledger, [*out, *text("", part=1, place="tool_call", name="more")])


def test_the_figure_in_an_id_of_kimi_s_shape_is_our_own_count() -> None:
    before = (user("go"), Message("assistant", (ToolCall("a", "look", "{}"), ToolCall("b", "look", "{}"))))
    release = Release(KEPT, before, tools=("look",))
    events: list[Event] = []
    for part, id in enumerate(("functions.look:417", "functions.look:41d", "functions.wait:7", CANARY)):
        events += (
            Open(Channel(0, part), "tool_call", id, "look"),
            Delta(Channel(0, part), "{}"),
            Close(Channel(0, part)),
        )
    out = [item for event in events for item in release.feed(event)]
    ids = [event.id for event in out if isinstance(event, Open)]
    assert ids == ["functions.look:2", "functions.look:3", "functions.wait:7", CANARY]
    form = FORMATS[CHAT]
    made = form.body([*whole(out), Finish(0, "tool_calls")], form.read_request(request(CHAT), Allow()), ())
    kept = [call["id"] for call in made["choices"][0]["message"]["tool_calls"]]
    assert kept[:2] == ids[:2]
    assert all(re.fullmatch("call_[0-9a-f]{24}", id) for id in kept[2:])
