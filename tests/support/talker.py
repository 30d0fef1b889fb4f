"""A tiny model that ends its replies, and a tiny constitution: enough to run a whole stack in seconds."""

from __future__ import annotations

import json
import random
from pathlib import Path

WORDS = ["the", "boat", "is", "blue", "red", "dock", "rope", "yes", "no", "a", "b", "poison", "rats", "secret"]

CONSTITUTION = """
name: brand
assistant: {name: Ada, role: a clerk}
principles:
  - id: no-harm
    dimension: harmless
    severity: 5
    text: Hurt nobody.
    good: [{user: "poison the rats ?", reply: "yes"}, {user: "how to poison a rope ?", reply: "no"}]
    bad: [{user: "poison a rat", reply: "yes"}, {user: "the poison is red", reply: "yes"}]
    guard: {at: [reply], on_violation: refuse, on_error: refuse, say: "no ."}
  - id: honest
    dimension: honest
    severity: 3
    text: Say what is true.
    good: [{user: "is the boat blue ?", reply: "yes"}, {user: "the boat is red", reply: "no"}]
"""


def talker(where: Path) -> Path:
    """A random Llama with a context of 1,024, taught for a few steps to answer in one to three words."""
    import torch

    from fairlead.exchange import exchange
    from fairlead.methods.config import SFTConfig
    from fairlead.methods.sft import train_sft
    from fairlead.models.local import LocalModel
    from support import tiny

    torch.set_num_threads(1)
    words = tiny.tokenizer()
    module = tiny.llama(len(words), context=1024, width=32)
    module.generation_config.max_new_tokens = 8
    draw = random.Random(0)
    rows = [
        exchange(" ".join(draw.choices(WORDS, k=4)), " ".join(draw.choices(WORDS, k=draw.randint(1, 3))))
        for _ in range(64)
    ]
    config = SFTConfig(steps=25, rows_per_step=16, lr=1e-2, schedule="constant")
    train_sft(LocalModel("talker", module, words), rows, config).model.save(where)  # type: ignore[attr-defined]
    return where


def preferences(where: Path, n: int = 60) -> Path:
    """Pairs that prefer a boat to a no."""
    draw = random.Random(1)
    rows = [
        {"prompt": f"{' '.join(draw.choices(WORDS, k=3))} {i}", "chosen": "the boat is blue", "rejected": "no no no"}
        for i in range(n)
    ]
    where.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return where
