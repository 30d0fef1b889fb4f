"""The layers of reinforcement learning, one for each algorithm of methods/config_policy.py. Needs no torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, create_model, field_validator, model_validator

from fairlead.methods.config_policy import ALGORITHMS, PolicyConfig
from fairlead.stack.plan_base import Layer
from fairlead.stack.plan_data import CORPUS, Tasks, Term, terms

CRITICS = ("ppo", "safe-ppo")


class PolicyLayer(Layer):
    """Reinforcement learning from judges, by the algorithm that the kind names.

    reward        what is raised: judges with weights, see `Term`
    cost          what is held under `cost_budget` (safe RLHF), written the same way; a `constitution` judge costs what
                  it holds to be broken
    critic        the `reward` stage that the value function starts from (ppo and safe-ppo)
    reader        who reads the principles for a `constitution` judge: `base`, `self`, or any model by name
    prompts       what is asked, see `Tasks`
    pretraining   what is imitated beside, with the weight `ptx`: `corpus` (what the apprentice was raised on; for other
                  models the plan's demonstrations), or a path to conversations
    """

    kind: ClassVar[str] = "grpo"
    trains: ClassVar[bool] = True
    reward: Annotated[tuple[Term, ...], Field(min_length=1)]
    cost: tuple[Term, ...] = ()
    critic: str = ""
    reader: str = Field("base", min_length=1)
    prompts: Tasks = Tasks()
    pretraining: str = Field(CORPUS, min_length=1)
    train: PolicyConfig = PolicyConfig()

    _terms = field_validator("reward", "cost", mode="before")(terms)

    @property
    def judges(self) -> tuple[Term, ...]:
        return (*self.reward, *self.cost)

    @model_validator(mode="after")
    def _together(self) -> Self:
        names = [one.column for one in self.judges]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two judges are called {twice!r}: give one of them a `name:`")
        if bool(self.cost) != (self.train.cost_budget is not None):
            raise ValueError(
                "cost: give the budget it is held under (cost_budget)" if self.cost
                else "cost_budget: give what is held under it (cost)"
            )  # fmt: skip
        for role, given in (("reward", self.reward), ("cost", self.cost)):
            if given and all(one.since for one in given):
                raise ValueError(f"{role}: none counts from the first step on; give one without `since`")
        for one in self.judges:
            if one.on == "tasks" and not self.prompts.tasks:
                raise ValueError(f"judge {one.column!r} is asked about tasks, and prompts: has none (tasks: given)")
            if one.on == "general" and not self.prompts.general:
                raise ValueError(f"judge {one.column!r} is asked about general prompts, and prompts: has none")
        if self.critic and self.train.advantage != "gae":
            raise ValueError(f"critic: advantage {self.train.advantage} reads no values; {' and '.join(CRITICS)} do")
        return self


def _policy(kind: str) -> type[PolicyLayer]:
    algorithm = ALGORITHMS[kind]
    made = create_model(kind, __base__=PolicyLayer, train=(PolicyConfig, ...), __doc__=algorithm.summary)
    made.kind = kind
    return made


POLICIES: dict[str, type[PolicyLayer]] = {name: _policy(name) for name in ALGORITHMS}
