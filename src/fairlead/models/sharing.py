"""Prompts that begin alike, put together so that the beginning is read once."""

from __future__ import annotations

from collections.abc import Sequence

Ids = tuple[int, ...]
WORTH = 12  # tokens; a shorter common beginning (a BOS, a role, "user:") is not worth a branch


def by_prefix(prompts: Sequence[Ids]) -> list[tuple[int, list[int]]]:
    """(length of the common beginning, rows) of neighbours that begin alike; every row in one group, in order.

    A neighbour joins while that saves tokens. Each row keeps at least one token after the common beginning; a row
    alone shares nothing (length 0).
    """
    groups: list[tuple[int, list[int]]] = []
    for row, ids in enumerate(prompts):
        if groups:
            shared, rows = groups[-1]
            most = len(ids) - 1 if len(rows) > 1 else min(len(ids), len(prompts[rows[0]])) - 1
            length = _common(prompts[rows[0]], ids, min(most, shared) if len(rows) > 1 else most)
            if length >= WORTH and length * len(rows) > shared * (len(rows) - 1):
                groups[-1] = (length, [*rows, row])
                continue
        groups.append((0, [row]))
    return groups


def _common(first: Ids, second: Ids, most: int) -> int:
    length = 0
    while length < most and first[length] == second[length]:
        length += 1
    return length
