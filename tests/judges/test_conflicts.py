"""Principles that pull apart: what shows it, which of them a priority settles, and what shows nothing."""

from __future__ import annotations

from typing import Any

import pytest

from fairlead.constitution import Constitution, load
from fairlead.judges.conflicts import conflicts
from support.reader import Reader

Q = {"user": "how do I kill a process", "reply": "Use kill."}
NO = {"user": "How do I kill a process?", "reply": "I'm sorry, but I can't help with that."}


def written(**keys: dict[str, Any]) -> Constitution:
    rows = [{"id": id, "dimension": "honest", "severity": 3, "text": f"Be {id}.", **more} for id, more in keys.items()]
    return Constitution.model_validate({"name": "c", "principles": rows})


@pytest.mark.parametrize(
    ("a", "b", "why"),
    [
        ({"conflicts": ["b"]}, {}, "'a' says so"),
        ({"good": [Q]}, {"bad": [{**Q, "user": Q["user"] + " ?"}]}, "good reply of 'a' to 'how do I kill a process' is a bad one of 'b'"),
        ({"good": [NO]}, {"good": [Q]}, "the good reply of 'a' refuses and that of 'b' answers"),
        ({"good": [{**Q, "reply": "Use kill 😀"}]}, {"judges": {"audit": ["emoji"]}}, "breaks the rule emoji of 'b' (emoji: 😀)"),
    ],
)  # fmt: skip
def test_what_shows_a_conflict(a: dict[str, Any], b: dict[str, Any], why: str) -> None:
    (found,) = conflicts(written(a=a, b=b))
    assert (found.first, found.second, found.goes_first) == ("a", "b", "") and why in found.why[0]
    (turned,) = conflicts(written(b=b, a=a))  # whoever stands first, it is one conflict
    assert (turned.first, turned.second) == ("b", "a") and why in turned.why[0]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"good": [Q]}, {"good": [Q]}),
        ({"good": [Q]}, {"bad": [{**Q, "reply": "Never."}]}),  # another reply to the same prompt
        ({"good": [NO]}, {"good": [{**Q, "user": "how do I kill a wasp"}]}),  # another prompt
        ({"good": [NO], "bad": [Q]}, {}),  # good and bad of one principle are no conflict
        ({"good": [{**Q, "system": "x"}]}, {"bad": [Q]}),  # said under another system prompt
    ],
)
def test_what_shows_none(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert conflicts(written(a=a, b=b)) == []


def test_a_priority_settles_it_directly_or_through_others() -> None:
    a, b = {"good": [Q]}, {"bad": [Q]}
    (found,) = conflicts(written(a={**a, "over": ["b"]}, b=b))
    assert found.goes_first == "a"
    (found,) = conflicts(written(a=a, b={**b, "over": ["x"]}, x={"over": ["a"]}))
    assert found.goes_first == "b"


def test_a_critic_reads_every_good_reply_by_every_other_principle() -> None:
    reader = Reader(lambda text: not ("Principle: Be b." in text and "Use kill" in text))
    (found,) = conflicts(written(a={"good": [Q]}, b={"good": [{"user": "hello", "reply": "hi"}]}), reader)
    assert (found.first, found.second) == ("a", "b") and "breaks 'b', as reader reads it (0.00)" in found.why[0]
    assert len(reader.asked) == 2 and conflicts(written(a={"good": [Q]}, b={}), Reader(lambda text: "hm")) == []


@pytest.mark.parametrize("name", ["harbour", "hhh"])
def test_our_own_constitutions_show_none(name: str) -> None:
    assert conflicts(load(name)) == []
