"""Best of n: draw n replies, keep the one a judge likes best. The simplest policy improvement, and a measuring stick.

`expected_best` and `expected_chosen` say from N samples of a prompt what best-of-n would have given for every n up to
N, without drawing anew; `stats.kl_best_of_n` how far from its reference it moves. The judge that picks stands on the
select side of the ledger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fairlead.exchange import Exchange, Verdict
from fairlead.judges.protocol import Judge
from fairlead.methods.sampling import draw
from fairlead.models.protocol import Model, Prompt
from fairlead.stats import Interval, kl_best_of_n, mean_interval

Floats = NDArray[np.float64]


# ------------------------------------------------------------------------------------------ the estimators


def expected_best(values: Sequence[float], n: int) -> float:
    """Unbiased estimate of E[max of n] from N >= n independent samples, whatever their distribution.

    The mean of the maximum over all subsets of n: sum over the sorted samples x_(i) of C(i-1, n-1) / C(N, n) * x_(i). A
    U-statistic, so of all unbiased estimators that treat the samples alike it has the least variance (Hoeffding 1948).
    """
    return expected_chosen(values, values, n)


def expected_chosen(proxy: Sequence[float], gold: Sequence[float], n: int) -> float:
    """Unbiased estimate of the gold value of the sample that the proxy likes best of n (Gao et al. 2022, app. B).

    Samples that the proxy likes equally are picked from at random: they share their weights.
    """
    seen, worth = _floats(proxy), _floats(gold)
    if len(seen) != len(worth):
        raise ValueError(f"{len(seen)} proxy values and {len(worth)} gold values: give both of each sample")
    order = np.argsort(seen, kind="stable")
    _, tie = np.unique(seen[order], return_inverse=True)
    level = np.bincount(tie, worth[order]) / np.bincount(tie)
    return float(_chances(len(seen), n) @ level[tie])


def _chances(count: int, n: int) -> Floats:
    """P(the i-th smallest of `count` samples is the largest of n drawn without replacement), i = 1 … count."""
    if not 1 <= n <= count:
        raise ValueError(f"best of {n} from {count} samples: n must lie between 1 and the number of samples")
    chance = np.zeros(count)
    chance[-1] = n / count
    for i in range(count - 1, n - 1, -1):  # C(i-1, n-1) = C(i, n-1) * (i-n+1) / i
        chance[i - 1] = chance[i] * (i - n + 1) / i
    return chance


@dataclass(frozen=True, slots=True)
class Point:
    """Best-of-n at one n: its distance from the reference in nats (an upper bound), both values over the prompts."""

    n: int
    kl: float
    proxy: Interval
    gold: Interval


def curve(proxy: Sequence[Sequence[float]], gold: Sequence[Sequence[float]], ns: Sequence[int]) -> tuple[Point, ...]:
    """What best-of-n gives by the proxy that picks, and by the gold it stands for: one row of samples per prompt.

    Intervals are over prompts (Student's t of the per-prompt estimates), 95%.
    """
    if len(proxy) != len(gold) or not proxy:
        raise ValueError(f"{len(proxy)} prompts by the proxy and {len(gold)} by gold: give the same, at least one")
    return tuple(
        Point(
            n,
            kl_best_of_n(n),
            mean_interval([expected_best(row, n) for row in proxy]),
            mean_interval([expected_chosen(p, g, n) for p, g in zip(proxy, gold, strict=True)]),
        )
        for n in ns
    )


def _floats(values: Sequence[float]) -> Floats:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
        raise ValueError("need a non-empty sequence of finite numbers; count missing ones apart")
    return x


# --------------------------------------------------------------------------------------------- the sampler


@dataclass(frozen=True, slots=True)
class Picked:
    """The best reply to one prompt (None: no reply could be judged), its verdict, and what became of the others.

    judged      replies the judge had a verdict on, all exchanges and verdicts in the order drawn
    unjudged    replies without a verdict; missing: errors and filters, no reply at all
    """

    best: Exchange | None
    verdict: Verdict | None
    judged: tuple[tuple[Exchange, Verdict], ...]
    unjudged: int
    missing: int


def best_of_n(
    model: Model,
    prompts: Sequence[Prompt],
    judge: Judge,
    *,
    n: int,
    max_tokens: int | None = None,
    temperature: float | None = 1.0,
    top_p: float | None = None,
    seed: int = 0,
) -> list[Picked]:
    """Draw n replies to each prompt and pick the best by the judge's raw value (by its score where it has no raw).

    Of equals the first drawn is picked. A reply without a verdict is never picked, and counted. n of 1 is plain
    sampling. KL to the model itself is at most `stats.kl_best_of_n(n)` nats.
    """
    if n < 1:
        raise ValueError(f"n is {n}: best-of-n needs at least one reply")
    drawn = draw(model, prompts, n=n, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    verdicts = iter(judge.judge([item for one in drawn for item in one.exchanges]))
    picked = []
    for one in drawn:
        told = [(item, next(verdicts)) for item in one.exchanges]
        judged = [(item, verdict) for item, verdict in told if verdict.score is not None]
        top = max(judged, key=lambda pair: worth(pair[1]), default=(None, None))
        picked.append(Picked(top[0], top[1], tuple(judged), len(told) - len(judged), one.missing))
    return picked


def worth(verdict: Verdict) -> float:
    """What a verdict is ranked by: its raw value, or its score where the judge has no raw scale."""
    value = verdict.raw if verdict.raw is not None else verdict.score
    if value is None:
        raise ValueError("a missing verdict has no worth")
    return value
