"""Managed fine-tuning: a file goes to a provider, a job runs there, and the name of a new model comes back.

One adapter, `together.py`, behind a small protocol (`protocol.py`); what is the same for every provider is in
`job.py`: upload, submission that never happens twice, and polling. Needs no torch, and nothing but the standard library
on the wire.
"""

from __future__ import annotations

from fairlead.errors import InputError
from fairlead.models.finetuning.protocol import Quote, Tuned, Tuner, Tuning, Upload

__all__ = ["OPENAI_CLOSING", "TUNERS", "Quote", "Tuned", "Tuner", "Tuning", "Upload", "open_tuner", "refuse_to_train"]

TUNERS = ("together",)
"""Providers with an adapter."""

OPENAI_CLOSING = (
    "OpenAI is closing its self-serve fine-tuning: since 7 May 2026 an organisation that never used it cannot create "
    "jobs, since 2 July 2026 neither can one without recent use, and from 6 January 2027 nobody can "
    "(https://developers.openai.com/api/docs/deprecations)"
)


def open_tuner(spec: str) -> Tuner:
    """The provider behind `together/MODEL[@URL]`. Raises InputError (exit 2) for one that trains nothing for us."""
    from fairlead.models import remote_parts

    found = remote_parts(spec)
    if found is None or found[0] not in TUNERS:
        raise refuse_to_train(spec)
    from fairlead.models.finetuning.together import open_together

    _, model, url = found
    return open_together(model, url, name=spec)


def refuse_to_train(spec: str) -> InputError:
    """Why this model cannot be fine-tuned from here, and what can be done instead."""
    head = spec.partition("/")[0].lower()
    why = f"{spec}: has no weights here to train"
    instead = "an open model is trained as together/MODEL (docs/managed.md)"
    if head == "openai":
        return InputError(
            f"{why}, and {OPENAI_CLOSING}. The files can be written (--export openai --out FILE) and submitted by an "
            f"organisation that still may; {instead}"
        )
    if head == "anthropic":
        return InputError(
            f"{why}, and Anthropic's API offers no fine-tuning. For Claude on Bedrock write the file with "
            f"--export bedrock-claude --out FILE; {instead}"
        )
    return InputError(f"{why}; training needs a model folder or a hub name, or {instead}")
