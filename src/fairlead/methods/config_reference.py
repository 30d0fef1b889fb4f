"""Settings of a reference that follows the policy, for the methods that learn from fixed data. Free of torch."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

BELONGS = {
    "ema": ("reference_rate",), "bema": ("reference_lag", "reference_mean_power", "reference_bias_power"),
}  # fmt: skip


class Pace(NamedTuple):
    """How a reference follows the policy.

    every   steps between two moves
    rate    of the way to the policy that it moves, where `bias` is None
    bias    of BEMA: the lag and the powers of the mean and of the bias, rho, kappa and eta in the paper
    """

    every: int
    rate: float = 1.0
    bias: tuple[float, float, float] | None = None

    def at(self, steps: int) -> tuple[float, float]:
        """After so many steps in all: the share of the way that the mean moves to the policy (beta), and of the way
        that the policy has come from its start, what the reference is ahead of the mean (alpha)."""
        if self.bias is None:
            return self.rate, 0.0
        lag, mean, ahead = self.bias
        return (lag + steps) ** -mean, (lag + steps) ** -ahead


class MovingReference(BaseModel):
    """Trust region methods (TR-DPO, TR-IPO, TR-KTO): Gorbatovski et al. 2024, arXiv 2404.09656; with reference: bema
    Block and Zhang 2025, arXiv 2508.00180.

    reference             start: the model as it comes in, for good. reset: the policy anew, every so many steps (the
                          first paper's hard update). ema: it moves to the policy by a share of the way (soft update).
                          bema: a running mean, and ahead of it by a share of the way that the policy has come from its
                          start, which corrects the mean's lag
    reference_every       steps between two moves; where not given, 512 of reset, 1 of ema and 400 of bema
    reference_rate        of reference: ema; how far it moves at once (the first paper's alpha)
    reference_lag         of reference: bema; steps that its schedule is ahead (rho)
    reference_mean_power  of reference: bema; the mean moves by (lag + steps) to the power of minus this (kappa)
    reference_bias_power  of reference: bema; likewise the share that is added (eta)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    reference: Literal["start", "reset", "ema", "bema"] = "start"
    reference_every: Annotated[int, Field(ge=1)] | None = None
    reference_rate: Annotated[float, Field(gt=0, lt=1)] = 0.6
    reference_lag: Annotated[float, Field(ge=1)] = 10.0
    reference_mean_power: Annotated[float, Field(ge=0)] = 0.5
    reference_bias_power: Annotated[float, Field(ge=0)] = 0.2

    @property
    def reference_pace(self) -> Pace | None:
        """How the reference moves; None where it stays."""
        if self.reference == "start":
            return None
        if self.reference == "reset":
            return Pace(self.reference_every or 512)
        if self.reference == "ema":
            return Pace(self.reference_every or 1, self.reference_rate)
        bias = self.reference_lag, self.reference_mean_power, self.reference_bias_power
        return Pace(self.reference_every or 400, bias=bias)

    @model_validator(mode="after")
    def _moves(self) -> Self:
        given = self.model_fields_set
        if self.reference == "start" and self.reference_every is not None:
            raise ValueError("reference_every belongs to reference: reset, ema or bema; reference is start, and stays")
        for kind, names in BELONGS.items():
            for name in names:
                if self.reference != kind and name in given:
                    raise ValueError(f"{name} belongs to reference: {kind}; reference is {self.reference}")
        if self.reference == "start":
            return self
        if getattr(self, "reference_free", False):
            raise ValueError("reference_free leaves no reference that could move")
        if getattr(self, "shard", False):
            raise ValueError("shard leaves the reference whole: only reference: start goes with it")
        if self.reference != "reset" and getattr(self, "lora", None) is not None:
            raise ValueError(
                f"reference: {self.reference} under lora would mix the adapters' factors, and that is no mix of "
                "weights: take reference: reset"
            )
        return self
