"""Decoding: each prompt is prefilled once and shared by its n replies; the batch is kept full.

A slot whose reply has ended takes the next one from the queue at once, so that work is never done for finished rows.
Tokens are drawn with one uniform per row from a counter named by (seed, prompt, sample, step): a reply does not depend
on which other replies were decoded beside it. Llama-shaped models run on the tight forward pass of `llama.py`; any
other causal LM runs through its own forward with its own cache (`decode_hf.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from fairlead.engine import counter, decode_hf, llama, slots
from fairlead.engine.forward import (
    AGREE,
    causal_lm,
    context_of,
    evaluating,
    head_of,
    logits,
    path_of,
    say_once,
    vocabulary_of,
)
from fairlead.engine.layout import Tokens
from fairlead.engine.sampling import Choice


@dataclass(frozen=True, slots=True)
class Completion:
    """One reply.

    tokens         the end token included where one was drawn
    logprobs       in the whole distribution at the sampling temperature (at temperature 1 for greedy), also where top_k
                   or top_p cut it: what the training path computes, and so what a ratio needs
    cut_logprobs   of the draws themselves, from what top_k and top_p left; None where nothing was cut, and `logprobs`
                   are those of the draws. See `sampling.choose` for what a ratio of cut samples is worth
    """

    tokens: Tokens
    logprobs: tuple[float, ...]
    finish: Literal["stop", "length"]
    cut_logprobs: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One reply to be made: which prompt, which of its n samples, and how many tokens it may have."""

    prompt: int
    sample: int
    limit: int


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    n: int = 1,
    max_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float | None = None,
    top_k: int | None = None,
    eos_ids: Sequence[int] = (),
    seed: int = 0,
    rows: int = 64,
    keys: Sequence[int] | None = None,
    tight: bool | None = None,
    progress: Callable[[int], None] | None = None,
    each_step: Callable[[], None] = lambda: None,
) -> list[list[Completion]]:
    """n replies to every prompt, in order.

    A reply ends with one of `eos_ids` (finish "stop"), or at `max_tokens` or the model's context ("length").
    keys        names each prompt for the random numbers, by default its index: with stable keys a prompt gets the same
                replies however calls are split
    rows        replies decoded side by side
    tight       forces or forbids the tight forward pass; by default it is taken where it fits
    progress    called with the number of replies that ended since the last call
    each_step   called between two tokens; what it raises ends the call
    Raises ValueError naming the row for an empty prompt, one that leaves no room for a reply, or one with token ids
    outside the vocabulary.
    """
    how = Choice(temperature, top_k, top_p)
    limits = limits_of(model, prompts, max_tokens)
    jobs, streams = queue(prompts, limits, n, rows, seed, keys)
    done: list[list[Completion | None]] = [[None] * n for _ in prompts]
    with torch.no_grad(), evaluating(model):
        runner = _runner(model, prompts, limits, min(rows, len(jobs)), tight) if jobs else None
        finished: Iterator[tuple[Job, Completion]] = iter(())
        if isinstance(runner, llama.Llama):
            finished = _tight(runner, model, prompts, jobs, how, set(eos_ids), streams, n, rows, each_step)
        elif jobs:
            finished = waves([model], prompts, jobs, how, set(eos_ids), streams, n, rows, each_step)
        for job, completion in finished:
            done[job.prompt][job.sample] = completion
            if progress is not None:
                progress(1)
    return [[reply for reply in replies if reply is not None] for replies in done]


def queue(
    prompts: Sequence[Sequence[int]], limits: Sequence[int], n: int, rows: int, seed: int, keys: Sequence[int] | None
) -> tuple[list[Job], counter.U64]:
    """The replies to be made in the order in which they start, and the stream of each: `prompt * n + sample`."""
    if n < 1 or rows < 1:
        raise ValueError(f"n is {n} and rows is {rows}; both must be at least 1")
    if keys is not None and len(keys) != len(prompts):
        raise ValueError(f"{len(keys)} keys for {len(prompts)} prompts; give one per prompt")
    names = np.repeat(keys if keys is not None else np.arange(len(prompts)), n)
    streams = counter.streams(seed, names, np.tile(np.arange(n), len(prompts)))
    # Long prompts first: neighbours have similar lengths, and the cache's used part shrinks over time.
    order = sorted(range(len(prompts)), key=lambda row: (-len(prompts[row]), row))
    return [Job(row, sample, limits[row]) for row in order for sample in range(n)], streams


def limits_of(model: nn.Module, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[int]:
    """Tokens each prompt's replies may have: what was asked for, or what the context leaves."""
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}; it must be at least 1")
    context, vocabulary = context_of(model), vocabulary_of(model)
    limits = []
    for row, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"row {row}: the prompt has no tokens; give it at least one (a BOS token, for example)")
        if context is not None and len(prompt) >= context:
            raise ValueError(
                f"row {row}: a prompt of {len(prompt)} tokens leaves no room for a reply in the model's context of "
                f"{context}; shorten it"
            )
        if min(prompt) < 0 or max(prompt) >= vocabulary:
            raise ValueError(f"row {row}: a token id is outside the model's vocabulary of {vocabulary}")
        limits.append(max_tokens if context is None else min(max_tokens, context - len(prompt)))
    return limits


_proved: WeakKeyDictionary[nn.Module, str | None] = WeakKeyDictionary()


def _runner(
    model: nn.Module, prompts: Sequence[Sequence[int]], limits: Sequence[int], rows: int, tight: bool | None
) -> llama.Llama | None:
    """The tight forward pass where it fits the model; proved against the model itself once per module object."""
    if tight is False:
        return None
    inner = causal_lm(model)
    weights = llama.read(inner, max(len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True)), rows)
    reason = weights if isinstance(weights, str) else None
    if isinstance(weights, llama.Llama):
        if inner not in _proved:
            _proved[inner] = _differs(inner, vocabulary_of(inner), rows)
        reason = _proved[inner]
    if reason is None:
        assert isinstance(weights, llama.Llama)
        return weights
    if tight:
        raise ValueError(f"the tight decoder does not fit this model: {reason}")
    say_once(logging.WARNING, f"{type(inner).__name__}: decoding through the model's own forward, slower: {reason}")
    return None


def _differs(inner: Any, vocabulary: int, rows: int) -> str | None:
    """Two short prompts and three steps, against the module's own logits."""
    w = llama.read(inner, 8, rows)
    if isinstance(w, str):
        return w
    device = w.embedding.device
    ids = torch.tensor([[(11 * i + 5 * row + 1) % vocabulary for i in range(8)] for row in (0, 1)], device=device)
    truth = inner(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[:, 4:].float()
    kv = w.cache(2, 12, 12)
    prompt_kv, hidden = llama.prefill(w, ids[:, :5].tolist())
    both = torch.arange(2, device=device)
    kv.place(both, prompt_kv, both)
    ours = [llama.step(w, ids[:, at], torch.full((2,), at, device=device), kv) for at in (5, 6, 7)]
    got = logits(head_of(inner), torch.stack([hidden, *ours], 1).flatten(0, 1)).view_as(truth).float()
    far = float((got - truth).abs().max() / truth.abs().max().clamp_min(1e-30))
    return None if far <= AGREE.get(w.embedding.dtype, 1e-6) else f"its logits differ by {far:.1e}"


def _tight(
    w: llama.Llama,
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    jobs: list[Job],
    how: Choice,
    eos: set[int],
    streams: counter.U64,
    n: int,
    rows: int,
    each_step: Callable[[], None],
) -> Iterator[tuple[Job, Completion]]:
    prompt_J, limit_J = np.array([(job.prompt, job.limit) for job in jobs], dtype=np.int64).T
    stream_J = streams[[job.prompt * n + job.sample for job in jobs]]
    for ended in slots.replies(w, head_of(model), prompts, prompt_J, limit_J, stream_J, how, eos, rows, each_step):
        yield jobs[ended.job], _completion(ended.tokens, ended.logprobs, ended.cuts, eos)


def _completion(tokens: Sequence[int], logps: Sequence[float], cuts: Sequence[float], eos: set[int]) -> Completion:
    finish: Literal["stop", "length"] = "stop" if tokens[-1] in eos else "length"
    return Completion(tuple(tokens), tuple(logps), finish, tuple(cuts) or None)


def _config(model: nn.Module) -> Any:
    return causal_lm(model).config


def waves(
    models: Sequence[nn.Module],
    prompts: Sequence[Sequence[int]],
    jobs: list[Job],
    how: Choice,
    eos: set[int],
    streams: counter.U64,
    n: int,
    rows: int,
    each_step: Callable[[], None] = lambda: None,
    **more: decode_hf.Join,
) -> Iterator[tuple[Job, Completion]]:
    """The generic path: waves of up to `rows` replies, through the own forward of a model (or several: `join`)."""
    # Only attention can be told to ignore padding, and transformers' eager one makes nan of a window that holds nothing
    # else. Other states than keys and values (recurrent ones) have not proved to survive the cache.
    cached = all(path_of(model).packed for model in models)
    mixed = cached and not any("eager" in str(_config(model)._attn_implementation) for model in models)
    at = 0
    while at < len(jobs):
        wave = jobs[at : at + rows]
        if not mixed:
            wave = [job for job in wave if len(prompts[job.prompt]) == len(prompts[wave[0].prompt])]
        at += len(wave)
        stream = streams[np.array([job.prompt * n + job.sample for job in wave])]
        drawn = decode_hf.wave(
            [causal_lm(model) for model in models],
            [tuple(prompts[job.prompt]) for job in wave],
            [job.limit for job in wave],
            how,
            eos,
            stream,
            cached=cached,
            each_step=each_step,
            **more,
        )
        for job, tokens, logps, cuts in zip(wave, *drawn, strict=True):
            yield job, _completion(tokens, logps, cuts, eos)
