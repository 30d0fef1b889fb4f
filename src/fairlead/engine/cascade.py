"""Exact attention of a packed forest, almost without padding: causal pieces, joined where branches read a prompt.

Short trees go whole (`whole.py`); this is for the others. A tree lies as prompt, first branch, further branches. Prompt
and first branch together are one causal sequence, and every further branch is one too, so causal sequences tile the
packed tokens. What is missing is that further branches read their prompt: one dense piece per tree, the queries of all
its further branches against the prompt's keys. Two softmaxes over disjoint keys are joined by their log-sum-exps (the
identity behind flash attention); backward runs every piece against the joined ones, and each gives its share of the
gradient exactly.

Where only some tokens' attention is asked for (`choose`), their stretch of each causal sequence is cut in the same way:
it is a shorter causal sequence, and reads what lies before it as a dense piece.

Axes: T packed tokens, C chosen ones, N rows asked for, H heads (key heads repeated to as many), h head width, m pieces
of a group, n tokens each, S = m * n slots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fairlead.engine import whole
from fairlead.engine.dense import spare
from fairlead.engine.layout import Shape
from fairlead.engine.sides import Side, alike, side

# Pieces share a call while padding them to one length costs less than another call: on 2 CPU cores a call, backward
# included, costs as much as about 30 padded tokens at length 60, and a padded token's cost grows with the length.
PADDING = 2000


@dataclass(frozen=True, slots=True)
class Pieces:
    """Ranges of packed tokens: causal (start, end), which tile them in order; dense (start, end, first key, end)."""

    causal: tuple[tuple[int, int], ...]
    dense: tuple[tuple[int, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Chosen:
    """The tokens whose attention is computed where not all is asked for: one stretch of each causal sequence.

    row_C      their packed positions, rising
    place_N    where among them each row lies that was asked for
    groups     how they attend
    """

    row_C: torch.Tensor
    place_N: torch.Tensor
    groups: Groups


@dataclass(frozen=True, slots=True)
class Group:
    """Pieces that one call serves. `mask` (m, 1, 1, keys) is additive and bars padded keys; causal groups need none.

    Query and key are the same Side where queries are all packed tokens.
    """

    causal: bool
    query: Side
    key: Side
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Groups:
    """All of a forest: short trees whole (see `whole.py`), the pieces of the others; causal pieces come first."""

    whole: tuple[whole.Whole, ...]
    pieces: tuple[Group, ...]


def pieces(shapes: Sequence[Shape]) -> Pieces:
    """The pieces of a packed forest."""
    causal: list[tuple[int, int]] = []
    dense: list[tuple[int, int, int, int]] = []
    at = 0
    for shape in shapes:
        prompt, at = at, at + shape.prompt
        for number, length in enumerate(shape.branches or (0,)):
            causal.append((at if number else prompt, at + length))
            at += length
        further = prompt + shape.prompt + sum(shape.branches[:1])
        if at > further:
            dense.append((further, at, prompt, prompt + shape.prompt))
    return Pieces(tuple(causal), tuple(dense))


def choose(shapes: Sequence[Shape], rows_N: np.ndarray, dtype: torch.dtype, short: int = whole.SHORT) -> Chosen:
    """What to compute so that the attention of some packed positions, in any order and number, is had."""
    found = pieces(shapes)
    start_m, end_m = np.array(found.causal).T
    piece_N = np.searchsorted(end_m, rows_N, side="right")
    first_m, last_m = end_m.copy(), start_m - 1
    np.minimum.at(first_m, piece_N, rows_N)
    np.maximum.at(last_m, piece_N, rows_N)
    some_m = last_m >= first_m
    start_m, first_m, last_m = start_m[some_m], first_m[some_m], last_m[some_m]
    count = int((last_m + 1 - first_m).sum())
    room_m = np.minimum((first_m - start_m).cumsum(), spare(count, torch.empty(0, dtype=dtype)))
    first_m = first_m - np.diff(room_m, prepend=0)  # a few more, to a count that recurs
    row_C = np.concatenate([np.arange(first, last + 1) for first, last in zip(first_m, last_m, strict=True)])
    long_T = _long(shapes, dtype, short)

    def ranges(some: np.ndarray) -> list[tuple[int, int, int, int]]:
        """Those of long trees, their queries counted among the chosen, of which every range holds some side by side."""
        some = some[long_T[some[:, 0]]]
        some = np.concatenate([np.searchsorted(row_C, some[:, :2]), some[:, 2:]], axis=1)
        return [tuple(row) for row in some.tolist() if row[0] < row[1] and row[2] < row[3]]

    out = []
    causal = ranges(np.stack([first_m, last_m + 1, first_m, last_m + 1], axis=1))
    for rows in alike([(end - start, 0) for start, end, _, _ in causal], PADDING):
        query, key = (side([causal[row][at : at + 2] for row in rows]) for at in (0, 2))
        out.append(Group(True, query, key, None))
    # A token may read both kinds, and one call would join only one of them.
    out += _dense_groups(ranges(np.stack([first_m, last_m + 1, start_m, first_m], axis=1)), dtype)
    out += _dense_groups(ranges(np.array(found.dense, dtype=np.int64).reshape(-1, 4)), dtype)
    place_N = np.searchsorted(row_C, rows_N)
    both = Groups(whole.groups(shapes, dtype, short, row_C), tuple(out))
    return Chosen(torch.from_numpy(row_C), torch.from_numpy(place_N), both)


def groups(shapes: Sequence[Shape], dtype: torch.dtype, short: int = whole.SHORT) -> Groups:
    """All of a forest, on the CPU: trees up to `short` tokens whole. They and the causal groups fill every token."""
    found, long_T = pieces(shapes), _long(shapes, dtype, short)
    causal = [piece for piece in found.causal if long_T[piece[0]]]
    out: list[Group] = []
    for rows in alike([(end - start, 0) for start, end in causal], PADDING):
        both = side([causal[row] for row in rows])
        out.append(Group(True, both, both, None))
    dense = [piece for piece in found.dense if long_T[piece[0]]]
    return Groups(whole.groups(shapes, dtype, short), (*out, *_dense_groups(dense, dtype)))


def _long(shapes: Sequence[Shape], dtype: torch.dtype, short: int) -> np.ndarray:
    """Of every packed token, whether its tree goes by pieces."""
    return np.repeat([not whole.is_short(shape, dtype, short) for shape in shapes], [shape.tokens for shape in shapes])


def _dense_groups(found: Sequence[tuple[int, int, int, int]], dtype: torch.dtype) -> Iterator[Group]:
    for rows in alike([(end - start, last - first) for start, end, first, last in found], PADDING):
        ranges = [found[row] for row in rows]
        key = side([(first, last) for _, _, first, last in ranges])
        mask = None
        lengths = torch.tensor([last - first for _, _, first, last in ranges])
        if bool((lengths < key.length).any()):
            barred = torch.arange(key.length) >= lengths[:, None]
            mask = torch.zeros(barred.shape, dtype=dtype).masked_fill_(barred, -torch.inf)[:, None, None]
        yield Group(False, side([(start, end) for start, end, _, _ in ranges]), key, mask)


class _Attend(torch.autograd.Function):
    """Softmax attention over whole trees, and over the pieces of the others."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, found: Groups, scale: float
    ) -> torch.Tensor:
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        kept = [whole.forward(group, query, key, value, scale, out) for group in found.whole]
        lse_TH = _pieces_forward(found.pieces, query, key, value, scale, out) if found.pieces else None
        flat = [p for parts in kept for p in parts] if any(ctx.needs_input_grad[:3]) else []
        ctx.save_for_backward(query, key, value, *((out, lse_TH) if found.pieces else (None, None)), *flat)
        ctx.settings = (found, scale)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, lse_TH, *kept = ctx.saved_tensors
        found, scale = ctx.settings
        if found.pieces:
            d_query, d_key, d_value = _pieces_backward(found.pieces, query, key, value, scale, out, lse_TH, grads[0])
        else:
            # All are written below, but for the keys of trees in which nobody asks.
            new = torch.zeros if len(query) < len(key) else torch.empty
            d_query, d_key, d_value = (new(x.shape, dtype=x.dtype) for x in (query, key, value))
        rest = iter(kept)
        for group in found.whole:
            parts = [next(rest) for _ in group.bands]
            whole.backward(group, parts, (query, key, value), grads[0], scale, (d_query, d_key, d_value))
        return d_query, d_key, d_value, None, None


def _pieces_forward(
    found: tuple[Group, ...],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    out: torch.Tensor,
) -> torch.Tensor:
    """Write the attention of the pieces into `out`, by torch's flash kernel for CPUs; returns the log-sum-exps."""
    repeats = query.shape[1] // key.shape[1]
    k, v = _repeated(key, repeats), _repeated(value, repeats)
    shared = found[0].query is found[0].key
    every = torch.cat([query, k, v], dim=1) if shared else query  # one gather serves all three where it can
    lse_TH: torch.Tensor | None = None
    for group in found:
        asked = group.query
        if group.causal and shared:
            q_k_v = _parts(asked.take(every), 3)
        else:
            q_k_v = (asked.take(query), group.key.take(k), group.key.take(v))
        y, lse = _flash(*q_k_v, 0.0, group.causal, attn_mask=group.mask, scale=scale)
        if lse_TH is None:
            lse_TH = lse.new_empty(query.shape[:2])
        if not group.causal:
            # log(e^a + e^b), and the second one's share of it
            own = asked.take(lse_TH[..., None])[..., 0]
            joined = torch.logaddexp(own, lse)
            y = torch.lerp(asked.take(out), y, (lse - joined).exp_()[..., None].to(y.dtype))
            lse = joined
        asked.give(out, y)
        asked.give(lse_TH, lse)
    assert lse_TH is not None
    return lse_TH


def _pieces_backward(
    found: tuple[Group, ...],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    out: torch.Tensor,
    lse_TH: torch.Tensor,
    grad: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query, key and value; of tokens in no piece they are anything."""
    repeats = query.shape[1] // key.shape[1]
    k, v = _repeated(key, repeats), _repeated(value, repeats)
    shared = found[0].query is found[0].key
    if shared:
        every = torch.cat([query, k, v], dim=1)
        d_every = torch.empty_like(every)
        d_query, d_key, d_value = _parts(d_every, 3)
    else:
        d_query, d_key, d_value = query.new_zeros(query.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)
    for group in found:
        asked = group.query
        if group.causal and shared:
            q_k_v = _parts(asked.take(every), 3)
        else:
            q_k_v = (asked.take(query), group.key.take(k), group.key.take(v))
        parts = _flash_backward(
            asked.take(grad, zero=True),  # so that padding gives no gradient to its keys
            *q_k_v,
            asked.take(out),
            asked.take(lse_TH[..., None])[..., 0].contiguous(),
            0.0,
            group.causal,
            attn_mask=group.mask,
            scale=scale,
        )
        if group.causal and shared:
            if isinstance(asked.where, slice):
                for total, part in zip((d_query, d_key, d_value), parts, strict=True):
                    asked.give(total, part)
            else:
                asked.give(d_every, torch.cat([part.transpose(1, 2) for part in parts], dim=2).transpose(1, 2))
            continue
        for where, total, part in zip((asked, group.key, group.key), (d_query, d_key, d_value), parts, strict=True):
            where.give(total, part, add=True)
    if repeats > 1:
        d_key, d_value = (_summed(x, repeats) for x in (d_key, d_value))
    return d_query, d_key, d_value


def _parts(x: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
    """Equal parts of the heads, which are axis 1."""
    return torch.chunk(x, count, dim=1)


# The operators behind scaled_dot_product_attention on CPUs: they also return the log-sum-exps, and take them back.
_flash: Callable[..., tuple[torch.Tensor, torch.Tensor]] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = (
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
)
_attend: Callable[..., torch.Tensor] = _Attend.apply  # torch leaves it untyped


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, found: Groups, scale: float) -> torch.Tensor:
    """Attention of query (T or C, H, h) over key and value (T, K, h), on the CPU; returns (T or C, H, h)."""
    return _attend(query, key, value, found, scale)


def _summed(x_THh: torch.Tensor, repeats: int) -> torch.Tensor:
    """What `_repeated` repeated, added up. (Several times as quick as a sum over so short an axis.)"""
    first, *others = x_THh.view(len(x_THh), -1, repeats, x_THh.shape[2]).unbind(2)
    total = first.clone(memory_format=torch.contiguous_format)
    for other in others:
        total += other
    return total


def _repeated(x_TKh: torch.Tensor, repeats: int) -> torch.Tensor:
    return x_TKh if repeats == 1 else x_TKh.repeat_interleave(repeats, dim=1)
