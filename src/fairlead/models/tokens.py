"""Models whose tokens we see: what local weights and the torch-free apprentice share.

Rendering, context, stop strings and cutting are here; how tokens are drawn and scored is the subclass's.
"""

from __future__ import annotations

import logging
import random
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from fairlead.errors import InputError
from fairlead.exchange import Exchange, Message, assistant
from fairlead.models.protocol import Finish, Prompt, Reply, Sampling, Usage, require
from fairlead.models.render import (
    Ids,
    Rendered,
    decode_reply,
    encode_reply,
    frame,
    render_exchange,
    render_prompt,
    render_prompts,
)

log = logging.getLogger("fairlead.models")

DEFAULT_MAX_TOKENS = 256
"""Length of a reply where neither the caller nor the model's generation_config says one."""


@dataclass(frozen=True, slots=True)
class Draw:
    """How tokens are drawn; all settled. `temperature` 0 is greedy.

    A prompt near the end of the context has less room than `max_tokens`: its replies end there, as "length".
    """

    n: int
    max_tokens: int
    temperature: float
    top_p: float | None
    top_k: int | None
    seed: int
    stops: frozenset[int]


@dataclass(frozen=True, slots=True)
class Drawn:
    """One drawn reply: its ids (the end of turn included), their log-probs in nats, why it ended."""

    tokens: Ids
    logprobs: tuple[float, ...]
    finish: Literal["stop", "length"]


class TokenModel:
    """A model with a tokenizer and a context of its own.

    `cuts` counts the prompts that were cut so far (only with `cut="left"`). `prompts` are the model's own wordings of
    a critic's questions, or None. `seed=None` in Sampling draws a fresh seed; temperature and top-p then default to 1.
    """

    capabilities: ClassVar[frozenset[str]] = frozenset(
        {"max_tokens", "temperature", "top_p", "top_k", "stop", "seed", "logprobs", "tokens", "weights"}
    )
    default_max_tokens: int = DEFAULT_MAX_TOKENS

    def __init__(
        self,
        name: str,
        tokenizer: Any,
        context: int | None,
        *,
        cut: Literal["left"] | None = None,
        prompts: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.tokenizer, self.context, self.cut, self.prompts = name, tokenizer, context, cut, prompts
        self.cuts = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    @property
    def lineage(self) -> str:
        raise NotImplementedError

    def _draw(self, prompts: Sequence[Ids], draw: Draw) -> list[list[Drawn]]:
        raise NotImplementedError

    def _score(self, prompts: Sequence[Ids], options: Sequence[Sequence[Ids]]) -> list[list[list[float]]]:
        """Log-prob of every token of every option as the continuation of its prompt."""
        raise NotImplementedError

    def render(self, messages: Sequence[Message]) -> Ids:
        """Token ids of a prompt, as this model reads it."""
        return render_prompt(self.tokenizer, messages)

    def render_exchange(self, exchange: Exchange) -> Rendered:
        """Prompt ids, reply ids with the end of turn, mask."""
        return render_exchange(self.tokenizer, exchange)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling = Sampling()) -> list[tuple[Reply, ...]]:  # noqa: B008
        """`sampling.n` replies for each prompt, in order.

        Raises InputError with the row for a prompt that leaves no room in the context (unless the model cuts).
        """
        require(self, *sampling.asked())
        _sane(sampling)
        wanted = sampling.max_tokens or self.default_max_tokens
        ids = self._fit(prompts, reserve=wanted if self.cut else 1)
        seed = sampling.seed if sampling.seed is not None else random.SystemRandom().getrandbits(63)
        draw = Draw(
            n=sampling.n,
            max_tokens=wanted,
            temperature=1.0 if sampling.temperature is None else sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=seed,
            stops=frame(self.tokenizer).stops,
        )
        drawn = self._draw(ids, draw)
        return [tuple(self._reply(p, one, sampling.stop) for one in group) for p, group in zip(ids, drawn, strict=True)]

    def logprobs(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        """Summed log-prob (nats) of each continuation text as the start of the reply to its prompt."""
        options = [[encode_reply(self.tokenizer, text, end=False) for text in texts] for texts in continuations]
        for row, row_options in enumerate(options):
            if not all(row_options):
                raise InputError(f"prompt {row}: an empty continuation has no log-prob")
        ids = self._fit(prompts, reserve=max((len(o) for row in options for o in row), default=1))
        return [[sum(values) for values in row] for row in self._score(ids, options)]

    def score_tokens(self, sequences: Sequence[Ids]) -> list[list[float]]:
        """Log-prob of every token but the first of each sequence, given those before it."""
        return [row[0] for row in self._score([s[:1] for s in sequences], [[s[1:]] for s in sequences])]

    def _fit(self, prompts: Sequence[Prompt], *, reserve: int) -> list[Ids]:
        limit = self.context - reserve if self.context else None
        if limit is not None and limit < 1:
            raise InputError(f"{self.name}: max_tokens={reserve} leaves no room in a context of {self.context} tokens")
        ids, cuts = render_prompts(self.tokenizer, prompts, limit=limit, cut=self.cut)
        if cuts:
            self.cuts += cuts
            log.warning("%s: %d of %d prompts were cut from the left to fit", self.name, cuts, len(prompts))
        return ids

    def _reply(self, prompt: Ids, drawn: Drawn, stop: tuple[str, ...] | None) -> Reply:
        tokens, logprobs = drawn.tokens, drawn.logprobs
        text, finish = decode_reply(self.tokenizer, tokens), _FINISH[drawn.finish]
        usage = Usage(len(prompt), len(tokens))
        at = min((i for s in stop or () if (i := text.find(s)) >= 0), default=None)
        if at is not None:
            text, finish = text[:at], "stop"
            shown = range(len(tokens) + 1)
            kept = bisect_left(shown, True, key=lambda k: _has(decode_reply(self.tokenizer, tokens[:k]), stop or ()))
            tokens, logprobs = tokens[:kept], logprobs[:kept]
        return Reply((assistant(text),), finish, tokens, logprobs, usage)


_FINISH: Mapping[str, Finish] = {"stop": "stop", "length": "length"}


def _has(text: str, stops: Sequence[str]) -> bool:
    return any(s in text for s in stops)


def _sane(sampling: Sampling) -> None:
    wrong = [
        sampling.n < 1 and f"n={sampling.n}: at least 1",
        sampling.max_tokens is not None and sampling.max_tokens < 1 and f"max_tokens={sampling.max_tokens}: at least 1",
        sampling.temperature is not None
        and not 0 <= sampling.temperature < float("inf")
        and f"temperature={sampling.temperature}: 0 (greedy) or above",
        sampling.top_p is not None and not 0 < sampling.top_p <= 1 and f"top_p={sampling.top_p}: in (0, 1]",
        sampling.top_k is not None and sampling.top_k < 1 and f"top_k={sampling.top_k}: at least 1",
        sampling.stop is not None and "" in sampling.stop and "stop: an empty string would stop every reply",
    ]
    for message in wrong:
        if message:
            raise InputError(f"sampling: {message}")
