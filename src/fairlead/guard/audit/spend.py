"""Money spent on checks and revisions, by tenant and day: reserved before a call, settled after it.

All workers of a log share one ledger, and a restart does not forget it. Amounts are kept in millionths of a dollar,
since sums of fractions would drift. A day is one of UTC.
"""

from __future__ import annotations

import math
import sqlite3
from datetime import UTC, datetime

_MILLION = 1_000_000


def today(now: float | None = None) -> str:
    """The day as the ledger writes it, such as "2026-11-26"."""
    return (datetime.now(UTC) if now is None else datetime.fromtimestamp(now, UTC)).date().isoformat()


def reserve(db: sqlite3.Connection, tenant: str, usd: float, limit_usd: float, day: str = "") -> bool:
    """Take `usd` from what the tenant may spend on that day; False, and nothing taken, where it does not fit.

    In one statement, so that two workers cannot both take the last of it. Reserve the most that a call may cost.
    """
    amount, limit = _amount(usd), math.floor(limit_usd * _MILLION)
    if amount > limit:
        return False
    taken = db.execute(
        "insert into spend values (:tenant, :day, :amount) on conflict (tenant, day) do update "
        "set usd = usd + :amount where usd + :amount <= :limit",
        {"tenant": tenant, "day": day or today(), "amount": amount, "limit": limit},
    ).rowcount
    return bool(taken)


def settle(db: sqlite3.Connection, tenant: str, reserved_usd: float, actual_usd: float, day: str = "") -> None:
    """Put what a call did cost in the place of what was reserved for it; `day` is that of the reservation."""
    change = _amount(actual_usd) - _amount(reserved_usd)
    asked = "update spend set usd = max(0, usd + ?) where tenant = ? and day = ?"
    db.execute(asked, (change, tenant, day or today()))


def spent(db: sqlite3.Connection, tenant: str, day: str = "") -> float:
    """In dollars, what is reserved included."""
    found = db.execute("select usd from spend where tenant = ? and day = ?", (tenant, day or today())).fetchone()
    return found[0] / _MILLION if found else 0.0


def _amount(usd: float) -> int:
    if not 0.0 <= usd < math.inf:
        raise ValueError(f"an amount of {usd} dollars: give 0 or more")
    return math.ceil(usd * _MILLION - 1e-6)  # up, so that many small calls are not free
