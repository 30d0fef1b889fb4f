"""Critique and revision at answering time, in the constitution's words: the same questions that train a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from fairlead.exchange import Exchange, Message
from fairlead.judges.prompting import ask_about
from fairlead.models.protocol import Model, Prompt, Reply, Sampling
from fairlead.models.toolong import where_it_fits

Reviser: TypeAlias = Callable[[Sequence[tuple[str, Exchange]]], list[tuple[Message, ...] | None]]
"""From pairs (words of the principle, exchange) to new replies; None where no revision came back, or none fitted."""


def reviser(model: Model, *, max_tokens: int | None = None, seed: int | None = None) -> Reviser:
    """Two batches of calls for any number of replies: all critiques, then all revisions, greedy where possible."""
    asked: dict[str, object] = {"temperature": 0.0, "max_tokens": max_tokens, "seed": seed}
    sampling = Sampling(**{k: v for k, v in asked.items() if k in model.capabilities})  # type: ignore[arg-type]

    def ask(prompts: Sequence[Prompt]) -> list[str | None]:

        def answers(fitting: Sequence[Prompt]) -> list[str | None]:
            return [_answer(replies[0]) for replies in model.generate(fitting, sampling)]

        return where_it_fits(answers, prompts, lambda why: None)

    def revise(broken: Sequence[tuple[str, Exchange]]) -> list[tuple[Message, ...] | None]:
        critiques = ask([ask_about(model, "critique", principle=text, exchange=item) for text, item in broken])
        answered = [n for n, critique in enumerate(critiques) if critique is not None]
        prompts = [
            ask_about(model, "revise", principle=broken[n][0], exchange=broken[n][1], critique=critiques[n] or "")
            for n in answered
        ]
        revised: list[tuple[Message, ...] | None] = [None] * len(broken)
        for n, text in zip(answered, ask(prompts), strict=True):
            revised[n] = (Message("assistant", text),) if text else None  # type: ignore[arg-type]
        return revised

    return revise


def _answer(reply: Reply) -> str | None:
    """The text of a whole answer. One that was cut off, filtered or empty is none."""
    return reply.text.strip() or None if reply.finish == "stop" else None
