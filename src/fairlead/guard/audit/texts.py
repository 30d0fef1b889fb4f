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

from fairlead.guard.audit.entry import Entry
from fairlead.guard.audit.store import Text

_AT_ONCE = 500


def prepared(
    entry: Entry, said: Sequence[tuple[str, str]], keep_s: float
) -> tuple[tuple[Text, ...], list[list[object]]]:
    """Rows for the side table, and what the chain holds of them: [what, digest, until]."""
    rows: list[Text] = []
    digests: list[list[object]] = []
    until = round(entry.time + keep_s, 3)
    for n, (what, text) in enumerate(said):
        salt = os.urandom(16)
        clean = text.encode("utf-8", "backslashreplace").decode()
        rows.append((n, entry.request, entry.tenant, what, salt, until, clean))
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
    """Erase texts whose time is over, those in the queue of people too. How many."""
    gone = 0
    while True:
        count = db.execute(
            "delete from texts where (row, n) in (select row, n from texts where until < ? limit ?)", (now, _AT_ONCE)
        ).rowcount
        gone += count
        if count < _AT_ONCE:
            break
    gone += db.execute("update queue set exchange = null where until < ? and exchange is not null", (now,)).rowcount
    if gone:
        scrub(db)
    return gone


def erase(db: sqlite3.Connection, *, requests: Sequence[str] = (), tenant: str = "") -> tuple[list[str], int]:
    """Erase the texts of these requests, or all of a tenant (its digest). The requests, and how many texts.

    The caller records it in the chain (`erased`), or `verify` misses the texts.
    """
    db.execute("begin immediate")
    try:
        if tenant:
            asked = "select request from texts where tenant = :t union select request from queue where tenant = :t"
            requests = [row[0] for row in db.execute(asked, {"t": tenant})]
        gone = 0
        for request in requests:
            gone += db.execute("delete from texts where request = ?", (request,)).rowcount
            emptied = "update queue set exchange = null where request = ? and exchange is not null"
            gone += db.execute(emptied, (request,)).rowcount
        db.execute("commit")
    except BaseException:
        db.execute("rollback")
        raise
    scrub(db)
    return sorted(set(requests)), gone


def scrub(db: sqlite3.Connection) -> None:
    """Take what was erased out of the write-ahead file too. Where another reads just now the next scrub does it."""
    db.execute("pragma wal_checkpoint(truncate)").fetchall()
