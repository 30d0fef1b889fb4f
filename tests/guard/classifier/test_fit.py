"""Calibration, thresholds and the numbers of the card."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fairlead.guard.classifier.card import auroc_interval, described, recall_at
from fairlead.guard.classifier.fit import auroc, platt, threshold_at


def test_platt_finds_the_slope_that_made_the_labels() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=20_000) * 3
    y = rng.random(20_000) < 1 / (1 + np.exp(-(0.7 * z - 1.0)))
    slope, offset = platt(z, y)
    assert slope == pytest.approx(0.7, abs=0.05)
    assert offset == pytest.approx(-1.0, abs=0.1)


def test_platt_stays_finite_on_a_perfect_split() -> None:
    slope, offset = platt(np.array([-2.0, -1.0, 1.0, 2.0]), np.array([False, False, True, True]))
    p = 1 / (1 + math.exp(-(slope * 2.0 + offset)))
    assert 0.5 < p <= (2 + 1) / (2 + 2) + 0.2
    assert math.isfinite(slope) and math.isfinite(offset)


def test_a_head_that_is_no_better_than_chance_is_not_calibrated() -> None:
    with pytest.raises(ValueError, match="no better than chance"):
        platt(np.array([3.0, 2.0, -2.0, -3.0]), np.array([False, False, True, True]))
    with pytest.raises(ValueError, match="needs both"):
        platt(np.array([1.0, 2.0]), np.array([True, True]))


@pytest.mark.parametrize("rate", [0.05, 0.01, 0.1])
def test_a_threshold_flags_no_more_than_was_allowed_and_no_less_than_it_could(rate: float) -> None:
    scores = np.random.default_rng(1).random(1_000)
    t = threshold_at(scores, rate)
    flagged = int((scores >= t).sum())
    assert flagged == round(rate * 1_000)


def test_equal_scores_are_flagged_together_or_not_at_all() -> None:
    scores = np.array([0.2] * 90 + [0.9] * 10)
    assert int((scores >= threshold_at(scores, 0.05)).sum()) == 0
    assert int((scores >= threshold_at(scores, 0.10)).sum()) == 10


def test_too_few_harmless_texts_place_no_threshold() -> None:
    with pytest.raises(ValueError, match="give at least 100"):
        threshold_at(np.zeros(99), 0.01)


def test_auroc_is_what_counting_pairs_gives() -> None:
    rng = np.random.default_rng(2)
    s, y = rng.integers(0, 5, 60).astype(float), rng.random(60) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in s[y] for b in s[~y]]
    assert auroc(s, y) == pytest.approx(float(np.mean(pairs)))
    assert math.isnan(auroc(s, np.ones(60, bool)))


def test_recall_at_a_rate_is_told_only_where_enough_harmless_texts_stand_behind_it() -> None:
    rng = np.random.default_rng(3)
    kept, broken = rng.random(500), rng.random(80) + 0.5
    s, y = np.concatenate([kept, broken]), np.array([False] * 500 + [True] * 80)
    each = list(range(580))
    assert recall_at(s, y, each, 0.01, draws=20) is None  # 1,000 would be needed
    told = recall_at(s, y, each, 0.05, draws=50)
    assert told is not None and told.low <= told.value <= told.high
    assert told.value == pytest.approx(float((broken >= np.sort(kept)[-25]).mean()), abs=0.03)


def test_intervals_widen_where_rows_share_a_source() -> None:
    rng = np.random.default_rng(4)
    base = np.repeat(rng.random(40), 10)
    y = np.repeat(np.arange(40) % 2 == 0, 10)
    s = base + 0.2 * y
    alone = auroc_interval(s, y, list(range(400)), draws=200)
    shared = auroc_interval(s, y, [i // 10 for i in range(400)], draws=200)
    assert alone.value == shared.value
    assert shared.high - shared.low > 1.5 * (alone.high - alone.low)


def test_a_card_without_one_of_the_kinds_claims_nothing() -> None:
    assert described(np.array([0.1, 0.2]), np.array([False, False]), [0, 1], 0.5) == {"broken": 0, "kept": 2}
