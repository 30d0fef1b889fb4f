"""Published shapes are recognised, said aloud and read; what cannot be read names its file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fairlead.errors import InputError
from fairlead.exchange import Preference, Rated, assistant, exchange, system, to_json, user
from fairlead.feedback.formats import read_demonstrations, read_preferences, read_prompts, read_rated
from fairlead.feedback.write import write_exchanges, write_preferences

HH = {
    "chosen": "\n\nHuman: hello\n\nAssistant: good day\n\nHuman: which colour ?\n\nAssistant: blue",
    "rejected": "\n\nHuman: hello\n\nAssistant: good day\n\nHuman: which colour ?\n\nAssistant: red",
}
TURNS = [{"role": "user", "content": "which colour ?"}]
BLUE, RED = [{"role": "assistant", "content": "blue"}], [{"role": "assistant", "content": "red"}]


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def one(path: Path, row: Any) -> tuple[Preference, str]:
    got = read_preferences(lines(path / "rows.jsonl", [row]))
    return got.rows[0], got.report.files[0].format


def test_hh_rlhf_is_cut_at_the_last_reply(tmp_path: Path) -> None:
    value, name = one(tmp_path, HH)
    assert name == "hh-rlhf"
    assert value.messages == (user("hello"), assistant("good day"), user("which colour ?"))
    assert (value.chosen, value.rejected) == ((assistant("blue"),), (assistant("red"),))


def test_hh_rlhf_sides_must_share_their_conversation(tmp_path: Path) -> None:
    other = {**HH, "rejected": HH["rejected"].replace("hello", "help")}
    path = lines(tmp_path / "hh.jsonl", [HH, other])
    with pytest.raises(InputError, match=r"hh\.jsonl:2: .*different conversations"):
        read_preferences(path)


def test_hh_rlhf_joins_turns_of_one_speaker(tmp_path: Path) -> None:
    row = {k: v.replace("Human: hello", "Human: hello\n\nHuman: you there ?") for k, v in HH.items()}
    assert one(tmp_path, row)[0].messages[0] == user("hello\n\nyou there ?")


@pytest.mark.parametrize(
    ("votes", "chosen", "strength"),
    [
        ((1, 1, 1), "a", 1.0),
        ((2, 2, 1), "b", 2 / 3),
        ((2, 0, 2), "b", 5 / 6),
        ((0, 0, 0), "a", 0.5),
        ((1, 0, 2), "a", 0.5),
    ],
)
def test_pandalm_votes_become_strength(
    tmp_path: Path, votes: tuple[int, int, int], chosen: str, strength: float
) -> None:
    row = {"instruction": "do it", "input": "with this", "response1": "a", "response2": "b"}
    row |= {f"annotator{i}": vote for i, vote in enumerate(votes, 1)}  # type: ignore[misc]
    value, name = one(tmp_path, row)
    assert name == "pandalm"
    assert value.chosen == (assistant(chosen),)
    assert value.strength == pytest.approx(strength)
    assert value.messages == (user("do it\n\nwith this"),)


def alpaca(preference: Any, first: str = "a", second: str = "b") -> dict[str, Any]:
    names = {"generator_1": f"model {first}", "generator_2": f"model {second}"}
    return {"instruction": "do it", "output_1": first, "output_2": second, "preference": preference, **names}


def test_alpaca_eval_does_not_depend_on_the_order_of_the_outputs(tmp_path: Path) -> None:
    rows = [alpaca(2), alpaca(1, "b", "a"), alpaca(1.75), alpaca(1.25, "b", "a")]
    got = read_preferences(lines(tmp_path / "rows.jsonl", rows))
    assert got.report.files[0].format == "alpaca-eval"
    assert {(row.chosen, row.rejected) for row in got.rows} == {((assistant("b"),), (assistant("a"),))}
    assert [row.strength for row in got.rows] == [1.0, 1.0, 0.75, 0.75]
    assert set(got.generators) == {("model b", "model a")}
    assert set(got.groups) == {"do it"}


def test_alpaca_eval_ties_are_kept_and_missing_labels_are_bad_rows(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", [alpaca(0), alpaca(1.5), alpaca(None), alpaca(3)])
    with pytest.raises(InputError, match=r"rows\.jsonl:3: 'preference' is null"):
        read_preferences(path)
    got = read_preferences(path, skip_bad_rows=True)
    assert [row.strength for row in got.rows] == [0.5, 0.5]
    assert (got.report.ties, got.report.skipped, got.report.rows) == (2, 2, 2)
    assert any("2 bad rows skipped, the first at" in line and "rows.jsonl:3" in line for line in got.report.lines())


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"prompt": "which colour ?", "chosen": "blue", "rejected": "red"}, "prompt/chosen/rejected"),
        ({"question": "which colour ?", "chosen": "blue", "rejected": "red"}, "prompt/chosen/rejected"),
        ({"prompt": "\n\nHuman: which colour ?\n\nAssistant:", "chosen": " blue", "rejected": " red"},
         "hh-rlhf with prompt"),
        ({"prompt": TURNS, "chosen": BLUE, "rejected": RED}, "conversational"),
        ({"chosen": TURNS + BLUE, "rejected": TURNS + RED}, "conversational"),
        ({"prompt": "which colour ?", "chosen": TURNS + BLUE, "rejected": TURNS + RED}, "conversational"),
        ({"prompt": "which colour ?", "chosen": BLUE, "rejected": RED}, "conversational"),
        ({"conversations": [{"from": "human", "value": "which colour ?"}], "chosen": {"from": "gpt", "value": "blue"},
          "rejected": {"from": "gpt", "value": "red"}}, "conversational"),
        ({"input": {"messages": TURNS}, "preferred_output": BLUE, "non_preferred_output": RED}, "openai preference"),
    ],
)  # fmt: skip
def test_every_published_shape_gives_the_same_pair(tmp_path: Path, row: Any, name: str) -> None:
    value, found = one(tmp_path, row)
    assert found == name
    assert value == Preference((user("which colour ?"),), (assistant("blue"),), (assistant("red"),))


def test_system_scores_and_models_are_taken_along(tmp_path: Path) -> None:
    row = {
        "system": "be brief",
        "prompt": "p",
        "chosen": "a",
        "rejected": "b",
        "score_chosen": 8,
        "score_rejected": 5.5,
    }
    got = read_preferences(lines(tmp_path / "rows.jsonl", [row | {"chosen_model": "x", "rejected_model": "y"}]))
    assert got.rows[0].messages[0] == system("be brief")
    assert got.rows[0].margin == 2.5
    assert got.generators == (("x", "y"),)


PAIR = {"prompt": "which colour ?", "chosen": "blue", "rejected": "red"}


@pytest.mark.parametrize(
    "kind", ["jsonl", "json", "pretty", "data", "lines.json", "jsonl.gz", "gzip without .gz", "parquet"]
)
def test_containers(tmp_path: Path, kind: str) -> None:
    rows = [PAIR, {**PAIR, "prompt": "and now ?\u2028still one line"}]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path = tmp_path / "rows.json"
    if kind == "parquet":
        path = tmp_path / "rows.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind in ("json", "pretty", "data"):
        value = {"data": rows} if kind == "data" else rows
        path.write_text(json.dumps(value, indent=2 if kind == "pretty" else None), encoding="utf-8")
    elif kind in ("jsonl.gz", "gzip without .gz"):
        path = tmp_path / ("rows.jsonl.gz" if kind == "jsonl.gz" else "rows.jsonl")
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path = path if kind == "lines.json" else tmp_path / "rows.jsonl"
        path.write_text(text, encoding="utf-8")
    got = read_preferences(path)
    assert len(got) == 2
    assert got.rows[1].messages[0].text == "and now ?\u2028still one line"


def test_several_files_and_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "deep").mkdir(parents=True)
    lines(folder / "a.jsonl", [PAIR])
    lines(folder / "deep" / "b.jsonl", [HH])
    (folder / "LICENSE").write_text("free")
    got = read_preferences(folder)
    assert [f.format for f in got.report.files] == ["prompt/chosen/rejected", "hh-rlhf"]
    assert [p.name for p in got.report.ignored_files] == ["LICENSE"]
    assert len(read_preferences([folder / "a.jsonl", folder / "deep" / "b.jsonl"])) == 2
    with pytest.raises(InputError, match="named twice"):
        read_preferences([folder / "a.jsonl", folder / "a.jsonl"])


def test_bad_rows_are_named_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [
        json.dumps(PAIR),
        "",
        json.dumps({"prompt": "p", "chosen": "a"}),
        "{broken",
        "[1]",
        json.dumps({**PAIR, "chosen": None}),
    ]
    path.write_text("\n".join(rows), encoding="utf-8")
    with pytest.raises(InputError, match=r"rows\.jsonl:3: the row has no 'rejected'.*--skip-bad-rows"):
        read_preferences(path)
    got = read_preferences(path, skip_bad_rows=True)
    assert (len(got), got.report.skipped, got.report.blank_lines) == (1, 4, 1)
    assert got.places == (f"{path}:1",)


def test_bad_rows_of_an_array_are_named_by_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([PAIR, PAIR, {"prompt": 3, "chosen": "a", "rejected": "b"}]))
    with pytest.raises(InputError, match=r"rows\.json row 3: the row has no prompt text"):
        read_preferences(path)


def test_a_bad_first_row_does_not_decide_the_format(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", [{"note": "exported today"}, PAIR, PAIR])
    with pytest.raises(InputError, match=r"rows\.jsonl:1: "):
        read_preferences(path)
    assert len(read_preferences(path, skip_bad_rows=True)) == 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b" \n\n", "empty"),
        (b"\xef\xbb\xbf", "empty"),
        (gzip.compress(b"", mtime=0), "empty"),
        (gzip.compress(json.dumps(PAIR).encode(), mtime=0)[:-12], "damaged or cut-off gzip"),
        (json.dumps(PAIR).encode("utf-16"), "encoded as UTF-16.*iconv -f UTF-16"),
        (json.dumps(PAIR).encode("utf-16-le"), "looks like UTF-16LE"),
        (
            json.dumps(PAIR).encode() + b"\n" + '{"prompt": "café"}'.encode("latin-1"),
            r":2: not UTF-8 \(byte 0xe9\).*iconv",
        ),
        (b"PK\x03\x04rest", "zip archive"),
        (b"\x80\x04\x95rest", "pickle"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"<!doctype html><html>", "web page"),
        (b"PAR1rest", "damaged Parquet"),
        (b'[{"prompt": "a",}]', ":1: not valid JSON"),
        (b"[]", "array is empty"),
        (b"just some words\n", ":1: not valid JSON"),
        (json.dumps({"a": 1}).encode(), "not a known format.*keys a.*Known: fairlead"),
        (json.dumps({"messages": TURNS + BLUE}).encode(), "look like demonstrations"),
    ],
)
def test_files_that_cannot_be_read_say_why(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        read_preferences(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 2


def test_missing_files_empty_folders_and_false_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_preferences(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="no data file in this folder"):
        read_preferences(tmp_path)
    (tmp_path / "a.jsonl.gz").write_text("{}")
    with pytest.raises(InputError, match=r"named \.gz but is not gzip"):
        read_preferences(tmp_path / "a.jsonl.gz")
    (tmp_path / "a.csv").write_text("prompt,chosen\n")
    with pytest.raises(InputError, match="CSV is not read"):
        read_preferences(tmp_path / "a.csv")


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(PAIR).encode())
    assert read_preferences(path).rows[0].messages == (user("which colour ?"),)


def test_identical_and_empty_replies_are_counted_and_kept(tmp_path: Path) -> None:
    got = read_preferences(lines(tmp_path / "r.jsonl", [PAIR, {**PAIR, "chosen": "red"}, {**PAIR, "chosen": " "}]))
    assert (len(got), got.report.identical, got.report.empty_replies) == (3, 1, 1)


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"messages": TURNS + BLUE}, "messages"),
        (
            {"conversations": [{"from": "human", "value": "which colour ?"}, {"from": "gpt", "value": "blue"}]},
            "sharegpt",
        ),
        ({"prompt": "which colour ?", "completion": "blue"}, "prompt/completion"),
        ({"prompt": TURNS, "completion": BLUE}, "prompt/completion turns"),
        ({"instruction": "which colour ?", "input": "", "output": "blue"}, "prompt/completion"),
    ],
)
def test_demonstrations(tmp_path: Path, row: Any, name: str) -> None:
    got = read_demonstrations(lines(tmp_path / "rows.jsonl", [row]))
    assert got.report.files[0].format == name
    assert got.rows == (exchange("which colour ?", "blue"),)


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"prompt": "which colour ?", "chosen": "blue", "rejected": "red"}, "prompt/chosen/rejected"),
        ({"prompt": TURNS, "chosen": BLUE, "rejected": [{"role": "assistant", "content": "red"}]}, "conversational"),
        ({"messages": TURNS + BLUE, "chosen": TURNS + BLUE, "rejected": TURNS + RED}, "conversational"),
        (
            {
                "chosen": "\n\nHuman: which colour ?\n\nAssistant: blue",
                "rejected": "\n\nHuman: which colour ?\n\nAssistant: red",
            },
            "hh-rlhf",
        ),
        ({"instruction": "which colour ?", "output_1": "red", "output_2": "blue", "preference": 2}, "alpaca-eval"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_demonstrations_may_be_the_chosen_side_of_pairs(tmp_path: Path, row: Any, name: str) -> None:
    got = read_demonstrations(lines(tmp_path / "rows.jsonl", [row]))
    assert got.report.files[0].format == f"{name}, chosen side"
    assert got.rows == (exchange("which colour ?", "blue"),)
    assert "1 demonstrations" in got.report.lines()[0], "said aloud"


def test_of_a_tie_the_first_reply_is_imitated_and_that_is_counted(tmp_path: Path) -> None:
    rows = [{"instruction": "which ?", "output_1": "a", "output_2": "b", "preference": p} for p in (1, 1.5, 2)]
    got = read_demonstrations(lines(tmp_path / "rows.jsonl", rows))
    assert [row.reply_text for row in got.rows] == ["a", "a", "b"]
    assert "1 ties, of which the first reply is taken" in got.report.lines()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"chosen": [{"role": "assistant", "parts": [{"type": "text", "text": 5}]}]}, r"chosen\[0\].parts\[0\].text: expected a text"),
        ({"messages": [{"role": "user", "parts": [], "origin": "bogus"}]}, "origin: 'bogus'"),
        ({"strength": "1"}, "strength: expected a number"),
        ({"rejected": [{"parts": []}]}, r"rejected\[0\]: has no 'role'"),
        ({"generators": 5}, "'generators' is not a list of two names"),
        ({"generators": ["a"]}, "'generators' is not a list of two names"),
        ({"group": 7}, "'group' is int"),
    ],
)  # fmt: skip
def test_a_row_of_our_own_format_with_a_value_of_a_wrong_type(tmp_path: Path, change: Any, says: str) -> None:
    turn = {"role": "assistant", "parts": [{"type": "text", "text": "x"}]}
    good = {"messages": [{**turn, "role": "user"}], "chosen": [turn], "rejected": [turn]}
    path = lines(tmp_path / "rows.jsonl", [good, {**good, **change}])
    with pytest.raises(InputError, match=rf"rows.jsonl:2: .*{says}"):
        read_preferences(path)
    assert read_preferences(path, skip_bad_rows=True).report.skipped == 1


def test_demonstrations_need_replies(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ends with a user turn"):
        read_demonstrations(lines(tmp_path / "a.jsonl", [{"messages": TURNS}]))
    with pytest.raises(InputError, match="every reply is empty"):
        read_demonstrations(lines(tmp_path / "b.jsonl", [{"prompt": "p", "response": ""}]))


RATING = Rated((user("which colour ?"),), (assistant("blue"),), True)


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"prompt": "which colour ?", "completion": "blue", "label": True}, "prompt/completion/label"),
        ({"prompt": "which colour ?", "completion": "blue", "label": 1}, "prompt/completion/label"),
        ({"instruction": "which colour ?", "input": "", "output": "blue", "kto_tag": True}, "prompt/completion/label"),
        ({"prompt": "\n\nHuman: which colour ?\n\nAssistant:", "completion": " blue", "label": True},
         "prompt/completion/label"),
        ({"prompt": TURNS, "completion": BLUE, "label": True}, "prompt/completion/label turns"),
        ({"messages": TURNS + BLUE, "label": True}, "messages/label"),
        ({"conversations": [{"from": "human", "value": "which colour ?"}, {"from": "gpt", "value": "blue"}],
          "label": True}, "messages/label"),
        (to_json(RATING), "fairlead"),
    ],
)  # fmt: skip
def test_every_published_shape_gives_the_same_rated_reply(tmp_path: Path, row: Any, name: str) -> None:
    bad = {**row, **{key: False for key in ("label", "kto_tag", "good") if key in row}}
    got = read_rated(lines(tmp_path / "rows.jsonl", [row, bad]))
    assert got.report.files[0].format == name
    assert got.rows == (RATING, Rated(RATING.messages, RATING.reply, False))
    assert got.places == (f"{tmp_path}/rows.jsonl:1", f"{tmp_path}/rows.jsonl:2")
    assert {"1 good replies", "1 bad replies"} <= set(got.report.lines())


@pytest.mark.parametrize("kind", ["parquet", "json", "jsonl.gz"])
def test_rated_replies_in_every_container(tmp_path: Path, kind: str) -> None:
    rows = [{"prompt": f"p {i}", "completion": "c", "label": i % 3 == 0} for i in range(9)]
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        text = json.dumps(rows) if kind == "json" else "".join(json.dumps(row) + "\n" for row in rows)
        path.write_bytes(text.encode() if kind == "json" else gzip.compress(text.encode()))
    got = read_rated(path)
    assert [row.good for row in got.rows] == [i % 3 == 0 for i in range(9)]
    assert (got.report.good, got.report.bad) == (3, 6)


def test_pairs_become_two_rated_replies_each_and_it_is_said(tmp_path: Path) -> None:
    tie = to_json(Preference((user("p"),), (assistant("a"),), (assistant("b"),), 0.5))
    mixed = [lines(tmp_path / "a.jsonl", [PAIR, {**PAIR, "chosen": "red"}]), lines(tmp_path / "b.jsonl", [tie])]
    got = read_rated(mixed)
    assert got.rows == (RATING, Rated(RATING.messages, (assistant("red"),), False))
    assert got.places == (f"{mixed[0]}:1 chosen", f"{mixed[0]}:1 rejected")
    said = got.report.lines()
    assert "as two replies, chosen good and rejected bad" in said[0]
    assert "2 pairs of which neither reply is better (ties, identical replies), left out" in said
    with pytest.raises(InputError, match="not one of 1 pairs has a better reply"):
        read_rated(mixed[1])


def test_bad_rows_of_rated_replies_are_named_and_counted(tmp_path: Path) -> None:
    good = {"prompt": "p", "completion": "c", "label": True}
    path = lines(tmp_path / "r.jsonl", [good, {**good, "label": "yes"}, {**good, "label": 2}, {"prompt": "p"}, good])
    with pytest.raises(InputError, match=r"r\.jsonl:2: 'label' is 'yes'; it is true"):
        read_rated(path)
    got = read_rated(path, skip_bad_rows=True)
    assert (len(got), got.report.skipped) == (2, 3)


def test_a_reply_rated_bad_is_no_demonstration(tmp_path: Path) -> None:
    good = {"prompt": "p", "completion": "c", "label": True}
    path = lines(tmp_path / "r.jsonl", [good, {**good, "label": False}])
    with pytest.raises(InputError, match=r"r\.jsonl:2: 'label' is false"):
        read_demonstrations(path)
    assert len(read_demonstrations(path, skip_bad_rows=True)) == 1


def test_prompts(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("one\n\ntwo\n")
    assert [m[0].text for m in read_prompts(tmp_path / "p.txt").rows] == ["one", "two"]
    assert read_prompts(lines(tmp_path / "p.jsonl", [{"messages": TURNS}])).rows == ((user("which colour ?"),),)


def test_written_files_read_back_equal(tmp_path: Path) -> None:
    rows = [
        Preference(
            (system("s"), user("a\u2028b")), (assistant("x"),), (assistant("y"),), 0.7, 1.5, "no-harm", "ai", "t"
        ),
        Preference((user("c"),), (assistant("x"),), (assistant("y"),)),
    ]
    path = tmp_path / "new" / "rows.jsonl"
    write_preferences(path, rows, groups=["g", "h"], generators=[("m", "n"), None])
    got = read_preferences(path)
    assert got.rows == tuple(rows)
    assert (got.groups, got.generators) == (("g", "h"), (("m", "n"), None))
    said = [exchange("a", "b", kind="fact")]
    write_exchanges(tmp_path / "e.jsonl", said)
    assert read_demonstrations(tmp_path / "e.jsonl").rows == tuple(said)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_failed_write_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    write_exchanges(path, [exchange("a", "b")])
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_exchanges(path, [exchange("c", "d"), exchange("e", "f", bad=object())])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["e.jsonl"]
