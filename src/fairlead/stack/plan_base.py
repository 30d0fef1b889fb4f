"""What every part of a plan is made of: frozen models that refuse unknown keys, and the stage that all others are."""

from __future__ import annotations

from typing import Annotated, ClassVar, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Positive: TypeAlias = Annotated[int, Field(ge=1)]
Share: TypeAlias = Annotated[float, Field(gt=0, lt=1)]
M = TypeVar("M", bound=BaseModel)

PEOPLE = "people"
"""Labels of people: the file that was given; in the apprentice's world, where none was, a simulated rater's."""


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


def without_seed(config: M) -> M:
    if "seed" in config.model_fields_set:
        raise ValueError("unknown key 'seed': one seed stands at the top of the plan")
    return config


class Layer(Frozen):
    """What every stage has: its kind, its name, and the stage it starts from.

    A stage that makes a model is a layer: its name is a column of the report. One that makes a reward is none.
    """

    kind: ClassVar[str]
    trains: ClassVar[bool] = False
    makes: ClassVar[str] = "model"  # or reward
    name: str = Field("", pattern=r"^[a-z0-9][a-z0-9_.-]{0,39}$|^$")
    from_: str = Field("", alias="from")
