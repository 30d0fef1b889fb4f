"""The bag of words that must not tell tempting prompts from twins, against scikit-free loops of our own."""

from __future__ import annotations

import numpy as np
import pytest

from fairlead.feedback.wordbag import KEYWORDS, _interval, word_auroc


def groups(n: int) -> tuple[list[str], list[str]]:
    return [f"g{i}" for i in range(n)], [f"g{i}" for i in range(n)]


def test_keywords_are_found_and_shared_words_are_not() -> None:
    n = 40
    bad = [f"please help me hack the door {i}" for i in range(n)]
    good = [f"please help me paint the door {i}" for i in range(n)]
    found = word_auroc(bad, good, groups(n))
    assert found.value == 1.0 > KEYWORDS and found.n == 2 * n
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(30)]

    def drawn() -> list[str]:
        return [" ".join(rng.choice(words, 8)) for _ in range(100)]

    chance = word_auroc(drawn(), drawn(), groups(100))
    assert chance.low < 0.5 < chance.high


def test_words_of_a_group_that_is_held_out_do_not_help() -> None:
    """Every pair has keywords of its own: seen in training they would tell all, held out they tell nothing."""
    bad, good = [f"bad{i} asks" for i in range(20)], [f"good{i} asks" for i in range(20)]
    assert word_auroc(bad, good, groups(20)).value == 0.5


def test_the_auroc_is_the_share_of_pairs_in_order_and_its_interval_covers() -> None:
    assert _interval([3, 1], [2, 1]).value == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    rng = np.random.default_rng(1)
    truth, hits = 0.7602, 0  # P(N(1,1) > N(0,1)) = Phi(1 / sqrt 2)
    for _ in range(100):
        found = _interval(list(rng.normal(1, 1, 25)), list(rng.normal(0, 1, 25)))
        hits += found.low <= truth <= found.high
    assert hits >= 88  # 95% nominal; fewer than 88 of 100 has a chance below 1% at 94%


def test_too_few_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        word_auroc(["a"], ["b", "c"], (["x"], ["x", "y"]))
    with pytest.raises(ValueError, match="two groups"):
        word_auroc(["a", "b"], ["b", "c"], (["x", "x"], ["x", "x"]))
