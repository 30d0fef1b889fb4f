"""What a job costs before it is submitted: tokens of all epochs by a dated price list, which the user's file overrides.

    tokens billed = epochs x tokens of the file (https://docs.together.ai/docs/fine-tuning/pricing)

A price file is JSON, US dollars for a million tokens: `{"MODEL": {"sft": 0.48, "dpo": 1.20, "minimum": 4.0}}`. A model
whose price is not known has none, which is said and never taken for zero; the provider's own quote decides in the end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fairlead.errors import InputError

AS_OF = "2026-07"
"""The month of Together's list prices below (https://www.together.ai/pricing#fine-tuning)."""


class TrainingPrice(BaseModel):
    """US dollars for a million tokens, and for the smallest job."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    sft: float = Field(ge=0)
    dpo: float = Field(ge=0)
    minimum: float = Field(0.0, ge=0)

    def cost(self, method: Literal["sft", "dpo"], tokens: int) -> float:
        """US dollars of a job over so many tokens, epochs counted in."""
        return max(self.minimum, tokens * (self.dpo if method == "dpo" else self.sft) / 1e6)


# The provider's pages disagree on a smallest charge: its price list has $4 a job, its documentation none. An estimate
# that a budget is held against takes the higher.
_MINIMUM = 4.0
_ADAPTERS: tuple[tuple[float, float, float], ...] = ((16, 0.48, 1.20), (69, 1.50, 3.75), (100, 2.90, 7.25))
_FULL: tuple[tuple[float, float, float], ...] = ((16, 0.54, 1.35), (69, 1.65, 4.12), (100, 3.20, 8.00))
"""Up to so many billion parameters: sft, dpo. Larger models, and some others, have prices of their own."""

_SIZE = re.compile(r"(?:(\d+)x)?(\d+(?:\.\d+)?)b(?![a-z0-9])", re.IGNORECASE)


def billions(model: str) -> float | None:
    """How many billion parameters a model has by its name: the largest number before a B (`235B-A22B`, `8x7B`)."""
    found = [float(size) * int(times or 1) for times, size in _SIZE.findall(model.rpartition("/")[2])]
    return max(found, default=None)


def price_of(model: str, *, full: bool, extra: Mapping[str, TrainingPrice] | None = None) -> TrainingPrice | None:
    """The price of training a model: the user's, or the list's by its size; None where neither knows it."""
    if extra and model in extra:
        return extra[model]
    size = billions(model)
    if size is None:
        return None
    for most, sft, dpo in _FULL if full else _ADAPTERS:
        if size <= most:
            return TrainingPrice(sft=sft, dpo=dpo, minimum=_MINIMUM)
    return None


def read_training_prices(path: Path) -> dict[str, TrainingPrice]:
    """Prices from a user's file. Raises InputError naming the file and the entry."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such price file") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a JSON file ({error})") from None
    if not isinstance(data, dict):
        raise InputError(f'{path}: expected {{"MODEL": {{"sft": USD, "dpo": USD}}}} for a million tokens')
    prices = {}
    for name, entry in data.items():
        try:
            prices[name] = TrainingPrice.model_validate(entry)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"]) or "entry"
            raise InputError(f"{path}: price of training {name!r}: {key}: {first['msg']}") from None
    return prices
