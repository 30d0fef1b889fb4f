"""The constitution, or a text of your own, as the system prompt of the model below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fairlead.constitution.prompts import system_prompts
from fairlead.constitution.yaml import read_text
from fairlead.errors import InputError
from fairlead.exchange import Message, system
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

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling = Sampling()) -> list[tuple[Reply, ...]]:  # noqa: B008
        return self.model.generate([told(prompt, self.text) for prompt in prompts], sampling)

    def logprobs(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        raise CapabilityError(f"model {self.name} is asked for replies only")


def told(prompt: Prompt, text: str) -> tuple[Message, ...]:
    """The prompt with `text` at its head. One system turn, since many templates and APIs know no second."""
    if prompt and prompt[0].role == "system":
        return (system(f"{text}\n\n{prompt[0].text}"), *prompt[1:])
    return (system(text), *prompt)


def text_of(layer: PromptLayer, ctx: Context) -> tuple[str, str]:
    """(text, where it is from). Raises InputError for an empty or missing file."""
    if layer.text == FROM_CONSTITUTION:
        return system_prompts(ctx.constitution)[0][1], f"the {ctx.constitution.name} constitution"
    text = read_text(layer.text, what="prompt file").strip()
    if not text:
        raise InputError(f"{layer.text}: the prompt file is empty")
    return text, layer.text


def prompt(layer: PromptLayer, below: Built, ctx: Context) -> Built:
    """Put the text before the model below; of the constitution, what fits the model's context."""
    text, source = text_of(layer, ctx)
    left_out = ""
    if layer.text == FROM_CONSTITUTION:
        left_out, text = fitting_prompt(layer, below, ctx)
    identity = digest({"prompt": below.identity, "text": text, "code": code_hash("stack/stages/prompt")})
    return Built(
        name=layer.name,
        kind="prompt",
        identity=identity,
        folder=below.folder,
        plain=False,
        model=PromptedModel(below.model, text),
        summary=f"{source} as system prompt, {len(text.split()):,} words",
        facts={"text": text, "left_out": left_out},
        warnings=(
            f"{layer.name}: the system prompt leaves out {left_out} of the constitution, since the whole would take "
            f"more than half of the {below.model.context:,} tokens this model has room for",
        )
        if left_out
        else (),
    )


def fitting_prompt(layer: PromptLayer, below: Built, ctx: Context) -> tuple[str, str]:
    """(what is left out, the fullest system prompt that takes at most half of the model's context).

    The other half is for the conversation and the reply. Only a model that counts its own tokens is asked to, and only
    where it may matter: a token has at least one byte.
    """
    forms = system_prompts(ctx.constitution)
    room = None if below.model.context is None else below.model.context // 2
    if room is None or len(forms[0][1].encode()) <= room or not hasattr(below.model, "tokenizer"):
        return forms[0]
    tokenizer: Any = below.model.tokenizer
    for left_out, text in forms:
        if len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= room:
            return left_out, text
    raise InputError(
        f"layer {layer.name!r}: the constitution {ctx.constitution.name!r} takes more than half of the "
        f"{below.model.context:,} tokens {below.model.name} has room for, even in its briefest form; write a shorter "
        "text and name it (`prompt: {text: FILE}`), or leave the layer out"
    )
