"""The plan of a run: which model, which constitution, which layers in which order, and how they are measured.

Frozen pydantic models. Unknown keys are errors with file and line, settings that cannot work are refused when the
plan is read. The fields of a training stage are its data (here) and its optimisation (the method's own config).
Needs no torch.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, create_model, field_validator, model_validator

from fairlead.guard.rules import fault
from fairlead.methods.ai_preferences import PreferenceConfig
from fairlead.methods.catalogue import METHODS
from fairlead.methods.config import DPOConfig, SFTConfig
from fairlead.methods.constitutional import ReviseConfig

Positive: TypeAlias = Annotated[int, Field(ge=1)]
FROM_CONSTITUTION = "from-constitution"


M = TypeVar("M", bound=BaseModel)


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


def _without_seed(config: M) -> M:
    if "seed" in config.model_fields_set:
        raise ValueError("unknown key 'seed': one seed stands at the top of the plan")
    return config


class Prompts(Frozen):
    """Where training prompts come from.

    from            `constitution` (each principle's own: the apprentice's world; for other models the prompts of its
                    packs, or the examples written under the principle) or a file of prompts (.txt one per line, .jsonl
                    with `prompt` or `messages`)
    per_principle   prompts drawn for each principle; a file is used whole up to that many per principle
    general         share of them that is ordinary traffic, not aimed at the principle
    too_long        prompts that leave the model no room to answer: refuse (the row is named) or skip (counted)
    """

    from_: str = Field("constitution", alias="from")
    per_principle: Positive = 250
    general: float = Field(0.5, ge=0.0, lt=1.0)
    too_long: Literal["refuse", "skip"] = "refuse"


# ------------------------------------------------------------------------------------------- training data


class Revise(ReviseConfig):
    """Constitutional AI's supervised phase: sample a reply, criticise it by a principle, revise it, learn the last.

    critic   `self` (the model this stage trains), `base`, or any model by name: it judges, criticises and revises
    and the fields of `ReviseConfig`; every round is kept in the run folder
    """

    critic: str = Field("self", min_length=1)

    @model_validator(mode="after")
    def _one_seed(self) -> Self:
        return _without_seed(self)


class SFTData(Frozen):
    """Exactly one of: `revise` (no labels), `file` (conversations, or the chosen side of preferences), `gold`."""

    revise: Revise | None = None
    file: str | None = None
    gold: Literal[True] | None = None

    @model_validator(mode="after")
    def _one(self) -> SFTData:
        given = [name for name in ("revise", "file", "gold") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of revise, file, gold; given: {', '.join(given) or 'none'}")
        return self

    @field_validator("revise", mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {} if value is None or value is True else value


class Preferences(PreferenceConfig):
    """Where preference pairs come from, and how AI feedback makes them (the fields of `PreferenceConfig`).

    from         `ai` (replies of the model, compared by a critic), `gold` (compared by the world's truth, needs
                 --oracle), `given` (the plan's `preferences:` or --preferences), or a path
    critic       `self` (the model this stage trains), `base`, or any model by name
    both_orders  every pair is shown in both orders and the readings averaged; one order would teach position bias
    compare      `template` shows both replies at once, `pointwise` compares two separate judgements
    held_out     share of a file's prompts kept out of training, to measure preference accuracy on
    """

    from_: str = Field("ai", alias="from", min_length=1)
    critic: str = Field("self", min_length=1)
    both_orders: bool = True
    compare: Literal["template", "pointwise"] = "template"
    held_out: float = Field(0.1, gt=0.0, lt=1.0)

    @model_validator(mode="after")
    def _both(self) -> Self:
        if not self.both_orders:
            raise ValueError(
                "both_orders: false is not offered: a critic's habit of preferring a side would be the label"
            )
        return _without_seed(self)


# -------------------------------------------------------------------------------------------------- layers


class Layer(Frozen):
    """What every stage has: its kind, its name (a column of the report), and the stage it starts from."""

    kind: ClassVar[str]
    trains: ClassVar[bool] = False
    name: str = Field("", pattern=r"^[a-z0-9][a-z0-9_.-]{0,39}$|^$")
    from_: str = Field("", alias="from")


class SFTLayer(Layer):
    """Supervised fine-tuning."""

    kind: ClassVar[str] = "sft"
    trains: ClassVar[bool] = True
    data: SFTData
    train: SFTConfig = SFTConfig()


class DPOLayer(Layer):
    """Direct preference optimisation, and what every other layer that learns from preferences stands on."""

    kind: ClassVar[str] = "dpo"
    trains: ClassVar[bool] = True
    preferences: Preferences = Preferences()
    train: DPOConfig = DPOConfig()


class GuardLayer(Layer):
    """Checks around the model below.

    checks      `from-constitution`, or the ids of the principles to guard
    critic      the model that reads the principles and writes revisions: `base`, `self` (the model below), `none`
                (rules and secrets only), or any model by name
    thresholds  by principle id, the P(kept) below which the critic's verdict counts as broken; 0.5 where not given
    rules       by principle id, regular expressions that no reply may hold; the principle's `guard:` says what follows
    rounds      how often one reply may be changed and looked at again
    """

    kind: ClassVar[str] = "guard"
    checks: Literal["from-constitution"] | tuple[str, ...] = "from-constitution"
    critic: str = Field("base", min_length=1)
    thresholds: dict[str, Annotated[float, Field(gt=0, lt=1)]] = Field(default_factory=dict)
    rules: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]] = Field(default_factory=dict)
    rounds: int = Field(2, ge=1, le=8)

    @field_validator("rules")
    @classmethod
    def _patterns(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for pattern in (pattern for patterns in value.values() for pattern in patterns):
            if problem := fault(pattern):
                raise ValueError(problem)
        return value

    @field_validator("checks")
    @classmethod
    def _some(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not value:
            raise ValueError("an empty list of checks guards nothing; leave the layer out or write from-constitution")
        return value


class PromptLayer(Layer):
    """The constitution (or a text file) as the system prompt of the model below.

    budget   tokens it may take; half of the model's context where not given and the context is known. Examples are
             left out, counted, until it fits; no principle is
    """

    kind: ClassVar[str] = "prompt"
    text: str = FROM_CONSTITUTION
    budget: Positive | None = None


def _learner(kind: str) -> type[DPOLayer]:
    """A layer that learns from preferences by a method of the catalogue; on thumbs, a pair is two replies."""
    method = METHODS[kind]
    made = create_model(kind, __base__=DPOLayer, train=(method.config, method.settings({})), __doc__=method.summary)
    made.kind = kind
    return made


AnyLayer: TypeAlias = SFTLayer | DPOLayer | GuardLayer | PromptLayer
KINDS: dict[str, type[AnyLayer]] = {
    "sft": SFTLayer,
    "dpo": DPOLayer,
    "guard": GuardLayer,
    "prompt": PromptLayer,
    **{name: _learner(name) for name, m in METHODS.items() if m.data in ("pairs", "rated") and name != "dpo"},
}


# ---------------------------------------------------------------------------------------------------- plan


class Measure(Frozen):
    """What is measured after every layer.

    cases   cases per measure; more cases, narrower intervals
    audit   who is the evidence: `gold` (the apprentice's world), `rules`, or a model by name as auditing critic
    only    measure ids; all that fit the model where left out
    """

    cases: Positive = 200
    audit: str = "auto"
    only: tuple[str, ...] | None = None

    @field_validator("only")
    @classmethod
    def _some(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and not value:
            raise ValueError("an empty list measures nothing; name measures or leave `only` out")
        if value is not None and len(set(value)) != len(value):
            twice = next(v for v in value if value.count(v) > 1)
            raise ValueError(f"measure {twice!r} is named twice")
        return value


class Plan(Frozen):
    """A whole run. `constitution` may be empty: the apprentice's own (`harbour`), or `hhh` for any other model."""

    model: str = Field("apprentice", min_length=1)
    constitution: str = ""
    prompts: Prompts = Prompts()
    preferences: str | None = None
    layers: tuple[AnyLayer, ...] = Field(min_length=1)
    measure: Measure = Measure()
    seed: int = Field(0, ge=0)
    lock: dict[str, Any] | None = None  # what `stack.lock.yaml` adds; hashes to compare with, no settings

    @model_validator(mode="after")
    def _names(self) -> Plan:
        known = ["base"]
        for layer in self.layers:
            if layer.name in known:
                raise ValueError(f"two layers are called {layer.name!r}: give one of them another `name:`")
            if layer.from_ not in known:
                raise ValueError(
                    f"layer {layer.name!r} starts from {layer.from_!r}, which is no earlier layer; "
                    f"earlier: {', '.join(known)}"
                )
            known.append(layer.name)
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the report's columns: `base`, then every layer."""
        return ("base", *(layer.name for layer in self.layers))
