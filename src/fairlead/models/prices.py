"""What managed models cost: a small dated table, and the user's own file over it.

Prices change. A model that is not listed has an unknown price, which is said and never taken for zero; a budget in
money needs a known one. Cached prompt tokens are counted at the full price, so a cost here is an upper bound.

A price file is JSON: `{"MODEL": {"input": 2.0, "output": 10.0}}`, US dollars for a million tokens, optionally with
`"long": {"above": 272000, "input": 4.0, "output": 15.0}` for providers that charge more for long prompts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fairlead.errors import InputError

AS_OF = "2026-11"
"""The month the built-in table was compiled in, from the providers' published list prices."""


class Long(BaseModel):
    """The price of a call whose prompt has more than `above` tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    above: int = Field(gt=0)
    input: float = Field(ge=0)
    output: float = Field(ge=0)


class Price(BaseModel):
    """US dollars for a million tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    input: float = Field(ge=0)
    output: float = Field(ge=0)
    long: Long | None = None

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """US dollars of one call."""
        tier = self.long if self.long is not None and prompt_tokens > self.long.above else self
        return (prompt_tokens * tier.input + completion_tokens * tier.output) / 1e6


def _price(input: float, output: float, *, above: int = 0, times: tuple[float, float] = (2.0, 1.5)) -> Price:
    long = Long(above=above, input=input * times[0], output=output * times[1]) if above else None
    return Price(input=input, output=output, long=long)


BUILT_IN: Mapping[str, Price] = {
    "gpt-6.2-astra": _price(8.0, 40.0, above=272_000),
    "gpt-6.2-sol": _price(2.0, 10.0, above=272_000),
    "gpt-6.1-sol": _price(2.0, 10.0, above=272_000),
    "gpt-6-astra": _price(10.0, 50.0, above=272_000),
    "gpt-6-sol": _price(2.0, 10.0, above=272_000),
    "gpt-6-luna": _price(0.1, 0.5, above=272_000),
    "gpt-5.6-sol": _price(4.0, 20.0, above=272_000),
    "gpt-5.6-terra": _price(2.0, 12.0, above=272_000),
    "gpt-5.6-luna": _price(0.2, 1.2, above=272_000),
    "gpt-5.4-mini": _price(0.75, 4.5),
    "gpt-5.4-nano": _price(0.2, 1.25),
    "gpt-5-mini": _price(0.25, 2.0),
    "gpt-4.1": _price(2.0, 8.0),
    "gpt-4o": _price(2.5, 10.0),
    "gpt-4o-mini": _price(0.15, 0.6),
    "claude-fable-5-1": _price(10.0, 50.0),
    "claude-fable-5": _price(10.0, 50.0),
    "claude-opus-5-5": _price(4.0, 20.0),
    "claude-opus-5": _price(5.0, 25.0),
    "claude-opus-4-8": _price(5.0, 25.0),
    "claude-opus-4-7": _price(5.0, 25.0),
    "claude-sonnet-5-5": _price(2.0, 10.0),
    "claude-sonnet-5": _price(2.0, 10.0),
    "claude-sonnet-4-6": _price(3.0, 15.0),
    "claude-sonnet-4-5": _price(3.0, 15.0),
    "claude-haiku-5-5": _price(0.1, 0.5, above=100_000, times=(5.0, 5.0)),
    "claude-haiku-4-5": _price(1.0, 5.0),
}


def read_prices(path: Path | str) -> dict[str, Price]:
    """Prices from a user's file. Raises InputError naming the file and the entry."""
    where = Path(path)
    try:
        data = json.loads(where.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{where}: no such price file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{where}: not a JSON file ({error})") from None
    if not isinstance(data, dict):
        raise InputError(f'{where}: expected {{"MODEL": {{"input": USD, "output": USD}}}} for a million tokens')
    prices = {}
    for name, entry in data.items():
        try:
            prices[name] = Price.model_validate(entry)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(p) for p in first["loc"]) or "entry"
            raise InputError(f"{where}: price of {name!r}: {key}: {first['msg']}") from None
    return prices


def without_date(name: str) -> str:
    """`gpt-4o-2024-08-06` and `claude-haiku-4-5-20251001` without the date of the snapshot."""
    return re.sub(r"-(\d{8}|\d{4}-\d{2}-\d{2})$", "", name)


def price_of(name: str, extra: Mapping[str, Price] | None = None) -> Price | None:
    """The price of a model by name, the user's table first; a dated snapshot costs what its model costs."""
    for table in (extra or {}, BUILT_IN):
        for key in (name, without_date(name)):
            if key in table:
                return table[key]
    return None
