"""Exact attention of a packed forest, almost without padding: causal pieces, joined where branches read a prompt.

A tree lies as prompt, first branch, further branches. Prompt and first branch together are one causal sequence, and
every further branch is one too, so causal sequences tile the packed tokens. What is missing is that further branches
read their prompt: one dense piece per tree, the queries of all its further branches against the prompt's keys. Two
softmaxes over disjoint keys are joined by their log-sum-exps (the identity behind flash attention); backward runs
every piece against the joined ones, and each gives its share of the gradient exactly.

Axes: T packed tokens, H heads (key heads repeated to as many), h head width, m pieces of a group, n tokens each,
S = m * n slots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

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
    """Pieces that one call serves. `mask` (m, 1, 1, keys) is additive and bars padded keys; causal groups need none."""

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


def groups(found: Pieces, dtype: torch.dtype) -> tuple[Group, ...]:
    """Pieces of like lengths together, on the CPU. Causal groups come first, and between them fill every token."""
    out: list[Group] = []
    for rows in _alike([(end - start, 0) for start, end in found.causal]):
        side = _side([found.causal[row] for row in rows])
        out.append(Group(True, side, side, None))
    for rows in _alike([(end - start, last - first) for start, end, first, last in found.dense]):
        ranges = [found.dense[row] for row in rows]
        key = _side([(first, last) for _, _, first, last in ranges])
        mask = None
        lengths = torch.tensor([last - first for _, _, first, last in ranges])
        if bool((lengths < key.length).any()):
            barred = torch.arange(key.length) >= lengths[:, None]
            mask = torch.zeros(barred.shape, dtype=dtype).masked_fill_(barred, -torch.inf)[:, None, None]
        out.append(Group(False, _side([(start, end) for start, end, _, _ in ranges]), key, mask))
    return tuple(out)


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


def _side(ranges: Sequence[tuple[int, int]]) -> Side:
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
        every = torch.cat([query, k, v], dim=1)  # one gather serves all three, where they are gathered alike
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        lse_TH: torch.Tensor | None = None
        for group in found:
            asked = group.query
            if group.causal:
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
        every = torch.cat([query, k, v], dim=1)
        d_every = torch.empty_like(every)
        d_query, d_key, d_value = _parts(d_every, 3)
        for group in found:
            asked = group.query
            if group.causal:
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
            if group.causal:
                asked.give(d_every, torch.cat([part.transpose(1, 2) for part in parts], dim=2).transpose(1, 2))
                continue
            for side, total, part in zip((asked, group.key, group.key), (d_query, d_key, d_value), parts, strict=True):
                side.give(total, part, add=True)
        if repeats > 1:
            d_key, d_value = (x.view(len(x), -1, repeats, x.shape[-1]).sum(2) for x in (d_key, d_value))
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
    """Attention of query (T, H, h) over key and value (T, K, h), by pieces on the CPU; returns (T, H, h)."""
    return _cascade(query, key, value, found, scale)


def _repeated(x_TKh: torch.Tensor, repeats: int) -> torch.Tensor:
    return x_TKh if repeats == 1 else x_TKh.repeat_interleave(repeats, dim=1)
