"""A tiny random model as the trainers see one, in float64 so that equal means equal."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from tests.engine.helpers import keep_float64
from tests.support import tiny

from fairlead.exchange import Exchange, Preference, assistant, exchange, user


@dataclass(frozen=True)
class Tiny:
    module: Any
    tokenizer: Any
    name: str = "tiny"
    lineage: str = "wt:tiny"
    context: int | None = 128

    def with_weights(self, module: Any) -> Tiny:
        return replace(self, module=module, lineage="wt:trained")


def tiny_model(dtype: torch.dtype = torch.float64, seed: int = 0) -> Tiny:
    words = tiny.tokenizer()
    return Tiny(keep_float64(tiny.llama(len(words), seed=seed).to(dtype)), words)


WORDS = ["yes", "no", "the boat is blue", "the rats go to the shed", "a secret", "i keep that one"]


def demonstrations(n: int = 8) -> list[Exchange]:
    return [exchange(f"what colour {'the ' * (i % 3)}? {i}", WORDS[i % 6]) for i in range(n)]


def pairs(n: int = 8, strength: float = 1.0) -> list[Preference]:
    return [
        Preference(
            (user(f"what is {'the ' * (i % 3)}boat ? {i}"),),
            (assistant(WORDS[i % 6]),),
            (assistant(WORDS[(i + 1 + i // 6) % 6] + " no" * (i % 2)),),
            strength=strength,
        )
        for i in range(n)
    ]


def triples(n: int = 8, strength: float = 1.0) -> list[Preference]:
    """The same pairs, each with a gold reply of another length than the chosen one."""
    return [
        replace(p, gold=(assistant(WORDS[(i + 3) % 6] + " yes" * (i % 3)),)) for i, p in enumerate(pairs(n, strength))
    ]


def weights(model: Tiny) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.module.parameters()])
