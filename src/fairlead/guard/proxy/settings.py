"""guard.yaml: how a proxy is run. What is checked and what follows stands in the constitution, not here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from fairlead.constitution.yaml import load_yaml
from fairlead.guard.settings import Checks, Part, Seconds
from fairlead.guard.wire.asked import Allow


def _address(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise ValueError(f"{text!r} is no http or https address")
    return text


Address: TypeAlias = Annotated[str, AfterValidator(_address)]
Count: TypeAlias = Annotated[int, Field(ge=1)]


class Best(Part):
    """The best of `n` replies by a reward model (its folder; needs torch). Below `threshold` none is good enough, and
    the principle's `say` is what the user reads. In formats without `n` there is one, which has to be good enough."""

    n: Annotated[int, Field(ge=2, le=64)]
    reward: Path
    threshold: Annotated[float, Field(ge=0, le=1)]
    principle: str = ""
    deadline: Seconds = 20.0


class Limits(Part):
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


class Audit(Part):
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


class Settings(Part):
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
