"""Attention of short trees, each as one square of scores under a mask.

A tree of few tokens is cheaper whole than in the pieces of `cascade.py`: the scores its mask bars cost less than the
calls that would leave them out, and batched products run at twice the speed of the flash kernel for CPUs where heads
are narrow. The packed order is causal, so of longer trees the rows go in bands that read only the keys up to their
end. The softmax is kept for backward, which needs no scores again; `SHORT` bounds what that takes.

Heads that share a key head lie side by side as rows of one product, so keys and values are never repeated.

Axes: T packed tokens, H query heads, K key heads, r = H // K, h head width, m trees of a group, q and k their queries
and keys, padded to the longest; B = m * K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fairlead.engine.layout import Shape
from fairlead.engine.sides import Side, alike, side

SHORT = 256  # tokens; the kept softmax of a tree is at most SHORT / 2 numbers per token and head
BAND = 64  # rows of one band
# Padding, in rows times length, that costs about as much as the dozen and a half calls of a group of its own.
PADDING = 6000


@dataclass(frozen=True, slots=True)
class Whole:
    """Trees that are attended together. `mask_m1q1k` is additive; `bands` are (first row, last row, keys read)."""

    query: Side
    key: Side
    mask_m1q1k: torch.Tensor
    bands: tuple[tuple[int, int, int], ...]


def is_short(shape: Shape, dtype: torch.dtype, short: int) -> bool:
    """Whether a tree is attended whole. In 16 bits it is left to the flash kernel, which sums in 32."""
    return dtype in (torch.float32, torch.float64) and shape.tokens <= short


def groups(
    shapes: Sequence[Shape], dtype: torch.dtype, short: int, row_C: np.ndarray | None = None
) -> tuple[Whole, ...]:
    """Trees of a packed forest of up to `short` tokens; `row_C`, rising, are the positions that ask, by default all."""
    starts = np.cumsum([0, *(shape.tokens for shape in shapes)])
    trees = [i for i, shape in enumerate(shapes) if is_short(shape, dtype, short)]
    asked = starts if row_C is None else np.searchsorted(row_C, starts)
    trees = [i for i in trees if asked[i] < asked[i + 1]]
    out = []
    for group in alike([(shapes[i].tokens, 0) for i in trees], PADDING):
        chosen = [trees[at] for at in group]
        key = side([(int(starts[i]), int(starts[i + 1])) for i in chosen])
        branch_mk = np.full((len(chosen), key.length), -2)  # padding: no query has this branch
        for row, i in enumerate(chosen):
            lengths = (shapes[i].prompt, *shapes[i].branches)
            branch_mk[row, : shapes[i].tokens] = np.repeat(np.arange(len(lengths)), lengths)
        if row_C is None:
            query, place_mq = key, np.broadcast_to(np.arange(key.length), branch_mk.shape)
        else:
            query = side([(int(asked[i]), int(asked[i + 1])) for i in chosen])
            place_mq = np.zeros((len(chosen), query.length), dtype=np.int64)
            for row, i in enumerate(chosen):
                place_mq[row, : asked[i + 1] - asked[i]] = row_C[asked[i] : asked[i + 1]] - starts[i]
        own_mq = np.take_along_axis(branch_mk, place_mq, axis=1)
        same = (branch_mk[:, None] == 0) | (branch_mk[:, None] == own_mq[:, :, None])
        # Key 0 is of the prompt and seen by all, padding too, so that no row of scores is barred as a whole.
        seen = same & (np.arange(key.length) <= place_mq[:, :, None])
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(torch.from_numpy(~seen), -torch.inf)
        bands = _bands(key.length) if row_C is None else ((0, query.length, key.length),)
        out.append(Whole(query, key, mask[:, None, :, None], bands))
    return tuple(out)


def _bands(length: int) -> tuple[tuple[int, int, int], ...]:
    count = max(1, round(length / BAND))
    ends = [length * (number + 1) // count for number in range(count)]
    return tuple((start, end, end) for start, end in zip([0, *ends], ends, strict=False))


def forward(
    group: Whole, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, out: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Write the attention of a group into `out` (T, H, h); returns the softmax of every band."""
    heads = key.shape[1]
    r = query.shape[1] // heads
    q, k, v = _rows(group.query, query, heads), _rows(group.key, key, heads), _rows(group.key, value, heads)
    y = torch.empty_like(q)
    kept = []
    for first, last, keys in group.bands:
        p = torch.baddbmm(q.new_empty(()), q[:, first * r : last * r], k[:, :keys].mT, beta=0.0, alpha=scale)
        p.view(-1, heads, last - first, r, keys).add_(group.mask_m1q1k[:, :, first:last, :, :keys])
        torch.softmax(p, -1, out=p)  # its kernel reads a row before it writes it
        y[:, first * r : last * r] = p @ v[:, :keys]
        kept.append(p)
    _give(group.query, out, y, heads)
    return tuple(kept)


def backward(
    group: Whole,
    kept: Sequence[torch.Tensor],
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    grad: torch.Tensor,
    scale: float,
    totals: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    """Write a group's gradients into those of query, key and value."""
    query, key, value = inputs
    heads = key.shape[1]
    r = query.shape[1] // heads
    q, k, v = _rows(group.query, query, heads), _rows(group.key, key, heads), _rows(group.key, value, heads)
    d_y = _rows(group.query, grad, heads, zero=True)  # so that padding gives no gradient to its keys
    d_q = torch.empty_like(q)
    d_k = d_v = torch.empty(0)
    for (first, last, keys), p in reversed(list(zip(group.bands, kept, strict=True))):
        rows = slice(first * r, last * r)
        d_p = torch.bmm(d_y[:, rows], v[:, :keys].mT)
        d_s = torch.ops.aten._softmax_backward_data(d_p, p, -1, p.dtype)
        d_q[:, rows] = torch.bmm(d_s, k[:, :keys])
        more_k, more_v = torch.bmm(d_s.mT, q[:, rows]), torch.bmm(p.mT, d_y[:, rows])
        if last == group.query.length:  # the first round, which reads all keys
            d_k, d_v = more_k, more_v
        else:
            d_k[:, :keys] += more_k
            d_v[:, :keys] += more_v
    sides = (group.query, group.key, group.key)
    for where, total, part in zip(sides, totals, (d_q.mul_(scale), d_k.mul_(scale), d_v), strict=True):
        _give(where, total, part, heads)


def _rows(where: Side, x_THh: torch.Tensor, heads: int, *, zero: bool = False) -> torch.Tensor:
    """(T, H, h) -> (B, n * r, h): of every tree and key head, the heads that share it side by side."""
    width = x_THh.shape[2]
    x = where.take(x_THh.reshape(len(x_THh), heads, -1), zero=zero)
    return x.reshape(x.shape[0] * heads, -1, width)


def _give(where: Side, out_THh: torch.Tensor, y: torch.Tensor, heads: int) -> None:
    """The way back of `_rows`."""
    where.give(
        out_THh.view(len(out_THh), heads, -1), y.view(-1, heads, where.length, y.shape[2] * y.shape[1] // where.length)
    )
