from __future__ import annotations

import pytest

from fairlead.exchange import Media, Message, Reasoning, Refusal, Text, ToolCall, ToolResult
from fairlead.guard.decision import Decision, Span, most_severe
from fairlead.guard.pieces import drop_calls, pieces, redact, unreadable, without_unreadable

REPLY = (
    Message(
        "assistant",
        (
            Reasoning("think", None),
            Reasoning(None, "0xff"),
            Text("one two"),
            ToolCall("c1", "post", '{"a": 1}'),
            Media("image", "sha"),
        ),
    ),
    Message("tool", (ToolResult("c1", (Text("three"), Media("sound", "sha"))),)),
    Message("tool", (Text("bare"),)),
    Message("assistant", (Refusal("no"),)),
)


def test_every_readable_text_is_a_piece() -> None:
    assert [(p.at, p.place, p.text) for p in pieces(REPLY)] == [
        ((0, 0), "reasoning", "think"),
        ((0, 2), "reply", "one two"),
        ((0, 3), "tool_call", 'post\n{"a": 1}'),
        ((1, 0, 0), "tool_result", "three"),
        ((2, 0), "tool_result", "bare"),
        ((3, 0), "reply", "no"),
    ]


def test_what_cannot_be_read_is_named_and_taken_out() -> None:
    assert unreadable(REPLY) == ["opaque reasoning", "media (image)", "media (sound)"]
    kept = without_unreadable(REPLY)
    assert unreadable(kept) == []
    assert [p.text for p in pieces(kept)] == [p.text for p in pieces(REPLY)]


def test_spans_are_painted_over_and_touching_ones_become_one() -> None:
    spans = [Span((0, 2), 0, 2), Span((0, 2), 2, 3), Span((0, 2), 4, 5), Span((1, 0, 0), 1, 5), Span((0, 0), 0, 5)]
    changed = [p.text for p in pieces(redact(REPLY, spans))]
    assert changed == ["[redacted]", "[redacted] [redacted]wo", 'post\n{"a": 1}', "t[redacted]", "bare", "no"]
    assert redact(REPLY, []) == REPLY


def test_a_call_is_dropped_whole() -> None:
    changed = drop_calls(REPLY, [(0, 3)], "not that")
    assert changed[0].parts[3] == Text("not that")
    with pytest.raises(ValueError, match="ToolCall"):
        redact(REPLY, [Span((0, 3), 0, 1)])


def test_a_span_outside_the_reply_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no part of the reply stands at \(7, 0\)"):
        redact(REPLY, [Span((7, 0), 0, 1)])
    with pytest.raises(ValueError, match="ends at 99"):
        redact(REPLY, [Span((0, 2), 0, 99)])
    with pytest.raises(ValueError, match="not a stretch"):
        Span((0,), 3, 2)


def test_the_most_severe_decision_wins() -> None:
    order = ["allow", "hold", "redact", "revise", "block_tool_call", "escalate", "refuse", "failed"]
    decisions = [Decision(o, spans=(Span((0, 0), 0, 1),)) for o in order]  # type: ignore[arg-type]
    for n in range(1, len(order) + 1):
        assert most_severe(decisions[:n]).outcome == order[n - 1]
    assert most_severe([]).outcome == "allow"
    with pytest.raises(ValueError, match="must say what"):
        Decision("redact")
    with pytest.raises(ValueError, match="unknown outcome 'stop'"):
        Decision("stop")  # type: ignore[arg-type]
