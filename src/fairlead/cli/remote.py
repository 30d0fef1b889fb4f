"""Models that a small command asks: opened by name, and, where they cost money, only within what was agreed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fairlead.cli.terminal import Terminal
    from fairlead.models import Budget, Model
    from fairlead.models.remote import Estimate


def opened(
    specs: Sequence[str | None], budget: str | None, prices: Path | None
) -> tuple[list[Model | None], Budget | None]:
    """The models of these names, each opened once, under one budget; None for a name that was not given."""
    from fairlead.models import Budget, is_remote, open_model, read_prices

    limit = Budget.parse(budget) if budget else None
    known: dict[str, Model] = {}
    for spec in specs:
        if spec is not None and spec not in known:
            remote = is_remote(spec)
            known[spec] = (
                open_model(spec, budget=limit, prices=read_prices(prices) if prices else None)
                if remote
                else open_model(spec)
            )
    return [None if spec is None else known[spec] for spec in specs], limit


def agree(cost: Estimate, budget: Budget | None, terminal: Terminal) -> None:
    """Say what remote models will be asked, and go on only within a budget or with a person's yes."""
    from fairlead.stack.estimate import go_on

    if cost.calls == 0:
        return
    terminal.say(f"remote: {cost}{f'; budget {budget}' if budget else ''}")
    go_on(budget, terminal.confirm)
