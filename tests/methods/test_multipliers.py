"""Coefficients that move: by hand, and to their fixed points."""

from __future__ import annotations

import math

import pytest

from fairlead.methods.multipliers import adapted_kl, ascended


@pytest.mark.parametrize(
    ("kl", "factor"), [(6.0, 1.0), (6.6, 1.01), (5.4, 0.99), (60.0, 1.02), (0.0, 0.98), (-3.0, 0.98), (7.2, 1.02)]
)
def test_the_kl_coefficient_follows_the_clipped_error(kl: float, factor: float) -> None:
    assert adapted_kl(0.5, kl, target=6.0) == pytest.approx(0.5 * factor, rel=1e-12)


def test_the_kl_coefficient_settles_at_its_target() -> None:
    """Where a larger coefficient means a smaller KL (here 1 / beta), the KL comes to the target."""
    beta = 0.05
    for _ in range(2000):
        beta = adapted_kl(beta, 1 / beta, target=4.0)
    assert 1 / beta == pytest.approx(4.0, rel=1e-3)


def test_the_multiplier_climbs_on_lambda_times_the_excess() -> None:
    """Against the numerical derivative of exp(x) (cost - budget)."""
    x, cost, budget, rate = math.log(0.7), 0.9, 0.4, 0.05
    slope = (math.exp(x + 1e-6) - math.exp(x - 1e-6)) / 2e-6 * (cost - budget)
    assert ascended(x, cost, budget=budget, rate=rate) == pytest.approx(x + rate * slope, abs=1e-9)
    assert ascended(x, budget, budget=budget, rate=rate) == x
    assert ascended(x, 0.0, budget=budget, rate=rate) < x


def test_the_multiplier_settles_where_the_budget_is_met() -> None:
    x = 0.0
    for _ in range(5000):
        x = ascended(x, 2.0 / (1 + math.exp(x)), budget=0.5, rate=0.05)  # a larger lambda, a smaller cost
    assert 2.0 / (1 + math.exp(x)) == pytest.approx(0.5, abs=1e-3)


def test_the_multiplier_stays_where_it_can_come_back_from() -> None:
    x = 0.0
    for _ in range(100):
        x = ascended(x, -50.0, budget=0.0, rate=1.0, low=0.01, high=10.0)
    assert math.exp(x) == pytest.approx(0.01)
    for _ in range(10_000):
        x = ascended(x, 50.0, budget=0.0, rate=1.0, low=0.01, high=10.0)
    assert math.exp(x) == pytest.approx(10.0)


def test_what_cannot_be_followed_is_refused() -> None:
    with pytest.raises(ValueError, match="KL of this step is nan"):
        adapted_kl(0.1, math.nan, target=1.0)
    with pytest.raises(ValueError, match="target 0"):
        adapted_kl(0.1, 1.0, target=0.0)
    with pytest.raises(ValueError, match="mean cost of this step is inf"):
        ascended(0.0, math.inf, budget=0.0, rate=0.1)
    with pytest.raises(ValueError, match="low below high"):
        ascended(0.0, 0.0, budget=0.0, rate=0.1, low=2.0, high=1.0)
