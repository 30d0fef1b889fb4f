"""What becomes of a judge that raises: only what it raises on is missing, and it is not asked for ever."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from fairlead.errors import BudgetReached, InputError, MissingResource  # noqa: E402
from fairlead.exchange import Exchange, Verdict, exchange  # noqa: E402
from fairlead.judges.lineage import leaf  # noqa: E402
from fairlead.judges.rules import Judged  # noqa: E402
from fairlead.methods.rewards import GIVEN_UP, Objective, score  # noqa: E402


def judging(bad: set[int], asked: list[int], silent: frozenset[int] = frozenset()) -> Objective:
    """Gives each reply its number, and raises on any batch that holds a bad one."""

    def verdicts(items: Sequence[Exchange]) -> list[Verdict]:
        asked.append(len(items))
        numbers = [int(item.reply_text) for item in items]
        if found := bad.intersection(numbers):
            raise ValueError(f"reply {min(found)} is bad")
        return [Verdict(None, reason="silent", judge="j") if n in silent else Verdict(0.5, raw=float(n), judge="j")
                for n in numbers]  # fmt: skip

    return Objective(Judged("j", verdicts, leaf("rule", text="j", code="j")))


def replies(n: int) -> list[Exchange]:
    return [exchange("say a number", str(i)) for i in range(n)]


@pytest.mark.parametrize(
    ("n", "bad"), [(64, {17}), (64, {0, 63}), (50, {3, 4, 5, 31}), (7, {0, 1, 2, 3, 4, 6}), (1, {0})]
)
def test_only_the_replies_that_a_judge_raises_on_are_missing(n: int, bad: set[int]) -> None:
    asked: list[int] = []
    found = score([judging(bad, asked)], replies(n))
    column = found.raw_RK[:, 0].tolist()
    assert [i for i, value in enumerate(column) if math.isnan(value)] == sorted(bad)
    assert all(value == i for i, value in enumerate(column) if i not in bad)
    assert found.reasons == {"j": f"ValueError: reply {min(bad)} is bad"}
    assert len(asked) <= 1 + 2 * len(bad) * math.ceil(math.log2(max(n, 2)))


def test_a_judge_that_does_not_raise_is_asked_once() -> None:
    asked: list[int] = []
    found = score([judging(set(), asked, silent=frozenset({2}))], replies(5))
    assert asked == [5] and found.reasons == {"j": "silent"} and int(found.raw_RK.isnan().sum()) == 1


def test_a_judge_that_raises_on_everything_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    asked: list[int] = []
    with caplog.at_level(logging.WARNING, "fairlead"):
        found = score([judging(set(range(1000)), asked)], replies(1000))
    assert bool(found.raw_RK.isnan().all()) and len(asked) == GIVEN_UP == 32
    (said,) = caplog.messages
    assert "raised on 1000 of 1000 replies" in said and " of them for 32 calls in a row that raised" in said


@pytest.mark.parametrize("bad", [{i for i in range(256) if i % 16 == 5}, {*range(16)}, {*range(240, 256)}])
def test_one_that_raises_here_and_there_or_in_one_place_is_not(bad: set[int], caplog: pytest.LogCaptureFixture) -> None:
    asked: list[int] = []
    with caplog.at_level(logging.WARNING, "fairlead"):
        found = score([judging(bad, asked)], replies(256))
    assert int(found.raw_RK.isnan().sum()) == 16 and len(asked) > GIVEN_UP
    (said,) = caplog.messages
    assert "raised on 16 of 256 replies, which have no value of it (ValueError: reply " in said


@pytest.mark.parametrize("error", [MissingResource("the server is gone"), BudgetReached("it is spent")])
def test_an_error_that_is_about_no_reply_is_not_looked_for_in_halves(error: Exception) -> None:
    asked: list[int] = []

    def gone(items: Any) -> Any:
        asked.append(len(items))
        raise error

    found = score([Objective(Judged("remote", gone, leaf("rule", text="remote", code="remote")))], replies(64))
    assert asked == [64] and bool(found.raw_RK.isnan().all())


def test_answers_that_are_not_one_per_reply_are_an_error_of_the_judge() -> None:
    odd = Objective(Judged("odd", lambda items: [], leaf("rule", text="odd", code="odd")))
    with pytest.raises(InputError, match="objective odd: 0 verdicts on 3 replies; give one each"):
        score([odd], replies(3))
