"""Pairs with a gold reply beside them (TPO): as they are published, in our own format, and as rankings of three."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fairlead.errors import InputError
from fairlead.exchange import Preference, Ranking, assistant, to_json, user
from fairlead.feedback.formats import read_preferences, read_triples

SAID = (user("which ?"),)
A, B, C = ((assistant(text),) for text in "abc")
WANTED = Preference(SAID, A, B, gold=C)
MARKED = "\n\nHuman: which ?\n\nAssistant:"
ASKED = {"role": "user", "content": "which ?"}


def turn(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (to_json(WANTED), "fairlead"),
        ({"prompt": "which ?", "chosen": "a", "rejected": "b", "reference": "c"}, "prompt/chosen/rejected"),
        (
            {"prompt": [ASKED], "chosen": [turn("a")], "rejected": [turn("b")], "reference": [turn("c")]},
            "conversational",
        ),
        (
            {"chosen": [ASKED, turn("a")], "rejected": [ASKED, turn("b")], "reference": [ASKED, turn("c")]},
            "conversational",
        ),
        ({"chosen": [ASKED, turn("a")], "rejected": [ASKED, turn("b")], "reference": [turn("c")]}, "conversational"),
        ({"chosen": f"{MARKED} a", "rejected": f"{MARKED} b", "reference": f"{MARKED} c"}, "hh-rlhf"),
        ({"prompt": MARKED, "chosen": " a", "rejected": " b", "reference": " c"}, "hh-rlhf with prompt"),
        (to_json(Ranking(SAID, (B, A, C), (2, 1, 0))), "fairlead rankings, the best of three as the gold reply"),
        (
            {"prompt": "which ?", "responses": ["a", "b", "c"], "scores": [2, 1, 3]},
            "replies by score, the best of three as the gold reply",
        ),
    ],
)
def test_every_shape_of_a_triple(tmp_path: Path, row: Any, name: str) -> None:
    path = lines(tmp_path / "rows.jsonl", row)
    got = read_triples(path)
    assert (got.rows, got.places, got.report.files[0].format) == ((WANTED,), (f"{path}:1",), name)


def test_a_system_prompt_stands_before_all_three(tmp_path: Path) -> None:
    row = {"system": "be brief", "chosen": [ASKED, turn("a")], "rejected": [ASKED, turn("b")]}
    (pair,) = read_triples(lines(tmp_path / "rows.jsonl", row | {"reference": [ASKED, turn("c")]})).rows
    assert [m.role for m in pair.messages] == ["system", "user"] and pair.gold == C


def test_ties_and_empty_gold_replies_are_counted(tmp_path: Path) -> None:
    row = {"prompt": "which ?", "chosen": "a", "rejected": "a", "reference": ""}
    report = read_triples(lines(tmp_path / "rows.jsonl", row)).report
    assert (report.identical, report.empty_replies) == (1, 1)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "which ?", "chosen": "a", "rejected": "b"}, "has no 'reference', the gold reply beside the pair"),
        ({"prompt": "which ?", "chosen": "a", "rejected": "b", "reference": None}, "has no 'reference'"),
        ({"prompt": "which ?", "chosen": "a", "rejected": "b", "reference": 4}, "reference"),
        (
            {"chosen": [ASKED, turn("a")], "rejected": [ASKED, turn("b")], "reference": [{**ASKED, "content": "who ?"}, turn("c")]},
            "answer different conversations",
        ),
        ({"chosen": f"{MARKED} a", "rejected": f"{MARKED} b", "reference": "\n\nHuman: no\n\nAssistant: c"}, "different"),
        ({"prompt": "which ?", "responses": list("abcd"), "scores": [2, 1, 3, 4]}, "4 replies: a ranking of three"),
        ({"prompt": "which ?", "responses": list("ab"), "scores": [2, 2]}, "2 replies: a ranking of three"),
    ],
)  # fmt: skip
def test_bad_triples_are_named(tmp_path: Path, row: Any, says: str) -> None:
    with pytest.raises(InputError, match=rf"rows\.jsonl:2: .*{says}"):
        read_triples(lines(tmp_path / "rows.jsonl", {**to_plain(row)}, row))


def to_plain(row: dict[str, Any]) -> dict[str, Any]:
    """A good row of the same shape before the bad one."""
    if "responses" in row:
        return {"prompt": "which ?", "responses": ["a", "b", "c"], "scores": [2, 1, 3]}
    good = f"{MARKED} c" if isinstance(row["chosen"], str) and "prompt" not in row else "c"
    return row | {"reference": [turn("c")] if isinstance(row["chosen"], list) else good}


def test_a_column_of_that_name_is_no_matter_to_who_reads_pairs(tmp_path: Path) -> None:
    """Data sets of tasks have one of another meaning."""
    row = {"prompt": "which ?", "chosen": "a", "rejected": "b", "reference": 4}
    assert read_preferences(lines(tmp_path / "rows.jsonl", row)).rows == (Preference(SAID, A, B),)
