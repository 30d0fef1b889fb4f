"""The wording of what critics are asked and of the system prompt: readable templates in prompts/*.md."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

CRITIC_PROMPTS = ("judge", "critique", "revise", "compare", "reason", "conclude")


@cache
def template(name: str) -> str:
    """The text of prompts/`name`.md: one of CRITIC_PROMPTS, or system, system_brief (see `compile`).

    Variables of the critic's: principle, transcript, reply, critique, first, second.
    """
    return (files("fairlead.constitution") / "prompts" / f"{name}.md").read_text(encoding="utf-8")
