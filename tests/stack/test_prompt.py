"""The constitution as a system prompt: as full as the model has room for, and what was left out is told."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fairlead.constitution import Compiled, load, system_prompt
from fairlead.constitution.compile import ESTIMATE
from fairlead.errors import InputError
from fairlead.exchange import system, user
from fairlead.models import open_model
from fairlead.models.access import vendor
from fairlead.models.wire import to_openai
from fairlead.stack.context import Built
from fairlead.stack.plan import PromptLayer
from fairlead.stack.stages.prompt import PromptedModel, fitting_prompt, prompt, told


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


def fitted(model: Any, budget: int | None = None) -> tuple[Compiled, int | None]:
    below: Any = SimpleNamespace(model=model)
    ctx: Any = SimpleNamespace(constitution=HARBOUR)
    return fitting_prompt(PromptLayer(name="prompt", budget=budget), below, ctx)


def test_the_fullest_form_that_takes_half_the_context_is_taken() -> None:
    made, room = fitted(ByWord(2 * WORDS))
    assert (made.left_out, made.text, room) == ("", system_prompt(HARBOUR), WORDS)
    assert made.tokens == WORDS and made.counted == "by the tokenizer of by word"
    made, _ = fitted(ByWord(2 * WORDS - 2))
    assert made.left_out == "1 of 6 examples" and "weight 5" in made.text
    made, _ = fitted(ByWord(250))
    assert made.left_out == "6 examples, weights and explanations" and len(made.text.split()) <= 125
    assert "You are Mara" in made.text and all(p.text in made.text for p in HARBOUR.principles)


def test_a_model_that_tells_no_context_or_counts_no_tokens_gets_the_whole() -> None:
    whole = system_prompt(HARBOUR)
    for model in (ByWord(None), SimpleNamespace(context=300, name="remote")):
        made, room = fitted(model)
        assert (made.text, made.left_out, room) == (whole, "", None)


def test_a_budget_goes_before_the_context_and_is_counted_by_the_tokenizer_or_an_estimate() -> None:
    made, room = fitted(ByWord(None), WORDS - 1)
    assert made.left_out == "1 of 6 examples" and room == WORDS - 1 >= made.tokens
    made, _ = fitted(SimpleNamespace(context=None, name="remote"), 600)
    assert made.counted == ESTIMATE and made.tokens == -(-len(made.text.encode()) // 2) <= 600
    assert 0 < made.examples < made.of_examples == 6
    made, _ = fitted(PromptedModel(ByWord(None), "before"), WORDS)  # type: ignore[arg-type]
    assert made.counted == "by the tokenizer of by word" and made.left_out == ""


@pytest.mark.parametrize(
    ("model", "budget", "wrong"),
    [
        (
            ByWord(40),
            None,
            r"layer 'prompt'.*'harbour'.*6 principles take \d+ tokens.*the budget is 20.*greater budget",
        ),
        (ByWord(None), 30, r"layer 'prompt'.*'harbour'.*the budget is 30"),
        (ByWord(500), 501, r"layer 'prompt': a budget of 501 tokens is more than the 500 that by word"),
    ],
)
def test_what_cannot_fit_is_refused(model: Any, budget: int | None, wrong: str) -> None:
    with pytest.raises(InputError, match=wrong):
        fitted(model, budget)


def layer_of(layer: PromptLayer, model: Any) -> Built:
    ctx: Any = SimpleNamespace(constitution=HARBOUR)
    return prompt(layer, Built("base", "base", "id", None, True, model), ctx)


def test_the_layer_says_what_it_left_out() -> None:
    built = layer_of(PromptLayer(name="prompt", budget=WORDS - 1), ByWord(None))
    assert built.facts["budget"] == WORDS - 1 and built.facts["left_out"] == "1 of 6 examples"
    assert built.warnings == (
        "prompt: the system prompt leaves 1 of 6 examples out of the constitution, to fit a budget of "
        f"{WORDS - 1} tokens (by the tokenizer of by word); it takes {built.facts['tokens']}",
    )
    assert layer_of(PromptLayer(name="prompt", budget=WORDS), ByWord(None)).warnings == ()


def test_a_text_of_ones_own_is_held_to_the_budget_too(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("be kind to all")
    assert layer_of(PromptLayer(name="p", text=str(file), budget=4), ByWord(None)).facts["text"] == "be kind to all"
    with pytest.raises(InputError, match=r"prompt\.txt takes 4 tokens .*the budget is 3"):
        layer_of(PromptLayer(name="p", text=str(file), budget=3), ByWord(None))


def test_every_request_begins_with_the_same_bytes_whatever_its_secrets_are() -> None:
    """The wire bodies and the tokens of three requests agree up to the end of the prompt, and differ only after it."""
    text = layer_of(PromptLayer(name="prompt"), ByWord(None)).model.text  # type: ignore[attr-defined]
    requests = [
        (user("hello"),),
        (system("the day word is amber ."), user("hello")),
        (system("canary: 7f3a-91"), user("where is the rope ?")),
    ]
    bodies = [json.dumps(to_openai(told(request, text)), ensure_ascii=False) for request in requests]
    head = json.dumps([{"role": "system", "content": text}], ensure_ascii=False)[: -len('"}]')]
    assert all(body.startswith(head) for body in bodies)
    assert "amber" in bodies[1][len(head) :] and "7f3a-91" in bodies[2][len(head) :]
    apprentice = open_model("apprentice", torch=False)
    ids = [apprentice.render(told(request, text)) for request in requests]  # type: ignore[attr-defined]
    prefix = apprentice.render((system(text),))  # type: ignore[attr-defined]
    shared = next(n for n, column in enumerate(zip(*ids, strict=False)) if len(set(column)) > 1)
    assert shared >= len(prefix) - 3  # all of it but what closes the turn


def test_a_prompt_around_a_model_at_a_server_is_read_by_that_server() -> None:
    served: Any = SimpleNamespace(url="https://model.example/v1")
    assert vendor(PromptedModel(PromptedModel(served, "x"), "y")) == "model.example"
    assert vendor(PromptedModel(SimpleNamespace(), "y")) == ""  # type: ignore[arg-type]
