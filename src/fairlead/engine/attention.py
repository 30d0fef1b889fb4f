"""Attention over a packed forest, registered with transformers' attention interface.

Every token of a tree sees its own prompt and the earlier tokens of its own branch, nothing else. On the CPU plain
softmax attention runs by the pieces of `cascade.py`, on CUDA attention in 16 bits by `varlen.py`. What those do not
know (soft caps, dropout; windows on the CPU; other devices and dtypes) runs in the blocks of `blocks.py`.

Axes: T packed tokens, H query heads, K key heads, h head width.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fairlead.engine import blocks, cascade, varlen, whole
from fairlead.engine.layout import Shape

PREFIX = "fairlead_forest_on_"


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
    def in_blocks(self) -> blocks.Blocks:
        return blocks.lay_out(self.shapes, self.device)

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
    return blocks.attend(query, key, value, forest.in_blocks, scale, dropout, window, softcap)


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
