"""Intervals, tests and bounds: pure functions on numbers. Every docstring names its source.

A rate is a share of yes-outcomes in [0, 1]; n counts cases. Cases that share a template or an entity stand in one
cluster and are not independent: pass `clusters` (one label per case), and n stays the number of cases while the
interval widens. All intervals are two-sided at `confidence`, unless a function says one-sided. Bad arguments raise
`ValueError`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ICC = 0.1  # assumed correlation of two outcomes within a cluster, where the outcomes themselves cannot show it
ICC_WEIGHT = 5.0  # how many of the rarer outcomes that assumption is worth

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate, the interval around it, and the number of cases it stands on."""

    value: float
    low: float
    high: float
    n: int

    def excludes(self, value: float) -> bool:
        return not self.low <= value <= self.high


# ------------------------------------------------------------------------------------------ one rate, one mean


def wilson(k: float, n: float, confidence: float = 0.95) -> Interval:
    """Score interval of a rate, k yes-outcomes in n independent cases. Wilson 1927, JASA 22:209. Never of no width."""
    _check_counts(k, n)
    low, high = _wilson(k / n, n, _z(confidence))
    return Interval(k / n, low, high, round(n))


def clopper_pearson(k: int, n: int, confidence: float = 0.95) -> Interval:
    """Exact interval of a rate: coverage at least `confidence` whatever the rate. Clopper & Pearson 1934."""
    _check_counts(k, n)
    tail = (1 - confidence) / 2
    low = float(_sps().beta.ppf(tail, k, n - k + 1)) if k > 0 else 0.0
    high = float(_sps().beta.ppf(1 - tail, k + 1, n - k)) if k < n else 1.0
    return Interval(k / n, low, high, n)


def zero_event_bound(n: float, confidence: float = 0.95) -> float:
    """One-sided upper bound of a rate after no event in n independent tries: 1 - (1 - confidence)^(1/n), exact."""
    if n <= 0:
        raise ValueError(f"n is {n}: without a try there is no bound")
    return float(-math.expm1(math.log1p(-confidence) / n))


def rule_of_three(n: float) -> float:
    """3/n, the 95% one-sided bound after no event in n tries, as one says it. Hanley & Lippman-Hand 1983, JAMA 249."""
    if n <= 0:
        raise ValueError(f"n is {n}: without a try there is no bound")
    return min(1.0, 3.0 / n)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student's t interval of a mean of independent values (say, one per training seed). One value: unbounded."""
    x = _floats(values)
    mean = float(x.mean())
    if len(x) == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    half = _t(confidence, len(x) - 1) * float(x.std(ddof=1)) / math.sqrt(len(x))
    return Interval(mean, mean - half, mean + half, len(x))


# ---------------------------------------------------------------------------------------------------- clusters


def clustered_mean(values: Sequence[float], clusters: Sequence[Hashable], confidence: float = 0.95) -> Interval:
    """Interval of a mean where cases share clusters, possibly of unequal size.

    The mean is a ratio (sum over cases / number of cases), linearised by cluster: SE^2 = C/(C-1) * sum_c e_c^2 / n^2
    with e_c = sum_{i in c} (x_i - mean), and t with C-1 degrees of freedom. Cochran 1977, Sampling Techniques, 6.3;
    Liang & Zeger 1986. With clusters of one case it is `mean_interval`. One cluster tells nothing: unbounded. Few
    clusters of very unequal size cover a few points less than stated.
    """
    x, label = _clustered(values, clusters)
    mean = float(x.mean())
    count = int(label.max()) + 1
    if count == 1:
        return Interval(mean, -math.inf, math.inf, len(x))
    half = _t(confidence, count - 1) * math.sqrt(_cluster_variance(x, label))
    return Interval(mean, mean - half, mean + half, len(x))


def design_effect(
    values: Sequence[float], clusters: Sequence[Hashable], *, icc: float = ICC, variance: float | None = None
) -> float:
    """How many cases of a clustered sample are worth one independent case, at least 1.

    Kish 1965: the variance of the mean with clusters over that without, 1 + (m - 1) * rho for clusters of size m and
    correlation rho within them. Where (nearly) all values are the same the sample cannot show rho: its estimate is
    drawn towards `icc`, which weighs as much as 5 of the rarer outcomes. So 0 of n has an honest bound, and 1 of n
    does not have a narrower one.

    variance    of one case without clusters; the sample's own where None
    """
    x, label = _clustered(values, clusters)
    sizes = np.bincount(label).astype(float)
    mean_size = float((sizes**2).sum() / sizes.sum())  # size of the cluster of a randomly drawn case
    if mean_size <= 1.0 or len(sizes) < 2:
        return mean_size  # a single cluster is worth one case
    assumed = _assumed(x)
    per_case = float(x.var()) if variance is None else variance
    shown = (_cluster_variance(x, label) / (per_case / len(x)) - 1) / (mean_size - 1) if per_case > 0 else 0.0
    rho = (1 - assumed) * min(max(shown, 0.0), 1.0) + assumed * icc
    return 1.0 + (mean_size - 1.0) * rho


def rate(
    outcomes: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    *,
    icc: float = ICC,
) -> Interval:
    """Interval of a rate, clustered where `clusters` is given; outcomes in [0, 1], mostly 0 and 1.

    Wilson's interval at the effective size n / design_effect, with t for z as far as the sample itself shows the design
    effect, on C-1 degrees of freedom (for unequal clusters their effective number, n^2 / sum of squared sizes, Carter
    et al. 2017). Korn & Graubard 1998, Survey Methodology 24:193, with Wilson's interval
    (Franco et al. 2019, JSSAM 7:334). 0 of n and n of n have intervals of sane width. Without clusters, or with one
    case in each, it is `wilson`. One cluster: [0, 1].
    """
    x = _unit(outcomes)
    p = float(x.mean())
    n_effective, quantile = _effective(x, clusters, confidence, icc, p * (1 - p))
    if n_effective == 0:
        return Interval(p, 0.0, 1.0, len(x))
    low, high = _wilson(p, n_effective, quantile)
    return Interval(p, low, high, len(x))


# ------------------------------------------------------------------------------------- before and after, paired


def newcombe_paired(both: float, first: float, second: float, neither: float, confidence: float = 0.95) -> Interval:
    """Interval of rate1 - rate2 on the same cases: square-and-add, Newcombe 1998, Stat. Med. 17:2635, method 10.

    both, first, second, neither    cases where both, only the first, only the second, none said yes
    """
    n = both + first + second + neither
    _check_counts(min(both, first, second, neither), n)
    low, high = _newcombe(both, first, second, neither, _z(confidence))
    return Interval((first - second) / n, low, high, round(n))


def tango(first: int, second: int, n: int, confidence: float = 0.95) -> Interval:
    """Score interval of rate1 - rate2 on the same n cases. Tango 1998, Stat. Med. 17:891.

    first, second    cases where only the first, only the second said yes
    """
    _check_counts(min(first, second), n)
    _check_counts(first + second, n)
    z = _z(confidence)
    estimate = (first - second) / n

    def score(delta: float) -> float:
        b = -(first + second) + (2 * n - first + second) * delta
        q = (math.sqrt(max(b * b + 8 * n * second * delta * (1 - delta), 0.0)) - b) / (4 * n)  # P(only second | delta)
        variance = n * (2 * q + delta * (1 - delta))
        gap = first - second - n * delta
        if variance <= 0:
            return math.copysign(math.inf, gap) if gap else 0.0
        return gap / math.sqrt(variance)

    tiny = 1e-12
    low = -1.0 if estimate <= -1 else _root(lambda d: score(d) - z, -1 + tiny, estimate)
    high = 1.0 if estimate >= 1 else _root(lambda d: score(d) + z, estimate, 1 - tiny)
    return Interval(estimate, low, high, n)


def paired_difference(
    before: Sequence[float],
    after: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    *,
    icc: float = ICC,
) -> Interval:
    """Interval of mean(after) - mean(before) over the same cases, outcomes in [0, 1].

    Yes/no outcomes: `newcombe_paired` at the effective size of the differences (see `design_effect`, `rate`), so that
    no change in n cases is not reported as certainty. Fractional outcomes: `clustered_mean` of the differences; where
    they are all equal, what the zero-event bound leaves open.
    """
    x, y = _unit(before), _unit(after)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} outcomes before and {len(y)} after: they must be of the same cases")
    change = y - x
    value = float(change.mean())
    n_effective, quantile = _effective(change, clusters, confidence, icc, None)
    if n_effective == 0:
        return Interval(value, -1.0, 1.0, len(x))
    if set(np.unique(x)) | set(np.unique(y)) <= {0.0, 1.0}:
        both, only_after = float((x * y).sum()), float((y * (1 - x)).sum())
        only_before, neither = float((x * (1 - y)).sum()), float(((1 - x) * (1 - y)).sum())
        shrink = n_effective / len(x)
        cells = (both * shrink, only_after * shrink, only_before * shrink, neither * shrink)
        low, high = _newcombe(*cells, quantile)
        return Interval(value, low, high, len(x))
    if float(change.std()) == 0.0:
        other = 1 - ((1 - confidence) / 2) ** (1 / n_effective)  # share of cases that may have changed otherwise
        return Interval(value, value - other * (value + 1), value + other * (1 - value), len(x))
    plain = clustered_mean(change.tolist(), range(len(x)) if clusters is None else clusters, confidence)
    return Interval(value, max(-1.0, plain.low), min(1.0, plain.high), len(x))


def mcnemar_exact(first: int, second: int) -> float:
    """Two-sided p of no change, from the discordant counts of paired yes/no outcomes. McNemar 1947, exact binomial."""
    if first < 0 or second < 0:
        raise ValueError(f"discordant counts are {first} and {second}: they cannot be negative")
    if first + second == 0:
        return 1.0
    return float(min(1.0, 2 * _sps().binom.cdf(min(first, second), first + second, 0.5)))


def sign_flip_p(changes: Sequence[float], clusters: Sequence[Hashable] | None = None, *, seed: int = 0) -> float:
    """Two-sided p of no change: how often random signs of the clusters' summed changes reach the observed sum.

    The cluster form of McNemar's exact test, and equal to it where each case is its own cluster. Gail et al. 1996,
    Stat. Med. 15:1069. Exact for whole-number changes, and for fractional ones in up to 16 clusters; beyond that
    from 65,536 draws with `seed`, counting the observed one (Phipson & Smyth 2010).
    """
    x = _floats(changes)
    label = _labels(clusters, len(x))
    sums = np.bincount(label, weights=x)
    sums = np.abs(sums[np.abs(sums) > 1e-12])
    observed = abs(float(x.sum())) - 1e-9
    if len(sums) == 0 or observed <= 0:
        return 1.0
    if np.array_equal(sums, np.round(sums)):
        chance = np.ones(1)  # of each total, from -reach to reach
        for step in sums.astype(int):
            wider = np.zeros(len(chance) + 2 * step)
            wider[: len(chance)] += chance / 2
            wider[2 * step :] += chance / 2
            chance = wider
        reach = int(sums.sum())
        return float(min(1.0, chance[np.abs(np.arange(-reach, reach + 1)) >= observed].sum()))
    if len(sums) <= 16:
        signs = 1 - 2 * ((np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums))) & 1)
        return float((np.abs(signs @ sums) >= observed).mean())
    draws = np.random.default_rng(seed).choice((-1.0, 1.0), size=(65_536, len(sums)))
    return float(((np.abs(draws @ sums) >= observed).sum() + 1) / (len(draws) + 1))


def cases_to_tell(change: float, discordant: float, confidence: float = 0.95, power: float = 0.8) -> int:
    """Independent cases needed to tell a paired change of that size from none, with that chance. Connor 1987.

    discordant    share of cases whose outcome changes either way, at least |change|
    """
    if change == 0 or not abs(change) <= discordant <= 1:
        raise ValueError(f"a change of {change} with {discordant} discordant: need 0 < |change| <= discordant <= 1")
    z_power = float(_sps().norm.ppf(power))
    root = _z(confidence) * math.sqrt(discordant) + z_power * math.sqrt(discordant - change**2)
    return math.ceil((root / change) ** 2)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, same order: reject where <= alpha and the chance of any false claim is <= alpha. Holm 1979."""
    if any(not 0 <= p <= 1 for p in p_values):
        raise ValueError("p-values must lie in [0, 1]")
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


# ------------------------------------------------------------------------------------------------------ the rest


def missing_bounds(
    outcomes: Sequence[float | None], clusters: Sequence[Hashable] | None = None, confidence: float = 0.95
) -> tuple[Interval, Interval]:
    """`rate` with every missing outcome (None) counted as 0, and as 1: the truth lies between, whatever is missing.

    Manski 1989. The outer limits are the first's low and the second's high.
    """
    worst = rate([0.0 if x is None else x for x in outcomes], clusters, confidence)
    best = rate([1.0 if x is None else x for x in outcomes], clusters, confidence)
    return worst, best


def balanced_accuracy(true_yes: int, false_no: int, true_no: int, false_yes: int, confidence: float = 0.95) -> Interval:
    """(sensitivity + specificity) / 2, with a square-and-add interval of two Wilson intervals. Zou & Donner 2008."""
    yes, no = wilson(true_yes, true_yes + false_no, confidence), wilson(true_no, true_no + false_yes, confidence)
    value = (yes.value + no.value) / 2
    below = math.hypot(yes.value - yes.low, no.value - no.low) / 2
    above = math.hypot(yes.high - yes.value, no.high - no.value) / 2
    return Interval(value, max(0.0, value - below), min(1.0, value + above), yes.n + no.n)


def kl_best_of_n(n: int) -> float:
    """log n - (n-1)/n nats: how far best-of-n moves from its reference, at most. Stiennon et al. 2020, app. G.3;
    an upper bound that is reached where no two samples are equal (Beirami et al. 2024)."""
    if n < 1:
        raise ValueError(f"n is {n}: best-of-n needs at least one sample")
    return math.log(n) - (n - 1) / n


# ------------------------------------------------------------------------------------------------------- helpers


def _wilson(p: float, n: float, z: float) -> tuple[float, float]:
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = 0.0 if p <= 0 else max(0.0, centre - half)
    high = 1.0 if p >= 1 else min(1.0, centre + half)
    return low, high


def _newcombe(both: float, first: float, second: float, neither: float, z: float) -> tuple[float, float]:
    n = both + first + second + neither
    p1, p2 = (both + first) / n, (both + second) / n
    (l1, u1), (l2, u2) = _wilson(p1, n, z), _wilson(p2, n, z)
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    cross = both * neither - first * second
    if cross > 0:
        cross = max(cross - n / 2, 0.0)  # continuity correction of the correlation
    phi = cross / math.sqrt(margins) if margins > 0 else 0.0
    down = (p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2
    up = (u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2
    return max(-1.0, p1 - p2 - math.sqrt(max(down, 0.0))), min(1.0, p1 - p2 + math.sqrt(max(up, 0.0)))


def _effective(
    x: Floats, clusters: Sequence[Hashable] | None, confidence: float, icc: float, variance: float | None
) -> tuple[float, float]:
    """(effective n, quantile) of a possibly clustered sample; (0, …) where it is one cluster."""
    if clusters is None:
        return float(len(x)), _z(confidence)
    label = _labels(clusters, len(x))
    count = int(label.max()) + 1
    if count == len(x):
        return float(len(x)), _z(confidence)
    if count == 1:
        return 0.0, math.inf
    assumed = _assumed(x)  # what is assumed is not estimated, and needs no t
    worth = len(x) ** 2 / float((np.bincount(label).astype(float) ** 2).sum())  # clusters of equal size: count
    t = _t(confidence, max(1.0, worth - 1))
    quantile = math.sqrt(assumed * _z(confidence) ** 2 + (1 - assumed) * t**2)
    return len(x) / design_effect(x.tolist(), clusters, icc=icc, variance=variance), quantile


def _assumed(x: Floats) -> float:
    """How much of the design effect is assumed rather than seen, in (0, 1]: 1 where all values are the same."""
    rarer = len(x) - max(Counter(x.tolist()).values())
    return ICC_WEIGHT / (rarer + ICC_WEIGHT)


def _cluster_variance(x: Floats, label: NDArray[np.int64]) -> float:
    """Variance of the mean of x with clusters (at least two)."""
    residual = np.bincount(label, weights=x - x.mean())
    count = len(residual)
    return float(count / (count - 1) * (residual**2).sum() / len(x) ** 2)


def _clustered(values: Sequence[float], clusters: Sequence[Hashable]) -> tuple[Floats, NDArray[np.int64]]:
    x = _floats(values)
    return x, _labels(clusters, len(x))


def _labels(clusters: Sequence[Hashable] | None, n: int) -> NDArray[np.int64]:
    if clusters is None:
        return np.arange(n)
    if len(clusters) != n:
        raise ValueError(f"{n} values and {len(clusters)} cluster labels: give one label per value")
    number: dict[Hashable, int] = {}
    return np.array([number.setdefault(label, len(number)) for label in clusters], dtype=np.int64)


def _floats(values: Sequence[float]) -> Floats:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) == 0:
        raise ValueError("need a non-empty sequence of numbers")
    if not np.isfinite(x).all():
        raise ValueError("values must be finite; count missing ones apart (missing_bounds)")
    return x


def _unit(values: Sequence[float]) -> Floats:
    x = _floats(values)
    if x.min() < 0 or x.max() > 1:
        raise ValueError(f"outcomes must lie in [0, 1], not in [{x.min():g}, {x.max():g}]")
    return x


def _check_counts(k: float, n: float) -> None:
    if n <= 0 or not 0 <= k <= n:
        raise ValueError(f"{k} of {n}: need n > 0 and 0 <= k <= n")


def _sps() -> Any:
    """scipy.stats, when a number is asked for: to import it takes half a second, which no command's start should."""
    from scipy import stats

    return stats


def _z(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}: give a share such as 0.95")
    return float(_sps().norm.ppf((1 + confidence) / 2))


def _t(confidence: float, freedom: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}: give a share such as 0.95")
    return float(_sps().t.ppf((1 + confidence) / 2, freedom))


def _root(f: Callable[[float], float], low: float, high: float) -> float:
    from scipy import optimize

    return float(optimize.brentq(f, low, high, xtol=1e-12))
