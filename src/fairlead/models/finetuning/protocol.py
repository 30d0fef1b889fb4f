"""What a provider of fine-tuning must be able to do, and the values that pass between it and a job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

State: TypeAlias = Literal["waiting", "running", "done", "failed", "cancelled"]


class Adapters(BaseModel):
    """Low-rank adapters: rank (None: the provider's own), alpha (None: twice the rank), dropout on their inputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    rank: Annotated[int, Field(ge=1)] | None = None
    alpha: Annotated[float, Field(ge=1)] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _of_a_rank(self) -> Self:
        if self.rank is None and (self.alpha is not None or self.dropout):
            raise ValueError("alpha and dropout belong to adapters of a given rank")
        return self


class Tuning(BaseModel):
    """What the provider is asked to do with the file. None means that the provider's default is taken.

    model      base model, or the id of an earlier job (`ft-…`), which is trained on from its last checkpoint
    epochs     whole passes over the file: providers take no fraction
    adapters   low-rank adapters; None trains all weights
    rows       rows of one step
    beta       dpo: strength of the pull to the reference
    nll        dpo: weight of the chosen reply's NLL
    by_length  dpo: log-ratios per token
    on_text    sft: the prompts are learnt too
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    model: str = Field(min_length=1)
    method: Literal["sft", "dpo"]
    epochs: Annotated[int, Field(ge=1)] = 1
    lr: Annotated[float, Field(gt=0, le=1)] | None = None
    warmup: Annotated[float, Field(ge=0, lt=1)] | None = None
    schedule: Literal["linear", "cosine"] | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    grad_clip: Annotated[float, Field(ge=0)] | None = None
    rows: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0)] | None = None
    adapters: Adapters | None = Adapters()
    beta: Annotated[float, Field(gt=0)] | None = None
    nll: Annotated[float, Field(ge=0)] | None = None
    by_length: bool = False
    on_text: bool = False

    @model_validator(mode="after")
    def _of_its_method(self) -> Self:
        if self.method == "sft" and (self.beta is not None or self.nll is not None or self.by_length):
            raise ValueError("beta, nll and by_length belong to dpo")
        if self.method == "dpo" and self.on_text:
            raise ValueError("on_text belongs to sft")
        return self

    @property
    def continues(self) -> bool:
        """Whether it goes on from an earlier job of the provider."""
        return self.model.startswith("ft-")


@dataclass(frozen=True, slots=True)
class Upload:
    """The file to send: where it lies, and what identifies its bytes."""

    path: Path
    sha256: str
    bytes: int
    rows: int

    @property
    def name(self) -> str:
        """What it is called at the provider: by its content, so that nobody's file name goes there."""
        return f"fairlead-{self.sha256[:16]}.jsonl"


@dataclass(frozen=True, slots=True)
class Quote:
    """What the provider itself reckons a job to take: tokens over all epochs, US dollars; None where it does not say.

    `allowed` is False where it says that the account cannot pay for it.
    """

    tokens: int | None = None
    usd: float | None = None
    allowed: bool = True
    why: str = ""


@dataclass(frozen=True, slots=True)
class Tuned:
    """A job as the provider tells it. `said` is its own word for the state, `why` its own words for a failure.

    model    the name of what came out, once it is done
    usd      what it was charged, where it says
    mine     whether the failure is for the user to mend (their data, their account)
    raw      the provider's answer, for the result folder
    """

    id: str
    state: State
    said: str
    model: str = ""
    tokens: int | None = None
    usd: float | None = None
    why: str = ""
    mine: bool = False
    left_s: float | None = None
    raw: Any = None


class Tuner(Protocol):
    """A provider of fine-tuning. Every call raises `Transient` where another try may help, else a user's error."""

    @property
    def name(self) -> str: ...
    @property
    def provider(self) -> str: ...
    @property
    def model(self) -> str: ...

    def check(self, tuning: Tuning) -> None:
        """Refuse, before anything is sent, what this provider cannot do with this model."""
        ...

    def upload(self, data: Upload) -> str:
        """Send the file; its id there. A file with the same bytes that is there already is taken, not sent again."""
        ...

    def ready(self, file_id: str, data: Upload) -> bool | None:
        """Whether the provider has read the file through; None where it is not there. InputError where refused."""
        ...

    def quote(self, file_id: str, tuning: Tuning) -> Quote | None: ...

    def request(self, file_id: str, tuning: Tuning, tag: str) -> dict[str, Any]:
        """The body of `create`: what a dry run shows."""
        ...

    def create(self, file_id: str, tuning: Tuning, tag: str) -> Tuned: ...

    def find(self, tag: str) -> Tuned | None:
        """The job that carries this tag, where there is one: a lost answer does not mean that there is no job."""
        ...

    def job(self, job_id: str) -> Tuned: ...

    def cancel(self, job_id: str) -> Tuned: ...

    def spec_of(self, model: str) -> str:
        """The name under which `open_model` asks what came out."""
        ...

    def serving(self, model: str) -> str:
        """What must be done, and paid, before the new model answers; "" where it answers at once."""
        ...
