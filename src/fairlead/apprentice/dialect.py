"""The apprentice's own wording of the critic's questions: `prompts/*.md`, short, in the world's lower case."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template

from fairlead.exchange import Message

QUESTIONS = ("judge", "critique", "revise", "compare")


@cache
def prompts() -> Mapping[str, str]:
    """Template text by question; variables: principle, transcript, reply, critique, first, second."""
    folder = Path(__file__).parent / "prompts"
    return {name: (folder / f"{name}.md").read_text(encoding="utf-8") for name in QUESTIONS}


@cache
def _template(name: str) -> Template:
    return Environment(undefined=StrictUndefined, autoescape=False).from_string(prompts()[name])


def question(name: str, **variables: str) -> str:
    """The critic's question as the base model learnt it."""
    return _template(name).render(**variables)


def transcript(messages: Iterable[Message]) -> str:
    """The conversation, one `role: text` line per message, as judges render it."""
    return "\n".join(f"{message.role}: {message.text}" for message in messages)
