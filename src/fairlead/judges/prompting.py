"""The wording of the questions a model is asked about a reply, and how they are filled in.

A model may bring its own wording (attribute `prompts`, jinja text by name: judge, critique, revise, compare); otherwise
the files of `fairlead/constitution/prompts/` are used. The wording is not part of a judge's lineage.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fairlead.constitution.prompts import template as shipped
from fairlead.errors import InputError
from fairlead.exchange import Exchange, user
from fairlead.judges.transcript import quoted, reply_block, transcript
from fairlead.models.protocol import Model, Prompt

# StrictUndefined: a misspelt variable in a template is an error, not an empty string.
_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=False
)


def wording(model: object, name: str) -> str:
    """The template text of the question `name` for this model."""
    own: Mapping[str, str] | None = getattr(model, "prompts", None)
    return own[name] if own and name in own else shipped(name)


@cache
def _template(text: str) -> Template:
    return _ENVIRONMENT.from_string(text)


def fill(template: str, **values: Any) -> str:
    """The template with its variables filled in, ends stripped. An unknown variable or a syntax error is named."""
    try:
        return _template(template).render(values).strip()
    except TemplateError as error:
        first = template.strip().splitlines()[0] if template.strip() else "(empty)"
        raise InputError(
            f"prompt template beginning {first!r}: {error}. Known variables: principle, transcript, reply, critique, "
            "first, second"
        ) from error


def ask_about(model: Model, name: str, *, principle: str, exchange: Exchange, **more: str) -> Prompt:
    """The prompt of one question about one exchange. Besides the text values, templates may read `messages`."""
    filled = fill(
        wording(model, name),
        principle=quoted(principle),
        transcript=transcript(exchange.messages),
        messages=[{"role": m.role, "text": m.text} for m in exchange.messages],
        reply=reply_block(exchange.reply),
        **more,
    )
    return (user(filled),)
