"""guard.yaml: how a proxy is run. What is checked and what follows stands in the constitution, not here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from fairlead.constitution.yaml import load_yaml
from fairlead.errors import InputError
from fairlead.guard.checks.personal import MODEL
from fairlead.guard.wire.asked import Allow
from fairlead.models.budget import Budget


def _money(text: str) -> str:
    try:
        Budget.parse(text)
    except InputError as problem:
        raise ValueError(str(problem)) from None
    return text


def _address(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise ValueError(f"{text!r} is no http or https address")
    return text


Money: TypeAlias = Annotated[str, AfterValidator(_money)]
Address: TypeAlias = Annotated[str, AfterValidator(_address)]
Seconds: TypeAlias = Annotated[float, Field(gt=0, le=86_400)]
Count: TypeAlias = Annotated[int, Field(ge=1)]
Kind: TypeAlias = Literal["code", "classifier", "critic"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Code(_Part):
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


class Checks(_Part):
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
    cascade: bool = Field(True, description="the critic is asked where the classifier is in doubt, and not else")
    dear: Annotated[int, Field(ge=0)] = Field(16, description="questions to critics, and revisions, of one request")
    spend: Money | None = Field(None, description="what those may cost a tenant that has no budget of its own")
    prices: Path | None = Field(None, description="JSON: the critic's price, where this program does not know it")

    @property
    def on_error(self) -> dict[int, str]:
        """By cost of a check (code, classifier, critic), what follows when it fails, where that is said here."""
        kinds = (self.code, self.classifier, self.critic)
        return {cost: kind.on_error for cost, kind in enumerate(kinds) if kind.on_error is not None}


class Best(_Part):
    """The best of `n` replies by a reward model (its folder; needs torch). Below `threshold` none is good enough, and
    the principle's `say` is what the user reads. In formats without `n` there is one, which has to be good enough."""

    n: Annotated[int, Field(ge=2, le=64)]
    reward: Path
    threshold: Annotated[float, Field(ge=0, le=1)]
    principle: str = ""
    deadline: Seconds = 20.0


class Limits(_Part):
    """What one worker holds at most, and how long it waits. Times are in seconds, sizes in bytes."""

    body: Count = 10 * 2**20
    reply: Count = 32 * 2**20
    header: Annotated[int, Field(ge=1_024)] = 32 * 2**10
    headers: Annotated[int, Field(ge=8)] = 100
    in_flight: Count = 512
    connections: Count = 1_024
    retry_after: Count = 1
    request: Seconds = 30.0
    connect: Seconds = 5.0
    first_byte: Seconds = 120.0
    idle: Seconds = 60.0
    total: Seconds = 600.0
    stalled: Seconds = 60.0
    drain: Seconds = 30.0
    keep_alive: Seconds = 75.0


class Audit(_Part):
    """The tamper-evident log. With `strict` a reply waits for the disk; else up to `loss` seconds can be lost.

    Texts are kept with `store_text`, for `retention_days`; what is escalated is kept for people in any case, for
    `queue_days`. A tenant's own `retention_days` bounds both.
    """

    file: Path | None = None
    strict: bool = False
    loss: Seconds = 0.2
    store_text: bool = False
    retention_days: Annotated[float, Field(gt=0)] = 30.0
    queue_days: Annotated[float, Field(gt=0)] = 30.0
    heads_url: Address | None = Field(None, description="where the end of each chain is posted while it grows")


class Settings(_Part):
    """All of it."""

    allow: tuple[str, ...] = Field((), description="request fields that pass unread, by the name their refusal gives")
    images: Literal["refuse", "pass"] = Field("refuse", description="images are not looked at: a pass is counted")
    opaque: Literal["drop", "pass"] = Field("drop", description="reasoning that nothing can read: a pass is counted")
    top_logprobs: Literal["drop", "pass"] = Field("drop", description="tokens that the model did not choose")
    unknown: Literal["stop", "drop"] = Field("stop", description="an event without a name here ends the stream, or not")
    heartbeat: Seconds = Field(5.0, description="seconds between signs of life while a reply is held back")
    budget: Seconds = Field(30.0, description="seconds for all checks of one request together")
    rounds: Annotated[int, Field(ge=1, le=8)] = Field(2, description="changes of one reply before it is refused")
    best: Best | None = None
    shadow: bool | tuple[str, ...] = Field(False, description="of all, or of these principles: report, and do nothing")
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    checks: Checks = Checks()
    limits: Limits = Limits()
    audit: Audit = Audit()

    @model_validator(mode="after")
    def _makes_sense(self) -> Settings:
        limits = self.limits
        if limits.total < limits.first_byte:
            raise ValueError(
                f"limits.total is {limits.total:g} s and limits.first_byte {limits.first_byte:g} s: no reply could "
                "wait that long; lower first_byte"
            )
        if limits.connections < limits.in_flight:
            raise ValueError(
                f"limits.connections is {limits.connections:,} and limits.in_flight {limits.in_flight:,}: requests "
                "would queue for a connection; raise connections"
            )
        return self


def read_settings(path: Path | None) -> Settings:
    """The settings of a file, or the defaults; every mistake is an `InputError` with its line."""
    return Settings() if path is None else load_yaml(path, Settings, what="guard policy")


def allowed(settings: Settings) -> Allow:
    """What the wire formats let pass under these settings."""
    return Allow(
        frozenset(settings.allow), settings.images == "pass", settings.opaque == "pass", settings.top_logprobs == "pass"
    )
