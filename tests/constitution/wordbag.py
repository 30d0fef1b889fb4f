"""A bag of words and pairs of words under a logistic regression, cross-validated: what keywords alone can tell.

Nothing of the package is used: texts, labels and groups in, the area under the ROC curve out.
Axes: N rows, V terms.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def words(text: str) -> list[str]:
    """Lower-case words and numbers; an apostrophe inside a word belongs to it."""
    return re.findall(r"\w+(?:'\w+)?", text.lower())


def counts(texts: Sequence[str]) -> Floats:
    """[N, V] counts of words and of neighbouring pairs of words, over the vocabulary of all texts."""
    rows = [[*w, *(f"{a} {b}" for a, b in pairwise(w))] for w in map(words, texts)]
    index = {term: i for i, term in enumerate(sorted({term for row in rows for term in row}))}
    table_NV = np.zeros((len(rows), len(index)))
    for i, row in enumerate(rows):
        for term in row:
            table_NV[i, index[term]] += 1.0
    return table_NV


def fitted(kernel_NN: Floats, y_N: Floats, penalty: float) -> Floats:
    """The dual weights a [N] of the logistic regression that minimises log loss + penalty / 2 |w|^2, by Newton steps.

    The minimum is w = x' a, so an N x N system is solved however many words there are; scores are kernel @ a.
    """
    a_N = np.zeros(len(y_N))
    for _ in range(50):
        p_N = 1.0 / (1.0 + np.exp(-kernel_NN @ a_N))
        curve_N = p_N * (1.0 - p_N)
        step_N = np.linalg.solve(penalty * np.eye(len(y_N)) + curve_N[:, None] * kernel_NN, y_N - p_N - penalty * a_N)
        a_N = a_N + step_N
        if np.abs(step_N).max() < 1e-9:
            break
    return a_N


def auroc(scores_N: Floats, y_N: Floats) -> float:
    """P(a positive scores above a negative), ties counted half: every pair is looked at."""
    gap = scores_N[y_N == 1][:, None] - scores_N[y_N == 0][None, :]
    return float((np.sign(np.round(gap, 9)) + 1.0).mean() / 2.0)


def held_out_scores(
    texts: Sequence[str],
    y: Sequence[int],
    groups: Sequence[str],
    *,
    folds: int = 5,
    seed: int = 0,
    penalty: float = 1.0,
) -> Floats:
    """Scores [N] of rows by a classifier that saw no row of their group; folds of whole groups are drawn from `seed`.

    Each fold's scores are set to mean 0, so that folds of different bias are comparable.
    """
    x_NV, y_N = counts(texts), np.array(y, dtype=float)
    kernel_NN = x_NV @ x_NV.T + 1.0  # the intercept is one more column of ones
    names = sorted(set(groups))
    fold_of = dict(zip(names, np.random.default_rng(seed).permutation(len(names)) % folds, strict=True))
    fold_N = np.array([fold_of[group] for group in groups])
    scores_N = np.zeros(len(y_N))
    for fold in range(folds):
        out = fold_N == fold
        raw = kernel_NN[np.ix_(out, ~out)] @ fitted(kernel_NN[np.ix_(~out, ~out)], y_N[~out], penalty)
        scores_N[out] = raw - raw.mean()
    return scores_N


def told_apart(texts: Sequence[str], y: Sequence[int], groups: Sequence[str], *, seed: int = 0) -> float:
    """AUROC of the held-out scores: 0.5 where words tell nothing, 1 where they tell all."""
    return auroc(held_out_scores(texts, y, groups, seed=seed), np.array(y))
