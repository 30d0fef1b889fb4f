"""Taking old records away. The chain then begins at a mark that says where, sealed with the key; what was taken can
go on in a log of its own, which verifies with the same key."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path
from typing import Any

import orjson

from fairlead.errors import InputError
from fairlead.guard.audit.chain import anchor_seal, place, row_number
from fairlead.guard.audit.entry import policy_digest
from fairlead.guard.audit.log import AuditLog
from fairlead.guard.audit.store import Beside, connect
from fairlead.guard.audit.texts import scrub


def prune(db: sqlite3.Connection, log: AuditLog, before: float, to: Path | None = None) -> int:
    """Take away, or move into a new log at `to`, the records of each chain up to the first that is not older than
    `before` (seconds since 1970); how many. That it was done goes on record.

    Texts kept beside them go with them, and what people decided before that time goes from the queue. The last record
    of a chain stays, whatever its age. Raises InputError where `to` is there already: each part is a log of its own.
    """
    if to is not None and to.exists():
        raise InputError(f"{to}: is there already; name a new file for the old records")
    log.flush()
    cuts = {chain: cut for chain in _chains(db) if (cut := _cut(db, chain, before)) is not None}
    if not cuts:
        return 0
    if to is not None:
        _copy(db, to, cuts)
    at, count = time.time(), 0
    beside: list[Beside] = []
    for chain, (low, high) in cuts.items():
        ends: dict[str, Any] = {"low": low, "high": high}
        count += db.execute("select count(*) from records where row between :low and :high", ends).fetchone()[0]
        code = db.execute("select code from records where row = :high", ends).fetchone()[0]
        mark: dict[str, Any] = {"chain": chain, "seq": place(high)[1], "code": code, "at": at}
        mark["policies"] = _policies(db, chain, low, high)
        mark["seal"] = anchor_seal(log.keys, chain, mark["seq"], code, at, mark["policies"].encode())
        beside += [
            ("delete from records where row between :low and :high", ends),
            ("delete from texts where row between :low and :high", ends),
            ("insert or replace into anchors values (:chain, :seq, :code, :at, :policies, :seal)", mark),
        ]
    beside.append(("delete from queue where state = 'decided' and decided < :before", {"before": before}))
    up_to = {str(chain): place(high)[1] for chain, (_, high) in cuts.items()}
    log.note("pruned", beside, count=count, up_to=up_to, to=to.name if to else "")
    log.flush()
    scrub(db)
    return count


def _chains(db: sqlite3.Connection) -> list[int]:
    found, row = [], 0
    while first := db.execute("select row from records where row >= ? order by row limit 1", (row,)).fetchone():
        found.append(place(first[0])[0])
        row = row_number(found[-1] + 1, 0)
    return found


def _cut(db: sqlite3.Connection, chain: int, before: float) -> tuple[int, int] | None:
    """First and last row that go; None where none does. By halving: records stand in the order of time, nearly."""
    ends = "select min(row), max(row) from records where row between ? and ?"
    first, last = db.execute(ends, (row_number(chain, 0), row_number(chain + 1, 0) - 1)).fetchone()
    low, high = first, last  # the first row that stays lies in [low, high]
    while low < high:
        middle = (low + high) // 2
        if _time(db, middle) < before:
            low = middle + 1
        else:
            high = middle
    return (first, low - 1) if low > first else None


def _policies(db: sqlite3.Connection, chain: int, low: int, high: int) -> str:
    """What had to pass, as the records that go say, newest last: what stays is still held against it."""
    begun = db.execute("select policies from anchors where chain = ?", (chain,)).fetchone()
    found = orjson.loads(begun[0]) if begun else []
    asked = "select body from records where row between ? and ? and instr(body, ?) order by row"
    for (body,) in db.execute(asked, (low, high, '"kind":"policy"')):
        fields = orjson.loads(body)
        if fields["kind"] == "policy":
            found = [old for old in found if _named(old) != _named(fields)] + [fields]
    return orjson.dumps(found).decode()


def _named(policy: dict[str, Any]) -> tuple[str, str, str]:
    """What exchanges know a policy by: a request that began under an older one may stay."""
    return policy["constitution"], policy["classifier"], policy_digest(policy["required"])


def _time(db: sqlite3.Connection, row: int) -> float:
    found = db.execute("select body from records where row = ?", (row,)).fetchone()
    if found is None:
        chain, seq = place(row)
        raise InputError(f"record {seq} of chain {chain} is missing; look with `fairlead guard audit verify` first")
    return float(orjson.loads(found[0])["time"])


def _copy(db: sqlite3.Connection, to: Path, cuts: dict[int, tuple[int, int]]) -> None:
    """The log's name, its records and anchors so far: the same log, ending earlier."""
    with contextlib.closing(connect(to, make=True)) as new:
        new.execute("pragma synchronous = full")
        new.execute("attach database ? as old", (_file(db),))
        new.execute("begin immediate")
        new.execute("insert into log select * from old.log")
        for chain, (low, high) in cuts.items():
            for table in ("records", "texts"):
                new.execute(f"insert into {table} select * from old.{table} where row between ? and ?", (low, high))
            new.execute("insert into anchors select * from old.anchors where chain = ?", (chain,))
        new.execute("commit")
        new.execute("detach database old")


def _file(db: sqlite3.Connection) -> str:
    return str(db.execute("pragma database_list").fetchone()[2])
