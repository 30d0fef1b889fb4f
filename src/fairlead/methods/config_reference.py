"""Settings of a reference that follows the policy, for the methods that learn from fixed data. Free of torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class MovingReference(BaseModel):
    """Trust region methods (TR-DPO, TR-IPO, TR-KTO): Gorbatovski et al. 2024, arXiv 2404.09656.

    reference        start: the model as it comes in, for good. reset: the policy anew, every so many steps (the paper's
                     hard update). ema: it moves to the policy by a share of the way (soft update)
    reference_every  steps between two moves; where not given, 512 of reset and 1 of ema
    reference_rate   of reference: ema; how far it moves at once (the paper's alpha)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    reference: Literal["start", "reset", "ema"] = "start"
    reference_every: Annotated[int, Field(ge=1)] | None = None
    reference_rate: Annotated[float, Field(gt=0, lt=1)] = 0.6

    @property
    def reference_pace(self) -> tuple[int, float] | None:
        """After how many steps the reference moves, and how much of the way to the policy; None where it stays."""
        if self.reference == "start":
            return None
        if self.reference == "reset":
            return self.reference_every or 512, 1.0
        return self.reference_every or 1, self.reference_rate

    @model_validator(mode="after")
    def _moves(self) -> Self:
        given = self.model_fields_set
        if self.reference == "start" and self.reference_every is not None:
            raise ValueError("reference_every belongs to reference: reset or ema; reference is start, and stays")
        if self.reference != "ema" and "reference_rate" in given:
            raise ValueError(f"reference_rate belongs to reference: ema; reference is {self.reference}")
        if self.reference == "start":
            return self
        if getattr(self, "reference_free", False):
            raise ValueError("reference_free leaves no reference that could move")
        if getattr(self, "shard", False):
            raise ValueError("shard leaves the reference whole: only reference: start goes with it")
        if self.reference == "ema" and getattr(self, "lora", None) is not None:
            raise ValueError(
                "reference: ema under lora would mix the adapters' factors, and that is no mix of weights: take "
                "reference: reset"
            )
        return self
