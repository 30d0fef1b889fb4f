"""What a tenant may spend on critics and revisions in a day, in the ledger of the audit log (audit/spend.py).

All workers of a log share it and a restart does not forget it. A model reserves the worst case of a call before it is
sent, so that what is in the ledger is never less than what was spent.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from fairlead.guard.audit import spend, store
from fairlead.models.budget import Budget, OutOfBudget, Spend


class Purse(Budget):
    """The dollars of one tenant and day (UTC), as the budget of a model. Raises `OutOfBudget` where a call may cost
    more than is left; waits while calls of this process may still give back enough."""

    def __init__(self, usd: float, tenant: str, log: Path) -> None:
        super().__init__(usd=usd)
        self.tenant, self.log = tenant, log
        self._db: sqlite3.Connection | None = None  # opened at the first call: the log is made after the setup
        self._days: dict[int, str] = {}

    def __str__(self) -> str:
        return f"{super().__str__()} a day"

    def try_reserve(self, worst: Spend) -> int | None:
        with self._lock:
            if self._db is None:
                self._db = store.connect(self.log)
            day, need = spend.today(), self._amount(worst)
            if spend.reserve(self._db, self.tenant, need, self.limit, day):
                self._next += 1
                self._reserved[self._next], self._days[self._next] = worst, day
                return self._next
            if self._reserved and need <= self.limit:
                return None
            raise OutOfBudget(f"the budget of {self} is used up: the next call of {self.tenant} may need ${need:,.4f}")

    def settle(self, ticket: int, actual: Spend | None) -> None:
        worst = self._reserved[ticket]
        super().settle(ticket, actual)
        cost = worst if actual is None else actual
        with self._lock:
            assert self._db is not None
            spend.settle(self._db, self.tenant, self._amount(worst), self._amount(cost), self._days.pop(ticket))


def purse(text: str, tenant: str, log: Path | None) -> Budget:
    """The budget that `text` names. Dollars stand in the log where one is kept; tokens, and dollars without a log, are
    counted by each worker since it started."""
    budget = Budget.parse(text)
    return budget if budget.usd is None or log is None else Purse(budget.usd, tenant, log)
