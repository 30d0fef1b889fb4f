"""The values that flow: JSON round trips on every part kind, and what they refuse."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

from fairlead import exchange as ex
from fairlead.exchange import (
    Case,
    Exchange,
    Media,
    Message,
    Preference,
    Ranking,
    Rated,
    Reasoning,
    Refusal,
    Text,
    ToolCall,
    ToolResult,
    Verdict,
    assistant,
    from_json,
    preference,
    system,
    to_json,
    user,
)  # fmt: skip

text = st.text(max_size=20)
flat = st.one_of(
    st.builds(Text, text), st.builds(ToolCall, text, text, text), st.builds(Media, text, text), st.builds(Refusal, text),
    st.builds(Reasoning, st.none() | text, st.none() | text),
)  # fmt: skip
part = st.recursive(  # a tool's result may hold another's
    flat, lambda inner: st.builds(ToolResult, text, st.lists(inner, max_size=2).map(tuple), st.booleans()), max_leaves=4
)
parts = st.lists(part, max_size=3).map(tuple)
messages = st.builds(
    Message, st.sampled_from(["system", "user", "assistant", "tool"]), parts,
    st.sampled_from(["operator", "user", "model", "tool", "retrieved"]),
)  # fmt: skip
turns = st.lists(messages, max_size=3).map(tuple)
score = st.floats(0, 1)
scalar = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | text
anything = st.recursive(scalar, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(text, inner, max_size=2))
meta = st.dictionaries(text, anything, max_size=2)
values = st.one_of(
    st.builds(Exchange, turns, turns, meta),
    st.builds(Verdict, score, st.none() | st.floats(-9, 9), text, st.lists(score, max_size=2).map(tuple), text, text),
    st.builds(Verdict, st.none(), st.none() | st.floats(-9, 9), st.text(min_size=1, max_size=20)),
    st.builds(Preference, turns, turns, turns, st.floats(0.5, 1), st.none() | st.floats(-9, 9), text, text, text),
    st.builds(Rated, turns, turns, st.booleans(), text, text, text),
    st.builds(Case, turns, text, text, text, text, meta),
)


def test_what_is_easily_left_out_is_among_the_values_generated() -> None:
    def nested(value: Any) -> bool:
        turns = value.messages if hasattr(value, "messages") else ()
        held = [p.parts for m in turns for p in m.parts if isinstance(p, ToolResult)]
        return any(isinstance(q, ToolResult) for inner in held for q in inner)

    def listed(value: Any) -> bool:
        return any(isinstance(v, list) and v for v in getattr(value, "meta", {}).values())

    for wanted in (nested, listed, lambda value: isinstance(value, Verdict) and value.score is None):
        find(values, wanted, settings=settings(max_examples=20_000, database=None), random=random.Random(0))


@given(values)
def test_every_value_round_trips_through_json(value: Any) -> None:
    assert from_json(type(value), json.loads(json.dumps(to_json(value)))) == value


def test_a_ranking_round_trips_and_refuses_an_order_that_is_no_permutation() -> None:
    ranking = Ranking((user("q"),), ((assistant("a"),), (assistant("b"),)), (1, 0))
    assert from_json(Ranking, to_json(ranking)) == ranking
    with pytest.raises(ValueError, match="not a permutation"):
        Ranking((user("q"),), ((assistant("a"),), (assistant("b"),)), (0, 0))


def test_values_are_frozen_and_slotted() -> None:
    with pytest.raises(FrozenInstanceError):
        user("x").role = "system"  # type: ignore[misc]
    for cls in (Message, Exchange, Verdict, Preference, Rated, Ranking, Case, *ex._PARTS.values()):
        assert "__slots__" in vars(cls), cls


def test_a_message_takes_a_plain_string_and_knows_its_origin() -> None:
    assert Message("user", "hello") == user("hello")  # type: ignore[arg-type]
    assert [m.origin for m in (system("a"), user("b"), assistant("c"), Message("tool", "d"))] == [  # type: ignore[arg-type]
        "operator", "user", "model", "tool",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="unknown role 'robot'"):
        Message("robot", "x")  # type: ignore[arg-type]


def test_text_is_what_was_visibly_said() -> None:
    said = Message("assistant", (Reasoning("hm"), Text("yes"), ToolCall("1", "f", "{}"), Refusal(" no")))
    assert said.text == "yes no"


def test_a_verdict_without_a_score_needs_a_reason_and_a_score_stays_in_bounds() -> None:
    with pytest.raises(ValueError, match="must say why"):
        Verdict(None)
    with pytest.raises(ValueError, match="outside"):
        Verdict(1.2)
    assert Verdict(None, reason="late").score is None


def test_a_preference_below_a_half_is_swapped_and_a_tie_is_kept() -> None:
    said, a, b = (user("q"),), (assistant("a"),), (assistant("b"),)
    swapped = preference(said, a, b, p_first=0.2)
    assert (swapped.chosen, swapped.rejected, swapped.strength) == (b, a, 0.8)
    assert preference(said, a, b, p_first=0.5).strength == 0.5
    with pytest.raises(ValueError, match=r"lies outside \[0.5, 1\]"):
        Preference(said, a, b, strength=0.3)
    with pytest.raises(ValueError, match="probability"):
        preference(said, a, b, p_first=1.5)


@pytest.mark.parametrize(
    ("cls", "data", "said"),
    [
        (Exchange, {"messages": [], "repply": []}, "unknown key 'repply'"),
        (Message, {"role": "user", "parts": [{"type": "song"}]}, "unknown part kind 'song'"),
        (Message, {"role": "user", "parts": "text"}, "expected a list"),
        (Exchange, [], "expected an object"),
        (Message, {"role": "user", "parts": [{"type": ["text"]}]}, r"parts\[0\]: unknown part kind"),
        (
            Message,
            {"role": "user", "parts": [{"type": "text", "text": 5}]},
            r"^parts\[0\].text: expected a text, got int",
        ),
        (Message, {"role": "user", "parts": [{"type": "text"}]}, r"^parts\[0\]: has no 'text'"),
        (
            Message,
            {"role": "user", "parts": [], "origin": "bogus"},
            "^origin: 'bogus' is none of operator, user, model",
        ),
        (Message, {"role": 5, "parts": []}, "^role: 5 is none of system"),
        (Exchange, {"messages": []}, "^Exchange: has no 'reply'"),
        (Exchange, {"messages": [], "reply": [], "meta": [1]}, "^meta: expected an object, got list"),
        (Verdict, {"score": 0.5, "steps": ["x"]}, r"^steps\[0\]: expected a number, got str"),
        (Verdict, {"score": True}, "^score: expected a number, got bool"),
        (Verdict, {"score": 0.5, "reason": None}, "^reason: expected a text, got null"),
        (Rated, {"messages": [], "reply": [], "good": 1}, "^good: expected true or false, got int"),
        (
            Ranking,
            {"messages": [], "replies": [[]], "order": [0.0]},
            r"^order\[0\]: expected a whole number, got float",
        ),
    ],
)
def test_bad_json_is_named(cls: type, data: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        from_json(cls, data)


def test_importing_fairlead_and_its_values_needs_no_torch() -> None:
    code = "import sys, fairlead, fairlead.exchange; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
