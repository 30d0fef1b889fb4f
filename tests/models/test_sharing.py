"""Questions that begin alike read the beginning once, and are answered as if each were asked alone."""

from __future__ import annotations

import pytest

from fairlead import apprentice
from fairlead.apprentice import behaviour
from fairlead.models import open_model
from fairlead.models.sharing import by_prefix

pytest.importorskip("torch")


def test_neighbours_with_a_long_common_beginning_are_one_group() -> None:
    a, b = tuple(range(30)), (99, *range(30))
    prompts = [(*a, 1), (*a, 2, 3), a, b, (*b, 4), (7, 8)]
    assert by_prefix(prompts) == [(29, [0, 1, 2]), (30, [3, 4]), (0, [5])]


def test_a_joining_row_never_costs_tokens_and_every_row_keeps_one() -> None:
    long, short = tuple(range(40)), tuple(range(13))
    assert by_prefix([(*long, 1), (*long, 2), (*short, 99)]) == [(40, [0, 1]), (0, [2])]
    assert by_prefix([long, long]) == [(39, [0, 1])]


def test_shared_questions_get_the_answers_of_questions_asked_alone() -> None:
    model = open_model(str(apprentice.path().resolve()))
    asked = [(case.ask("judge"),) for case in behaviour.judged_cases(12, 0, unseen=False)]
    options = ["yes", "no"]
    prompts = [asked[i // 3] for i in range(36)]  # each three times in a row: all but the last token is shared
    together = model.logprobs(prompts, [options] * 36)
    for prompt, got in zip(prompts, together, strict=True):
        (alone,) = model.logprobs([prompt], [options])
        assert got == pytest.approx(alone, abs=2e-5)
