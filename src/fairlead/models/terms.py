"""On which terms a remote model is called: money, limits, memory, and what is known of what it can do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fairlead.models.budget import Budget
from fairlead.models.cache import ResponseCache
from fairlead.models.capabilities import RECORDS
from fairlead.models.prices import Price, price_of
from fairlead.models.remote import Endpoint, Limits, RemoteModel


@dataclass(frozen=True, slots=True)
class Terms:
    """What `open_model` was given for a remote model.

    records    where `fairlead doctor --live` keeps what it found out about models; None looks nowhere
    """

    budget: Budget | None = None
    limits: Limits | None = None
    prices: Mapping[str, Price] | None = None
    cache: ResponseCache | None = None
    records: Path | None = RECORDS

    def price(self, model: str, *, listed: bool) -> Price | None:
        """The price of a model; only at its provider's own address (`listed`) has it the provider's list price."""
        return price_of(model, self.prices) if listed else (self.prices or {}).get(model)

    def model(self, name: str, endpoint: Endpoint, *, lineage: str, url: str, price: Price | None) -> RemoteModel:
        """The model behind an endpoint, on these terms."""
        return RemoteModel(
            name, endpoint, lineage=lineage, url=url, price=price, budget=self.budget, limits=self.limits,
            cache=self.cache,
        )  # fmt: skip
