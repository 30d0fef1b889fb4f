"""Exact attention of a packed forest, almost without padding: causal pieces, joined where branches read a prompt.

A tree lies as prompt, first branch, further branches. Prompt and first branch together are one causal sequence, and
every further branch is one too, so causal sequences tile the packed tokens. What is missing is that further branches
read their prompt: one dense piece per tree, the queries of all its further branches against the prompt's keys. Two
softmaxes over disjoint keys are joined by their log-sum-exps (the identity behind flash attention); backward runs
every piece against the joined ones, and each gives its share of the gradient exactly.

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

from fairlead.engine.dense import spare
from fairlead.engine.layout import Shape

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
    groups: tuple[Group, ...]


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


@dataclass(frozen=True, slots=True)
class Group:
    """Pieces that one call serves. `mask` (m, 1, 1, keys) is additive and bars padded keys; causal groups need none.

    Query and key are the same Side where queries are all packed tokens.
    """

    causal: bool
    query: Side
    key: Side
    mask: torch.Tensor | None


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


def choose(found: Pieces, rows_N: np.ndarray, dtype: torch.dtype) -> Chosen:
    """What to compute so that the attention of some packed positions, in any order and number, is had."""
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

    def dense(ranges: np.ndarray) -> list[tuple[int, int, int, int]]:
        """Their queries counted among the chosen, of which every range holds some that lie side by side."""
        ranges = np.concatenate([np.searchsorted(row_C, ranges[:, :2]), ranges[:, 2:]], axis=1)
        return [tuple(row) for row in ranges.tolist() if row[0] < row[1] and row[2] < row[3]]

    out = []
    causal = dense(np.stack([first_m, last_m + 1, first_m, last_m + 1], axis=1))
    for rows in _alike([(end - start, 0) for start, end, _, _ in causal]):
        query, key = (_side([causal[row][at : at + 2] for row in rows]) for at in (0, 2))
        out.append(Group(True, query, key, None))
    # A token may read both kinds, and one call would join only one of them.
    out += _dense_groups(dense(np.stack([first_m, last_m + 1, start_m, first_m], axis=1)), dtype)
    out += _dense_groups(dense(np.array(found.dense).reshape(-1, 4)), dtype)
    place_N = np.searchsorted(row_C, rows_N)
    return Chosen(torch.from_numpy(row_C), torch.from_numpy(place_N), tuple(out))


def groups(found: Pieces, dtype: torch.dtype) -> tuple[Group, ...]:
    """Pieces of like lengths together, on the CPU. Causal groups come first, and between them fill every token."""
    out: list[Group] = []
    for rows in _alike([(end - start, 0) for start, end in found.causal]):
        side = _side([found.causal[row] for row in rows])
        out.append(Group(True, side, side, None))
    return (*out, *_dense_groups(found.dense, dtype))


def _dense_groups(found: Sequence[tuple[int, int, int, int]], dtype: torch.dtype) -> Iterator[Group]:
    for rows in _alike([(end - start, last - first) for start, end, first, last in found]):
        ranges = [found[row] for row in rows]
        key = _side([(first, last) for _, _, first, last in ranges])
        mask = None
        lengths = torch.tensor([last - first for _, _, first, last in ranges])
        if bool((lengths < key.length).any()):
            barred = torch.arange(key.length) >= lengths[:, None]
            mask = torch.zeros(barred.shape, dtype=dtype).masked_fill_(barred, -torch.inf)[:, None, None]
        yield Group(False, _side([(start, end) for start, end, _, _ in ranges]), key, mask)


def _alike(sizes: list[tuple[int, int]]) -> Iterator[list[int]]:
    """Rows in groups whose padding to the group's largest sizes costs less than a call of its own."""
    group: list[int] = []
    most = (0, 0)
    waste = 0
    for row in sorted(range(len(sizes)), key=lambda row: (sizes[row][0] + sizes[row][1], row), reverse=True):
        size = sizes[row]
        grown = (max(most[0], size[0]), max(most[1], size[1]))
        more = sum(grown) - sum(size) + len(group) * (sum(grown) - sum(most))
        if group and (waste + more) * sum(grown) <= PADDING:
            group.append(row)
            waste, most = waste + more, grown
            continue
        if group:
            yield sorted(group)
        group, most, waste = [row], size, 0
    if group:
        yield sorted(group)


def _side(ranges: Sequence[tuple[int, ...]]) -> Side:
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


class _Cascade(torch.autograd.Function):
    """Softmax attention over the pieces by torch's flash kernel for CPUs."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        found: tuple[Group, ...],
        scale: float,
    ) -> torch.Tensor:
        repeats = query.shape[1] // key.shape[1]
        k, v = _repeated(key, repeats), _repeated(value, repeats)
        alike = found[0].query is found[0].key
        every = torch.cat([query, k, v], dim=1) if alike else query  # one gather serves all three where it can
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        lse_TH: torch.Tensor | None = None
        for group in found:
            asked = group.query
            if group.causal and alike:
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
        ctx.save_for_backward(query, key, value, out, lse_TH)
        ctx.settings = (found, scale, repeats)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, lse_TH = ctx.saved_tensors
        found, scale, repeats = ctx.settings
        k, v = _repeated(key, repeats), _repeated(value, repeats)
        alike = found[0].query is found[0].key
        if alike:
            every = torch.cat([query, k, v], dim=1)
            d_every = torch.empty_like(every)
            d_query, d_key, d_value = _parts(d_every, 3)
        else:
            d_query, d_key, d_value = query.new_zeros(query.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)
        for group in found:
            asked = group.query
            if group.causal and alike:
                q_k_v = _parts(asked.take(every), 3)
            else:
                q_k_v = (asked.take(query), group.key.take(k), group.key.take(v))
            parts = _flash_backward(
                asked.take(grads[0], zero=True),  # so that padding gives no gradient to its keys
                *q_k_v,
                asked.take(out),
                asked.take(lse_TH[..., None])[..., 0].contiguous(),
                0.0,
                group.causal,
                attn_mask=group.mask,
                scale=scale,
            )
            if group.causal and alike:
                if isinstance(asked.where, slice):
                    for total, part in zip((d_query, d_key, d_value), parts, strict=True):
                        asked.give(total, part)
                else:
                    asked.give(d_every, torch.cat([part.transpose(1, 2) for part in parts], dim=2).transpose(1, 2))
                continue
            for side, total, part in zip((asked, group.key, group.key), (d_query, d_key, d_value), parts, strict=True):
                side.give(total, part, add=True)
        if repeats > 1:
            d_key, d_value = (_summed(x, repeats) for x in (d_key, d_value))
        return d_query, d_key, d_value, None, None


def _parts(x: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
    """Equal parts of the heads, which are axis 1."""
    return torch.chunk(x, count, dim=1)


# The operators behind scaled_dot_product_attention on CPUs: they also return the log-sum-exps, and take them back.
_flash: Callable[..., tuple[torch.Tensor, torch.Tensor]] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = (
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
)
_cascade: Callable[..., torch.Tensor] = _Cascade.apply  # torch leaves it untyped


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, found: tuple[Group, ...], scale: float
) -> torch.Tensor:
    """Attention of query (T or C, H, h) over key and value (T, K, h), by pieces on the CPU; returns (T or C, H, h)."""
    return _cascade(query, key, value, found, scale)


def _summed(x_THh: torch.Tensor, repeats: int) -> torch.Tensor:
    """What `_repeated` repeated, added up. (Several times as quick as a sum over so short an axis.)"""
    first, *others = x_THh.view(len(x_THh), -1, repeats, x_THh.shape[2]).unbind(2)
    total = first.clone(memory_format=torch.contiguous_format)
    for other in others:
        total += other
    return total


def _repeated(x_TKh: torch.Tensor, repeats: int) -> torch.Tensor:
    return x_TKh if repeats == 1 else x_TKh.repeat_interleave(repeats, dim=1)
