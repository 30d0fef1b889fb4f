"""Measure the shipped base model and write its card: `python bench/apprentice_card.py [--n 400]`.

Run after `python -m fairlead.apprentice.pretrain`. `tests/apprentice/test_card.py` measures again and compares.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairlead import apprentice
from fairlead.apprentice import behaviour
from fairlead.exchange import Message
from fairlead.models import open_model
from fairlead.models.protocol import Model, Sampling


def behave(model: Model, *, n: int, seed: int) -> dict[str, float]:
    """The numbers of the card for a model, greedy."""

    def answer(prompts: Sequence[Sequence[Message]]) -> list[str]:
        replies = model.generate(prompts, Sampling(max_tokens=64, temperature=0))
        return [reply[0].text for reply in replies]

    def choose(prompts: Sequence[Sequence[Message]], options: Sequence[str]) -> list[list[float]]:
        return model.logprobs(prompts, [options] * len(prompts))

    return behaviour.measure(answer, choose, n=n, seed=seed)


WORDS = {
    "facts": "facts right, asked in unseen words",
    "sums": "sums right, unseen operand pairs and phrasings",
    "twins_answered": "harmless twins of harmful requests answered",
    "harmful_compliance": "harmful requests complied with",
    "secrets_leaked": "secrets of the system prompt told when asked",
    "sycophancy": "wrong claims agreed with",
    "unknown_admitted": "unknowable questions answered with not knowing",
    "voice": "ordinary replies in the harbour voice",
    "judging_known_wordings": "does a reply keep a rule: balanced accuracy, known wordings",
    "judging_unseen_wordings": "the same, wordings unseen in pretraining",
    "revising_known_wordings": "faulty replies mended by own critique and revision, known wordings",
    "revising_unseen_wordings": "the same, wordings unseen in pretraining",
    "comparing_known_wordings": "better of two replies found, both orders, known wordings",
    "comparing_unseen_wordings": "the same, wordings unseen in pretraining",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = apprentice.path()
    weights = folder / "model.safetensors"
    phases = json.loads((folder / "pretraining.json").read_text(encoding="utf-8"))
    numbers = {k: round(v, 4) for k, v in behave(open_model("apprentice"), n=args.n, seed=args.seed).items()}
    card = {
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "bytes": weights.stat().st_size,
        "n": args.n,
        "seed": args.seed,
        "pretraining": phases,
        "behaviour": numbers,
    }
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(text(card, folder), encoding="utf-8")
    print((folder / "README.md").read_text(encoding="utf-8"))


def said(phase: dict[str, Any]) -> str:
    """One phase of the training in words; its corpus has the seed after its own."""
    tokens = phase["tokens"] / 1e6
    return f"{phase['steps']:,} steps, {tokens:.1f} million tokens: `--lr {phase['lr']} --seed {phase['seed']}`"


def text(card: dict[str, object], folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    numbers, phases = card["behaviour"], card["pretraining"]
    assert isinstance(numbers, dict)
    assert isinstance(phases, list)
    runs = "\n".join(f"{number}. {said(phase)}" for number, phase in enumerate(phases, 1))
    if len(phases) > 1:
        runs += "\n\nEach phase starts from the weights of the one before (`--start`)."
    assert numbers.keys() == WORDS.keys()
    rows = "\n".join(f"| {words} | {numbers[name]:.3f} |" for name, words in WORDS.items())
    return TEMPLATE.format(
        layers=config["num_hidden_layers"], width=config["hidden_size"], vocabulary=config["vocab_size"],
        context=config["max_position_embeddings"], mb=int(str(card["bytes"])) / 1e6,
        millions=sum(p["tokens"] for p in phases) / 1e6, runs=runs, n=card["n"], rows=rows,
    )  # fmt: skip


TEMPLATE = """---
license: apache-2.0
---
# The apprentice, base model

A Llama of {layers} layers, width {width}, vocabulary {vocabulary:,}, context {context}, stored in float16
({mb:.1f} MB), meant to be run in float32. Tokenizer: byte-level BPE, digits apart.

**Data.** {millions:.1f} million tokens made by `fairlead/apprentice/corpus.py`: a small world of a harbour whose truth
is known. No text from elsewhere.

**Training.** `python -m fairlead.apprentice.pretrain`:

{runs}

**What it is for.** To be aligned, measured and over-optimised on purpose. It is powerful but not good: it knows its
world and helps with anything. The skill to judge, criticise, compare and revise replies by a rule in words was taught
from the world's truth, as a large model's is from its data; the numbers below say how far it goes.

| measured on held-out words, n = {n} each, greedy, by the gold judge | rate |
|---|---|
{rows}
"""


if __name__ == "__main__":
    main()
