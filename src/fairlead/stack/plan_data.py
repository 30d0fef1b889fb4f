"""Data of training stages that is drawn, judged or shown: demonstrations, rejection sampling, prompts with answers.

See plan.py for the stages that learn from it. Needs no torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from fairlead.errors import InputError
from fairlead.judges.named import parsed
from fairlead.stack.plan_base import PEOPLE, Frozen, Positive, Share

OWN = "own"
GIVEN = "given"
CORPUS = "corpus"


class Rater(Frozen):
    """A simulated rater of the apprentice's world: the truth, what a careless rater likes besides, and noise.

    length, emoji, flattery, agreement   what it adds per 10 words, for emoji, for praise, for agreeing with the asker
    noise                                standard deviation of its mood; without any it would be the truth itself
    naive                                it looks at helpfulness alone: every request carried out, harmful ones too
    """

    length: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    emoji: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    flattery: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    agreement: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    noise: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    naive: bool = False

    @property
    def said(self) -> str:
        """Its biases in words, those that are 0 left out."""
        biases = {name: getattr(self, name) for name in ("length", "emoji", "flattery", "agreement", "noise")}
        told = ", ".join(f"{name} {value:g}" for name, value in biases.items() if value)
        return f"naive, {told}" if self.naive else told


class Demonstrations(Frozen):
    """Replies to imitate; a number alone is `n`.

    from    `people` (the plan's `demonstrations:` or --demonstrations; in the apprentice's world, where none are given,
            its simulated demonstrator), `own` (what the model that the stage starts from says itself to the run's
            prompts, greedily: it forgets less of what it knew), or a path
    n       how many are drawn; a file is used whole
    show    of the simulated ones: everyday (all traffic) or worked (sums and totals with their reasoning written out)
    slips   of the simulated ones: share that is not as wanted
    """

    from_: str = Field(PEOPLE, alias="from", min_length=1)
    n: Positive = 1000
    show: Literal["everyday", "worked"] = "everyday"
    slips: Share = 0.05


class Tasks(Frozen):
    """What reinforcement learning and rejection sampling ask.

    tasks     prompts that bring their right answer: `given` (those of the plan's prompts file; the apprentice's world
              without one: its sums and totals), a path, or "" for none
    n         how many are drawn where the world makes them; a file is used whole
    general   whether the run's training prompts are asked too, each beside the tasks or alone
    """

    tasks: str = ""
    n: Positive = 600
    general: bool = True

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.tasks and not self.general:
            raise ValueError("general: false without tasks leaves nothing to ask; write tasks: given")
        return self


class Term(Frozen):
    """One judge in a reward; a text alone is `[NAME=][WEIGHT*]JUDGE`.

    judge        the name of a `reward` stage, any judge as `fairlead train grpo --reward` takes it (of which
                 `critic:PRINCIPLE` is what the layer's `reader` says of a principle, in [0, 1]), or
                 `constitution[:DIMENSION]`: the lowest of what it says of each principle
    weight       of its raw score in the sum
    name         its column in the numbers; the judge's own where none is given
    calibrated   a reward model's place in [0, 1] in the place of its unbounded reward
    on           what it is asked about: all, tasks, or general prompts; on the others it gives every reply 0
    since        share of the steps after which it counts (0.75: in the last quarter alone)
    """

    judge: str = Field(min_length=1)
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    name: str = ""
    calibrated: bool = False
    on: Literal["all", "tasks", "general"] = "all"
    since: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @property
    def column(self) -> str:
        return self.name or self.judge

    @field_validator("weight")
    @classmethod
    def _says_something(cls, value: float) -> float:
        if value == 0:
            raise ValueError("a weight of 0 has no say; leave the judge out")
        return value


def term(value: Any) -> Any:
    """`[NAME=][WEIGHT*]JUDGE` as the keys it stands for; a mapping stays one."""
    if not isinstance(value, str):
        return value
    try:
        found = parsed(value)
    except InputError as error:
        raise ValueError(str(error)) from None
    name = {} if found.name == found.judge else {"name": found.name}
    return {"judge": found.judge, "weight": found.weight, **name}


def terms(value: Any) -> Any:
    """A list of terms, or one alone."""
    if isinstance(value, str | dict):
        value = [value]
    return [term(item) for item in value] if isinstance(value, list | tuple) else value


class Rejection(Frozen):
    """Rejection sampling: of several replies of another layer's model to each prompt, the best that pass.

    model         the earlier layer whose replies they are
    prompts       what it is asked: tasks, as for reinforcement learning
    judges        all of them must be passed; of those that pass, the highest sum is kept
    least         the score from which a judge is passed
    replies       drawn to each prompt
    keep          how many of a prompt's different replies are kept at most
    temperature, max_tokens   of the drawing
    """

    model: str = Field(min_length=1)
    prompts: Tasks = Tasks(tasks=GIVEN, general=False)
    judges: Annotated[tuple[Term, ...], Field(min_length=1)]
    least: Annotated[float, Field(gt=0, le=1)] = 1.0
    replies: Positive = 4
    keep: Positive = 1
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    max_tokens: Positive = 64

    _terms = field_validator("judges", mode="before")(terms)

    @model_validator(mode="after")
    def _no_schedule(self) -> Self:
        for one in self.judges:
            if one.since or one.on != "all":
                raise ValueError(f"judge {one.column!r}: since and on belong to a reward; every judge must be passed")
        return self
