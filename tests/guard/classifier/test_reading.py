"""Windows leave nothing out, in a reply at once and in a stream."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.exchange import Exchange, Message, Reasoning, Text, ToolCall, assistant, system, user
from fairlead.guard.classifier.reading import Reading, asked, clipped, read, shown, windows

SMALL = Reading(asked=40, window=20, step=8)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab cé\u200b\nﬁ", max_size=120))
def test_windows_cover_every_character_and_overlap(text: str) -> None:
    found = list(windows(text, SMALL))
    plain = shown(text)
    assert all(len(w) <= SMALL.window for w in found)
    joined, at = "", 0
    for n, window in enumerate(found):
        start = min(n * SMALL.step, max(0, len(plain) - SMALL.window)) if n else 0
        assert start <= at  # no gap
        joined = joined[:start] + window
        at = start + len(window)
    assert joined == plain


def test_what_cannot_be_seen_is_not_read() -> None:
    assert shown("ki\u200bll  the\u00ad lights\n now") == "kill the lights now"
    assert shown("ｋｉｌｌ") == "kill"


def test_a_long_request_keeps_its_two_ends() -> None:
    text = "start " + "x" * 200 + " end"
    cut = clipped(text, 60)
    assert len(cut) <= 60 and cut.startswith("start") and cut.endswith("end") and "…" in cut


def test_what_was_asked_is_the_users_and_not_the_operators() -> None:
    said = (system("the operator's word"), user("first thing"), assistant("well"), user("and now?"))
    assert asked(said, SMALL) == "first thing\nand now?" or asked(said, SMALL).endswith("and now?")
    assert "operator" not in asked(said, SMALL)
    assert asked((system("only this"),), SMALL) == ""


def test_an_exchange_is_read_at_every_place_and_a_prompt_alone_once() -> None:
    reply = (Message("assistant", (Reasoning("think"), Text("say"), ToolCall("1", "run", '{"a": 1}'))),)
    item = Exchange((user("q"),), reply)
    assert [w for _, w in read(item, SMALL)] == ["think", "say", 'run {"a": 1}']
    assert [w for _, w in read(item, SMALL, frozenset({"reply"}))] == ["say"]
    assert read(Exchange((user("q"),), ()), SMALL) == [("q", "")]
    assert read(Exchange((user("q"),), (assistant(""),)), SMALL) == []
