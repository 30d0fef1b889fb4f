"""Forest attention in padded blocks, through torch's own scaled_dot_product_attention.

The way that every model, dtype and device has. Trees of similar shape are brought together, so that one call serves
many trees:

    a tree with one branch       one causal sequence; blocks (n, H, L, h) need no mask
    a tree with several          the prompt attends causally once; every branch is a row whose keys are
                                 the prompt's and its own: PrefixGrouper's decomposition, without copying queries

Where all trees of a batch fill their blocks exactly, the blocks are views of the packed tensors and nothing is copied.

Axes: T packed tokens, S block slots (T plus padding), w width of a slot, H query heads, K key heads, h head width,
n trees, b branches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from fairlead.engine.layout import Shape

# A block is closed before its padding would cost more than another SDPA call. Measured forward and backward on 2 CPU
# cores: a call costs as much as about 30 padded tokens at length 60, and a padded token's cost grows with the length.
PADDING = 2000


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


def lay_out(shapes: tuple[Shape, ...], device: torch.device | str = "cpu") -> Blocks:
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


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    forest: Blocks,
    scale: float,
    dropout: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """Attention of a packed forest, block by block. query (1, H, T, h), key and value (1, K, T, h); (1, T, H, h)."""
    _, heads, tokens, width = query.shape
    sizes = [block.slots for block in forest.blocks]

    def split(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        flat = x.transpose(1, 2).reshape(tokens, -1)
        if forest.token_S is not None:
            flat = _to_slots(flat, forest)
        return torch.split(flat, sizes) if len(sizes) > 1 else (flat,)

    def one(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return _attend(q, k, v, mask, scale, dropout, softcap)

    out = []
    for number, (block, q_Sw, k_Sw, v_Sw) in enumerate(
        zip(forest.blocks, split(query), split(key), split(value), strict=True)
    ):
        trees, (P, b, B) = len(block.prompt_n), (block.prompt, block.branches, block.branch)
        q, k, v = (x.view(trees, P + b * B, -1, width) for x in (q_Sw, k_Sw, v_Sw))
        mask = _mask(forest, number, "prompt", window, q) if window is not None else None
        if not b:
            y = one(q, k, v, mask)
        else:
            y_prompt = one(q[:, :P], k[:, :P], v[:, :P], mask)
            k_rows, v_rows = (
                torch.cat([x[:, None, :P].expand(-1, b, -1, -1, -1), x[:, P:].reshape(trees, b, B, -1, width)], 2)
                for x in (k, v)
            )
            q_rows = q[:, P:].reshape(trees * b, B, -1, width)
            y_branches = one(
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
