"""What a change of text changes in meaning."""

from __future__ import annotations

from typing import Any

from fairlead.constitution import Constitution, load
from fairlead.constitution.diff import changes, reworded

HARBOUR = load("harbour")


def with_row(id: str, **keys: Any) -> Constitution:
    rows = [{**p.model_dump(), **(keys if p.id == id else {})} for p in HARBOUR.principles]
    return Constitution.model_validate({**HARBOUR.model_dump(by_alias=True), "principles": rows})


def test_the_same_meaning_is_no_change() -> None:
    assert changes(HARBOUR, load("harbour")) == [] == changes(HARBOUR, HARBOUR.model_copy(update={"name": "other"}))


def test_each_kind_of_change_is_told_apart() -> None:
    (change,) = changes(HARBOUR, HARBOUR.reworded({"voice": "Be curt."}))
    assert (change.what, change.kind) == ("principle voice", "changed")
    assert change.keys == {"text": (HARBOUR["voice"].text, "Be curt.")}
    (change,) = changes(HARBOUR, with_row("voice", severity=4))
    assert change.keys == {"severity": (2, 4)}
    (change,) = changes(HARBOUR, with_row("voice", over=("be-useful",)))
    assert change.keys == {"over": (None, ["be-useful"])}
    (change,) = changes(HARBOUR, with_row("voice", guard=None))
    assert change.keys["guard"][0]["on_violation"] == "revise" and change.keys["guard"][1] is None


def test_added_removed_and_moved() -> None:
    less = HARBOUR.without("no-harm")
    (removed,) = changes(HARBOUR, less)
    assert (removed.what, removed.kind) == ("principle no-harm", "removed") and removed.keys["severity"] == (5, None)
    (added,) = changes(less, HARBOUR)
    assert added.kind == "added" and added.keys["text"] == (None, HARBOUR["no-harm"].text)
    moved = HARBOUR.model_copy(update={"principles": HARBOUR.principles[::-1]})
    (change,) = changes(HARBOUR, moved)
    assert change.what == "order" and change.keys["principles"] == (list(HARBOUR.ids), list(HARBOUR.ids)[::-1])
    assert moved.sha256 != HARBOUR.sha256  # so a hash that differs is always told


def test_assistant_and_secrets_are_part_of_it() -> None:
    other = {**HARBOUR.model_dump(by_alias=True), "secrets": ()}
    other["assistant"] = {**other["assistant"], "name": "Nell"}
    found = changes(HARBOUR, Constitution.model_validate(other))
    assert [(c.what, c.kind) for c in found] == [("assistant", "changed"), ("secret told-to-keep", "removed")]
    assert reworded(HARBOUR, HARBOUR.reworded({"voice": "Be curt."})) == ["voice"]
