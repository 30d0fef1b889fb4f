"""The file `audit.db`: SQLite, so that several workers can write into it and any tool can read it.

records  one row for each record: number (chain and place in it), code, and the record as JSON
anchors  where a chain begins after old records were taken away (rotate.py), sealed with the key
texts    texts kept for a time, apart from the chain, which holds their salted digests (texts.py)
queue    exchanges that wait for a person (queue.py)
spend    money by tenant and day (spend.py)
"""

from __future__ import annotations

import fcntl
import os
import secrets
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead.errors import InputError, MissingResource
from fairlead.guard.audit.chain import CHAINS, row_number

_SCHEMA = """
create table if not exists log (id text primary key, version integer not null, key text not null);
create table if not exists records (row integer primary key, code blob not null, body text not null);
create table if not exists anchors (chain integer primary key, seq integer not null, code blob not null,
    time real not null, policies text not null, seal text not null);
create table if not exists texts (row integer not null, n integer not null, request text not null,
    tenant text not null, what text not null, salt blob not null, until real not null, text text not null,
    primary key (row, n)) without rowid;
create index if not exists texts_until on texts (until);
create index if not exists texts_request on texts (request);
create table if not exists queue (id integer primary key, time real not null, request text not null unique,
    tenant text not null, verdict text not null, constitution text not null, principle text not null,
    evidence text not null, state text not null default 'open', who text not null default '',
    decision text not null default '', note text not null default '', decided real);
create table if not exists spend (tenant text not null, day text not null, usd integer not null,
    primary key (tenant, day)) without rowid;
"""
VERSION = 1
BUSY_S = 10.0  # how long a writer waits for another worker's commit before that counts as a failed write

Beside = tuple[str, dict[str, Any]]  # a statement and its values (`row` is added): carried out in the same commit
Row = tuple[int, bytes, bytes, tuple[Beside, ...]]  # number, code, body, what goes with it


def connect(path: Path, *, make: bool = False, readonly: bool = False) -> sqlite3.Connection:
    """The log's file. Raises InputError where there is none, or it is something else."""
    if not make and not path.exists():
        raise InputError(f"{path}: there is no such log")
    try:
        if readonly:
            db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=BUSY_S)
        else:
            db = sqlite3.connect(path, isolation_level=None, timeout=BUSY_S, check_same_thread=False)
        if make:
            _prepare(db, path)
        if db.execute("select count(*) from sqlite_master where name in ('log', 'records')").fetchone()[0] != 2:
            raise InputError(f"{path}: this is no audit log")
        if not readonly:
            # FULL: a commit is on the disk when it returns. secure_delete: what is erased is overwritten.
            db.execute("pragma synchronous = full")
            db.execute("pragma secure_delete = on")
    except (sqlite3.DatabaseError, UnicodeDecodeError) as problem:  # the latter: a damaged name of a table
        if "database" in str(problem) and "not a database" in str(problem):
            raise InputError(f"{path}: this is no audit log") from None
        raise MissingResource(f"{path}: the audit log cannot be opened ({problem})") from None
    return db


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    mode = db.execute("pragma journal_mode = wal").fetchone()[0]
    if mode != "wal":
        raise InputError(f"{path}: this file system cannot hold the log (SQLite says journal mode {mode!r}, not wal)")
    os.chmod(path, 0o600)
    db.execute("begin immediate")
    for statement in _SCHEMA.split(";\n"):
        db.execute(statement)
    db.execute("commit")


def identity(db: sqlite3.Connection, key: str, path: Path) -> str:
    """The log's own random name; a new log gets one. Raises InputError where it was begun with another key."""
    db.execute("begin immediate")
    row = db.execute("select id, version, key from log").fetchone()
    if row is None:
        row = (secrets.token_hex(8), VERSION, key)
        db.execute("insert into log values (?, ?, ?)", row)
    db.execute("commit")
    if row[1] != VERSION:
        raise InputError(f"{path}: the log has version {row[1]}, this program writes {VERSION}; name another --audit")
    if row[2] != key:
        raise InputError(
            f"{path}: the log was begun with another key ({row[2]}, this one is {key}); name it with --key"
        )
    return str(row[0])


def insert(db: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """All rows, or none. One statement for all records: SQLite then works without Python's lock, and the thread that
    serves requests goes on."""
    db.execute("begin immediate")
    try:
        values = ",".join(["(?,?,?)"] * len(rows))
        cells = [cell for row in rows for cell in (row[0], row[1], row[2].decode())]
        db.execute(f"insert into records values {values}", cells)
        for row in rows:
            for statement, more in row[3]:
                db.execute(statement, {"row": row[0], **more})
        db.execute("commit")
    except BaseException:
        if db.in_transaction:
            db.execute("rollback")
        raise


@dataclass(frozen=True, slots=True)
class Tail:
    """The last record of a chain; `seq` is 0 where it has none."""

    seq: int
    code: bytes
    body: bytes


def tail(db: sqlite3.Connection, chain: int, back: int = 0) -> Tail | None:
    """The last record of a chain, or the one `back` before it; None where it has none there."""
    found = db.execute(
        "select row, code, body from records where row between ? and ? order by row desc limit 1 offset ?",
        (row_number(chain, 0), row_number(chain + 1, 0) - 1, back),
    ).fetchone()
    return None if found is None else Tail(found[0] - row_number(chain, 0), found[1], found[2].encode())


def anchor(db: sqlite3.Connection, chain: int) -> tuple[int, bytes] | None:
    """Number and code of the last record that was taken away from a chain; None where none was."""
    found = db.execute("select seq, code from anchors where chain = ?", (chain,)).fetchone()
    return None if found is None else (found[0], found[1])


@dataclass(slots=True)
class Lock:
    """A lock that the system lets go of when the process dies."""

    file: int

    def release(self) -> None:
        os.close(self.file)


def take_chain(path: Path) -> tuple[int, Lock]:
    """The first chain that no living worker writes, and the lock on it."""
    for chain in range(1, CHAINS + 1):
        lock = take(path, str(chain))
        if lock is not None:
            return chain, lock
    raise MissingResource(f"{path}: {CHAINS} processes write into this log; close some")


def take(path: Path, name: str, *, wait: bool = False) -> Lock | None:
    folder = path.with_name(f"{path.name}.locks")
    folder.mkdir(mode=0o700, exist_ok=True)
    file = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(file)
        return None
    return Lock(file)
