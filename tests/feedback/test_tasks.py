"""Files of tasks: a prompt in any spelling, with what judges read of it, and every bad row named by file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from fairlead.errors import InputError
from fairlead.exchange import assistant, system, user
from fairlead.feedback.formats import RowSet, read_tasks
from fairlead.judges.verifiers import final_number, numeric, references

ASKED = {"prompt": "what is 5 + 6 ?"}


def read(folder: Path, *rows: Any, name: str = "tasks.jsonl", **more: Any) -> RowSet[Any]:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_tasks(folder / name, **more)


def meta(folder: Path, **row: Any) -> dict[str, Any]:
    return dict(read(folder, ASKED | row).rows[0].meta)


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        (ASKED, (user("what is 5 + 6 ?"),)),
        ({"question": "what is 5 + 6 ?"}, (user("what is 5 + 6 ?"),)),
        (ASKED | {"system": "be brief"}, (system("be brief"), user("what is 5 + 6 ?"))),
        ({"prompt": [{"role": "user", "content": "hello"}]}, (user("hello"),)),
        (
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "b"},
                    {"role": "user", "content": "c"},
                ]
            },
            (user("a"), assistant("b"), user("c")),
        ),
        ({"messages": [{"role": "user", "parts": ["hello"]}]}, (user("hello"),)),
    ],
)
def test_prompts_in_their_spellings(tmp_path: Path, row: dict[str, Any], messages: Any) -> None:
    (found,) = read(tmp_path, row | {"reference": "x", "id": 3}).rows
    assert (found.messages, found.reply, found.meta) == (messages, (), {"reference": "x"})


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({}, {}),
        ({"answer": "11"}, {"reference": "11"}),
        ({"answer": 0}, {"reference": "0"}),
        ({"reference": 2.0}, {"reference": "2"}),
        ({"reference": 2.5, "references": ["2.5", 5]}, {"reference": "2.5", "references": ["2.5", "5"]}),
        ({"wrong": "12"}, {"wrong": "12"}),
        ({"wrong": [12, "13"]}, {"wrong": ["12", "13"]}),
        ({"tests": "assert f(1) == 2"}, {"tests": "assert f(1) == 2"}),
        ({"tests": [{"input": "1", "output": "2"}]}, {"tests": [{"input": "1", "output": "2"}]}),
        ({"meta": {"max_words": 7, "secret": "plum", "reference": 0}}, {"max_words": 7, "secret": "plum",
                                                                       "reference": "0"}),
        ({"reference": None, "wrong": None, "meta": None}, {}),  # as Parquet gives fields that a row lacks
        ({"meta": {"max_words": None}}, {}),
        ({"reference": "11", "meta": {"reference": 11}}, {"reference": "11"}),
        ({"reference": "11", "answer": "11"}, {"reference": "11"}),
    ],
)  # fmt: skip
def test_what_judges_read(tmp_path: Path, row: dict[str, Any], found: dict[str, Any]) -> None:
    assert meta(tmp_path, **row) == found


def test_an_answer_of_nothing_is_still_an_answer(tmp_path: Path) -> None:
    (task,) = read(tmp_path, ASKED | {"answer": 0}).rows
    assert references(task) == ["0"]


def test_a_worked_answer_is_the_number_it_settles_on(tmp_path: Path) -> None:
    """As GSM8K writes them: the last number of the working need not be the answer."""
    worked = "She has 3 + 4 = 7 in all, and 2 are blue.\n#### 1,005"
    (task,) = read(tmp_path, {"question": "how many ?", "answer": worked}).rows
    assert task.meta == {"reference": "1,005"} and final_number(worked) != 1005
    from dataclasses import replace

    assert numeric().judge([replace(task, reply=(assistant("it is 1005"),))])[0].score == 1.0
    assert meta(tmp_path, answer="no mark ####") == {"reference": "no mark ####"}


def test_a_text_file_is_a_prompt_a_line(tmp_path: Path) -> None:
    (tmp_path / "tasks.txt").write_text("what is 5 + 6 ?\n\nhello\n")
    found = read_tasks(tmp_path / "tasks.txt")
    assert [row.messages for row in found.rows] == [(user("what is 5 + 6 ?"),), (user("hello"),)]
    assert found.places == (f"{tmp_path}/tasks.txt:1", f"{tmp_path}/tasks.txt:3")


def test_packed_json_and_parquet(tmp_path: Path) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    rows = [ASKED | {"reference": "11"}, ASKED | {"reference": None}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "c.parquet")
    for name in ("a.json", "b.jsonl.gz", "c.parquet"):
        found = read_tasks(tmp_path / name)
        assert [row.meta for row in found.rows] == [{"reference": "11"}, {}], name
        assert any("2 tasks" in line for line in found.report.lines()), name


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "  "}, "'prompt' is empty"),
        ({"reference": "x"}, "no prompt"),
        (ASKED | {"reference": True}, "'reference' is bool, not a text or a number"),
        (ASKED | {"reference": ["11"]}, "'reference' is list, not a text or a number"),
        (ASKED | {"reference": " "}, "'reference' is empty"),
        (ASKED | {"references": "11"}, "'references' is str, not a list"),
        (ASKED | {"references": []}, "'references' is list, not a list with at least one"),
        (ASKED | {"references": ["11", None]}, r"'references\[1\]' is NoneType"),
        (ASKED | {"wrong": {}}, "'wrong' is dict"),
        (ASKED | {"tests": []}, "'tests' is empty"),
        (ASKED | {"tests": 3}, "'tests' is int, not a text of assertions or a list of tests"),
        (ASKED | {"tests": 0}, "'tests' is int, not a text of assertions or a list of tests"),
        (ASKED | {"tests": {"a": "b"}}, "'tests' is dict, not a text of assertions or a list of tests"),
        (ASKED | {"tests": ["assert f(1)", 3]}, r"'tests\[1\]' is int, not a text of assertions or a pair of texts"),
        (ASKED | {"meta": {"tests": 3}}, "'meta.tests' is int"),
        (ASKED | {"meta": "11"}, "'meta' is str, not an object"),
        (ASKED | {"meta": {"reference": []}}, "'meta.reference' is list"),
        (ASKED | {"reference": "11", "answer": "12"}, "both give the reference, and differ"),
        (ASKED | {"reference": "11", "meta": {"reference": "12"}}, "both give the reference, and differ"),
        ({"messages": [{"role": "user", "content": "b"}]}, "no prompt text"),  # the file's rows are of one format
        ([1], "not list"),
    ],
)
def test_bad_rows_are_named_or_counted(tmp_path: Path, row: Any, says: str) -> None:
    with pytest.raises(InputError, match=rf"tasks.jsonl:2: .*{says}"):
        read(tmp_path, ASKED, row, ASKED)
    found = read(tmp_path, ASKED, row, ASKED, skip_bad_rows=True)
    assert len(found) == 2 and found.places[1].endswith(":3")
    assert any("1 bad rows skipped, the first at" in line for line in found.report.lines())


def test_a_conversation_that_is_answered_already_asks_nothing(tmp_path: Path) -> None:
    asked, answered = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    with pytest.raises(InputError, match=r"tasks.jsonl:2: 'messages' ends with an assistant turn"):
        read(tmp_path, {"messages": [asked]}, {"messages": [asked, answered]})


def test_a_file_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a known format of tasks"):
        read(tmp_path, {"text": "hello"})
