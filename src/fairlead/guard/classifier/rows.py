"""Rows to learn from: an exchange (or a prompt alone), what it says of which principle, and where it came from.

Everything derived from one source row (a twin, an encoding, a paraphrase) carries its `group`, and rows that are nearly
the same are put into one group, so that no side of a split knows anything of the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fairlead.constitution.alike import GRAM, normalised
from fairlead.exchange import Exchange
from fairlead.feedback.split import is_held_out

View: TypeAlias = Literal["prompt", "exchange"]
Part: TypeAlias = Literal["train", "valid", "test"]

NEAR = 0.6  # Jaccard of character 4-grams from which two texts are one source
SEEN = 3_000  # characters of a text that are compared
CHUNK = 2_000  # rows compared at once


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled exchange. Without a reply it is a prompt alone.

    id      where it stands in its source: `SOURCE/number`, with what was made of it behind
    labels  by principle id, whether it is broken (True) or kept (False); a principle not named is not known
    group   its source row: all that shares it lies on one side of a split
    made    how it was made of its source row ("" for as it stands): `base64`, `frame:3`, …
    meta    whatever else is known; of it, `part` is the part of a long reply that the labels speak of
    compared  what makes it alike another, where that is neither what was asked nor the whole of what was answered
    """

    id: str
    exchange: Exchange
    labels: Mapping[str, bool]
    source: str
    group: str
    made: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    compared: str = ""

    @property
    def view(self) -> View:
        return "exchange" if self.exchange.reply else "prompt"

    @property
    def prompt(self) -> str:
        return self.exchange.messages[-1].text if self.exchange.messages else ""

    @property
    def text(self) -> str:
        """What makes it alike another: what was asked, or where nothing was, what was answered. Two questions that got
        the same short refusal are not alike."""
        return self.compared or self.prompt or self.exchange.reply_text

    def provenance(self) -> dict[str, Any]:
        """All but the text: what a manifest may hold."""
        return {
            "id": self.id, "source": self.source, "group": self.group, "made": self.made, "view": self.view,
            "labels": {id: bool(y) for id, y in self.labels.items()},
        }  # fmt: skip


def gram_matrix(texts: Sequence[str]) -> Any:
    """Which hashed character 4-grams each text holds: a scipy CSR matrix of 0 and 1, texts by 2^18."""
    from scipy.sparse import csr_array

    indices: list[NDArray[np.int64]] = []
    starts = [0]
    for text in texts:
        plain = f" {normalised(text[:SEEN])} ".encode("utf-32-le")
        code = np.frombuffer(plain, dtype=np.uint32).astype(np.uint64)
        n = max(1, len(code) - GRAM + 1)
        mixed = np.zeros(n, dtype=np.uint64)
        for k in range(min(GRAM, len(code))):
            mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + code[k : k + n] + np.uint64(1)
        mixed = (mixed ^ (mixed >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)  # every bit into the high ones
        held = np.unique(mixed >> np.uint64(46)).astype(np.int64)
        indices.append(held)
        starts.append(starts[-1] + len(held))
    flat = np.concatenate(indices) if indices else np.zeros(0, np.int64)
    return csr_array((np.ones(len(flat), np.float32), flat, starts), shape=(len(texts), 1 << 18))


def near_pairs(a: Any, b: Any, near: float = NEAR) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(i, j) of all rows of two gram matrices whose Jaccard likeness is at least `near`. Broder 1997."""
    size_a, size_b = a.sum(axis=1), b.sum(axis=1)
    left, right = [], []
    for start in range(0, a.shape[0], CHUNK):
        shared = (a[start : start + CHUNK] @ b.T).tocoo()
        i, j = shared.row + start, shared.col
        alike = shared.data / (size_a[i] + size_b[j] - shared.data)
        keep = alike >= near
        left.append(i[keep])
        right.append(j[keep])
    return np.concatenate(left or [np.zeros(0, np.int64)]), np.concatenate(right or [np.zeros(0, np.int64)])


def grouped(rows: Sequence[Row], near: float = NEAR) -> list[str]:
    """One group name per row: rows of one source row, and rows nearly the same, share it (also by way of others)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    number: dict[str, int] = {}
    own = np.array([number.setdefault(row.group, len(number)) for row in rows], dtype=np.int64)
    grams = gram_matrix([row.text for row in rows])
    i, j = near_pairs(grams, grams, near)
    edges = coo_array((np.ones(len(i), np.int8), (own[i], own[j])), shape=(len(number), len(number)))
    _, label = connected_components(edges, directed=False)
    first: dict[int, str] = {}
    for name, n in number.items():
        first.setdefault(int(label[n]), name)
    return [first[int(label[n])] for n in own]


def split(rows: Sequence[Row], *, share: float = 0.25, seed: int = 0, near: float = NEAR) -> list[Part]:
    """Train or valid for each row, by group; about `share` of the groups are held out."""
    return ["valid" if is_held_out(group, share=share, seed=seed) else "train" for group in grouped(rows, near)]


def without_near(rows: Sequence[Row], others: Iterable[str], near: float = NEAR) -> tuple[list[Row], int]:
    """The rows that are not nearly the same as any of some other texts, and how many were left out for it.

    A row goes with its whole group: what was made of a text that is known is known too.
    """
    texts = list(others)
    if not texts or not rows:
        return list(rows), 0
    i, _ = near_pairs(gram_matrix([row.text for row in rows]), gram_matrix(texts), near)
    known = {rows[n].group for n in np.unique(i)}
    kept = [row for row in rows if row.group not in known]
    return kept, len(rows) - len(kept)
