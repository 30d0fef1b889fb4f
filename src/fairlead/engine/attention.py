"""Attention over a packed forest, registered with transformers' attention interface.

Every token of a tree sees its own prompt and the earlier tokens of its own branch, nothing else. On the CPU plain
softmax attention runs by the pieces of `cascade.py`, on CUDA attention in 16 bits by `varlen.py`. What those do not
know (soft caps, dropout; windows on the CPU; other devices and dtypes) runs in blocks: trees of similar shape are
brought together, so that one SDPA call serves many trees:

    a tree with one branch       one causal sequence; blocks (n, H, L, h) need no mask
    a tree with several          the prompt attends causally once; every branch is a row whose keys are
                                 the prompt's and its own: PrefixGrouper's decomposition, without copying queries

Where all trees of a batch fill their blocks exactly, the blocks are views of the packed tensors and nothing is copied.

Axes: T packed tokens, S block slots (T plus padding), H query heads, K key heads, h head width, n trees, b branches.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fairlead.engine import cascade, varlen, whole
from fairlead.engine.layout import Shape

# A block is closed before its padding would cost more than another SDPA call. Measured forward and backward on 2 CPU
# cores: a call costs as much as about 30 padded tokens at length 60, and a padded token's cost grows with the length.
PADDING = 2000
PREFIX = "fairlead_forest_on_"


@dataclass(frozen=True, slots=True)
class Block:
    """Trees of similar shape: each is padded to `prompt` tokens and `branches` branches of `branch` tokens.

    A tree with one branch or none is kept whole as a prompt with `branches == 0`.
    """

    prompt: int
    branches: int
    branch: int
    prompt_n: np.ndarray

    @property
    def slots(self) -> int:
        return len(self.prompt_n) * (self.prompt + self.branches * self.branch)


@dataclass(frozen=True)
class Blocks:
    """How the packed tokens of one batch fall into blocks. Masks are made once per batch and kept, not per layer."""

    blocks: tuple[Block, ...]
    slot_T: torch.Tensor | None = None
    token_S: torch.Tensor | None = None
    padding: torch.Tensor | None = None
    masks: dict[tuple[Any, ...], torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """The forest of one batch, as every layer's attention reads it. What a layer needs is made once, on first use.

    `only_blocks` keeps attention to the blocks, where the quicker kernels turned out not to work; on the CPU trees of
    up to `short` tokens are attended whole.
    """

    shapes: tuple[Shape, ...]
    device: torch.device
    only_blocks: bool = False
    short: int = whole.SHORT
    groups: dict[torch.dtype, cascade.Groups] = field(default_factory=dict)

    @cached_property
    def longest(self) -> int:
        return max(s.prompt + max(s.branches, default=0) for s in self.shapes)

    @cached_property
    def blocks(self) -> Blocks:
        return blocks(self.shapes, self.device)

    @cached_property
    def sequences(self) -> varlen.Sequences:
        return varlen.sequences(self.shapes, self.device)

    def choose(self, rows_N: torch.Tensor, dtype: torch.dtype) -> cascade.Chosen:
        """What `cascade.attend` is to compute for the attention of some packed positions, on the CPU."""
        return cascade.choose(self.shapes, rows_N.numpy(), dtype, self.short)

    def by_pieces(self, x: torch.Tensor, *, dropout: float, window: int | None, softcap: float | None = None) -> bool:
        """Whether attention like x runs by the pieces of `cascade.py`."""
        within = window is None or window >= self.longest
        return x.device.type == "cpu" and within and softcap is None and not dropout and not self.only_blocks

    def pieces(self, dtype: torch.dtype) -> cascade.Groups:
        if dtype not in self.groups:
            self.groups[dtype] = cascade.groups(self.shapes, dtype, self.short)
        return self.groups[dtype]


def plan(
    shapes: tuple[Shape, ...],
    device: torch.device | str = "cpu",
    *,
    only_blocks: bool = False,
    short: int = whole.SHORT,
) -> Plan:
    return Plan(shapes, torch.device(device), only_blocks, short)


def blocks(shapes: tuple[Shape, ...], device: torch.device | str = "cpu") -> Blocks:
    """Group neighbouring trees of similar shape into blocks and index packed tokens against block slots."""
    out: list[Block] = []
    slot_of: list[np.ndarray] = []
    slots = 0
    for group in _groups(shapes):
        many = len(group[0].branches) > 1
        prompts = np.array([s.prompt if many else s.tokens for s in group])
        branches = len(group[0].branches) if many else 0
        branch = max(max(s.branches) for s in group) if many else 0
        block = Block(int(prompts.max()), branches, branch, prompts)
        width = block.prompt + branches * branch
        for row, shape in enumerate(group):
            base = slots + row * width
            slot_of.append(np.arange(base, base + prompts[row]))
            if many:
                base += block.prompt
                slot_of += [np.arange(base + i * branch, base + i * branch + n) for i, n in enumerate(shape.branches)]
        out.append(block)
        slots += block.slots
    slot_T = np.concatenate(slot_of)
    if slots == len(slot_T):
        return Blocks(tuple(out))
    token_S = np.zeros(slots, dtype=np.int64)  # padding repeats token 0: finite, never attended to, gradient zero
    token_S[slot_T] = np.arange(len(slot_T))
    filled = np.zeros(slots, dtype=bool)
    filled[slot_T] = True
    slot, token, pad = (torch.as_tensor(array).to(device) for array in (slot_T, token_S, np.flatnonzero(~filled)))
    return Blocks(tuple(out), slot, token, pad)


def _groups(shapes: tuple[Shape, ...]) -> Iterator[list[Shape]]:
    """Runs of neighbouring shapes whose common block wastes little."""
    group: list[Shape] = []
    kind = own = prompt = branch = 0
    for shape in shapes:
        branches = len(shape.branches) if len(shape.branches) > 1 else 0
        p = shape.prompt if branches else shape.tokens
        b = max(shape.branches) if branches else 0
        if group and branches == kind:
            P, B = max(prompt, p), max(branch, b)
            slots = own + p + branches * b
            waste = (len(group) + 1) * (P + branches * B) - slots
            if waste * (P + B) <= PADDING:
                group.append(shape)
                own, prompt, branch = slots, P, B
                continue
        if group:
            yield group
        group, kind, own, prompt, branch = [shape], branches, p + branches * b, p, b
    yield group


class _ToSlots(torch.autograd.Function):
    """(T, w) -> (S, w). A gather both ways: each token has exactly one slot, so no gradient needs to be added up."""

    @staticmethod
    def forward(ctx: Any, x_Tw: torch.Tensor, plan: Blocks) -> torch.Tensor:
        assert plan.token_S is not None
        ctx.plan = plan
        return x_Tw.index_select(0, plan.token_S)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grads[0].index_select(0, ctx.plan.slot_T), None


class _ToTokens(torch.autograd.Function):
    """(S, w) -> (T, w), dropping what attention computed for padding."""

    @staticmethod
    def forward(ctx: Any, y_Sw: torch.Tensor, plan: Blocks) -> torch.Tensor:
        assert plan.slot_T is not None
        ctx.plan = plan
        return y_Sw.index_select(0, plan.slot_T)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        grad = grads[0].index_select(0, ctx.plan.token_S)
        return grad.index_fill_(0, ctx.plan.padding, 0.0), None


# torch leaves Function.apply untyped.
_to_slots: Callable[[torch.Tensor, Blocks], torch.Tensor] = _ToSlots.apply
_to_tokens: Callable[[torch.Tensor, Blocks], torch.Tensor] = _ToTokens.apply


def kernel(device: torch.device, dtype: torch.dtype) -> str:
    """What attends on this device, for the log."""
    if device.type == "cuda" and dtype in (torch.float16, torch.bfloat16):
        return "torch.nn.attention.varlen"
    return "attention by trees and pieces" if device.type == "cpu" else "SDPA in blocks"


def forest_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    forest: Plan,
    *,
    scale: float,
    dropout: float = 0.0,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Attention of a packed forest. query (1, H, T, h), key and value (1, K, T, h); returns (1, T, H, h)."""
    window = window if window is not None and window < forest.longest else None
    if not forest.only_blocks:
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        alike = query.shape[-1] == value.shape[-1]
        if alike and forest.by_pieces(query, dropout=dropout, window=window, softcap=softcap):
            return cascade.attend(q, k, v, forest.pieces(query.dtype), scale)[None]
        if query.device.type == "cuda" and varlen.fits(query, value, dropout=dropout, softcap=softcap) is None:
            return varlen.attend(q, k, v, forest.sequences, scale, window)[None]
    return _by_blocks(query, key, value, forest.blocks, scale, dropout, window, softcap)


def _by_blocks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    forest: Blocks,
    scale: float,
    dropout: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    _, heads, tokens, width = query.shape
    sizes = [block.slots for block in forest.blocks]

    def blocks(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        flat = x.transpose(1, 2).reshape(tokens, -1)
        if forest.token_S is not None:
            flat = _to_slots(flat, forest)
        return torch.split(flat, sizes) if len(sizes) > 1 else (flat,)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return _attend(q, k, v, mask, scale, dropout, softcap)

    out = []
    for number, (block, q_Sw, k_Sw, v_Sw) in enumerate(
        zip(forest.blocks, blocks(query), blocks(key), blocks(value), strict=True)
    ):
        trees, (P, b, B) = len(block.prompt_n), (block.prompt, block.branches, block.branch)
        q, k, v = (x.view(trees, P + b * B, -1, width) for x in (q_Sw, k_Sw, v_Sw))
        mask = _mask(forest, number, "prompt", window, q) if window is not None else None
        if not b:
            y = attend(q, k, v, mask)
        else:
            y_prompt = attend(q[:, :P], k[:, :P], v[:, :P], mask)
            k_rows, v_rows = (
                torch.cat([x[:, None, :P].expand(-1, b, -1, -1, -1), x[:, P:].reshape(trees, b, B, -1, width)], 2)
                for x in (k, v)
            )
            q_rows = q[:, P:].reshape(trees * b, B, -1, width)
            y_branches = attend(
                q_rows, k_rows.flatten(0, 1), v_rows.flatten(0, 1), _mask(forest, number, "branch", window, q)
            )
            y = torch.cat([y_prompt, y_branches.reshape(trees, b * B, -1, width)], dim=1)
        out.append(y.reshape(block.slots, -1))
    y_Sw = torch.cat(out) if len(out) > 1 else out[0]
    y_Tw = _to_tokens(y_Sw, forest) if forest.slot_T is not None else y_Sw
    return y_Tw.view(1, tokens, heads, width)


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    dropout: float,
    softcap: float | None,
) -> torch.Tensor:
    """One call over blocks (n, L, heads, h). Without a mask, causal."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if softcap is None:
        y = F.scaled_dot_product_attention(
            q, k, v, mask, dropout, is_causal=mask is None, scale=scale, enable_gqa=k.shape[1] != q.shape[1]
        )
        return y.transpose(1, 2)
    repeats = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(repeats, dim=1) for x in (k, v))
    score = softcap * torch.tanh(q @ k.transpose(-1, -2) * scale / softcap)
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, -torch.inf)
    weights = F.dropout((score + mask).softmax(-1), p=dropout, training=dropout > 0)
    return (weights @ v).transpose(1, 2)


def _mask(forest: Blocks, number: int, part: str, window: int | None, like: torch.Tensor) -> torch.Tensor:
    """Additive mask of one block, kept for the other layers of the same forward and backward pass."""
    name = (number, part, window, like.dtype, like.device)
    if name not in forest.masks:
        seen = _seen(forest.blocks[number], part, window).to(like.device)
        forest.masks[name] = torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill_(
            ~seen, -torch.inf
        )
    return forest.masks[name]


def _seen(block: Block, part: str, window: int | None) -> torch.Tensor:
    """Which keys each query of a block may see: (n * b or 1, 1, queries, keys) of bool."""
    P, B = block.prompt, block.branch
    if part == "prompt":
        i, j = torch.arange(P)[:, None], torch.arange(P)[None]
        seen = (j <= i) & (i - j < (window or P))
        return seen[None, None]
    prompts = block.prompt_n
    rows = torch.as_tensor(prompts[:1] if (prompts == P).all() else np.repeat(prompts, block.branches))
    query = rows[:, None] + torch.arange(B)  # positions: a branch continues its own prompt, whatever the padding
    key = torch.cat([torch.arange(P).expand(len(rows), P), query], dim=1)
    is_key = torch.cat([torch.arange(P) < rows[:, None], torch.ones(len(rows), B, dtype=torch.bool)], dim=1)
    distance = query[:, :, None] - key[:, None]
    seen = is_key[:, None] & (distance >= 0) & (distance < (window or block.prompt + B + 1))
    return seen[:, None]


def install(model: nn.Module) -> None:
    """Route a transformers model's attention through this module, once.

    Calls that carry no forest keep the implementation the model had (SDPA or eager, with its own masks), so other users
    of the model notice nothing. It stays installed because gradient checkpointing runs layers again during backward.
    Raises ValueError for a model whose attention cannot be routed.
    """
    config: Any = model.config
    current = config._attn_implementation
    if isinstance(current, str) and current.startswith(PREFIX):
        return
    if current not in ("sdpa", "eager"):
        raise ValueError(f"its attention implementation is {current!r}; load it with attn_implementation='sdpa'")
    if not getattr(model, "_supports_attention_backend", False):
        raise ValueError("its class does not use transformers' attention interface")
    others = set(getattr(config.get_text_config(), "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if others or getattr(model, "_is_stateful", False):
        raise ValueError(f"its layers are not attention alone ({', '.join(sorted(others)) or 'it keeps a state'})")
    name = PREFIX + current
    if name not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        AttentionInterface.register(name, _routed(current))
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[current])
    config._attn_implementation = name


def uninstall(model: nn.Module) -> None:
    """Give the model its own attention implementation back."""
    config: Any = model.config
    if isinstance(config._attn_implementation, str):
        config._attn_implementation = config._attn_implementation.removeprefix(PREFIX)


NO_MASK_SHAPE = (1, 1, 1, 0)  # transformers hands a 4-D mask through untouched, so it builds none of its own


def _routed(base: str) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    def attention(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        forest: Plan | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if forest is None:
            own = ALL_ATTENTION_FUNCTIONS[base] if base != "eager" else _eager_of(module)
            extra = {"sliding_window": sliding_window, "softcap": softcap}
            kwargs |= {name: given for name, given in extra.items() if given is not None}
            result: tuple[torch.Tensor, torch.Tensor | None] = own(
                module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
            )
            return result
        if attention_mask is not None and tuple(attention_mask.shape) != NO_MASK_SHAPE:
            raise ValueError("a mask reached forest attention: the model builds its own, which packing would ignore")
        unknown = [name for name in ("s_aux", "position_bias") if kwargs.get(name) is not None]
        if unknown:
            raise ValueError(f"its attention uses {', '.join(unknown)}, which forest attention does not know")
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        y = forest_attention(
            query, key, value, forest, scale=scale, dropout=dropout, window=sliding_window, softcap=softcap
        )
        return y, None

    return attention


def _eager_of(module: nn.Module) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    """transformers keeps eager attention as a function beside each model's class."""
    beside: Any = sys.modules[type(module).__module__]
    function: Callable[..., tuple[torch.Tensor, torch.Tensor | None]] = beside.eager_attention_forward
    return function
