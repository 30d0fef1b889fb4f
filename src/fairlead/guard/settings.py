"""What guard.yaml says of checks: by kind, and what they need beside the constitution. A proxy goes by it, and so does
`fairlead guard check`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from fairlead.errors import InputError
from fairlead.guard.checks.personal import MODEL
from fairlead.models.budget import Budget


def _money(text: str) -> str:
    try:
        Budget.parse(text)
    except InputError as problem:
        raise ValueError(str(problem)) from None
    return text


Money: TypeAlias = Annotated[str, AfterValidator(_money)]
Seconds: TypeAlias = Annotated[float, Field(gt=0, le=86_400)]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Code(Part):
    """What follows when a check of code fails or is late, where not what its principle says; and the seconds that one
    check may take in one request. Code cannot be interrupted: that it is late is seen between two pieces of a text."""

    on_error: Literal["refuse", "allow"] | None = None
    deadline: Seconds = 5.0


class Classified(Code):
    """The same of classifiers, and the seconds that one question may take."""

    deadline: Seconds = 2.0


class Criticised(Code):
    """The same of critics."""

    deadline: Seconds = 20.0


class Checks(Part):
    """Checks by kind, and what they need beside the constitution."""

    code: Code = Code()
    classifier: Classified = Classified()
    critic: Criticised = Criticised()
    presidio: tuple[str, ...] = Field((), description="what presidio-analyzer looks for too: PERSON, LOCATION, …")
    presidio_model: str = Field(MODEL, min_length=1, description="its spaCy model, by name or folder")
    rules: dict[str, tuple[str, ...]] = Field({}, description="by principle id, patterns that a text must not hold")
    hosts: tuple[str, ...] = Field((), description="names that tool calls and links may reach with anything")
    unknown_hosts: bool = Field(True, description="whether they may reach any other at all")
    orders: bool | Annotated[float, Field(gt=0, lt=1)] = Field(
        True, description="whether the classifier looks for orders in tools' texts, or from which P on they count"
    )
    thresholds: dict[str, float] = Field({}, description="by principle id, the critic's score below which it is broken")
    model: Path | None = Field(None, description="folder of a classifier trained by `fairlead guard train`")
    probe: Path | None = Field(None, description="folder of `fairlead guard train --probe`, for a model in the process")
    ask: str | None = Field(None, description="the critic: apprentice, ./dir, PROVIDER/NAME[@URL]")
    prompts: bool = Field(True, description="whether the critic reads what is asked too, where a principle looks there")
    cascade: bool = Field(True, description="the critic is asked where the classifier is in doubt, and not else")
    dear: Annotated[int, Field(ge=0)] = Field(16, description="questions to critics, and revisions, of one request")
    spend: Money | None = Field(None, description="what those may cost a tenant that has no budget of its own")
    prices: Path | None = Field(None, description="JSON: the critic's price, where this program does not know it")

    @property
    def on_error(self) -> dict[int, str]:
        """By cost of a check (code, classifier, critic), what follows when it fails, where that is said here."""
        kinds = (self.code, self.classifier, self.critic)
        return {cost: kind.on_error for cost, kind in enumerate(kinds) if kind.on_error is not None}
