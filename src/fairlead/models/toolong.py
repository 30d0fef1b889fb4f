"""Prompts that leave no room in a model's context: which they are, and how to ask only the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from fairlead.errors import InputError
from fairlead.exchange import Message
from fairlead.models.protocol import Prompt

T = TypeVar("T")

TOO_LONG = "too long for the context"
"""Begins the reason of every answer that is missing for its prompt's length."""


class TooLong(InputError):
    """Prompts are longer than the model's context.

    `prompts` are all the model knows of, each with its reason: a model that sees its tokens looks at every prompt
    before it answers one; a server refuses them one by one. They are named by what they say and not by their row, which
    changes with every model that stands around another.
    """

    def __init__(self, message: str, prompts: Iterable[tuple[Prompt, str]] = ()) -> None:
        super().__init__(message)
        self.prompts: dict[tuple[Message, ...], str] = {tuple(prompt): why for prompt, why in prompts}


def where_it_fits(
    ask: Callable[[list[Prompt]], Sequence[T]], prompts: Sequence[Prompt], missing: Callable[[str], T]
) -> list[T]:
    """`ask` of the prompts that fit the model's context; for each of the others `missing`, given the reason.

    Answers in the order of the prompts. What else `ask` raises is raised.
    """
    why: dict[tuple[Message, ...], str] = {}
    while True:
        fit = [prompt for prompt in prompts if tuple(prompt) not in why]
        try:
            answers = iter(ask(fit) if fit else ())
        except TooLong as error:
            found = {key: reason for key, reason in error.prompts.items() if key in {tuple(p) for p in fit}}
            if not found:
                raise
            why |= found
            continue
        return [missing(f"{TOO_LONG}: {why[key]}") if (key := tuple(p)) in why else next(answers) for p in prompts]


def all_too_long(reasons: Sequence[str | None]) -> bool:
    """Whether there are answers and each is missing, with a reason, since its prompt was too long."""
    return bool(reasons) and all(reason is not None and TOO_LONG in reason for reason in reasons)
