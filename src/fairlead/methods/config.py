"""The settings of the training methods, free of torch: plans are read, checked and costed on machines without it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Training(BaseModel):
    """How long, how large and how fast. Give `epochs` or `steps`; settings that cannot train are refused here.

    rows_per_step      rows of one optimiser step; or tokens_per_step (prompt and replies), then rows follow
    tokens_per_batch   memory: tokens of one micro-batch. It changes speed, never the result (beyond rounding)
    warmup             share of the steps over which the learning rate rises from near 0
    schedule           what the learning rate does after that: to 0 (linear, cosine) or constant
    grad_clip          largest norm of a step's gradient; None for none
    shard              under torchrun: split weights, gradients and optimiser state over the processes (FSDP2) instead
                       of keeping all on each. It changes memory and speed, never the result (beyond rounding)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: Positive | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    rows_per_step: Annotated[int, Field(ge=1)] | None = None
    tokens_per_step: Annotated[int, Field(ge=1)] | None = None
    tokens_per_batch: Annotated[int, Field(ge=1)] = 16_384
    lr: Positive = 1e-5
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.99)
    grad_clip: Positive | None = 1.0
    shard: bool = False
    seed: int = 0
    too_long: Literal["refuse", "skip", "cut"] = "refuse"

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs and steps are both given; one follows from the other")
        if self.rows_per_step is not None and self.tokens_per_step is not None:
            raise ValueError("rows_per_step and tokens_per_step are both given; one follows from the other")
        if self.lr > 1:
            raise ValueError(f"lr is {self.lr}: a learning rate above 1 cannot train a language model")
        return self


class SFTConfig(Training):
    """Supervised fine-tuning; see `Training` for the fields."""


class DPOConfig(Training):
    """Direct preference optimisation; see `Training` for the other fields.

    beta          strength of the pull to the reference (nats of reward per nat of log-ratio)
    nll           weight of the chosen reply's NLL per token; 0 for none
    identical     pairs whose two replies are the same: keep (they move nothing but the NLL), skip (counted) or refuse
    drift_alarm   raise the alarm when the chosen replies' mean log-prob falls by more than this, nats per token
    kl_samples    replies drawn after training for the KL estimate; 0 for none
    """

    beta: Positive = 0.1
    nll: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    identical: Literal["keep", "skip", "refuse"] = "skip"
    drift_alarm: Positive = 0.1
    kl_samples: Annotated[int, Field(ge=0)] = 128
