"""Small untrained reward models over `LocalModel`s, and what they are asked."""

from __future__ import annotations

from typing import Any

import torch
from tests.support import tiny

from fairlead.engine.heads import new_head
from fairlead.exchange import Preference, assistant, exchange, user
from fairlead.judges.lineage import rows_learnt
from fairlead.judges.reward_model import RewardModel
from fairlead.models.local import LocalModel

ROWS = [Preference((user("a ?"),), (assistant("yes"),), (assistant("no"),))]


def local(seed: int = 0, dtype: torch.dtype = torch.float32, **more: Any) -> LocalModel:
    words = tiny.tokenizer()
    return LocalModel(f"tiny {seed}", tiny.llama(len(words), seed=seed, **more).to(dtype), words)


def reward(seed: int = 0, head: int = 0, **more: Any) -> RewardModel:
    model = local(seed)
    bias = more.get("kind") == "process"
    settings: dict[str, Any] = {"base": "wt:base", "trained_on": rows_learnt(ROWS)} | more
    return RewardModel("rm", model, new_head(model.module, seed=head, bias=bias), **settings)


ITEMS = [
    exchange("what colour is the boat ?", "the boat is blue"),
    exchange("what colour is the boat ?", "no"),
    exchange("a secret ?", "i keep that one to myself"),
]
