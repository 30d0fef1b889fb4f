"""Decoding any causal LM through its own forward: one wave of rows, prompts prefilled once, finished rows dropped.

Prompts of one wave are padded on the left, with positions and a mask that leave the padding out; the caller gives
prompts of one length to models that padding would reach (recurrent ones). A model that returns no cache is run again
over the whole row at each step. Several models may read the same rows side by side (see `mixture.py`).

Axes: B rows, U different prompts, P prompt tokens.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from fairlead.engine import counter
from fairlead.engine.forward import say_once
from fairlead.engine.layout import Tokens
from fairlead.engine.sampling import Choice, choose

CACHE_NAMES = ("cache", "past_key_values")  # what a forward calls it, in newer and in older transformers
Join = Callable[[list[torch.Tensor]], torch.Tensor]


def wave(
    models: Sequence[nn.Module],
    prompts: Sequence[Tokens],
    limits: Sequence[int],
    how: Choice,
    eos: set[int],
    streams: counter.U64,
    join: Join = lambda logits: logits[0],
    cached: bool = True,
    each_step: Callable[[], None] = lambda: None,
) -> tuple[list[list[int]], list[list[float]], list[list[float]]]:
    """Replies to rows of prompts (equal ones share a prefill), their log-probs, and those of the draws where cut.

    cached  False runs the whole row at every step
    join    makes one tensor of logits (B, V), float32 or float64, of those of several models that read the same rows
    each_step  called before each further forward pass; what it raises ends the call
    Needs no_grad and eval mode.
    """
    device: torch.device = next(models[0].parameters()).device
    unique = list(dict.fromkeys(prompts))
    longest = max(len(prompt) for prompt in unique)
    pad = [longest - len(prompt) for prompt in unique]
    ids = torch.tensor([[0] * gap + list(prompt) for gap, prompt in zip(pad, unique, strict=True)], device=device)
    mask = torch.tensor([[0] * gap + [1] * (longest - gap) for gap in pad], device=device)
    outputs = [_forward(model, ids, mask, None, cached) for model in models]
    row_of = torch.tensor([unique.index(prompt) for prompt in prompts], device=device)
    caches, ids, mask = [_select(output, row_of) for output in outputs], ids[row_of], mask[row_of]
    logits = [output.logits[:, -1][row_of] for output in outputs]

    tokens: list[list[int]] = [[] for _ in prompts]
    logps: list[list[float]] = [[] for _ in prompts]
    cuts: list[list[float]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))
    step = 0
    while True:
        uniform = torch.from_numpy(counter.uniforms(streams[rows], step)).to(device)
        wide = [z_BV.to(torch.promote_types(z_BV.dtype, torch.float32), copy=True) for z_BV in logits]
        chosen = choose(join(wide), how, uniform)
        token_B = chosen.token_B
        step += 1
        if chosen.cut_B is not None:
            for row, cut in zip(rows, chosen.cut_B.tolist(), strict=True):
                cuts[row].append(cut)
        keep = []
        for place, (row, token, logp) in enumerate(zip(rows, token_B.tolist(), chosen.logp_B.tolist(), strict=True)):
            tokens[row].append(token)
            logps[row].append(logp)
            if token not in eos and step < limits[row]:
                keep.append(place)
        if not keep:
            return tokens, logps, cuts
        ids = torch.cat([ids, token_B[:, None]], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        if len(keep) < len(rows):
            index = torch.tensor(keep, device=device)
            rows = [rows[place] for place in keep]
            ids, mask = ids[index], mask[index]
            for cache in caches:
                if cache is not None:
                    cache.reorder_cache(index)
        each_step()
        logits = [
            _forward(model, ids, mask, cache, cached).logits[:, -1] for model, cache in zip(models, caches, strict=True)
        ]


def _forward(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor, cache: Any, cached: bool = True) -> Any:
    """Feed what the cache has not seen yet."""
    more: dict[str, Any] = {}
    accepted = inspect.signature(model.forward).parameters
    name = next((name for name in CACHE_NAMES if name in accepted), None)
    position = (mask.cumsum(-1) - 1).clamp_min(0)
    if cache is not None and name is not None:
        ids, position = ids[:, -1:], position[:, -1:]
        more[name] = cache
    if "position_ids" in accepted:
        more["position_ids"] = position
    if "logits_to_keep" in accepted:
        more["logits_to_keep"] = 1
    return model(input_ids=ids, attention_mask=mask, use_cache=cached and name is not None, **more)


def _select(output: Any, row_of: torch.Tensor) -> Any:
    """The prompts' cache with one entry per row, or None where the model offers none that can be selected from."""
    cache = next((found for name in CACHE_NAMES if (found := getattr(output, name, None)) is not None), None)
    if cache is None or not hasattr(cache, "reorder_cache"):
        say_once(logging.WARNING, f"{type(output).__name__}: no cache to decode from; every step runs the whole row")
        return None
    cache.reorder_cache(row_of)
    return cache
