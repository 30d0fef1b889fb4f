"""Prompts longer than the context: named, all of them, and left out where an answer may be missing."""

from __future__ import annotations

import pytest

from fairlead.errors import InputError
from fairlead.exchange import user
from fairlead.models.access import Who, status_error
from fairlead.models.protocol import Prompt, Sampling
from fairlead.models.toolong import TOO_LONG, TooLong, all_too_long, where_it_fits
from measures.speakers import Narrow

SHORT, LONG, LONGER = [user("a")], [user("b" * 200)], [user("c" * 300)]


@pytest.mark.parametrize("one_by_one", [False, True])
def test_the_others_are_asked_and_answers_stay_in_order(one_by_one: bool) -> None:
    model = Narrow(lambda prompt: prompt[-1].text, one_by_one=one_by_one)

    def ask(prompts: list[Prompt]) -> list[str]:
        return [replies[0].text for replies in model.generate(prompts, Sampling())]

    told = where_it_fits(ask, [LONG, SHORT, LONGER, SHORT], lambda why: why)
    assert told == [f"{TOO_LONG}: 200 characters", "a", f"{TOO_LONG}: 300 characters", "a"]
    assert [size for size, _ in model.batches] == [2]
    assert where_it_fits(ask, [LONG, LONGER], lambda why: "") == ["", ""]
    assert where_it_fits(ask, [], lambda why: "") == []


def test_what_names_no_prompt_of_ours_is_raised() -> None:
    def ask(prompts: list[Prompt]) -> list[str]:
        raise TooLong("no room", [(LONG, "long")])

    with pytest.raises(TooLong, match="no room"):
        where_it_fits(ask, [SHORT], lambda why: "")


def test_all_too_long_means_all_of_some() -> None:
    assert all_too_long([f"critic: {TOO_LONG}: 9 tokens"])
    assert not all_too_long([]) and not all_too_long([TOO_LONG, None]) and not all_too_long([TOO_LONG, "unreadable"])


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("context_length_exceeded", "too many tokens"),
        ("", "This model's maximum context length is 128 tokens. However, you requested 140."),
        ("", "prompt is too long: 210000 tokens > 200000 maximum"),
    ],
)
def test_a_server_that_finds_a_prompt_too_long(code: str, message: str) -> None:
    who = Who("openai/x", "x", "http://x", "KEY")
    assert isinstance(status_error(who, 400, message, {}, code=code), TooLong)
    other = status_error(who, 400, "messages must not be empty", {})
    assert isinstance(other, InputError) and not isinstance(other, TooLong)
