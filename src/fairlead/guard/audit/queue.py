"""Exchanges that wait for a person: what the guard escalated. Functions over the table `queue` of the log's file.

An exchange is open, then claimed by somebody, then decided. What was decided also goes into the chain, so that it
cannot be changed afterwards; the exchange itself is a text, kept for a time and erased like one (texts.py).
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import orjson

from fairlead.errors import InputError
from fairlead.exchange import Exchange, from_json, to_json
from fairlead.guard.audit.entry import Entry, dumped
from fairlead.guard.audit.store import Beside

if TYPE_CHECKING:
    from fairlead.guard.audit.log import AuditLog

State: TypeAlias = Literal["open", "claimed", "decided"]
Answer: TypeAlias = Literal["kept", "broken", "cannot tell"]

WHAT = "queue"  # how its text is called among those that are kept
_SELECT = (
    "select id, time, request, tenant, verdict, constitution, principle, evidence, state, who, decision, note, decided,"
    f" (select text from texts where texts.request = queue.request and what = '{WHAT}') from queue"
)
_INSERT = (
    "insert into queue (time, request, tenant, verdict, constitution, principle, evidence) values "
    "(:time, :request, :tenant, :verdict, :constitution, :principle, :evidence) on conflict (request) do nothing"
)


@dataclass(frozen=True, slots=True)
class Waiting:
    """One escalated exchange.

    time      when it was escalated, in seconds since 1970; `decided` when somebody decided, None before
    verdict   id of the verdict that escalated it
    decision  kept, broken or cannot tell: what the person says of the principle; "" before
    exchange  None once it was erased
    """

    id: int
    time: float
    request: str
    tenant: str
    verdict: str
    constitution: str
    principle: str
    evidence: str
    state: State
    who: str
    decision: str
    note: str
    decided: float | None
    exchange: Exchange | None


def prepared(entry: Entry, item: Exchange) -> tuple[tuple[Beside, ...], str]:
    """What `AuditLog.record` writes of an escalated exchange: its row, and the text that goes with it."""
    by = next((v for v in entry.verdicts if v.id == entry.verdict), None)
    values = {
        "time": entry.time, "request": entry.request, "tenant": entry.tenant, "verdict": entry.verdict,
        "constitution": entry.constitution, "principle": entry.principle, "evidence": by.evidence if by else "",
    }  # fmt: skip
    return ((_INSERT, values),), dumped(to_json(item)).decode()


def waiting(db: sqlite3.Connection, state: State | None = "open", *, limit: int = 100, after: int = 0) -> list[Waiting]:
    """Those in a state (None: in any), oldest first, from the number behind `after` on."""
    where, values = ("and state = ?", (state,)) if state else ("", ())
    asked = f"{_SELECT} where id > ? {where} order by id limit ?"
    return [_waiting(row) for row in db.execute(asked, (after, *values, limit))]


def find(db: sqlite3.Connection, id: int) -> Waiting:
    """Raises InputError where there is none of that number."""
    row = db.execute(f"{_SELECT} where id = ?", (id,)).fetchone()
    if row is None:
        raise InputError(f"there is no exchange {id} in the queue; `fairlead guard audit queue` lists them")
    return _waiting(row)


def count(db: sqlite3.Connection) -> dict[str, int]:
    """How many are in each state."""
    return {"open": 0, "claimed": 0, "decided": 0} | dict(
        db.execute("select state, count(*) from queue group by state").fetchall()
    )


def claim(db: sqlite3.Connection, id: int, who: str) -> Waiting:
    """Take an open exchange; of two who try at once one gets it. Raises InputError where another has it."""
    _person(who)
    taken = db.execute(
        "update queue set state = 'claimed', who = :who where id = :id and state in ('open', 'claimed') "
        "and who in ('', :who)",
        {"who": who, "id": id},
    ).rowcount
    item = find(db, id)
    if not taken:
        raise InputError(f"exchange {id} is {item.state} by {item.who}")
    return item


def give_back(db: sqlite3.Connection, id: int, who: str) -> Waiting:
    """Let somebody else have it. Raises InputError where it was not claimed by `who`."""
    given = db.execute(
        "update queue set state = 'open', who = '' where id = ? and state = 'claimed' and who = ?", (id, who)
    ).rowcount
    item = find(db, id)
    if not given:
        raise InputError(f"exchange {id} is {item.state}, not claimed by {who}")
    return item


def decide(db: sqlite3.Connection, log: AuditLog, id: int, who: str, decision: Answer, note: str = "") -> Waiting:
    """Say what is right, once and for all, in the table and in the chain. Raises InputError where another has claimed
    it or it is decided."""
    _person(who)
    if decision not in get_args(Answer):
        raise InputError(f"{decision!r} is no decision: say {', '.join(get_args(Answer))}")
    item = claim(db, id, who)
    done = (
        "update queue set state = 'decided', decision = :decision, note = :note, decided = :time where id = :id",
        {"decision": decision, "note": note, "time": time.time(), "id": id},
    )
    log.note("human", [done], request=item.request, verdict=item.verdict, principle=item.principle, who=who,
             decision=decision, note=note)  # fmt: skip
    log.flush()
    return find(db, id)


def _person(who: str) -> None:
    if not who.strip():
        raise InputError("say who decides: a decision without a name is none")


def _waiting(row: Sequence[Any]) -> Waiting:
    item = None if row[-1] is None else from_json(Exchange, orjson.loads(row[-1]))
    fields: list[Any] = [*row[:-1], item]
    return Waiting(*fields)
