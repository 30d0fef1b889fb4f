"""Draw replies to prompts from a model, and say what became of each."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairlead.exchange import Exchange
from fairlead.models.protocol import Model, Prompt, Reply, Sampling


@dataclass(frozen=True, slots=True)
class Drawn:
    """The replies to one prompt that are answers, in the order drawn; the counts say what was not."""

    exchanges: tuple[Exchange, ...]
    truncated: tuple[bool, ...]  # per exchange: cut off by the token limit
    missing: int  # errors and provider filters: no answer at all


def draw(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    n: int = 1,
    max_tokens: int | None,
    temperature: float | None,
    top_p: float | None = None,
    seed: int = 0,
    metas: Sequence[Mapping[str, Any]] | None = None,
) -> list[Drawn]:
    """`n` replies to each prompt, as exchanges that carry the prompt's meta. Empty answers are answers."""
    if metas is not None and len(metas) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts but {len(metas)} metas")
    sampling = Sampling(n=n, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=_seed_for(model, seed))
    replies = model.generate(prompts, sampling)
    return [
        _drawn(prompt, answers, metas[i] if metas is not None else {})
        for i, (prompt, answers) in enumerate(zip(prompts, replies, strict=True))
    ]


def _drawn(prompt: Prompt, answers: Sequence[Reply], meta: Mapping[str, Any]) -> Drawn:
    given = [reply for reply in answers if is_answer(reply)]
    exchanges = tuple(Exchange(tuple(prompt), reply.messages, meta) for reply in given)
    return Drawn(exchanges, tuple(reply.finish == "length" for reply in given), len(answers) - len(given))


def is_answer(reply: Reply) -> bool:
    """Whether the model itself answered: an error or a provider's filter is a missing answer, not an empty one."""
    return reply.finish not in ("error", "filter") and any(m.role == "assistant" for m in reply.messages)


def _seed_for(model: Model, seed: int) -> int | None:
    """The seed, for a model that takes one; models that do not are drawn from without."""
    return seed if "seed" in model.capabilities else None


def chance(seed: int, *key: object) -> float:
    """A number in [0, 1) fixed by the seed and the key: one row's draw does not depend on the other rows."""
    body = hashlib.sha256("\0".join(map(str, (seed, *key))).encode()).digest()
    return int.from_bytes(body[:8], "big") / 2**64


def pick(weights: Sequence[float], u: float) -> int:
    """The index that `u` in [0, 1) falls on when the indices lie side by side with these weights."""
    total = sum(weights)
    if not total > 0:
        raise ValueError(f"weights {list(weights)} have nothing to draw from")
    mark = u * total
    for index, weight in enumerate(weights):
        mark -= weight
        if mark < 0:
            return index
    return max(i for i, weight in enumerate(weights) if weight > 0)
