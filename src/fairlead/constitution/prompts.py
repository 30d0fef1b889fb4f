"""The wording of what critics are asked and of the system prompt: readable templates in prompts/*.md."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from fairlead.constitution.schema import Constitution, Principle

CRITIC_PROMPTS = ("judge", "critique", "revise", "compare", "reason", "conclude")

# strict: a misspelt variable must not become ""
_JINJA = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)


@cache
def template(name: str) -> str:
    """The text of prompts/`name`.md: one of CRITIC_PROMPTS, or system, system_brief (assistant, principles).

    Variables of the critic's: principle, transcript, reply, critique, first, second; `conclude` has none.
    """
    return (files("fairlead.constitution") / "prompts" / f"{name}.md").read_text(encoding="utf-8")


def system_prompt(constitution: Constitution) -> str:
    """The constitution compiled into a system prompt, for models that cannot be trained. The same text every time."""
    return system_prompts(constitution)[0][1]


def system_prompts(constitution: Constitution) -> tuple[tuple[str, str], ...]:
    """(what is left out, the system prompt), from the fullest to the briefest, for models with little room."""
    principles = constitution.principles
    bare = [principle.model_copy(update={"good": ()}) for principle in principles]
    return (
        ("", _rendered("system", constitution, principles)),
        ("examples", _rendered("system", constitution, bare)),
        ("examples, weights and explanations", _rendered("system_brief", constitution, bare)),
    )


def _rendered(name: str, constitution: Constitution, principles: Sequence[Principle]) -> str:
    text = _JINJA.from_string(template(name))
    return text.render(assistant=constitution.assistant, principles=principles).strip()
