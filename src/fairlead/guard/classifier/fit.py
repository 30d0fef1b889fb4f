"""Heads: logistic regressions, their calibration and their thresholds. scikit-learn, at training time alone.

N texts, D features, H heads; labels are 1 broken, 0 kept, NaN unknown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairlead.errors import MissingResource
from fairlead.guard.classifier.ngrams import Vocabulary
from fairlead.guard.classifier.reading import Pair

Floats = NDArray[np.float64]
STRENGTHS = (0.3, 3.0, 30.0)  # inverse strengths of the penalty that are tried


def tfidf_matrix(words: Vocabulary, pairs: Sequence[Pair]) -> Any:
    """The features of the pairs (N, D) as a scipy CSR matrix, from the same function that serves."""
    from scipy.sparse import csr_matrix

    indices, values, starts = [], [], [0]
    for pair in pairs:
        at, value = words.vector(pair)
        indices.append(at)
        values.append(value)
        starts.append(starts[-1] + len(at))
    flat = np.concatenate(indices) if indices else np.zeros(0, np.int64)
    held = np.concatenate(values) if values else np.zeros(0, np.float32)
    return csr_matrix((held, flat, starts), shape=(len(pairs), len(words)))


def logistic(x_ND: Any, y_N: NDArray[np.bool_], weight_N: Floats | None, strength: float) -> tuple[Floats, float]:
    """(weights of D features, bias) of an L2-penalised logistic regression; both labels weigh the same in sum."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise MissingResource("training a head needs scikit-learn: pip install 'fairlead[guard]'") from None
    # liblinear is several times quicker than lbfgs on sparse rows of many features (Fan et al. 2008)
    fitted = LogisticRegression(C=strength, class_weight="balanced", solver="liblinear", random_state=0)
    fitted.fit(x_ND, y_N, weight_N)
    return fitted.coef_[0].astype(np.float64), float(fitted.intercept_[0])


def auroc(scores: Sequence[float] | NDArray[Any], broken: Sequence[bool] | NDArray[np.bool_]) -> float:
    """P(a broken one scores above a kept one), ties as half. Mann & Whitney 1947. NaN where one kind is missing."""
    from scipy.stats import rankdata

    s, y = np.asarray(scores, float), np.asarray(broken, bool)
    m, n = int(y.sum()), int((~y).sum())
    if not m or not n:
        return math.nan
    return float((rankdata(s)[y].sum() - m * (m + 1) / 2) / (m * n))


def platt(logits_N: Floats, y_N: NDArray[np.bool_], rounds: int = 100) -> tuple[float, float]:
    """(slope, offset) such that sigmoid(slope * logit + offset) is calibrated on these. Platt 1999, with his targets
    that keep a perfect split from running away; Newton's method with step halving, Lin et al. 2007.

    A slope that would turn the head round (below 0) is no calibration: raises ValueError.
    """
    m, n = int(y_N.sum()), int((~y_N).sum())
    if not m or not n:
        raise ValueError(f"{m} broken and {n} kept: calibration needs both")
    target = np.where(y_N, (m + 1) / (m + 2), 1 / (n + 2))
    scale = max(float(np.abs(logits_N).max()), 1e-9)  # a well-scaled problem: at most 1 in size
    x = logits_N / scale
    a, b = 0.0, math.log((m + 1) / (n + 1))

    def loss(a: float, b: float) -> float:
        z = a * x + b
        return float(np.sum(np.logaddexp(0, z) - target * z))

    now = loss(a, b)
    for _ in range(rounds):
        p = 1 / (1 + np.exp(-(a * x + b)))
        w = np.maximum(p * (1 - p), 1e-12)
        g = np.array([np.sum((p - target) * x), np.sum(p - target)])
        if np.abs(g).max() < 1e-6:
            break
        hessian = np.array([[np.sum(w * x * x) + 1e-9, np.sum(w * x)], [np.sum(w * x), np.sum(w) + 1e-9]])
        step = np.linalg.solve(hessian, -g)
        size = 1.0
        while size > 1e-10 and (new := loss(a + size * step[0], b + size * step[1])) > now + 1e-4 * size * (g @ step):
            size /= 2
        if size <= 1e-10:
            break
        a, b, now = a + size * step[0], b + size * step[1], new
    if a <= 0:
        raise ValueError(
            "the head is no better than chance on the validation part: higher logits are not more often broken"
        )
    return a / scale, b


def threshold_at(scores_of_kept: Sequence[float] | NDArray[Any], rate: float) -> float:
    """The lowest threshold from which on at most `rate` of these scores lie, P(broken) of texts known to be kept.

    At most floor(rate * n) of them are flagged. Raises ValueError where fewer than 1/rate stand behind it.
    """
    s = np.sort(np.asarray(scores_of_kept, float))
    if not 0 < rate < 1:
        raise ValueError(f"the false-positive rate is {rate}: it lies between 0 and 1")
    if len(s) < 1 / rate:
        raise ValueError(
            f"{len(s)} harmless texts cannot place a threshold at {rate:g}: give at least {math.ceil(1 / rate)}"
        )
    allowed = math.floor(rate * len(s) + 1e-9)
    return float(np.nextafter(s[len(s) - allowed - 1], math.inf))
