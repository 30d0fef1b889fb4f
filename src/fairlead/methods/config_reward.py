"""Settings of reward models: one, several, averaged, and of steps."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fairlead.methods.config import NotNegative, Training


class RewardConfig(Training):
    """A reward model from pairs and rankings; see `Training` for the other fields.

    margin        weight of the pairs' own margins in the loss; pairs without one have 0
    centre        weight of (r_chosen + r_rejected)^2, which keeps rewards around 0; 0 for none
    length        weight of the squared correlation of reward and reply length within prompts; 0 for none
    head_seed     numbers the head starts from. Reward models that are to be averaged (WARM) start from the same ones
    """

    margin: NotNegative = 1.0
    centre: NotNegative = 0.01
    length: NotNegative = 0.0
    head_seed: int = 0

    @property
    def rows_alike(self) -> bool:
        return not self.margin


class RewardEnsembleConfig(RewardConfig):
    """Several reward models as one judge (Coste et al. 2023, arXiv 2310.02743); see `RewardConfig` for other fields.

    They see the rows in other orders and their heads start from other numbers: member k, from 0, is the reward model of
    seed members x seed + k and head_seed members x head_seed + k, so that ensembles of two seeds share none.

    members   how many reward models are trained
    combine   mean of the members' standardised rewards, worst (the lowest), or uncertainty (mean less variance)
    penalty   of combine: uncertainty; what a unit of variance takes off (the paper: 0.5 in best-of-n, 0.1 in PPO)
    """

    members: Annotated[int, Field(ge=2, le=64)] = 4
    combine: Literal["mean", "worst", "uncertainty"] = "mean"
    penalty: NotNegative = 0.5

    @model_validator(mode="after")
    def _of_its_join(self) -> Self:
        if "penalty" in self.model_fields_set and self.combine != "uncertainty":
            raise ValueError(f"penalty belongs to combine: uncertainty; combine is {self.combine}")
        return self


class WarmConfig(RewardConfig):
    """One reward model of averaged weights (Ramé et al. 2024, arXiv 2401.12187); see `RewardConfig` for other fields.

    All members start from one head and see the rows in other orders: member k, from 0, is the reward model of seed
    members x seed + k.

    members   how many reward models are trained and averaged
    """

    members: Annotated[int, Field(ge=2, le=64)] = 4


class ProcessConfig(Training):
    """A process reward model from labelled steps; see `Training` for the other fields.

    separator    what stands between two steps of a reply
    whole        how the steps' probabilities make a reply's: their product (every step right) or their minimum
    head_seed    numbers the head starts from
    """

    separator: Annotated[str, Field(min_length=1)] = "\n"
    whole: Literal["product", "minimum"] = "product"
    head_seed: int = 0
