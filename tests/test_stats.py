"""Intervals and tests against published examples, other libraries, closed forms, and simulation with a stated error rate."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats as sps

from fairlead import stats


def ends(interval: stats.Interval) -> tuple[float, float]:
    return interval.low, interval.high


# ---------------------------------------------------------------------------------- published worked examples


def test_wilson_of_newcombes_table() -> None:
    # Newcombe 1998, Stat. Med. 17:857, table I, method 3
    for (k, n), limits in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0000, 0.1611),
        (1, 29): (0.0061, 0.1718),
        (29, 29): (0.8830, 1.0000),
    }.items():
        assert ends(stats.wilson(k, n)) == pytest.approx(limits, abs=6e-5)


def test_clopper_pearson_of_newcombes_table() -> None:
    # the same table, method 5
    for (k, n), limits in {(81, 263): (0.2527, 0.3676), (15, 148): (0.0578, 0.1617), (0, 20): (0.0, 0.1684)}.items():
        assert ends(stats.clopper_pearson(k, n)) == pytest.approx(limits, abs=6e-5)


def test_paired_differences_of_the_literature() -> None:
    # Fagerland, Lydersen & Laake 2014, Stat. Med. 33:2850: airway hyper-responsiveness (1, 1, 7, 12)
    assert ends(stats.tango(1, 7, 21)) == pytest.approx((-0.517, -0.026), abs=6e-4)
    assert ends(stats.newcombe_paired(1, 1, 7, 12)) == pytest.approx((-0.507, -0.026), abs=6e-4)
    # the same authors: complete response (59, 6, 16, 80)
    assert ends(stats.newcombe_paired(59, 6, 16, 80)) == pytest.approx((-0.1186, -0.0046), abs=6e-5)
    # Newcombe 1998, Stat. Med. 17:2635: (36, 12, 2, 0), method 10
    assert ends(stats.newcombe_paired(36, 12, 2, 0)) == pytest.approx((0.0569, 0.3404), abs=6e-5)
    # another implementation's output for 28 and 25 discordant of 618, at 90%
    assert ends(stats.tango(28, 25, 618, 0.90)) == pytest.approx((-0.0148, 0.0247), abs=6e-5)


def test_holms_own_example() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]
    assert stats.holm([]) == []


def test_rule_of_three() -> None:
    assert stats.rule_of_three(100) == 0.03
    assert stats.zero_event_bound(100) == pytest.approx(1 - 0.05 ** (1 / 100), rel=1e-12)
    assert stats.zero_event_bound(100) < stats.rule_of_three(100) < stats.zero_event_bound(100) * 1.02
    assert stats.rule_of_three(2) == 1.0


def test_best_of_n() -> None:
    assert stats.kl_best_of_n(1) == 0.0
    assert stats.kl_best_of_n(16) == pytest.approx(1.8351, abs=1e-4)
    # against the divergence itself: best of n over k equally likely, distinct scores, k large
    k, n = 20_000, 8
    best = (np.arange(1, k + 1) / k) ** n - (np.arange(k) / k) ** n
    assert float((best * np.log(best * k)).sum()) == pytest.approx(stats.kl_best_of_n(n), abs=1e-3)


# --------------------------------------------------------------------------------------- against other libraries


@pytest.mark.parametrize(("k", "n"), [(0, 7), (3, 7), (7, 7), (40, 41), (500, 1000)])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_single_rates_against_scipy(k: int, n: int, confidence: float) -> None:
    test = sps.binomtest(k, n)
    for ours, method in ((stats.wilson, "wilson"), (stats.clopper_pearson, "exact")):
        theirs = test.proportion_ci(confidence, method=method)
        assert ends(ours(k, n, confidence)) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (0, 5), (9, 2), (30, 30), (100, 60)])
def test_mcnemar_against_scipy(b: int, c: int) -> None:
    expected = sps.binomtest(b, b + c).pvalue if b + c else 1.0
    assert stats.mcnemar_exact(b, c) == pytest.approx(expected, abs=1e-12)


def test_mean_against_scipy() -> None:
    x = np.random.default_rng(1).normal(size=17)
    low, high = sps.t.interval(0.9, 16, loc=x.mean(), scale=sps.sem(x))
    assert ends(stats.mean_interval(x.tolist(), 0.9)) == pytest.approx((low, high), abs=1e-12)
    assert ends(stats.mean_interval([0.4])) == (-math.inf, math.inf)


def test_tango_solves_its_own_equation() -> None:
    """At each limit the score statistic, with the nuisance cell found by maximising the likelihood, is -z or z."""
    from scipy.optimize import minimize_scalar

    b, c, n = 12, 5, 60
    for limit, sign in zip(ends(stats.tango(b, c, n)), (1, -1), strict=True):

        def minus_log_likelihood(q: float, limit: float = limit) -> float:
            cells = (q + limit, q, 1 - 2 * q - limit)
            return -sum(k * math.log(p) for k, p in zip((b, c, n - b - c), cells, strict=True))

        lowest = max(0.0, -limit) + 1e-9
        q = minimize_scalar(minus_log_likelihood, bounds=(lowest, (1 - limit) / 2 - 1e-9), method="bounded",
                            options={"xatol": 1e-12}).x  # fmt: skip
        z = (b - c - n * limit) / math.sqrt(n * (2 * q + limit - limit**2))
        assert z == pytest.approx(sign * 1.959964, abs=1e-4)


# ------------------------------------------------------------------------------------------------ closed forms


def test_clusters_of_one_are_the_independent_case() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.integers(0, 2, 40).tolist(), rng.integers(0, 2, 40).tolist()
    alone = list(range(40))
    assert ends(stats.rate(x, alone)) == ends(stats.wilson(sum(x), 40)) == ends(stats.rate(x))
    assert ends(stats.clustered_mean(x, alone)) == pytest.approx(ends(stats.mean_interval(x)), abs=1e-12)
    assert ends(stats.paired_difference(x, y, alone)) == ends(stats.paired_difference(x, y))
    first, second = sum(a < b for a, b in zip(x, y, strict=True)), sum(a > b for a, b in zip(x, y, strict=True))
    both, neither = (
        sum(a and b for a, b in zip(x, y, strict=True)),
        sum(not a and not b for a, b in zip(x, y, strict=True)),
    )
    assert ends(stats.paired_difference(x, y)) == ends(stats.newcombe_paired(both, first, second, neither))
    assert stats.sign_flip_p([b - a for a, b in zip(x, y, strict=True)], alone) == pytest.approx(
        stats.mcnemar_exact(first, second), abs=1e-12
    )


def test_equal_clusters_are_their_means() -> None:
    """With clusters of equal size the clustered interval is the t interval of the cluster means."""
    x = np.random.default_rng(3).normal(size=(9, 5))
    labels = np.repeat(list("abcdefghi"), 5).tolist()
    assert ends(stats.clustered_mean(x.ravel().tolist(), labels)) == pytest.approx(
        ends(stats.mean_interval(x.mean(1).tolist())), abs=1e-12
    )


def test_unequal_clusters_are_a_ratio() -> None:
    """By hand: clusters (1, 1, 0), (0), (1, 0); mean 1/2; residual sums 1/2, -1/2, 0."""
    interval = stats.clustered_mean([1, 1, 0, 0, 1, 0], ["a", "a", "a", "b", "c", "c"])
    half = sps.t.ppf(0.975, 2) * math.sqrt(3 / 2 * (0.25 + 0.25) / 36)
    assert ends(interval) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-12)


def test_cases_that_repeat_their_cluster_are_worth_one_each() -> None:
    labels = np.repeat(np.arange(20), 10).tolist()
    outcomes = np.repeat([0, 1] * 10, 10).tolist()
    effect = stats.design_effect(outcomes, labels)
    assert 9 < effect <= 10  # Kish: 1 + (10 - 1) * 1, a little less for the weight of the assumption
    assert ends(stats.rate(outcomes, labels)) == pytest.approx(ends(stats.wilson(10, 20)), abs=0.03)


def test_nothing_in_n_is_bounded_and_one_in_n_no_narrower() -> None:
    labels = [i % 10 for i in range(400)]
    none, one, two = (stats.rate([1] * k + [0] * (400 - k), labels) for k in range(3))
    assert none.low == 0.0
    assert none.high == pytest.approx(stats.wilson(0, 400 / (1 + 39 * 0.1)).high, abs=1e-12)  # 10 clusters of 40
    assert none.high - none.low <= one.high - one.low <= two.high - two.low
    every = stats.rate([1] * 400, labels)
    assert ends(every) == pytest.approx((1 - none.high, 1.0), abs=1e-12)
    no_change = stats.paired_difference([0] * 400, [0] * 400, labels)
    assert -0.1 < no_change.low < -0.005 < 0.005 < no_change.high < 0.1


def test_one_cluster_tells_nothing() -> None:
    assert ends(stats.rate([0, 1, 1], ["a"] * 3)) == (0.0, 1.0)
    assert ends(stats.paired_difference([0, 1], [1, 1], ["a"] * 2)) == (-1.0, 1.0)
    assert ends(stats.clustered_mean([0, 1], ["a"] * 2)) == (-math.inf, math.inf)


def test_fractional_outcomes() -> None:
    before, after = [0.2, 0.4, 0.9, 0.5], [0.3, 0.6, 0.8, 0.9]
    t = stats.mean_interval([b - a for a, b in zip(before, after, strict=True)])
    assert ends(stats.paired_difference(before, after)) == pytest.approx(ends(t), abs=1e-12)
    unchanged = stats.paired_difference([0.5] * 50, [0.5] * 50)
    assert unchanged.low < -0.05 < 0.05 < unchanged.high  # never certainty
    assert ends(stats.rate([0.5] * 50)) == ends(stats.wilson(25, 50))


@pytest.mark.parametrize("whole", [True, False])
def test_sign_flips_against_enumeration(whole: bool) -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        changes = rng.integers(-1, 2, 14).astype(float) if whole else rng.normal(0.3, 1, 14)
        labels = rng.integers(0, 6, 14)
        sums = [changes[labels == c].sum() for c in range(6)]
        totals = [
            abs(sum(s * v for s, v in zip(signs, sums, strict=True))) for signs in itertools.product((-1, 1), repeat=6)
        ]
        expected = np.mean([t >= abs(sum(sums)) - 1e-9 for t in totals])
        assert stats.sign_flip_p(changes.tolist(), labels.tolist()) == pytest.approx(float(expected), abs=1e-12)


def test_sign_flips_by_drawing_agree_with_the_exact_test() -> None:
    changes = np.random.default_rng(5).integers(-1, 2, 60) + np.random.default_rng(6).integers(0, 2, 60)
    exact = stats.sign_flip_p(changes.tolist())
    drawn = stats.sign_flip_p((changes / 3).tolist())  # not whole numbers: drawn
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 65_536) + 2e-5)
    assert drawn == stats.sign_flip_p((changes / 3).tolist())  # the same every time


def test_missing_outcomes_bound_the_rate() -> None:
    worst, best = stats.missing_bounds([1, 1, 0, None, None])
    assert (worst.value, best.value) == (0.4, 0.8)
    assert worst.low == stats.wilson(2, 5).low
    assert best.high == stats.wilson(4, 5).high
    assert stats.missing_bounds([1, 0]) == (stats.wilson(1, 2), stats.wilson(1, 2))


def test_balanced_accuracy() -> None:
    interval = stats.balanced_accuracy(90, 10, 160, 40)
    assert interval.value == pytest.approx(0.85)
    sensitivity, specificity = stats.wilson(90, 100), stats.wilson(160, 200)
    assert interval.low == pytest.approx(0.85 - math.hypot(0.9 - sensitivity.low, 0.8 - specificity.low) / 2)
    assert stats.balanced_accuracy(50, 0, 50, 0).high == 1.0
    assert stats.balanced_accuracy(50, 0, 50, 0).low < 0.97


@pytest.mark.parametrize(
    "call",
    [
        lambda: stats.wilson(3, 2),
        lambda: stats.wilson(0, 0),
        lambda: stats.wilson(1, 2, 95),
        lambda: stats.zero_event_bound(0),
        lambda: stats.rate([]),
        lambda: stats.rate([2.0]),
        lambda: stats.rate([math.nan]),
        lambda: stats.rate([0, 1], ["a"]),
        lambda: stats.paired_difference([0], [0, 1]),
        lambda: stats.tango(5, 6, 10),
        lambda: stats.newcombe_paired(-1, 2, 3, 4),
        lambda: stats.mcnemar_exact(-1, 2),
        lambda: stats.holm([1.2]),
        lambda: stats.kl_best_of_n(0),
        lambda: stats.cases_to_tell(0.0, 0.1),
        lambda: stats.cases_to_tell(0.2, 0.1),
    ],
)
def test_bad_arguments_are_refused(call: object) -> None:
    with pytest.raises(ValueError):
        call()  # type: ignore[operator]


# -------------------------------------------------------------------------------------------------- properties

COUNTS = st.integers(0, 60)


@settings(max_examples=200, deadline=None)
@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_paired_intervals_hold_their_estimate_and_mirror(a: int, b: int, c: int, d: int) -> None:
    n = a + b + c + d
    assume(n > 0)
    for interval, mirrored in (
        (stats.newcombe_paired(a, b, c, d), stats.newcombe_paired(a, c, b, d)),
        (stats.tango(b, c, n), stats.tango(c, b, n)),
    ):
        assert -1 <= interval.low <= interval.value <= interval.high <= 1
        assert interval.high - interval.low > 0
        assert ends(mirrored) == pytest.approx((-interval.high, -interval.low), abs=1e-9)
    flipped = stats.newcombe_paired(d, b, c, a)  # yes and no exchanged, and first and second
    assert ends(flipped) == pytest.approx(ends(stats.newcombe_paired(a, b, c, d)), abs=1e-9)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4)), min_size=1, max_size=60))
def test_rates_hold_their_estimate_mirror_and_do_not_care_for_order(rows: list[tuple[int, int]]) -> None:
    outcomes, labels = [r[0] for r in rows], [r[1] for r in rows]
    interval = stats.rate(outcomes, labels)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    plain = stats.wilson(sum(outcomes), len(outcomes))
    assert interval.high - interval.low >= (plain.high - plain.low) - 1e-9  # clusters never add certainty
    mirrored = stats.rate([1 - x for x in outcomes], labels)
    assert ends(mirrored) == pytest.approx((1 - interval.high, 1 - interval.low), abs=1e-9)
    back = stats.rate(outcomes[::-1], labels[::-1])
    assert ends(back) == pytest.approx(ends(interval), abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_is_monotone_and_no_smaller(p: list[float]) -> None:
    adjusted = stats.holm(p)
    assert all(a >= b for a, b in zip(adjusted, p, strict=True))
    assert [adjusted[i] for i in np.argsort(p, kind="stable")] == sorted(adjusted)


# ------------------------------------------------------------- simulation: coverage and error rates, fixed seeds
#
# Each bound leaves the nominal rate 4 standard errors of the simulation; wrong code fails by much more.


def _tables(rng: np.random.Generator, cells: tuple[float, float, float, float], n: int, runs: int) -> np.ndarray:
    return rng.multinomial(n, cells, size=runs)


def _clusters(rng: np.random.Generator, p: float, rho: float, count: int, size: int) -> np.ndarray:
    """Outcomes of `count` clusters, [count, size]: cluster rates from a beta distribution of mean p, correlation rho."""
    rates = rng.beta(p * (1 - rho) / rho, (1 - p) * (1 - rho) / rho, count) if rho else np.full(count, p)
    return (rng.random((count, size)) < rates[:, None]).astype(float)


@pytest.mark.parametrize("cells", [(0.5, 0.15, 0.1, 0.25), (0.9, 0.04, 0.02, 0.04), (0.3, 0.02, 0.3, 0.38)])
def test_paired_intervals_cover(cells: tuple[float, float, float, float]) -> None:
    runs = 1500
    truth = cells[1] - cells[2]
    tables = _tables(np.random.default_rng(7), cells, 80, runs)
    for interval in (lambda t: stats.newcombe_paired(*map(int, t)), lambda t: stats.tango(int(t[1]), int(t[2]), 80)):
        covered = np.mean([not interval(t).excludes(truth) for t in tables])
        assert covered >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / runs)
        assert covered <= 0.985


@pytest.mark.parametrize(("count", "size", "p", "rho"), [(10, 40, 0.3, 0.1), (6, 40, 0.1, 0.05), (20, 20, 0.03, 0.1)])
def test_clustered_rates_cover_where_wilson_does_not(count: int, size: int, p: float, rho: float) -> None:
    rng, runs = np.random.default_rng(8), 600
    labels = np.repeat(np.arange(count), size).tolist()
    samples = [_clusters(rng, p, rho, count, size).ravel().tolist() for _ in range(runs)]
    covered = np.mean([not stats.rate(x, labels).excludes(p) for x in samples])
    naive = np.mean([not stats.wilson(sum(x), len(x)).excludes(p) for x in samples])
    assert covered >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / runs)
    assert naive < 0.85


def test_unequal_clusters_cover() -> None:
    rng, runs, p = np.random.default_rng(9), 600, 0.4
    sizes = [3, 5, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60]
    labels = np.repeat(np.arange(12), sizes).tolist()
    hits = {"rate": 0, "mean": 0}
    for _ in range(runs):
        x = np.concatenate([_clusters(rng, p, 0.1, 1, m)[0] for m in sizes]).tolist()
        hits["rate"] += not stats.rate(x, labels).excludes(p)
        hits["mean"] += not stats.clustered_mean(x, labels).excludes(p)
    assert hits["rate"] / runs > 0.93
    assert hits["mean"] / runs > 0.88  # a few points less for sizes from 3 to 60, as its docstring says


def test_clustered_changes_cover_and_keep_their_error_rate() -> None:
    """Before and after share a cluster effect; half the runs change nothing (error rate), half by 0.2 (coverage)."""
    rng, runs, count, size = np.random.default_rng(10), 500, 10, 20
    labels = np.repeat(np.arange(count), size).tolist()
    false_claims, clustered_p, naive_p, covered = 0, 0, 0, 0
    for _ in range(runs):
        base = rng.beta(4, 6, count)
        shift = rng.normal(0, 0.15, count)  # the change differs by cluster
        for change in (0.0, 0.2):
            before = (rng.random((count, size)) < base[:, None]).astype(float)
            after = (rng.random((count, size)) < np.clip(base + shift + change, 0, 1)[:, None]).astype(float)
            x, y = before.ravel().tolist(), after.ravel().tolist()
            interval = stats.paired_difference(x, y, labels)
            if change == 0.0:
                false_claims += interval.excludes(0.0)
                clustered_p += stats.sign_flip_p((after - before).ravel().tolist(), labels) <= 0.05
                b, c = int(((after == 1) & (before == 0)).sum()), int(((after == 0) & (before == 1)).sum())
                naive_p += stats.mcnemar_exact(b, c) <= 0.05
            else:
                covered += not interval.excludes(0.2)
    limit = 0.05 + 4 * math.sqrt(0.05 * 0.95 / runs)
    assert false_claims / runs <= limit
    assert clustered_p / runs <= limit
    assert naive_p / runs > limit  # what ignoring clusters would have done
    assert covered / runs >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / runs)


def test_mcnemar_and_holm_keep_their_error_rate() -> None:
    rng, runs = np.random.default_rng(11), 2000
    wrong = 0
    for _ in range(runs):
        p = [stats.mcnemar_exact(int(b), int(60 - b)) for b in rng.binomial(60, 0.5, 8)]
        wrong += min(stats.holm(p)) <= 0.05
    assert wrong / runs <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / runs)


def test_zero_events_happen_as_often_as_the_bound_says() -> None:
    bound = stats.zero_event_bound(60)
    share = np.mean(np.random.default_rng(12).binomial(60, bound, 40_000) == 0)
    assert share == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / 40_000))


def test_balanced_accuracy_covers() -> None:
    rng, runs = np.random.default_rng(13), 2000
    yes, no = rng.binomial(60, 0.9, runs), rng.binomial(150, 0.8, runs)
    hits = [
        not stats.balanced_accuracy(int(a), 60 - int(a), int(b), 150 - int(b)).excludes(0.85)
        for a, b in zip(yes, no, strict=True)
    ]
    assert 0.95 - 4 * math.sqrt(0.95 * 0.05 / runs) <= np.mean(hits) <= 0.985


def test_cases_to_tell_give_the_power_they_promise() -> None:
    n = stats.cases_to_tell(0.1, 0.3, power=0.8)
    draws = np.random.default_rng(14).multinomial(n, (0.2, 0.1, 0.7), size=20_000)
    z = (draws[:, 0] - draws[:, 1]) / np.sqrt(draws[:, 0] + draws[:, 1])  # McNemar without correction, as in Connor
    assert np.mean(np.abs(z) > 1.96) == pytest.approx(0.8, abs=0.015)
