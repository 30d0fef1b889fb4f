"""Can a bag of words tell tempting prompts from their harmless twins? Where it can, the prompts are keywords.

Naive Bayes over the words that occur, out of sample: prompts that share a group (a prompt and its twin, the cases of
one template) are never on both sides.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from fairlead.constitution.alike import normalised
from fairlead.stats import Interval

FOLDS = 10
KEYWORDS = 0.75
"""The AUROC above which prompts and twins are told apart by words."""


def word_auroc(tempting: Sequence[str], twins: Sequence[str], groups: tuple[Sequence[str], Sequence[str]]) -> Interval:
    """P(a tempting prompt is scored above a twin), ties as half, with its 95% interval; n counts prompts of both kinds.

    groups   of the tempting prompts and of the twins; what shares one is held out together

    The interval is Hanley & McNeil 1982 (Radiology 143:29), eq. 2: it takes the prompts for independent, so where
    groups are large it is too narrow. Raises ValueError without at least two prompts of each kind and two groups.
    """
    texts = [(normalised(text).split(), True, group) for text, group in zip(tempting, groups[0], strict=True)]
    texts += [(normalised(text).split(), False, group) for text, group in zip(twins, groups[1], strict=True)]
    names = sorted({group for *_, group in texts})
    if len(tempting) < 2 or len(twins) < 2 or len(names) < 2:
        raise ValueError("too few prompts to hold any out: at least two of each kind and two groups are needed")
    fold = {name: i % min(FOLDS, len(names)) for i, name in enumerate(names)}
    scores: list[tuple[float, bool]] = []
    for held in range(min(FOLDS, len(names))):
        rest = [(words, kind) for words, kind, group in texts if fold[group] != held]
        weigh = _fitted(rest)
        scores += [(weigh(words), kind) for words, kind, group in texts if fold[group] == held]
    return _interval([s for s, kind in scores if kind], [s for s, kind in scores if not kind])


class _fitted:
    """log P(words | tempting) - log P(words | twin), add-one smoothed; words never seen say nothing."""

    def __init__(self, texts: Sequence[tuple[Sequence[str], bool]]) -> None:
        self.counts = {
            kind: Counter(w for words, k in texts if k is kind for w in set(words)) for kind in (True, False)
        }
        self.n = {kind: sum(k is kind for _, k in texts) for kind in (True, False)}

    def __call__(self, words: Sequence[str]) -> float:
        known = [w for w in set(words) if self.counts[True][w] or self.counts[False][w]]
        return math.fsum(self._log(w, True) - self._log(w, False) for w in known)

    def _log(self, word: str, kind: bool) -> float:
        return math.log((self.counts[kind][word] + 1) / (self.n[kind] + 2))


def _interval(positive: Sequence[float], negative: Sequence[float]) -> Interval:
    m, n = len(positive), len(negative)
    above = sum((p > q) + 0.5 * (p == q) for p in positive for q in negative)
    a = above / (m * n)
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    spread = math.sqrt((a * (1 - a) + (m - 1) * (q1 - a * a) + (n - 1) * (q2 - a * a)) / (m * n))
    return Interval(a, max(0.0, a - 1.96 * spread), min(1.0, a + 1.96 * spread), m + n)
