"""Split rows into training and held-out sides by group, so that nothing about a held-out prompt was trained on.

The side of a group is a hash of (seed, group): it does not depend on the other rows, so a file that grows, shrinks or
is shuffled leaves every old group where it was.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def is_held_out(group: str, *, share: float, seed: int) -> bool:
    """Whether a group falls on the held-out side. Case and white space do not make another group."""
    key = " ".join(unicodedata.normalize("NFKC", group).casefold().split())
    digest = hashlib.sha256(f"{seed}\0{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def split_by_group(groups: Sequence[str], *, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of (training, held-out) rows; about `share` of the *groups* is held out.

    Raises `ValueError` where a side would be empty, or a row has no group.
    """
    if not 0.0 < share < 1.0:
        raise ValueError(f"held-out share is {share}; it lies strictly between 0 and 1")
    without = [i for i, group in enumerate(groups) if not group.strip()]
    if without:
        raise ValueError(f"row {without[0]} has no group to split by")
    held = [is_held_out(group, share=share, seed=seed) for group in groups]
    train = [i for i, out in enumerate(held) if not out]
    test = [i for i, out in enumerate(held) if out]
    if not train or not test:
        raise ValueError(
            f"{len(set(groups))} groups are too few for a held-out share of {share}: one side is empty; "
            "give more groups, another share or another seed"
        )
    return train, test


def take(rows: Sequence[T], indices: Sequence[int]) -> tuple[T, ...]:
    """The rows at the indices, in their order."""
    return tuple(rows[i] for i in indices)
