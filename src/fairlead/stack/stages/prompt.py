"""The constitution, or a text of your own, as the system prompt of the model below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fairlead.constitution.compile import ESTIMATE, Compiled, Count, compiled, system_prompt, upper_estimate
from fairlead.constitution.yaml import read_text
from fairlead.errors import InputError
from fairlead.exchange import Message, system
from fairlead.guard.guard import GuardedModel
from fairlead.models.protocol import CapabilityError, Model, Prompt, Reply, Sampling
from fairlead.stack.context import Built, Context
from fairlead.stack.identity import code_hash, digest
from fairlead.stack.plan import FROM_CONSTITUTION, PromptLayer


@dataclass(frozen=True)
class PromptedModel:
    """`model` with `text` before everything it is told. An operator's own system message follows in the same turn."""

    model: Model
    text: str

    @property
    def name(self) -> str:
        return f"{self.model.name} + prompt"

    @property
    def lineage(self) -> str:
        """That of the model inside: a prompt before it makes no other witness of it."""
        return self.model.lineage

    @property
    def capabilities(self) -> frozenset[str]:
        return self.model.capabilities - {"weights", "logprobs", "tokens"}

    @property
    def context(self) -> int | None:
        return self.model.context

    @property
    def url(self) -> str | None:
        """Of the server of the model inside, None where it is in this process."""
        return getattr(self.model, "url", None)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling = Sampling()) -> list[tuple[Reply, ...]]:  # noqa: B008
        return self.model.generate([told(prompt, self.text) for prompt in prompts], sampling)

    def logprobs(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        raise CapabilityError(f"model {self.name} is asked for replies only")


def told(prompt: Prompt, text: str) -> tuple[Message, ...]:
    """The prompt with `text` at its head. One system turn, since many templates and APIs know no second.

    `text` is the same in every request, and what belongs to one request (its secrets, its canary) follows after it: a
    provider that caches prefixes reads `text` once.
    """
    if prompt and prompt[0].role == "system":
        return (system(f"{text}\n\n{prompt[0].text}"), *prompt[1:])
    return (system(text), *prompt)


def text_of(layer: PromptLayer, ctx: Context) -> tuple[str, str]:
    """(text, where it is from). Raises InputError for an empty or missing file."""
    if layer.text == FROM_CONSTITUTION:
        return system_prompt(ctx.constitution), f"the {ctx.constitution.name} constitution"
    text = read_text(layer.text, what="prompt file").strip()
    if not text:
        raise InputError(f"{layer.text}: the prompt file is empty")
    return text, layer.text


def prompt(layer: PromptLayer, below: Built, ctx: Context) -> Built:
    """Put the text before the model below; of the constitution, what fits the budget."""
    text, source = text_of(layer, ctx)
    facts: dict[str, Any] = {"text": text, "left_out": ""}
    warnings: tuple[str, ...] = ()
    summary = f"{source} as system prompt"
    if layer.text == FROM_CONSTITUTION:
        made, room = fitting_prompt(layer, below, ctx)
        text = made.text
        facts |= {
            "text": text,
            "left_out": made.left_out,
            "budget": room,
            "tokens": made.tokens,
            "counted": made.counted,
        }
        if made.left_out:
            whose = f"a budget of {room:,} tokens ({made.counted}); it takes {made.tokens:,}"
            if layer.budget is None:
                whose = f"half of the {below.model.context:,} tokens this model has room for"
            warnings = (
                f"{layer.name}: the system prompt leaves {made.left_out} out of the constitution, to fit {whose}",
            )
    elif layer.budget is not None:
        count, counted = counting(below.model)
        if (tokens := count(text)) > layer.budget:
            raise InputError(
                f"layer {layer.name!r}: {layer.text} takes {tokens:,} tokens ({counted}), and the budget is "
                f"{layer.budget:,}; shorten it, or give a greater budget"
            )
    return Built(
        name=layer.name,
        kind="prompt",
        identity=digest({"prompt": below.identity, "text": text, "code": code_hash("stack/stages/prompt")}),
        folder=below.folder,
        plain=False,
        model=PromptedModel(below.model, text),
        summary=f"{summary}, {len(text.split()):,} words",
        facts=facts,
        warnings=warnings,
    )


def counting(model: Any) -> tuple[Count, str]:
    """(how many tokens a text takes, who counts): the model's own tokenizer, or an estimate from above."""
    while isinstance(model, PromptedModel | GuardedModel):
        model = model.model
    if not hasattr(model, "tokenizer"):
        return upper_estimate, ESTIMATE
    tokenizer = model.tokenizer
    return (
        lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])
    ), f"by the tokenizer of {model.name}"


def fitting_prompt(layer: PromptLayer, below: Built, ctx: Context) -> tuple[Compiled, int | None]:
    """(the fullest system prompt that fits, the tokens it had room for; None where there is no limit).

    Without a budget that is half of the model's context; the other half is for the conversation and the reply. Then
    only a model that counts its own tokens is asked to, and only where it may matter: a token has at least one byte.
    """
    model, constitution = below.model, ctx.constitution
    if layer.budget is not None and model.context is not None and layer.budget > model.context:
        raise InputError(
            f"layer {layer.name!r}: a budget of {layer.budget:,} tokens is more than the {model.context:,} that "
            f"{model.name} has room for, conversation and reply included"
        )
    room = layer.budget
    if room is None:
        whole = system_prompt(constitution)
        room = None if model.context is None else model.context // 2
        if room is None or len(whole.encode()) <= room or not hasattr(model, "tokenizer"):
            return compiled(constitution), None
    count, counted = counting(model)
    try:
        return compiled(constitution, room, count, counted=counted), room
    except InputError as problem:
        raise InputError(f"layer {layer.name!r}: {problem}") from None
