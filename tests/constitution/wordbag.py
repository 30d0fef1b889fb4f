"""A bag of words and pairs of words under a logistic regression, cross-validated: what keywords alone can tell.

Nothing of the package is used: texts, labels and groups in, the area under the ROC curve out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def words(text: str) -> list[str]:
    """Lower-case words and numbers; an apostrophe inside a word belongs to it."""
    return re.findall(r"\w+(?:'\w+)?", text.lower())


def counts(texts: Sequence[str]) -> Floats:
    """[N, V] counts of words and of neighbouring pairs of words, over the vocabulary of all texts."""
    rows = [[*w, *(f"{a} {b}" for a, b in zip(w, w[1:], strict=False))] for w in map(words, texts)]
    index = {term: i for i, term in enumerate(sorted({term for row in rows for term in row}))}
    table = np.zeros((len(rows), len(index)))
    for i, row in enumerate(rows):
        for term in row:
            table[i, index[term]] += 1.0
    return table


def fitted(x_ND: Floats, y_N: Floats, penalty: float) -> Floats:
    """Weights [D + 1] (the last is the intercept) that minimise log loss + penalty / 2 * |w|²; Newton on the dual side:
    the minimum is x' a, so an N x N system is solved, however many words there are."""
    n = len(y_N)
    kernel = x_ND @ x_ND.T + 1.0  # the intercept is one more, equally shrunk, column of ones
    a_N = np.zeros(n)
    for _ in range(30):
        p_N = 1.0 / (1.0 + np.exp(-kernel @ a_N))
        curve_N = np.maximum(p_N * (1.0 - p_N), 1e-9)
        residual_N = y_N - p_N - penalty * a_N
        step_N = np.linalg.solve(penalty * np.eye(n) + curve_N[:, None] * kernel, residual_N)
        a_N = a_N + step_N
        if np.abs(step_N).max() < 1e-8:
            break
    return np.append(x_ND.T @ a_N, a_N.sum())


def auroc(scores_N: Floats, y_N: Floats) -> float:
    """P(a positive scores above a negative), ties counted half: every pair is looked at."""
    gap = scores_N[y_N == 1][:, None] - scores_N[y_N == 0][None, :]
    return float((np.sign(gap) + 1.0).mean() / 2.0)


def told_apart(
    texts: Sequence[str], y: Sequence[int], groups: Sequence[str], *, folds: int, seed: int, penalty: float = 1.0
) -> float:
    """AUROC of held-out scores where rows of one group fall into one fold. Folds are drawn once from `seed`.

    Each fold's scores are set to mean 0 before they are pooled, so that folds of different bias are comparable.
    """
    rng = np.random.default_rng(seed)
    names = sorted(set(groups))
    fold_of = dict(zip(names, rng.permutation(len(names)) % folds, strict=True))
    fold_N = np.array([fold_of[g] for g in groups])
    x_ND, y_N = counts(texts), np.array(y, dtype=float)
    scores_N = np.zeros(len(y_N))
    for fold in range(folds):
        out = fold_N == fold
        w = fitted(x_ND[~out], y_N[~out], penalty)
        raw = x_ND[out] @ w[:-1] + w[-1]
        scores_N[out] = raw - raw.mean()
    return auroc(scores_N, y_N)
