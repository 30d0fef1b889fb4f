"""The queries or keys of attention that goes in groups: ranges of packed tokens, brought to one length.

Axes: T packed tokens, H heads, h head width, m ranges of n tokens each, S = m * n slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class Side:
    """Queries or keys of a group: m ranges of packed tokens, padded to n.

    where    the packed position of every slot: a slice where the ranges lie end to end and nothing is padded. Padding
             repeats a range's last token, which keeps it finite
    tokens          the packed positions without padding; None where `where` is a slice
    slots, padding  the slots that are not padding, and those that are; None where nothing is padded
    """

    length: int
    where: slice | torch.Tensor
    tokens: torch.Tensor | None = None
    slots: torch.Tensor | None = None
    padding: torch.Tensor | None = None

    def take(self, x_THh: torch.Tensor, *, zero: bool = False) -> torch.Tensor:
        """(T, H, h) -> (m, H, n, h); padding repeats a token, or is `zero`."""
        got = x_THh[self.where] if isinstance(self.where, slice) else x_THh.index_select(0, self.where)
        if zero and self.padding is not None:
            got.index_fill_(0, self.padding, 0.0)
        return got.view(-1, self.length, *got.shape[1:]).transpose(1, 2)

    def give(self, out_T: torch.Tensor, y: torch.Tensor, *, add: bool = False) -> None:
        """Write, or add, (m, H, n, ...) into (T, H, ...), padding left out."""
        y_S = y.transpose(1, 2).flatten(0, 1)
        if isinstance(self.where, slice):
            if add:
                out_T[self.where] += y_S
            else:
                out_T[self.where] = y_S
            return
        assert self.tokens is not None
        if self.slots is not None:
            y_S = y_S.index_select(0, self.slots)
        if add:
            out_T.index_add_(0, self.tokens, y_S)
        else:
            out_T.index_copy_(0, self.tokens, y_S)


def alike(sizes: list[tuple[int, int]], padding: int) -> Iterator[list[int]]:
    """Rows in groups whose padding to the group's largest sizes costs less than a call of its own."""
    group: list[int] = []
    most = (0, 0)
    waste = 0
    for row in sorted(range(len(sizes)), key=lambda row: (sizes[row][0] + sizes[row][1], row), reverse=True):
        size = sizes[row]
        grown = (max(most[0], size[0]), max(most[1], size[1]))
        more = sum(grown) - sum(size) + len(group) * (sum(grown) - sum(most))
        if group and (waste + more) * sum(grown) <= padding:
            group.append(row)
            waste, most = waste + more, grown
            continue
        if group:
            yield sorted(group)
        group, most, waste = [row], size, 0
    if group:
        yield sorted(group)


def side(ranges: Sequence[tuple[int, ...]]) -> Side:
    starts, ends = np.array(ranges).T
    lengths = ends - starts
    most = int(lengths.max())
    if (lengths == most).all() and (starts[1:] == ends[:-1]).all():
        return Side(most, slice(int(starts[0]), int(ends[-1])))
    column = np.arange(most)
    where = (starts[:, None] + np.minimum(column, lengths[:, None] - 1)).ravel()
    filled = (column < lengths[:, None]).ravel()
    tokens = torch.from_numpy(where[filled])
    if filled.all():
        return Side(most, tokens, tokens)
    slots, padding = (torch.from_numpy(np.flatnonzero(some)) for some in (filled, ~filled))
    return Side(most, torch.from_numpy(where), tokens, slots, padding)
