"""Models that a training asks while it runs: one at a provider costs money at every step, and has to have a bound."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fairlead.errors import InputError
from fairlead.models.budget import Budget
from fairlead.models.protocol import Model


@dataclass(frozen=True, slots=True)
class Within:
    """What all of them together may cost: `budget` None where nothing is allowed; `prices` of the user's own."""

    budget: Budget | None = None
    prices: Path | None = None

    def open(self, spec: str, option: str) -> Model:
        """The model that an option names. Raises InputError for one at a provider where no budget was given. A vLLM is
        a server of the user's own and costs nothing."""
        from fairlead.models import is_remote, open_model, read_prices

        if not is_remote(spec):
            return open_model(spec)
        if self.budget is None and not spec.lower().startswith("vllm/"):
            raise InputError(
                f"{option}{spec}: would be asked at every step, and nothing bounds what that costs; say the most with "
                "--budget ('5 USD', '2M tokens'), or name a model that runs here or on a server of yours "
                "(vllm/NAME@URL)"
            )
        return open_model(spec, budget=self.budget, prices=read_prices(self.prices) if self.prices else None)

    @property
    def spent(self) -> dict[str, Any] | None:
        """What they have cost since the program started, and the budget; None where nothing was allowed."""
        return None if self.budget is None else {**asdict(self.budget.spent), "budget": str(self.budget)}


NOTHING = Within()
