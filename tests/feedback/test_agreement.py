"""Agreement and consistency: right on made-up readers, and at chance for those that say nothing."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from fairlead.feedback.agreement import agreement, consistency, longer, order_flips, position_bias, same
from fairlead.stats import rate

DRAW = random.Random(3)
N = 600
PEOPLE = [float(DRAW.random() < 0.5) for _ in range(N)]
GROUPS = [i // 3 for i in range(N)]


def test_agreement_is_the_share_of_like_choices_clustered_by_prompt() -> None:
    right = [DRAW.random() < 0.8 for _ in range(N)]
    ps = [0.9 * h + 0.05 if ok else 0.95 - 0.9 * h for h, ok in zip(PEOPLE, right, strict=True)]
    row = agreement("reader", ps, PEOPLE, GROUPS)
    want = rate([float(ok) for ok in right], GROUPS)
    assert (row.value, row.low, row.high, row.n) == (want.value, want.low, want.high, N)
    assert (row.missing, row.ties) == (0, 0) and 0.7 < row.low < 0.8 < row.high < 0.87


@pytest.mark.parametrize("p", [None, 0.5, 0.5 + 1e-12])
def test_who_says_nothing_is_at_chance_everywhere(p: float | None) -> None:
    ps = [p] * N
    rows = [agreement("mute", ps, PEOPLE, GROUPS), consistency("repeats", "mute", [ps, ps, ps], GROUPS)]
    for row in rows:
        assert row.value == 0.5 and row.low < 0.5 < row.high
        assert row.missing + row.ties == N


def test_always_the_first_is_at_chance_against_people() -> None:
    row = agreement("first", [1.0] * N, PEOPLE, GROUPS)
    assert row.low < 0.5 < row.high


def test_pairs_that_people_tied_have_no_say() -> None:
    row = agreement("reader", [1.0, 1.0, 0.0], [1.0, 0.5, 0.0], "abc")
    assert (row.value, row.n) == (1.0, 2)
    with pytest.raises(ValueError, match="people chose on no pair"):
        agreement("reader", [1.0], [0.5], "a")


def test_consistency_is_the_mean_over_pairs_of_takes() -> None:
    takes = [[DRAW.choice((0.1, 0.5, 0.8, None)) for _ in range(50)] for _ in range(4)]
    row = consistency("repeats", "reader", takes, range(50))
    naive = [sum(same(takes[a][i], takes[b][i]) for a, b in combinations(range(4), 2)) / 6 for i in range(50)]
    assert row.value == pytest.approx(sum(naive) / 50)
    assert consistency("repeats", "sure", [[1.0, 0.0], [0.9, 0.2]], "ab").value == 1.0
    assert consistency("repeats", "fickle", [[1.0, 0.0], [0.1, 0.9]], "ab").value == 0.0
    with pytest.raises(ValueError, match="needs two"):
        consistency("repeats", "reader", takes[:1], range(50))


def test_position_and_length() -> None:
    bias = position_bias("reader", [0.2, 0.4, None], "abc")
    assert bias is not None and (bias.value, bias.n, bias.missing) == (pytest.approx(0.3), 2, 1)
    assert position_bias("pointwise", [None, None], "ab") is None and order_flips("pointwise", [None], "a") is None
    flips = order_flips("reader", [True, False, False, None], "abcd")
    assert flips is not None and (flips.value, flips.n) == (pytest.approx(1 / 3), 3)
    assert [longer("a b", "a"), longer("a", "b"), longer("a", "b c")] == [1.0, 0.5, 0.0]
