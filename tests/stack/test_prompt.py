"""The constitution as a system prompt: as full as the model has room for, and what was left out is told."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from fairlead.constitution import load, system_prompt
from fairlead.errors import InputError
from fairlead.stack.plan import PromptLayer
from fairlead.stack.stages.prompt import fitting_prompt


@dataclass
class ByWord:
    """A model that counts words as tokens."""

    context: int | None
    name: str = "by word"

    def tokenizer(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [0] * len(text.split())}


HARBOUR = load("harbour")
WORDS = len(system_prompt(HARBOUR).split())


def fitted(model: Any) -> tuple[str, str]:
    below: Any = SimpleNamespace(model=model)
    ctx: Any = SimpleNamespace(constitution=HARBOUR)
    return fitting_prompt(PromptLayer(name="prompt"), below, ctx)


def test_the_fullest_form_that_takes_half_the_context_is_taken() -> None:
    assert fitted(ByWord(2 * WORDS)) == ("", system_prompt(HARBOUR))
    left_out, text = fitted(ByWord(2 * WORDS - 2))
    assert left_out == "examples" and "For example" not in text and "weight 5" in text
    left_out, text = fitted(ByWord(250))
    assert left_out == "examples, weights and explanations" and len(text.split()) <= 125
    assert "You are Mara" in text and all(p.text in text for p in HARBOUR.principles), "no principle is ever left out"


def test_a_model_that_tells_no_context_or_counts_no_tokens_gets_the_whole() -> None:
    assert fitted(ByWord(None))[0] == ""
    assert fitted(SimpleNamespace(context=300, name="remote"))[0] == ""


def test_a_context_too_small_for_the_briefest_form_is_refused() -> None:
    with pytest.raises(InputError, match=r"layer 'prompt'.*'harbour'.*more than half of the 40 tokens.*FILE"):
        fitted(ByWord(40))
