"""Attention of a packed forest on CUDA: one call of `torch.nn.attention.varlen`, no flash-attn package, no padding.

The packed tokens are cut into sequences of queries: prompt and first branch together, then every further branch. A
further branch's keys are its prompt's and its own, in that order; the kernel aligns a causal mask to the end of the
keys, so queries see the whole prompt and their own past, and a window reaches back across the border as it should.
Only those keys and values are gathered; where no tree has a second branch, nothing is.

Axes: T packed tokens, S gathered keys, H query heads, K key heads, h head width, n sequences.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from fairlead.engine.layout import Shape

Kernel = Callable[..., torch.Tensor]


@dataclass(frozen=True, slots=True)
class Sequences:
    """Where each sequence's queries and keys begin and end.

    query_n1, key_n1   cumulative lengths from 0, int32
    key_S              packed positions of the keys; None where they are the packed tokens as they lie
    """

    query_n1: torch.Tensor
    key_n1: torch.Tensor
    longest_query: int
    longest_key: int
    key_S: torch.Tensor | None


def sequences(shapes: Sequence[Shape], device: torch.device | str = "cpu") -> Sequences:
    """The sequences of a packed forest."""
    queries, keys, positions = [0], [0], []
    at = 0
    for shape in shapes:
        prompt = np.arange(at, at + shape.prompt)
        first, further = shape.branches[:1], shape.branches[1:]
        own = np.arange(at, at + shape.prompt + sum(first))
        positions.append(own)
        queries.append(len(own))
        keys.append(len(own))
        at += len(own)
        for length in further:
            positions.append(np.concatenate([prompt, np.arange(at, at + length)]))
            queries.append(length)
            keys.append(shape.prompt + length)
            at += length
    key_S = np.concatenate(positions)

    def tensor(values: Any, kind: type) -> torch.Tensor:
        return torch.from_numpy(np.asarray(values).astype(kind)).to(device)

    return Sequences(
        query_n1=tensor(np.cumsum(queries), np.int32),
        key_n1=tensor(np.cumsum(keys), np.int32),
        longest_query=max(queries),
        longest_key=max(keys),
        key_S=None if len(key_S) == at else tensor(key_S, np.int64),
    )


def fits(query: torch.Tensor, value: torch.Tensor, *, dropout: float, softcap: float | None) -> str | None:
    """Why the kernel cannot serve this attention, or None."""
    if query.dtype not in (torch.float16, torch.bfloat16):
        return f"it computes in 16 bits, not in {query.dtype}"
    if query.shape[-1] != value.shape[-1] or query.shape[-1] % 8 or query.shape[-1] > 256:
        return f"its heads are {query.shape[-1]} and {value.shape[-1]} wide"
    if dropout or softcap is not None:
        return "it knows neither dropout nor soft caps"
    return None


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    found: Sequences,
    scale: float,
    window: int | None = None,
    kernel: Kernel | None = None,
) -> torch.Tensor:
    """Attention of query (T, H, h) over key and value (T, K, h); returns (T, H, h). `kernel` is torch's by default."""
    if found.key_S is not None:
        key, value = _gather(key, found.key_S), _gather(value, found.key_S)
    kernel = kernel or _kernel()
    groups = {"enable_gqa": query.shape[1] != key.shape[1]} if _is_told_of_groups(kernel) else {}
    return kernel(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        found.query_n1,
        found.key_n1,
        found.longest_query,
        found.longest_key,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        **groups,
    )


def _kernel() -> Kernel:
    from torch.nn.attention.varlen import varlen_attn

    kernel: Any = varlen_attn  # returns more than the output only where it is asked to
    found: Kernel = kernel
    return found


@cache
def _is_told_of_groups(kernel: Kernel) -> bool:
    """Whether fewer key heads than query heads must be announced. torch 2.11 has no word for that and takes them so."""
    return "enable_gqa" in inspect.signature(kernel).parameters


class _Gather(torch.autograd.Function):
    """(T, K, h) -> (S, K, h). A prompt's gradient is added up over its branches in float32, whatever the dtype."""

    @staticmethod
    def forward(ctx: Any, x_TKh: torch.Tensor, key_S: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(key_S)
        ctx.shape = x_TKh.shape
        return x_TKh.index_select(0, key_S)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (key_S,) = ctx.saved_tensors
        wide = torch.promote_types(grads[0].dtype, torch.float32)
        total = torch.zeros(ctx.shape, dtype=wide, device=grads[0].device)
        return total.index_add_(0, key_S, grads[0].to(wide)).to(grads[0].dtype), None


_gather: Callable[..., torch.Tensor] = _Gather.apply  # torch leaves it untyped
