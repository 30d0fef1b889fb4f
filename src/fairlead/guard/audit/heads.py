"""Heads: the last code of each chain, written where the log is not. A chain that ends before its head was cut off.

One line of JSON for each chain, sealed with the log's key. The file is replaced whole. It proves something against
who can write the log only if he cannot put back an older copy of it: keep it on another machine, or send it to one.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from fairlead.errors import InputError
from fairlead.guard.audit.chain import Keys, place, row_number, same, sealed
from fairlead.guard.audit.store import connect, tail, take

SEND_S = 5.0


@dataclass(frozen=True, slots=True)
class Head:
    """The record `seq` of `chain` in the log named `log` has this code (hex). `time` in seconds since 1970."""

    log: str
    chain: int
    seq: int
    code: str
    time: float

    def line(self, keys: Keys) -> bytes:
        body: dict[str, Any] = {
            "log": self.log, "chain": self.chain, "seq": self.seq, "code": self.code, "time": self.time,
        }  # fmt: skip
        return orjson.dumps({**body, "seal": sealed(keys, "head", *body.values())})


def heads_beside(log: Path) -> Path:
    """Where heads lie if nothing else is said: audit.heads beside audit.db."""
    return log.with_suffix(".heads")


def read_heads(path: Path, keys: Keys) -> dict[int, Head]:
    """By chain. Raises InputError where the file is none of heads; a line whose seal does not fit is an error too."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as problem:
        raise InputError(f"{path}: the heads cannot be read ({problem.strerror})") from None
    found: dict[int, Head] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        head, fits = _head(line, keys, f"{path}, line {number}")
        if not fits:
            raise BrokenHead(f"{path}, line {number}: this head was changed, or made with another key")
        if head.chain not in found or found[head.chain].seq < head.seq:
            found[head.chain] = head
    return found


def heads_of(path: Path) -> list[Head]:
    """The end of each chain of the log, as it is now."""
    with contextlib.closing(connect(path, readonly=True)) as db:
        name = db.execute("select id from log").fetchone()
        found: list[Head] = []
        row = 0
        while name and (first := db.execute("select min(row) from records where row >= ?", (row,)).fetchone()[0]):
            chain = place(first)[0]
            last = tail(db, chain)
            assert last is not None
            found.append(Head(name[0], chain, last.seq, last.code.hex(), time.time()))
            row = row_number(chain + 1, 0)
    return found


class BrokenHead(InputError):
    """A head that the key did not seal."""

    exit_code = 1


def _head(line: bytes, keys: Keys, where: str) -> tuple[Head, bool]:
    try:
        raw = orjson.loads(line)
        seal = str(raw.pop("seal"))
        head = Head(**raw)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise InputError(f"{where}: this is no head of an audit log") from None
    return head, same(sealed(keys, "head", head.log, head.chain, head.seq, head.code, head.time), seal)


def write_heads(path: Path, log_path: Path, heads: Iterable[Head], keys: Keys) -> None:
    """Replace the lines of these chains; those of other workers stay. Raises OSError."""
    lock = take(log_path, "heads", wait=True)
    assert lock is not None
    try:
        lines: dict[int, bytes] = {}
        if path.exists():
            for line in path.read_bytes().splitlines():
                if line.strip():
                    lines[int(orjson.loads(line)["chain"])] = line
        lines.update({head.chain: head.line(keys) for head in heads})
        new = path.with_name(f".{path.name}.new")
        with open(new, "wb") as out:
            out.write(b"".join(lines[chain] + b"\n" for chain in sorted(lines)))
            out.flush()
            os.fsync(out.fileno())
        os.replace(new, path)
    finally:
        lock.release()


@dataclass(slots=True)
class Sender:
    """Posts heads to a URL, one at a time, in a thread of its own: a slow receiver never holds the log back.

    A head that was not taken is replaced by the next one; how often that happened, and why last, is kept.
    """

    url: str
    failures: int = 0
    why: str = ""
    _next: bytes = b""
    _wake: threading.Event = field(default_factory=threading.Event)
    _stop: bool = False
    _thread: threading.Thread | None = None

    def send(self, body: bytes) -> None:
        self._next = body
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="audit-heads", daemon=True)
            self._thread.start()
        self._wake.set()

    def close(self) -> None:
        self._stop = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(SEND_S + 1)

    def _run(self) -> None:
        while not (self._stop and not self._next):
            self._wake.wait()
            self._wake.clear()
            body, self._next = self._next, b""
            if body:
                self._post(body)

    def _post(self, body: bytes) -> None:
        request = urllib.request.Request(self.url, body, {"content-type": "application/json"}, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=SEND_S) as answer:
                answer.read(1000)
        except (OSError, ValueError, urllib.error.URLError) as problem:
            self.failures += 1
            self.why = f"{type(problem).__name__}: {problem}"
