"""The wording of what critics are asked and of the system prompt: readable templates in prompts/*.md."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from fairlead.constitution.schema import Constitution

CRITIC_PROMPTS = ("judge", "critique", "revise", "compare")

# strict: a misspelt variable must not become ""
_JINJA = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)


@cache
def template(name: str) -> str:
    """The text of prompts/`name`.md: judge, critique, revise, compare, or system (assistant, principles).

    Variables of the first four: principle, transcript, reply, critique, first, second.
    """
    return (files("fairlead.constitution") / "prompts" / f"{name}.md").read_text(encoding="utf-8")


def system_prompt(constitution: Constitution) -> str:
    """The constitution compiled into a system prompt, for models that cannot be trained. The same text every time."""
    text = _JINJA.from_string(template("system"))
    return text.render(assistant=constitution.assistant, principles=constitution.principles).strip()
