"""Texts, kept for a time beside the chain. The chain holds a salted digest of each; the salt lies with the text.

Erasing takes text and salt away: the chain stays whole, and the digest that is left says nothing about the text, not
even to who guesses it. What is erased before its time leaves a record in the chain that says who did it and why.
"""

from __future__ import annotations

import hmac
import os
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from fairlead.guard.audit.entry import Entry
from fairlead.guard.audit.store import BUSY_S, Beside

if TYPE_CHECKING:
    from fairlead.guard.audit.log import AuditLog

Said: TypeAlias = tuple[str, str, float]  # what it is, the text, seconds to keep it
_AT_ONCE = 500
_INSERT = "insert into texts values (:row, :n, :request, :tenant, :what, :salt, :until, :text)"


def prepared(entry: Entry, said: Sequence[Said]) -> tuple[tuple[Beside, ...], list[list[object]]]:
    """What to put into the side table, and what the chain holds of it: [what, digest, until] of each text."""
    rows: list[Beside] = []
    digests: list[list[object]] = []
    for n, (what, text, keep_s) in enumerate(said):
        salt, until = os.urandom(16), round(entry.time + keep_s, 3)
        clean = text.encode("utf-8", "backslashreplace").decode()
        values = {"n": n, "request": entry.request, "tenant": entry.tenant, "what": what, "salt": salt,
                  "until": until, "text": clean}  # fmt: skip
        rows.append((_INSERT, values))
        digests.append([what, digest(salt, clean.encode()), until])
    return tuple(rows), digests


def digest(salt: bytes, text: bytes) -> str:
    return hmac.digest(salt, text, "sha256")[:16].hex()


@dataclass(frozen=True, slots=True)
class Kept:
    """One kept text. `row` is the number of its record (chain.place), `until` in seconds since 1970."""

    row: int
    n: int
    what: str
    until: float
    text: str


def kept(db: sqlite3.Connection, request: str) -> list[Kept]:
    """The texts that are kept of one request."""
    asked = "select row, n, what, until, text from texts where request = ? order by row, n"
    return [Kept(*row) for row in db.execute(asked, (request,))]


def expire(db: sqlite3.Connection, now: float) -> int:
    """Erase texts whose time is over; how many. `scrub` has to follow."""
    gone = 0
    while True:
        count = db.execute(
            "delete from texts where (row, n) in (select row, n from texts where until < ? limit ?)", (now, _AT_ONCE)
        ).rowcount
        gone += count
        if count < _AT_ONCE:
            break
    return gone


def erase(
    db: sqlite3.Connection, log: AuditLog, *, requests: Sequence[str] = (), tenant: str = "", who: str, why: str
) -> tuple[list[str], int]:
    """Erase the texts of these requests, or all of a tenant (its digest): the requests, and how many texts.

    In one commit with the record that says so. Raises AuditClosed where that cannot be written: then they are there.
    """
    if tenant:
        requests = [row[0] for row in db.execute("select distinct request from texts where tenant = ?", (tenant,))]
    counts = [db.execute("select count(*) from texts where request = ?", (r,)).fetchone()[0] for r in requests]
    found = [request for request, count in zip(requests, counts, strict=True) if count]
    if found:
        delete = [("delete from texts where request = :request", {"request": request}) for request in found]
        log.note("erased", delete, requests=found, count=sum(counts), who=who, why=why)
        log.flush()
        scrub(db)
    return found, sum(counts)


def scrub(db: sqlite3.Connection, wait_s: float = BUSY_S) -> bool:
    """Take what was erased out of the write-ahead file too. False where another still reads from it after `wait_s`."""
    db.execute(f"pragma busy_timeout = {int(wait_s * 1000)}")
    try:
        return bool(db.execute("pragma wal_checkpoint(truncate)").fetchone()[0] == 0)
    finally:
        db.execute(f"pragma busy_timeout = {int(BUSY_S * 1000)}")
