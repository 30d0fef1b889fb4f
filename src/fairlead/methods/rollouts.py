"""Rollouts: replies to a step's prompts, as tokens, with the log-probs they were drawn with.

A `Sampler` is whatever draws them: the engine's own decoder here in the process (`LocalSampler`), a vLLM server by URL
(rollouts_vllm.py), or a wrapper that plays several turns (episodes.py). The loop in policy.py knows no more than this.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch

from fairlead.engine import adapters
from fairlead.engine.decode import Completion, generate
from fairlead.engine.layout import Tokens
from fairlead.engine.mixture import generate_mixture
from fairlead.exchange import Exchange, Message, assistant
from fairlead.models.render import decode_reply, frame


@dataclass(frozen=True, slots=True)
class Asked:
    """One prompt of a step.

    tokens     what the policy reads
    exchange   its messages and meta (references for verifiers); the reply is empty
    key        names it for the random numbers: the same key, seed and weights give the same replies
    """

    tokens: Tokens
    exchange: Exchange
    key: int


@dataclass(frozen=True, slots=True)
class Drawing:
    """How replies are drawn; all settled. `temperature` 0 is greedy. `stop`: texts at which a reply ends, left out."""

    n: int = 1
    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float | None = None
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Drawn:
    """One reply.

    tokens     its ids, the end of turn included where one was drawn
    logprobs   nats, one per token, of the whole distribution at the temperature the token was drawn at (1 for greedy).
               0 where the mask is False
    finish     stop: it ended by itself. length: it was cut at the limit
    reply      the same as messages, for judges
    mask       None where the policy drew every token; else False for those it did not (a tool's result, a user's turn)
    """

    tokens: Tokens
    logprobs: tuple[float, ...]
    finish: Literal["stop", "length"]
    reply: tuple[Message, ...]
    mask: tuple[bool, ...] | None = None

    @property
    def scored(self) -> int:
        """Tokens that the policy drew."""
        return len(self.tokens) if self.mask is None else sum(self.mask)


class Sampler(Protocol):
    """Draws replies with the weights it was last given.

    name    what the log calls it
    exact   its log-probs are those of the trainer to rounding, so nothing needs correcting. The mismatch is measured
            either way

    It may have `told()` too: what it counted so far, by name, which then goes into the log step by step.
    """

    @property
    def name(self) -> str: ...
    @property
    def exact(self) -> bool: ...

    def refresh(self, module: torch.nn.Module, version: int) -> None:
        """Take up these weights, which have seen `version` optimiser steps. Returns when they are in use."""
        ...

    def draw(self, asked: Sequence[Asked], how: Drawing) -> list[list[Drawn]]:
        """`how.n` replies to each prompt, in order. Raises MissingResource where what draws cannot be reached."""
        ...


class LocalSampler:
    """The engine's decoder over the policy's own weights.

    rows   replies decoded side by side
    copy   draw from a copy of the weights, so that they may move meanwhile
    """

    exact = True

    def __init__(self, tokenizer: Any, *, rows: int = 64, copy: bool = False) -> None:
        self.name = "local"
        self.tokenizer, self.rows, self.copy = tokenizer, rows, copy
        self.stops = sorted(frame(tokenizer).stops)
        self.module: torch.nn.Module | None = None

    def refresh(self, module: torch.nn.Module, version: int) -> None:
        if adapters.is_adapted(module):
            self.module = adapters.merged(module)
        elif self.copy and self.module is not None:
            with torch.no_grad():
                for own, now in zip(self.module.parameters(), module.parameters(), strict=True):
                    own.copy_(now)
        else:
            self.module = copy.deepcopy(module) if self.copy else module

    def draw(self, asked: Sequence[Asked], how: Drawing) -> list[list[Drawn]]:
        if self.module is None:
            raise ValueError("the sampler has no weights yet: call refresh first")
        if not asked:
            return []
        groups = generate(
            self.module,
            [one.tokens for one in asked],
            n=how.n,
            max_tokens=how.max_tokens,
            temperature=how.temperature,
            top_p=how.top_p,
            top_k=how.top_k,
            eos_ids=self.stops,
            seed=how.seed,
            rows=self.rows,
            keys=[one.key for one in asked],
        )
        return _drawn(self.tokenizer, groups, how)


class MixtureSampler:
    """Nash-MD's opponent: the geometric mixture of policy and reference, normalised token by token.

    Its log-probs are the mixture's; nothing is learnt from its replies.
    """

    exact = False

    def __init__(self, tokenizer: Any, policy: torch.nn.Module, reference: torch.nn.Module, mix: float) -> None:
        self.name = f"mixture of policy and {mix:g} reference"
        self.tokenizer, self.policy, self.reference, self.mix = tokenizer, policy, reference, mix
        self.stops = sorted(frame(tokenizer).stops)

    def refresh(self, module: torch.nn.Module, version: int) -> None:
        self.policy = module

    def draw(self, asked: Sequence[Asked], how: Drawing) -> list[list[Drawn]]:
        policy = adapters.merged(self.policy) if adapters.is_adapted(self.policy) else self.policy
        groups = generate_mixture(
            policy,
            self.reference,
            [one.tokens for one in asked],
            mix=self.mix,
            n=how.n,
            max_tokens=how.max_tokens,
            temperature=how.temperature,
            eos_ids=self.stops,
            seed=how.seed,
            keys=[one.key for one in asked],
        )
        return _drawn(self.tokenizer, groups, how)


def _drawn(tokenizer: Any, groups: Sequence[Sequence[Completion]], how: Drawing) -> list[list[Drawn]]:
    return [[drawn_of(tokenizer, c.tokens, c.logprobs, c.finish, how.stop) for c in group] for group in groups]


def drawn_of(
    tokenizer: Any,
    tokens: Tokens,
    logprobs: tuple[float, ...],
    finish: Literal["stop", "length"],
    stop: Sequence[str] = (),
) -> Drawn:
    """A reply of one turn from its tokens; cut after the token that completes the first of the `stop` texts.

    The tokens that spell the stop text stay (the policy drew them, and must learn to); its text goes.
    """
    text = decode_reply(tokenizer, tokens)
    at = min((i for s in stop if (i := text.find(s)) >= 0), default=None)
    if at is not None:
        kept = next(k for k in range(1, len(tokens) + 1) if any(s in decode_reply(tokenizer, tokens[:k]) for s in stop))
        return Drawn(tokens[:kept], logprobs[:kept], "stop", (assistant(text[:at]),))
    return Drawn(tokens, logprobs, finish, (assistant(text),))


def exchange_of(asked: Asked, drawn: Drawn) -> Exchange:
    """What a judge reads: the prompt's messages and meta with this reply."""
    return replace(asked.exchange, reply=drawn.reply)
