"""Files in providers' formats: exactly the published shapes, read back, and nothing lost without a word."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from fairlead.errors import InputError
from fairlead.exchange import (
    Exchange,
    Media,
    Message,
    Preference,
    Reasoning,
    Refusal,
    Text,
    ToolCall,
    ToolResult,
    assistant,
    exchange,
    system,
    user,
)
from fairlead.feedback import export as module
from fairlead.feedback.export import FORMATS, export, read_back
from fairlead.feedback.formats import read_demonstrations, read_preferences

SAID = (system("You run the harbour office."), user("May I fish?"))
LONG = (*SAID, assistant("Where?"), user('At pier 3\u2028or "4", \\ and é…'))
TALKS = [exchange(SAID, "Yes."), exchange(LONG, "Yes, at both."), exchange("hello", "Good day.")]
PAIRS = [
    Preference(SAID, (assistant("Yes."),), (assistant("No."),)),
    Preference(LONG, (assistant("Both."),), (assistant("Neither."),), strength=0.8, margin=1.5, principle="p"),
]


def wrote(tmp_path: Path, form: str, kind: str, rows: list[Any], **more: Any) -> module.Exported:
    rows = rows + [exchange(f"more {i}?", "Yes.") if kind == "sft" else
                   Preference((user(f"more {i}?"),), (assistant("Yes."),), (assistant("No."),)) for i in range(10)]  # fmt: skip
    return export(tmp_path / "sent.jsonl", form, kind, rows, [f"rows:{i}" for i in range(1, len(rows) + 1)], **more)  # type: ignore[arg-type]


def lines(tmp_path: Path) -> list[Any]:
    return [json.loads(line) for line in (tmp_path / "sent.jsonl").read_bytes().split(b"\n") if line]


# --------------------------------------------------------------------------------------- the published shapes


def test_openais_conversations_and_pairs_are_those_of_its_guides(tmp_path: Path) -> None:
    wrote(tmp_path, "openai", "sft", TALKS)
    assert lines(tmp_path)[0] == {
        "messages": [
            {"role": "system", "content": "You run the harbour office."},
            {"role": "user", "content": "May I fish?"},
            {"role": "assistant", "content": "Yes."},
        ]
    }
    # a conversation's earlier reply is context, not something to imitate
    assert [m.get("weight") for m in lines(tmp_path)[1]["messages"]] == [None, None, 0, None, 1]
    wrote(tmp_path, "openai", "dpo", PAIRS)
    assert lines(tmp_path)[0] == {
        "input": {
            "messages": [
                {"role": "system", "content": "You run the harbour office."},
                {"role": "user", "content": "May I fish?"},
            ],
            "tools": [],
            "parallel_tool_calls": True,
        },
        "preferred_output": [{"role": "assistant", "content": "Yes."}],
        "non_preferred_output": [{"role": "assistant", "content": "No."}],
    }


def test_bedrocks_two(tmp_path: Path) -> None:
    made = wrote(tmp_path, "bedrock", "sft", TALKS)
    assert lines(tmp_path)[0] == {
        "schemaVersion": "bedrock-conversation-2024",
        "system": [{"text": "You run the harbour office."}],
        "messages": [
            {"role": "user", "content": [{"text": "May I fish?"}]},
            {"role": "assistant", "content": [{"text": "Yes."}]},
        ],
    }
    assert "system" not in lines(tmp_path)[2]
    assert made.earlier == 1  # it has no weights: the earlier reply is imitated too, and that is said
    assert any("1 rows hold earlier replies" in line for line in made.lines())
    wrote(tmp_path, "bedrock-claude", "sft", TALKS)
    assert lines(tmp_path)[0] == {
        "system": "You run the harbour office.",
        "messages": [{"role": "user", "content": "May I fish?"}, {"role": "assistant", "content": "Yes."}],
    }


# --------------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("form", [name for name in FORMATS if not name.startswith("bedrock")])
def test_our_own_readers_take_the_file_for_the_same_rows(form: str, tmp_path: Path) -> None:
    wrote(tmp_path, form, "sft", TALKS)
    assert list(read_demonstrations(tmp_path / "sent.jsonl").rows[:3]) == TALKS
    wrote(tmp_path, form, "dpo", PAIRS)
    back = read_preferences(tmp_path / "sent.jsonl").rows[:2]
    assert [(p.messages, p.chosen, p.rejected) for p in back] == [(p.messages, p.chosen, p.rejected) for p in PAIRS]
    assert [p.strength for p in back] == [1.0, 1.0]  # no format holds the label


@pytest.mark.parametrize(("form", "kind"), [(name, kind) for name, form in FORMATS.items() for kind in form.bodies])
def test_every_format_reads_back_as_what_was_written(form: str, kind: str, tmp_path: Path) -> None:
    rows: list[Any] = TALKS if kind == "sft" else PAIRS
    made = wrote(tmp_path, form, kind, rows)
    raw = (tmp_path / "sent.jsonl").read_bytes()
    assert (made.sha256, made.bytes, made.rows) == (hashlib.sha256(raw).hexdigest(), len(raw), len(rows) + 10)
    plain = list(read_back(tmp_path / "sent.jsonl", form, kind))  # type: ignore[arg-type]
    for row, back in zip(rows, plain, strict=False):
        sides = (row.reply,) if isinstance(row, Exchange) else (row.chosen, row.rejected)
        assert back == tuple(tuple((m.role, m.text) for m in part) for part in (row.messages, *sides))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("messages", [{"role": "user", "content": "x"}]),
        (
            "messages",
            [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "Bad day."}],
        ),  # sound, not ours
        ("extra", 1),
        ("messages", "x"),
    ],
)
def test_a_writer_that_errs_is_caught(key: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way back is another code than the way there: one row written wrongly stops the export, with its line."""
    form = FORMATS["together"]
    right = form.bodies["sft"]
    wrong = {
        **form.bodies,
        "sft": lambda plain: right(plain) if plain[0][-1][1] != "hello" else {**right(plain), key: value},
    }
    broken = {
        **{f: getattr(form, f) for f in ("name", "source", "readers", "strict", "weighs", "least")},
        "bodies": wrong,
    }
    monkeypatch.setitem(module.FORMATS, "together", module.Format(**broken))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"sent\.jsonl:3: (does not read back|reads back as another row)"):
        wrote(tmp_path, "together", "sft", TALKS)


# --------------------------------------------------------------------------------------- what has no place

CALL = ToolCall("1", "tide", "{}")
ODD: list[tuple[Exchange, str]] = [
    (Exchange(SAID, (Message("assistant", (CALL,)),)), "holds a ToolCall"),
    (Exchange((*SAID, Message("tool", (ToolResult("1", (Text("low"),)),))), (assistant("Low."),)), "a tool's result"),
    (Exchange((user("look"), Message("user", (Media("image", "d"),))), (assistant("A boat."),)), "holds a Media"),
    (Exchange(SAID, (Message("assistant", (Reasoning("hm"), Text("Yes."))),)), "holds reasoning"),
    (Exchange(SAID, (assistant("Yes."), assistant("No."))), "the reply has 2 turns"),
    (Exchange(SAID, (assistant(" "),)), "the reply is empty"),
    (Exchange((user("a"), user("b")), (assistant("c"),)), "must take turns"),
    (Exchange((user("a"), system("b"), user("c")), (assistant("d"),)), "must take turns"),
    (Exchange((user(""),), (assistant("c"),)), "its user turn is empty"),
    (Exchange((system("a"),), (assistant("c"),)), "does not end with what the assistant is to answer"),
]


@pytest.mark.parametrize(("row", "why"), ODD)
def test_what_a_format_has_no_place_for_is_refused_by_row_or_counted(row: Exchange, why: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"rows:2: .*{why}") as refused:
        wrote(tmp_path, "together", "sft", [TALKS[0], row])
    assert "--skip-bad-rows" in str(refused.value) and not (tmp_path / "sent.jsonl").exists()
    made = wrote(tmp_path, "together", "sft", [TALKS[0], row], skip_bad_rows=True)
    assert made.refused == 1 and made.rows == 11 and made.first_refused.startswith("rows:2: ")


def test_a_refusal_is_text(tmp_path: Path) -> None:
    wrote(tmp_path, "together", "sft", [Exchange(SAID, (Message("assistant", (Refusal("I will not."),)),))])
    assert lines(tmp_path)[0]["messages"][-1]["content"] == "I will not."


def test_openai_lets_roles_repeat(tmp_path: Path) -> None:
    assert wrote(tmp_path, "openai", "sft", [Exchange((user("a"), user("b")), (assistant("c"),))]).rows == 11


def test_soft_labels_ties_and_weak_pairs_are_counted(tmp_path: Path) -> None:
    def strong(strength: float) -> Preference:
        return Preference(SAID, (assistant("Yes."),), (assistant("No."),), strength=strength)

    rows = [strong(0.5), strong(0.6), strong(0.75), strong(1.0), Preference(SAID, (assistant("a"),), (assistant("a"),))]
    made = wrote(tmp_path, "together", "dpo", rows)
    assert (made.rows, made.ties, made.weak, made.soft, made.identical) == (13, 1, 0, 2, 1)
    made = wrote(tmp_path, "together", "dpo", rows, min_strength=0.75)
    assert (made.rows, made.ties, made.weak, made.soft, made.identical) == (12, 1, 1, 1, 1)
    assert len(lines(tmp_path)) == 12
    with pytest.raises(InputError, match=r"lies in \[0.5, 1\]"):
        wrote(tmp_path, "together", "dpo", rows, min_strength=0.4)


def test_too_few_rows_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"3 rows are left to write, and openai takes files of 10 rows or more"):
        export(tmp_path / "sent.jsonl", "openai", "sft", TALKS, ["a", "b", "c"])
    tie = Preference(SAID, (assistant("Yes."),), (assistant("No."),), strength=0.5)
    with pytest.raises(InputError, match=r"0 rows are left to write.*1 ties"):
        export(tmp_path / "sent.jsonl", "together", "dpo", [tie], ["a"])


def test_every_format_says_where_it_is_published() -> None:
    assert all(
        form.source.startswith("https://") and set(form.bodies) == set(form.readers) for form in FORMATS.values()
    )
