"""TF-IDF over words, pairs of words and runs of four characters: read the same way when learning and when serving.

What was asked and what is answered are features of their own, so that "kill" in a question is another thing than "kill"
in an answer. Sublinear counts, smoothed idf, unit length per side (Salton & Buckley 1988).
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fairlead.guard.classifier.reading import Pair

_WORD = re.compile(r"\w+")
_MAX_WORD = 24  # longer runs of letters are read by their four-grams alone
RUN = 4


def grams(text: str, mark: str) -> list[str]:
    """The features of one text, as often as they occur; `mark` says which side it is."""
    words = _WORD.findall(text.casefold())
    out = [mark + w for w in words if len(w) <= _MAX_WORD]
    out += [f"{mark}{a} {b}" for a, b in itertools.pairwise(words)]
    line = " ".join(words)
    around = f" {line} "
    inside = mark + "#"
    out += [inside + around[i : i + RUN] for i in range(len(around) - RUN + 1)]
    return out


@dataclass(frozen=True)
class Vocabulary:
    """Which features count, and how much each."""

    index: dict[str, int]
    idf: NDArray[np.float32]

    def __post_init__(self) -> None:
        object.__setattr__(self, "_side", lru_cache(maxsize=256)(self._fresh))

    def __len__(self) -> int:
        return len(self.index)

    def vector(self, pair: Pair) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(which features, how much of each) of one pair; each side has length 1, or 0 where nothing of it is known.

        What was asked is the same for all windows of a reply, so it is remembered.
        """
        said: tuple[NDArray[np.int64], NDArray[np.float32]] = self._side(pair[0], "a")  # type: ignore[attr-defined]
        if not pair[1]:
            return said
        answered = self._fresh(pair[1], "r")
        return np.concatenate([said[0], answered[0]]), np.concatenate([said[1], answered[1]])

    def _fresh(self, text: str, mark: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        known = self.index
        counts = Counter([known[g] for g in grams(text, mark) if g in known])
        at = np.fromiter(counts.keys(), np.int64, len(counts))
        n = np.fromiter(counts.values(), np.float32, len(counts))
        value = (1.0 + np.log(n)) * self.idf[at] if len(at) else n
        length = math.sqrt(float(value @ value))
        return at, (value / length if length else value).astype(np.float32)


def vocabulary(pairs: Iterable[Pair], *, least: int = 2, most: int = 60_000) -> Vocabulary:
    """The features that at least `least` pairs hold, at most `most` of them (those that most pairs hold)."""
    held: Counter[str] = Counter()
    n = 0
    for said, answered in pairs:
        held.update(set(grams(said, "a")) | (set(grams(answered, "r")) if answered else set()))
        n += 1
    chosen = sorted((g for g, count in held.items() if count >= least), key=lambda g: (-held[g], g))[:most]
    idf = np.array([math.log((1 + n) / (1 + held[g])) + 1 for g in chosen], np.float32)
    return Vocabulary({g: i for i, g in enumerate(sorted(chosen))}, _in_order(chosen, idf))


def _in_order(chosen: Sequence[str], idf: NDArray[np.float32]) -> NDArray[np.float32]:
    order = sorted(range(len(chosen)), key=chosen.__getitem__)
    return idf[order] if order else idf
