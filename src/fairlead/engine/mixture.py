"""Decoding from a mixture of two models: Nash-MD's opponent (Munos et al. 2023, arXiv 2312.00886, section 7).

The geometric mixture pi^(1 - mix) ref^mix, normalised token by token: log-softmax((1 - mix) log pi + mix log ref). Both
models read the same rows through their own forward, each with its own cache. A temperature divides both models' logits
or those of the mixture, which is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from fairlead.engine.decode import Completion, limits_of, queue, waves
from fairlead.engine.forward import evaluating, vocabulary_of
from fairlead.engine.sampling import Choice


def generate_mixture(
    model: nn.Module,
    other: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    mix: float,
    n: int = 1,
    max_tokens: int = 256,
    temperature: float = 1.0,
    eos_ids: Sequence[int] = (),
    seed: int = 0,
    keys: Sequence[int] | None = None,
    rows: int = 64,
) -> list[list[Completion]]:
    """n replies to every prompt, in order, as `decode.generate` gives them; log-probs are the mixture's.

    mix     share of `other` in the exponent: 0 draws what `generate` draws from `model`, 1 what it draws from `other`
    other   of the same vocabulary, on the same device
    Raises ValueError for a mix outside 0 to 1, for two vocabularies, and where `generate` does.
    """
    if not 0 <= mix <= 1:
        raise ValueError(f"mix is {mix}: 0 is the model alone, 1 the other alone")
    sizes = vocabulary_of(model), vocabulary_of(other)
    if sizes[0] != sizes[1]:
        raise ValueError(f"the models have vocabularies of {sizes[0]} and {sizes[1]}; a mixture needs one and the same")
    how = Choice(temperature)
    both = (limits_of(each, prompts, max_tokens) for each in (model, other))
    jobs, streams = queue(prompts, [min(pair) for pair in zip(*both, strict=True)], n, rows, seed, keys)
    done: list[list[Completion | None]] = [[None] * n for _ in prompts]
    with torch.no_grad(), evaluating(model), evaluating(other):
        finished = waves(
            [model, other], prompts, jobs, how, set(eos_ids), streams, n, rows, join=partial(mixed_logits, mix=mix)
        )
        for job, completion in finished:
            done[job.prompt][job.sample] = completion
    return [[reply for reply in replies if reply is not None] for replies in done]


def mixed_logits(logits: list[torch.Tensor], *, mix: float) -> torch.Tensor:
    """Logits (B, V) of the mixture from those of the two models; what the normalisations add drops out.

    A token that either model rules out (-inf) is ruled out wherever that model has a share at all.
    """
    ours_BV, theirs_BV = logits
    if mix in (0, 1):  # 0 * -inf would be nan
        return theirs_BV if mix else ours_BV
    return ours_BV.mul_(1 - mix).add_(theirs_BV, alpha=mix)
