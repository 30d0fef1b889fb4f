"""A budget that holds: the worst case of a call is reserved before it is sent and settled after.

Several calls run at once; without reserving, each would see money that another is about to spend. A call waits while
what is in flight may still free enough, and the budget is reached when nothing is in flight and the call does not fit.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from fairlead.errors import BudgetReached, InputError
from fairlead.models.protocol import Reply


class OutOfBudget(BudgetReached):
    """`BudgetReached` with what was answered before: one entry per prompt, empty where none was asked."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.replies: Sequence[tuple[Reply, ...]] = ()


@dataclass(frozen=True, slots=True)
class Spend:
    """What calls used. `usd` is None where a price is unknown; `unsure` counts calls charged at their worst case."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float | None = 0.0
    unsure: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Spend) -> Spend:
        return Spend(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            None if self.usd is None or other.usd is None else self.usd + other.usd,
            self.unsure + other.unsure,
        )

    def __str__(self) -> str:
        cost = "price unknown" if self.usd is None else f"${self.usd:,.4f}"
        return f"{self.calls:,} calls, {self.prompt_tokens:,} + {self.completion_tokens:,} tokens, {cost}"


class Budget:
    """A hard limit in US dollars or tokens, shared by every model it is given to."""

    def __init__(self, *, usd: float | None = None, tokens: int | None = None) -> None:
        if (usd is None) == (tokens is None):
            raise InputError("a budget is either an amount of US dollars or a number of tokens")
        if (usd if usd is not None else tokens or 0) <= 0:
            raise InputError("a budget must be above zero")
        self.usd, self.tokens = usd, tokens
        self.spent = Spend()
        self._reserved: dict[int, Spend] = {}
        self._next = 0
        self._lock = threading.Lock()

    @classmethod
    def parse(cls, text: str) -> Budget:
        """`5`, `$5`, `5 USD` are dollars; `200000 tokens`, `200k tokens`, `2M tokens` are tokens."""
        match = re.fullmatch(r"\s*\$?\s*([\d_,]*\.?\d+)\s*([kKM]?)\s*(usd|tokens?|)\s*", text, re.IGNORECASE)
        if match is None or (match[2] and not match[3].lower().startswith("token")):
            raise InputError(f"budget {text!r} is not understood; write `5 USD` or `200000 tokens`")
        amount = float(match[1].replace(",", "").replace("_", "")) * {"k": 1e3, "m": 1e6}.get(match[2].lower(), 1)
        return cls(tokens=int(amount)) if match[3].lower().startswith("token") else cls(usd=amount)

    def __str__(self) -> str:
        return f"${self.usd:,.2f}" if self.usd is not None else f"{self.tokens:,} tokens"

    def _amount(self, spend: Spend) -> float:
        if self.usd is None:
            return float(spend.tokens)
        if spend.usd is None:
            raise InputError("a budget in money needs a price; give a price file or a budget in tokens")
        return spend.usd

    @property
    def limit(self) -> float:
        return self.usd if self.usd is not None else float(self.tokens or 0)

    @property
    def used(self) -> float:
        """What is spent so far, in the budget's own unit."""
        return self._amount(self.spent)

    def try_reserve(self, worst: Spend) -> int | None:
        """A ticket, or None while calls in flight may still free enough. Raises where it can never fit."""
        with self._lock:
            held = sum(self._amount(s) for s in self._reserved.values())
            need = self._amount(worst)
            if self._amount(self.spent) + held + need <= self.limit * (1 + 1e-12):
                self._next += 1
                self._reserved[self._next] = worst
                return self._next
            if self._reserved:
                return None
            raise OutOfBudget(
                f"the budget of {self} is reached: {self.spent} so far, and the next call may need "
                f"{f'${need:,.4f}' if self.usd is not None else f'{int(need):,} tokens'}. "
                "Raise --budget, or lower max_tokens."
            )

    async def reserve(self, worst: Spend) -> int:
        """A ticket for a call of at most `worst`; waits for calls in flight. Raises OutOfBudget."""
        pause = 0.001
        while (ticket := self.try_reserve(worst)) is None:
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.05)
        return ticket

    def settle(self, ticket: int, actual: Spend | None) -> None:
        """Give a reservation back and book what was used; None books the worst case (nobody knows what was billed)."""
        with self._lock:
            worst = self._reserved.pop(ticket)
            if actual is None:
                actual = Spend(1, worst.prompt_tokens, worst.completion_tokens, worst.usd, 1)
            self.spent = self.spent + actual
