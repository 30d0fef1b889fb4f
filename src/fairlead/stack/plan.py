"""The plan of a run: which model, which constitution, which layers in which order, and how they are measured.

Frozen pydantic models. Unknown keys are errors with file and line, settings that cannot work are refused when the
plan is read. The fields of a training stage are its data (here) and its optimisation (the method's own config).
Needs no torch.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, create_model, field_validator, model_validator

from fairlead.guard.checks.rules import fault
from fairlead.methods.ai_labels import REASONED
from fairlead.methods.ai_preferences import PreferenceConfig
from fairlead.methods.catalogue import METHODS
from fairlead.methods.config import DPOConfig, SFTConfig
from fairlead.methods.config_reward import RewardConfig
from fairlead.methods.constitutional import ReviseConfig
from fairlead.stack.plan_base import Frozen, Layer, Positive, without_seed
from fairlead.stack.plan_data import Demonstrations, Rater, Rejection
from fairlead.stack.plan_rl import POLICIES, PolicyLayer

FROM_CONSTITUTION = "from-constitution"


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
    audit    who reads every round besides, from the audit side: `auto` (the truth of the apprentice's world, nobody
             elsewhere), `none`, or any model by name, which shares nothing with the critic; it never changes the data
    helpful  own samples on ordinary prompts mixed in as they are, so many for each prompt that is revised; the
             apprentice's world has such prompts, others need `helpful_prompts`, a file
    and the fields of `ReviseConfig`; every round is kept in the run folder
    """

    critic: str = Field("self", min_length=1)
    audit: str = Field("auto", min_length=1)
    helpful: Annotated[float, Field(ge=0, le=10)] = 0.0
    helpful_prompts: str = ""

    @model_validator(mode="after")
    def _one_seed(self) -> Self:
        if self.helpful_prompts and not self.helpful:
            raise ValueError("helpful_prompts is given, but helpful is 0: say how many samples for each revised prompt")
        return without_seed(self)


SOURCES = ("revise", "file", "gold", "demonstrations", "rejection")


class SFTData(Frozen):
    """Exactly one of

    revise           no labels: the model's own replies, criticised and revised
    file             conversations, or the chosen side of preferences; `given`: the plan's `preferences:` or
                     --preferences
    gold             the world's truth (--oracle)
    demonstrations   of people, see `Demonstrations`
    rejection        what a later model said and verifiers passed, see `Rejection`; `general` is mixed in with it
    """

    revise: Revise | None = None
    file: str | None = None
    gold: Literal[True] | None = None
    demonstrations: Demonstrations | None = None
    rejection: Rejection | None = None
    general: Demonstrations | None = None

    @model_validator(mode="after")
    def _one(self) -> SFTData:
        given = [name for name in SOURCES if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(SOURCES)}; given: {', '.join(given) or 'none'}")
        if self.general is not None and self.rejection is None:
            raise ValueError(f"general is mixed in with rejection; {given[0]} stands alone")
        return self

    @field_validator("revise", mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {} if value is None or value is True else value

    @field_validator("demonstrations", "general", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        return {"n": value} if isinstance(value, int) and not isinstance(value, bool) else value


class Preferences(PreferenceConfig):
    """Where preference pairs come from, and how AI feedback makes them (the fields of `PreferenceConfig`).

    from         `ai` (replies of the model, compared by a critic), `gold` (compared by the world's truth, needs
                 --oracle), `given` (the plan's `preferences:` or --preferences), `rater` (a simulated one of the
                 apprentice's world puts `replies` of the model in order), `people` (given, or else rater), or a path
    rater        the biases of a simulated rater
    critic       `self` (the model this stage trains), `base`, or any model by name
    both_orders  every pair is shown in both orders and the readings averaged; one order would teach position bias
    compare      `template` shows both replies at once, `pointwise` compares two separate judgements, `reasoned` lets
                 the critic think aloud before it chooses; where `clamp` is silent, [0.4, 0.6] (write [0, 1] for none)
    reason_tokens, samples   room for these thoughts; answers counted per question where the critic has no log-probs
    held_out     share of a file's prompts kept out of training, to measure preference accuracy on
    """

    from_: str = Field("ai", alias="from", min_length=1)
    critic: str = Field("self", min_length=1)
    both_orders: bool = True
    compare: Literal["template", "pointwise", "reasoned"] = "template"
    reason_tokens: Positive = 256
    samples: Positive = 5
    held_out: float = Field(0.1, gt=0.0, lt=1.0)
    rater: Rater = Rater()

    @model_validator(mode="before")
    @classmethod
    def _sure_of_itself(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("compare") == "reasoned" and value.get("clamp") is None:
            return {**value, "clamp": REASONED}
        return value

    @model_validator(mode="after")
    def _both(self) -> Self:
        if self.draw == "whole" and self.compare == "reasoned":
            raise ValueError("draw: whole judges each reply by itself, so there is nothing to reason about in pairs")
        if not self.both_orders:
            raise ValueError(
                "both_orders: false is not offered: a critic's habit of preferring a side would be the label"
            )
        return without_seed(self)


# -------------------------------------------------------------------------------------------------- layers


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


class RewardLayer(Layer):
    """A reward model from comparisons, and what every other method that makes a judge stands on.

    It starts from the weights of the stage it names (`from`), and where replies must be drawn, they are that model's.
    It makes a reward for the stages after it and answers nothing: no layer of its own, and no column.
    """

    kind: ClassVar[str] = "reward"
    trains: ClassVar[bool] = True
    makes: ClassVar[str] = "reward"
    preferences: Preferences = Preferences()
    train: RewardConfig = RewardConfig()


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


class FinetuneLayer(Layer):
    """Fine-tuning at a provider, of a model whose weights are not here. What comes out is a managed model again.

    method        sft or dpo
    data          a file (conversations or preference pairs), or `given`: the plan's `preferences:` or --preferences
    provider      who trains; the model below must be theirs
    endpoint      the name under which the tuned model is served, where that is not its own name
    epochs        whole passes over the data
    lr, rank      learning rate and rank of the adapters; the provider's own where left out
    full          train all weights, not adapters
    beta          of dpo
    min_strength  pairs of a lower strength are left out; ties always are
    prices        a file with your prices of training (docs/managed.md)
    """

    kind: ClassVar[str] = "finetune"
    method: Literal["sft", "dpo"] = "dpo"
    data: str = Field("given", min_length=1)
    provider: Literal["together"] = "together"
    endpoint: str = ""
    epochs: Positive = 1
    lr: Annotated[float, Field(gt=0, le=1)] | None = None
    rank: Positive | None = None
    full: bool = False
    beta: Annotated[float, Field(gt=0)] | None = None
    min_strength: float = Field(0.5, ge=0.5, le=1.0)
    prices: str | None = None

    @model_validator(mode="after")
    def _of_its_method(self) -> Self:
        if self.method == "sft" and self.beta is not None:
            raise ValueError("beta belongs to method: dpo")
        if self.full and self.rank is not None:
            raise ValueError("full trains all weights, and rank is of adapters: take one")
        return self


def _learner(kind: str) -> type[DPOLayer]:
    """A layer that learns from preferences by a method of the catalogue; on thumbs, a pair is two replies."""
    method = METHODS[kind]
    made = create_model(kind, __base__=DPOLayer, train=(method.config, method.settings({})), __doc__=method.summary)
    made.kind = kind
    return made


def _rewarder(kind: str) -> type[RewardLayer]:
    method = METHODS[kind]
    made = create_model(kind, __base__=RewardLayer, train=(method.config, method.settings({})), __doc__=method.summary)
    made.kind = kind
    return made


AnyLayer: TypeAlias = SFTLayer | DPOLayer | RewardLayer | PolicyLayer | GuardLayer | PromptLayer | FinetuneLayer
KINDS: dict[str, type[AnyLayer]] = {
    "sft": SFTLayer,
    "dpo": DPOLayer,
    "guard": GuardLayer,
    "prompt": PromptLayer,
    "finetune": FinetuneLayer,
    **{name: _learner(name) for name, m in METHODS.items() if m.data in ("pairs", "rated") and name != "dpo"},
    **{name: _rewarder(name) for name, m in METHODS.items() if m.data == "comparisons"},
    **POLICIES,
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
    """A whole run. `constitution` may be empty: the apprentice's own (`harbour`), or `hhh` for any other model.

    preferences, demonstrations   files of people's labels, for the stages that learn from `given` or `people`
    layers                        the stages in order: layers, and rewards between them
    """

    model: str = Field("apprentice", min_length=1)
    constitution: str = ""
    prompts: Prompts = Prompts()
    preferences: str | None = None
    demonstrations: str | None = None
    layers: tuple[AnyLayer, ...] = Field(min_length=1)
    measure: Measure = Measure()
    seed: int = Field(0, ge=0)
    lock: dict[str, Any] | None = None  # what `stack.lock.yaml` adds; hashes to compare with, no settings

    @model_validator(mode="after")
    def _names(self) -> Plan:
        known: list[str] = ["base"]
        rewards: list[str] = []
        for layer in self.layers:
            if layer.name in (*known, *rewards):
                raise ValueError(f"two layers are called {layer.name!r}: give one of them another `name:`")
            if layer.from_ not in known:
                what = "is a reward, and no model" if layer.from_ in rewards else "is no earlier layer"
                raise ValueError(
                    f"layer {layer.name!r} starts from {layer.from_!r}, which {what}; earlier: {', '.join(known)}"
                )
            for problem in _misnamed(layer, known, rewards):
                raise ValueError(f"layer {layer.name!r}: {problem}")
            (rewards if layer.makes == "reward" else known).append(layer.name)
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the report's columns: `base`, then every layer."""
        return ("base", *(layer.name for layer in self.layers if layer.makes == "model"))


def _misnamed(layer: AnyLayer, known: list[str], rewards: list[str]) -> list[str]:
    """What a stage names that is not there yet."""
    found = []
    if isinstance(layer, PolicyLayer) and layer.critic and layer.critic not in rewards:
        found.append(f"critic: {layer.critic!r} is no earlier reward stage; earlier: {', '.join(rewards) or 'none'}")
    rejection = layer.data.rejection if isinstance(layer, SFTLayer) else None
    if rejection is not None and rejection.model not in known:
        found.append(f"rejection: model {rejection.model!r} is no earlier layer; earlier: {', '.join(known)}")
    return found
