"""Judges made of judges: weighted, mean, minimum, calibrated, threshold; ensembles of rewards.

Their lineage is their children's, and that of the rows they were fitted to.

A child without a verdict leaves the whole without one, and the reason names the child: a missing value is never a zero.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fairlead.exchange import Exchange, Verdict, to_json
from fairlead.judges.lineage import Lineage, leaf, merge
from fairlead.judges.protocol import Judge
from fairlead.judges.twoway import sigmoid

Join = Callable[[Sequence[Verdict]], tuple[float, float | None]]  # children's verdicts, none missing -> score, raw


@dataclass(frozen=True, eq=False)
class Ensemble:
    """A judge whose verdict is computed from its children's verdicts on the same exchange."""

    name: str
    children: tuple[Judge, ...]
    join: Join
    principle: str = ""
    learnt: Lineage = frozenset()  # of the rows a join was fitted to

    @property
    def lineage(self) -> Lineage:
        return merge([*(child.lineage for child in self.children), self.learnt])

    def __call__(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        return self.judge(exchanges)

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        columns = [child.judge(exchanges) for child in self.children]
        return [self._one([column[row] for column in columns]) for row in range(len(exchanges))]

    def _one(self, verdicts: Sequence[Verdict]) -> Verdict:
        for child, verdict in zip(self.children, verdicts, strict=True):
            if verdict.score is None:
                reason = f"{child.name}: {verdict.reason}"
                return Verdict(None, reason=reason, principle=self.principle, judge=self.name)
        score, raw = self.join(verdicts)
        reason = "; ".join(verdict.reason for verdict in verdicts if verdict.reason)
        return Verdict(score, raw=raw, reason=reason, principle=self.principle, judge=self.name)


def weighted(children: Mapping[Judge, float] | Sequence[tuple[Judge, float]], *, name: str = "weighted") -> Ensemble:
    """The weighted sum of raw values, and the weighted mean of scores.

    A negative weight rewards breaking what the child judges: its score enters as 1 - score, its raw value negated.
    A child without raw values (`raw=None`) leaves the whole without raw.
    """
    pairs = list(children.items()) if isinstance(children, Mapping) else list(children)
    weights = [float(weight) for _, weight in pairs]
    whole = sum(abs(weight) for weight in weights)
    if not pairs or not math.isfinite(whole) or whole == 0.0:
        raise ValueError(f"{name}: weights {weights} must be finite, with at least one that is not 0")

    def join(verdicts: Sequence[Verdict]) -> tuple[float, float | None]:
        score = 0.0
        raw: float | None = 0.0
        for weight, verdict in zip(weights, verdicts, strict=True):
            value = _score(verdict)
            score += abs(weight) * (value if weight >= 0 else 1.0 - value) / whole
            raw = None if raw is None or verdict.raw is None else raw + weight * verdict.raw
        return _within(score), raw

    return Ensemble(name, tuple(judge for judge, _ in pairs), join)


def mean(children: Sequence[Judge], *, name: str = "mean") -> Ensemble:
    """The mean of scores and of raw values."""
    return weighted([(child, 1.0 / len(children)) for child in children], name=name)


def minimum(children: Sequence[Judge], *, name: str = "minimum") -> Ensemble:
    """The lowest score, with its own raw value: as good as the weakest point. Conservative as a reward."""
    _some(children, name)

    def join(verdicts: Sequence[Verdict]) -> tuple[float, float | None]:
        lowest = min(verdicts, key=_score)
        return _score(lowest), lowest.raw

    return Ensemble(name, tuple(children), join)


def worst_case(children: Sequence[Judge], *, name: str = "worst case") -> Ensemble:
    """The lowest raw value of all, and the lowest score: worst-case optimisation (WCO, Coste et al. 2023, 2310.02743).

    For rewards on one scale (see `standardised`). `minimum` goes by the scores and takes the raw value along.
    """
    _some(children, name)

    def join(verdicts: Sequence[Verdict]) -> tuple[float, float | None]:
        raws = _raws(verdicts)
        return min(map(_score, verdicts)), min(raws) if raws is not None else None

    return Ensemble(name, tuple(children), join)


def uncertainty_weighted(children: Sequence[Judge], penalty: float, *, name: str = "uncertainty-weighted") -> Ensemble:
    """mean - penalty * variance of the children's raw values: UWO (Coste et al. 2023, arXiv 2310.02743).

    penalty    lambda, per unit of reward; they found 0.5 to serve in best-of-n and 0.1 in PPO, on standardised rewards

    The variance is the ensemble's own (divided by k), for rewards on one scale (see `standardised`). The score is made
    of the scores in the same way and kept in [0, 1].
    """
    _some(children, name)
    if not 0.0 <= penalty < math.inf:
        raise ValueError(f"{name}: penalty is {penalty}; it must be a finite number, 0 or more")

    def lessened(values: Sequence[float]) -> float:
        centre = sum(values) / len(values)
        return centre - penalty * sum((value - centre) ** 2 for value in values) / len(values)

    def join(verdicts: Sequence[Verdict]) -> tuple[float, float | None]:
        raws = _raws(verdicts)
        return _within(lessened([_score(v) for v in verdicts])), lessened(raws) if raws is not None else None

    return Ensemble(name, tuple(children), join)


def standardised(child: Judge, exchanges: Sequence[Exchange], *, name: str = "") -> Ensemble:
    """The child with its raw values shifted and scaled to mean 0, standard deviation 1 on these exchanges.

    Rewards are known up to a constant and grow with training, so members of an ensemble are brought on one scale before
    they are compared. The score stays. Raises ValueError where fewer than two raw values differ.
    """
    return scaled(child, *scale_of(child, exchanges), name=name)


def scale_of(child: Judge, exchanges: Sequence[Exchange]) -> tuple[float, float]:
    """Mean and standard deviation of a judge's raw values on exchanges. Raises ValueError where all are alike."""
    raws = [verdict.raw for verdict in child.judge(exchanges) if verdict.raw is not None]
    centre = sum(raws) / len(raws) if raws else 0.0
    spread = math.sqrt(sum((raw - centre) ** 2 for raw in raws) / len(raws)) if raws else 0.0
    if not spread > 0.0:
        raise ValueError(f"{child.name}: {len(raws)} raw values on {len(exchanges)} exchanges do not vary: no scale")
    return centre, spread


def scaled(child: Judge, centre: float, spread: float, *, name: str = "") -> Ensemble:
    """The child with its raw values on another scale, (raw - centre) / spread. The score stays."""
    if not (math.isfinite(centre) and 0.0 < spread < math.inf):
        raise ValueError(f"{child.name}: centre {centre} and spread {spread} are no scale")

    def join(verdicts: Sequence[Verdict]) -> tuple[float, float | None]:
        raw = verdicts[0].raw
        return _score(verdicts[0]), None if raw is None else (raw - centre) / spread

    return Ensemble(name or child.name, (child,), join)


def threshold(child: Judge, at: float = 0.5, *, name: str = "") -> Ensemble:
    """1 where the child's score is at least `at`, else 0; raw stays the child's."""
    if not 0.0 < at <= 1.0:
        raise ValueError(f"threshold is {at}: it must lie in (0, 1]")

    def join(verdicts: Sequence[Verdict]) -> tuple[float, float | None]:
        return (1.0 if _score(verdicts[0]) >= at else 0.0), verdicts[0].raw

    return Ensemble(name or child.name, (child,), join)


def renamed(child: Judge, name: str) -> Ensemble:
    """The same judge under another name. Its lineage stays."""
    return Ensemble(name, (child,), lambda verdicts: (_score(verdicts[0]), verdicts[0].raw))


def calibrated(
    child: Judge, exchanges: Sequence[Exchange], kept: Sequence[bool], *, name: str = "", ridge: float = 1.0
) -> Ensemble:
    """The child's raw value through a logistic curve fitted to labelled exchanges (Platt scaling).

    exchanges, kept    what was judged, and whether it truly kept the principle; exchanges without a verdict are refused
    ridge              pulls the slope towards 1 and the offset towards 0, so that few or separable labels do no harm

    The verdict's raw value is the calibrated log-odds (nats). Its lineage holds the labelled rows beside the child's.
    """
    verdicts = child.judge(exchanges)
    if len(verdicts) != len(kept):
        raise ValueError(f"{len(exchanges)} exchanges but {len(kept)} labels")
    missing = [row for row, verdict in enumerate(verdicts) if verdict.score is None]
    if missing:
        raise ValueError(
            f"{child.name} has no verdict on calibration row {missing[0]} ({verdicts[missing[0]].reason}) and "
            f"{len(missing) - 1} more: leave these rows out first"
        )
    if len(set(kept)) < 2:
        raise ValueError("calibration needs exchanges that keep the principle and exchanges that break it")
    slope, offset = fit_logistic([_raw(verdict) for verdict in verdicts], [float(label) for label in kept], ridge)

    def join(verdicts: Sequence[Verdict]) -> tuple[float, float | None]:
        log_odds = slope * _raw(verdicts[0]) + offset
        return sigmoid(log_odds), log_odds

    rows = json.dumps(
        [[to_json(item), bool(label)] for item, label in zip(exchanges, kept, strict=True)], sort_keys=True
    )
    learnt = leaf("classifier", text="calibration", code=hashlib.sha256(rows.encode()).hexdigest())
    return Ensemble(name or child.name, (child,), join, learnt=learnt)


def fit_logistic(x: Sequence[float], y: Sequence[float], ridge: float = 1.0) -> tuple[float, float]:
    """Slope and offset of P(y = 1) = sigmoid(slope x + offset), by Newton's method on the penalised likelihood."""
    slope, offset = 1.0, 0.0
    for _ in range(100):
        p = [sigmoid(slope * value + offset) for value in x]
        g_slope = sum((pi - yi) * xi for pi, yi, xi in zip(p, y, x, strict=True)) + ridge * (slope - 1.0)
        g_offset = sum(pi - yi for pi, yi in zip(p, y, strict=True)) + ridge * offset
        w = [pi * (1.0 - pi) for pi in p]
        h_ss = sum(wi * xi * xi for wi, xi in zip(w, x, strict=True)) + ridge
        h_so = sum(wi * xi for wi, xi in zip(w, x, strict=True))
        h_oo = sum(w) + ridge
        determinant = h_ss * h_oo - h_so * h_so
        d_slope = (h_oo * g_slope - h_so * g_offset) / determinant
        d_offset = (h_ss * g_offset - h_so * g_slope) / determinant
        scale = min(1.0, 2.0 / max(abs(d_slope), abs(d_offset), 1e-12))  # short steps keep far starts from diverging
        slope, offset = slope - scale * d_slope, offset - scale * d_offset
        if max(abs(d_slope), abs(d_offset)) < 1e-10:
            break
    return slope, offset


def _some(children: Sequence[Judge], name: str) -> None:
    if not children:
        raise ValueError(f"{name}: it needs at least one judge")


def _raws(verdicts: Sequence[Verdict]) -> list[float] | None:
    """All raw values, or None where one is missing."""
    raws = [verdict.raw for verdict in verdicts if verdict.raw is not None]
    return raws if len(raws) == len(verdicts) else None


def _score(verdict: Verdict) -> float:
    if verdict.score is None:
        raise ValueError("a missing verdict reached a join")  # Ensemble._one stops it before
    return verdict.score


def _raw(verdict: Verdict) -> float:
    """The raw value, or the score's log-odds where a judge has no raw scale of its own."""
    if verdict.raw is not None:
        return verdict.raw
    p = min(max(_score(verdict), 1e-6), 1.0 - 1e-6)
    return math.log(p / (1.0 - p))


def _within(score: float) -> float:
    return min(1.0, max(0.0, score))
