"""Pairs of replies from any file: the file's verdict is kept beside the pair and cannot be read from its order."""

from __future__ import annotations

from typing import Any

import pytest

from fairlead.errors import InputError
from fairlead.feedback.files import BadRow
from fairlead.feedback.twos import read_two, shape_of

HH = {"chosen": "\n\nHuman: hi {i}\n\nAssistant: good day", "rejected": "\n\nHuman: hi {i}\n\nAssistant: go away"}


def hh(i: int) -> dict[str, str]:
    return {key: text.format(i=i) for key, text in HH.items()}


def texts(two: Any) -> tuple[str, str]:
    return two.first[0].text, two.second[0].text


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (hh(1), {"good day": 1.0}),
        ({"instruction": "q", "response1": "x", "response2": "y", "annotator1": 2, "annotator2": 2, "annotator3": 0},
         {"y": 5 / 6}),
        ({"input": "q", "output_1": "x", "output_2": "y", "label": 2}, {"y": 1.0}),
        ({"prompt": "q", "first": "x", "second": "y"}, None),
        ({"question": "q", "replies": ["x", "y"]}, None),
        ({"messages": [{"role": "user", "content": "q"}], "response_a": "x", "response_b": "y"}, None),
    ],
)  # fmt: skip
def test_reads_pairs_with_and_without_a_verdict(row: dict[str, Any], said: dict[str, float] | None) -> None:
    two = read_two(row)
    assert two.messages[-1].role == "user"
    if said is None:
        assert two.p_first is None and set(texts(two)) == {"x", "y"}
    else:
        ((better, p),) = said.items()
        assert two.p_first == pytest.approx(p if texts(two)[0] == better else 1 - p)


def test_the_order_says_nothing_about_the_verdict() -> None:
    first = [read_two(hh(i)).p_first for i in range(400)]
    assert set(first) == {0.0, 1.0} and 160 < sum(first) < 240  # type: ignore[arg-type]  # 200 expected, sd 10
    for i in range(20):
        row = hh(i)
        turned = read_two({"chosen": row["rejected"], "rejected": row["chosen"]})
        assert (texts(turned), turned.key) == (texts(read_two(row)), read_two(row).key)
        assert turned.p_first == 1 - read_two(row).p_first  # type: ignore[operator]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (["x"], "an object"),
        ({"text": "q"}, "no two replies"),
        ({"prompt": "q", "replies": ["x", "y", "z"]}, "holds 3 replies"),
        ({"prompt": "q", "replies": ["x", "y"], "ranking": [1, 2]}, "no two replies"),
        ({"prompt": "q", "first": 3, "second": "y"}, "'first' should be text"),
        ({"input": "q", "output_1": "x", "output_2": "y", "label": 0}, "'label' is 0"),
        ({"input": " ", "output_1": "x", "output_2": "y", "label": 1}, "'input' is empty"),
    ],
)
def test_what_is_no_pair_says_why(row: Any, words: str) -> None:
    with pytest.raises(BadRow, match=words):
        read_two(row)


def test_a_file_of_something_else_is_refused() -> None:
    assert shape_of([{"nothing": 1}, hh(1), hh(2)], "f.jsonl").name == "hh-rlhf"
    with pytest.raises(
        InputError, match=r"f\.jsonl: no rows of two replies to one prompt: its rows have the keys text"
    ):
        shape_of([{"text": "q"}], "f.jsonl")
