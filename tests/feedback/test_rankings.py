"""Rankings and labelled steps: published shapes are recognised, said aloud and read; bad rows name file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fairlead.errors import InputError
from fairlead.exchange import Preference, Ranking, Stepped, assistant, system, to_json, user
from fairlead.feedback.formats import read_comparisons, read_preferences, read_rated, read_steps

SAID = (user("which ?"),)
A, B, C = ((assistant(text),) for text in "abc")


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def one(path: Path, row: Any) -> tuple[Any, str]:
    got = read_comparisons(lines(path / "rows.jsonl", row))
    assert got.places == (f"{path / 'rows.jsonl'}:1",) and len(got) == 1
    return got.rows[0], got.report.files[0].format


RANKED = Ranking(SAID, (A, B, C), (2, 0, 1))  # c, then a, then b


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (to_json(RANKED), "fairlead rankings"),
        ({"prompt": "which ?", "replies": ["a", "b", "c"], "order": [2, 0, 1]}, "replies by order"),
        ({"prompt": "which ?", "replies": ["a", "b", "c"], "order": [3, 1, 2]}, "replies by order"),
        ({"instruction": "which ?", "responses": ["a", "b", "c"], "rank": [2, 3, 1]}, "replies by rank"),
        ({"question": "which ?", "completions": ["a", "b", "c"], "ranks": [1.0, 2.0, 0.0]}, "replies by rank"),
        ({"prompt": "which ?", "responses": ["a", "b", "c"], "scores": [0.1, -4, 7]}, "replies by score"),
        (
            {
                "messages": [{"role": "user", "content": "which ?"}],
                "completions": [[{"role": "assistant", "content": t}] for t in "abc"],
                "ratings": [3, 2, 5],
            },
            "replies by score",
        ),
        (
            {
                "prompt": "\n\nHuman: which ?\n\nAssistant:",
                "answers": [{"answer": t, "model": t, "rank": r} for t, r in zip("abc", (2.0, 3.0, 1.0), strict=True)],
            },
            "replies by rank",
        ),
        (
            {
                "instruction": "which ?",
                "completions": [{"response": t, "overall_score": s} for t, s in zip("abc", (6, 5, 8.5), strict=True)],
            },
            "replies by score",
        ),
    ],
)
def test_every_shape_of_a_ranking(tmp_path: Path, row: Any, name: str) -> None:
    assert one(tmp_path, row) == (RANKED, name)


def test_a_system_prompt_stands_before_the_question(tmp_path: Path) -> None:
    value, _ = one(tmp_path, {"system": "be brief", "prompt": "which ?", "replies": ["a", "b"], "rank": [2, 1]})
    assert value == Ranking((system("be brief"), *SAID), (A, B), (1, 0))


def test_files_of_pairs_are_comparisons_too(tmp_path: Path) -> None:
    row = {"prompt": "which ?", "chosen": "a", "rejected": "b"}
    lines(tmp_path / "one.jsonl", row, {**row, "chosen": "b"})
    lines(tmp_path / "two.jsonl", {"prompt": "which ?", "replies": ["a", "b", "b"], "rank": [1, 2, 3]})
    got = read_comparisons(tmp_path)
    assert got.rows[:2] == read_preferences(tmp_path / "one.jsonl").rows
    assert isinstance(got.rows[2], Ranking)
    assert [f.format for f in got.report.files] == ["prompt/chosen/rejected", "replies by rank"]
    assert got.report.lines() == (
        f"{tmp_path / 'one.jsonl'}: prompt/chosen/rejected (JSON Lines; a prompt text with chosen and rejected texts), "
        "2 comparisons",
        f"{tmp_path / 'two.jsonl'}: replies by rank (JSON Lines; a prompt, its replies, and the rank of each, the "
        "smallest the best), 1 comparisons",
        "2 pairs with two identical replies",
    )


def test_two_replies_alike_are_a_kept_tie_and_a_tie_among_more_is_refused(tmp_path: Path) -> None:
    two = {"prompt": "which ?", "replies": ["a", "b"], "scores": [4, 4]}
    assert one(tmp_path, two)[0] == Preference(SAID, A, B, strength=0.5)
    three = {"prompt": "which ?", "replies": ["a", "b", "c"], "scores": [4, 1, 4]}
    path = lines(tmp_path / "rows.jsonl", two, three, two)
    with pytest.raises(
        InputError, match=r"rows\.jsonl:2: replies 0 and 2 \(from 0\) have the same 'scores', 4: a rank"
    ):
        read_comparisons(path)
    got = read_comparisons(path, skip_bad_rows=True)
    assert (len(got), got.report.ties, got.report.skipped) == (2, 2, 1)
    assert any(line.endswith("1 bad rows skipped, the first at " + f"{path}:2") for line in got.report.lines())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rank": [1, 2]}, "3 replies but 'rank' has 2 entries"),
        ({"rank": [1, 2, "x"]}, r"rank\[2\] is 'x', not a number"),
        ({"rank": [1, 2, True]}, r"rank\[2\] is True, not a number"),
        ({"rank": 3}, "'rank' is int, not a list"),
        ({"order": [0, 1, 1], "rank": None}, r"'order' is \[0, 1, 1\]; it names each of the 3 replies once"),
        ({"order": [0, 1, 2]}, "'order' and 'rank' both say how the replies stand"),
        ({"ranking": [2, 0, 1], "rank": None}, "'ranking' may mean .* call it 'rank' or 'order'"),
        ({"replies": ["a"], "rank": [1]}, "'replies' holds 1 reply"),
        ({"replies": ["a", "b", {"words": "c"}]}, r"replies\[2\] has no text .* its keys are words"),
        ({"replies": ["a", "b", 3]}, r"'replies\[2\]' should be a list of turns, not a number"),
        ({"rank": None}, "nothing says how the replies stand"),
        ({"replies": None}, "no list of replies"),
        ({"prompt": " "}, "'prompt' is empty"),
        ({"prompt": None}, "the row has no prompt"),
    ],
)
def test_bad_rankings_are_named(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    good = {"prompt": "which ?", "replies": ["a", "b", "c"], "rank": [2, 3, 1]}
    path = lines(tmp_path / "rows.jsonl", good, good, {**good, **change})
    with pytest.raises(InputError, match=rf"rows\.jsonl:3: .*{says}"):
        read_comparisons(path)
    assert read_comparisons(path, skip_bad_rows=True).rows == (RANKED, RANKED)


def test_a_file_of_another_kind_is_recognised(tmp_path: Path) -> None:
    ranked = lines(tmp_path / "ranked.jsonl", {"prompt": "which ?", "replies": ["a", "b"], "rank": [1, 2]})
    stepped = lines(
        tmp_path / "stepped.jsonl", {"prompt": "which ?", "completions": ["a", "b"], "labels": [True, False]}
    )
    talk = lines(tmp_path / "talk.jsonl", {"prompt": "which ?", "completion": "a"})
    for read, path, says in (
        (read_preferences, ranked, r"look like rankings \(replies by rank\): read it as comparisons \(reward\)"),
        (read_rated, ranked, "look like rankings"),
        (read_comparisons, stepped, "look like replies in steps"),
        (read_preferences, stepped, r"read it as steps \(process-reward\)"),
        (read_comparisons, talk, "look like demonstrations"),
        (read_steps, ranked, "look like rankings"),
    ):
        with pytest.raises(InputError, match=says):
            read(path)


# ------------------------------------------------------------------------------------------------- steps

STEPPED = Stepped(SAID, ("a", "b"), (1.0, 0.0))


@pytest.mark.parametrize(
    ("row", "value", "name"),
    [
        (to_json(STEPPED), STEPPED, "fairlead steps"),
        ({"prompt": "which ?", "completions": ["a", "b"], "labels": [True, False]}, STEPPED, "stepwise supervision"),
        (
            {"prompt": [{"role": "user", "content": "which ?"}], "completions": ["a", "b"], "labels": [1, None]},
            Stepped(SAID, ("a", "b"), (1.0, None)),
            "stepwise supervision",
        ),
        (
            {"question": "which ?", "steps": ["a", "b"], "labels": [0.75, 0]},
            Stepped(SAID, ("a", "b"), (0.75, 0.0)),
            "steps and labels",
        ),
        (
            {"prompt": "which ?", "steps": ["a", "b", "c", "d"], "ratings": [1, 0, -1, None]},
            Stepped(SAID, ("a", "b", "c", "d"), (1.0, 0.5, 0.0, None)),
            "steps and ratings",
        ),
    ],
)
def test_every_shape_of_steps(tmp_path: Path, row: Any, value: Stepped, name: str) -> None:
    got = read_steps(lines(tmp_path / "rows.jsonl", row))
    assert (got.rows, got.report.files[0].format) == ((value,), name)
    assert got.report.unlabelled_steps == value.labels.count(None)
    assert f"{len(value.labels) - value.labels.count(None)} labelled steps" in got.report.lines()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"labels": [True]}, "2 steps and 1 labels"),
        ({"labels": [True, 2]}, r"labels\[1\] is 2; a label is"),
        ({"labels": [True, "no"]}, r"labels\[1\] is 'no'"),
        ({"completions": ["a", 3]}, r"'completions\[1\]' should be text"),
        ({"completions": [], "labels": []}, "0 steps"),
        ({"completions": "a"}, "'completions' is str, not a list"),
        ({"prompt": None}, "the row has no prompt"),
    ],
)
def test_bad_steps_are_named_or_counted(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    good = {"prompt": "which ?", "completions": ["a", "b"], "labels": [True, False]}
    path = lines(tmp_path / "rows.jsonl", good, {**good, **change})
    with pytest.raises(InputError, match=rf"rows\.jsonl:2: .*{says}"):
        read_steps(path)
    got = read_steps(path, skip_bad_rows=True)
    assert got.rows == (STEPPED,) and got.report.skipped == 1


def test_ratings_are_three_numbers(tmp_path: Path) -> None:
    path = lines(tmp_path / "rows.jsonl", {"prompt": "which ?", "steps": ["a"], "ratings": [0.5]})
    with pytest.raises(InputError, match=r"ratings\[0\] is 0.5; a rating is 1"):
        read_steps(path)
