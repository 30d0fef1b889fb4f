"""The seam every model stands behind: prompts go in, replies come out, and what a model lacks it says.

A model is anything with a `name`, a `lineage`, a set of `capabilities` and `generate`. Capabilities are asked
for, never guessed: `require(model, "logprobs")` raises an error that names what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from fairlead.errors import InputError
from fairlead.exchange import Message

Prompt: TypeAlias = Sequence[Message]
Finish: TypeAlias = Literal["stop", "length", "refusal", "filter", "tool_calls", "error"]

SAMPLING_FIELDS = ("max_tokens", "temperature", "top_p", "top_k", "stop", "seed", "top_logprobs")


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that might have stood in a place, as text, with its log-prob (nats)."""

    token: str
    logprob: float


TopLogprobs: TypeAlias = tuple[tuple[Alternative, ...], ...]
"""For each token of a reply the likeliest tokens in its place, the likeliest first."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw replies. A field left at None is the model's own default and is not sent.

    `temperature=0` is greedy. `top_logprobs` asks for so many alternatives to each token of the reply, with their
    log-probs. Asking for a field that the model's capabilities do not name is an error.
    """

    n: int = 1
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: tuple[str, ...] | None = None
    seed: int | None = None
    top_logprobs: int | None = None

    def asked(self) -> tuple[str, ...]:
        """The names of the optional fields that are set."""
        return tuple(f.name for f in fields(self) if f.name != "n" and getattr(self, f.name) is not None)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call, as counted by whoever served it."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer: its turns, why it ended, and token ids with their log-probs (nats) where known.

    `finish == "error"` carries the reason in `error`; such a reply is a missing answer, never an empty one.
    "refusal" is a whole answer too, in which the model declines in its provider's own form (a `Refusal` part); with
    "filter" something outside the model took the answer away, and there is none. `mended` counts characters that were
    none (lone surrogates) and are \ufffd here.
    """

    messages: tuple[Message, ...]
    finish: Finish
    tokens: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    usage: Usage = Usage()
    error: str = ""
    mended: int = 0
    top_logprobs: TopLogprobs | None = None

    @property
    def text(self) -> str:
        return "\n".join(m.text for m in self.messages if m.role == "assistant")


@runtime_checkable
class Model(Protocol):
    """Who answers.

    name          what the user typed, for print
    lineage       hash of what makes it: weights, or provider and model name (`wt:…`, `api:…`)
    capabilities  names out of SAMPLING_FIELDS, and "logprobs", "stream", "tokens", "weights", "tools", "alternatives"
                  (it is known to tell `top_logprobs`, not only to be asked for them)
    context       longest prompt plus reply in tokens, None where unknown
    """

    @property
    def name(self) -> str: ...
    @property
    def lineage(self) -> str: ...
    @property
    def capabilities(self) -> frozenset[str]: ...
    @property
    def context(self) -> int | None: ...

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling = ...) -> list[tuple[Reply, ...]]:
        """`sampling.n` replies for each prompt, in order."""
        ...

    def logprobs(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        """Summed log-prob (nats) of each continuation text as the start of the reply to its prompt.

        Needs the capability "logprobs". One inner list per prompt, in the order of its continuations.
        """
        ...


class CapabilityError(InputError, ValueError):
    """A model was asked for something it does not have. `capability` names it where that is known."""

    capability: str = ""


def require(model: Model, *capabilities: str) -> None:
    """Raise `CapabilityError`, naming the first missing capability and what the model does have."""
    for capability in capabilities:
        if capability not in model.capabilities:
            has = ", ".join(sorted(model.capabilities)) or "none"
            error = CapabilityError(f"model {model.name} cannot do {capability!r}; it has: {has}")
            error.capability = capability
            raise error
