"""The log as a worker holds it: one chain, a queue with a bound, and a thread that commits.

`record` chains and queues in microseconds and never waits. The thread writes what has gathered in one commit that is
on the disk when it returns: every `window_s`, or at once with `strict`, where `settled` tells when. What is lost when
the process is killed is what was queued: at most the window and the commit that was under way.

A write that fails is tried again, with nothing thrown away, until the queue is full; `accepting` says whether new
requests may begin, and every record that found no room is counted and the count itself goes into the chain.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairlead.exchange import Exchange
from fairlead.guard.audit import queue, store, texts
from fairlead.guard.audit.chain import Keys, genesis, link, row_number
from fairlead.guard.audit.entry import Entry, dumped, encode
from fairlead.guard.audit.heads import Head, Sender, write_heads
from fairlead.guard.audit.options import AuditClosed, Health, Options

say = logging.getLogger(__name__)
RETRY_S = 0.25
CHORES_S = 60.0


class AuditLog:
    """`open_log` (opening.py) makes one. Safe for use from several threads."""

    def __init__(
        self, path: Path, keys: Keys, options: Options, db: sqlite3.Connection, name: str, chain: int, lock: store.Lock
    ) -> None:
        self.path, self.keys, self.options, self.name, self.chain = path, keys, options, name, chain
        self._db, self._lock_file = db, lock
        self._lock = threading.Lock()
        self._more = threading.Condition(self._lock)
        self._now = threading.Event()  # commit without waiting for the window's end
        self._queue: deque[store.Row] = deque()
        self._bytes = 0
        self._waiters: list[tuple[int, asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._seq, self._code, self._durable = 0, genesis(keys, name, chain), 0
        self._lost, self._lost_since, self._lost_all = 0, 0.0, 0
        self._failing_since, self._failures, self._why = 0.0, 0, ""
        self._closing, self._dead = False, ""
        self._head_at, self._chores_at, self._head_seq = 0.0, 0.0, 0
        self._heads_failures, self._heads_why = 0, ""
        self._unscrubbed = False  # whether erased texts may still stand in the write-ahead file
        self._sender = Sender(options.heads_url) if options.heads_url else None
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)

    # --------------------------------------------------------------------------------------- what workers call

    def record(
        self,
        entry: Entry,
        said: Sequence[tuple[str, str]] = (),
        keep_s: float | None = None,
        escalated: Exchange | None = None,
    ) -> int:
        """Chain one entry and queue it; its number in the chain, 0 where there was no room and it was counted as lost.

        said       texts to keep beside it, as (what, text), such as ("asked", …): only for `keep_s` seconds, the log's
                   own where not given, and not at all where that is 0
        escalated  the exchange to put before people (queue.py): kept for `Options.queue_s`, or for `keep_s` where that
                   is given and shorter
        Raises AuditClosed where nothing may be released without it: strict and failing, or the log is shut.
        """
        keep = self.options.keep_s if keep_s is None else keep_s
        if not said and escalated is None:
            return self._append(encode(entry, self.keys.digest))
        kept = [(what, text, keep) for what, text in said if keep > 0]
        beside: tuple[store.Beside, ...] = ()
        if escalated is not None:
            beside, text = queue.prepared(entry, escalated)
            queued = self.options.queue_s if keep_s is None else min(keep_s, self.options.queue_s)
            kept.append((queue.WHAT, text, queued))
        rows, digests = texts.prepared(entry, kept)
        more = {"texts": digests} if digests else {}
        return self._append(encode(entry, self.keys.digest, **more), (*rows, *beside))

    def policy(self, constitution: str, classifier: str, required: Mapping[str, Sequence[str]]) -> int:
        """What has to pass before a byte leaves, from now on: by place, the names of the checks. At start and after
        every reload; `verify` then asks that each released range of an exchange that names it (`Entry.policy`) is
        covered by all of them."""
        return self.note(
            "policy",
            constitution=constitution,
            classifier=classifier,
            required={place: sorted(checks) for place, checks in required.items()},
        )

    def note(self, kind: str, beside: Sequence[store.Beside] = (), /, **fields: Any) -> int:
        """A record of another kind than an exchange; `beside` is carried out in the same commit."""
        return self._append(dumped({"kind": kind, "time": time.time(), **fields}), tuple(beside))

    def unsent(self, number: int, why: str) -> int:
        """The exchange of the record with this number was not let out after all. Taken down while writing fails too."""
        with self._lock:
            if self._dead or self._closing:
                raise AuditClosed(self._closed_because())
            body = {"kind": "unsent", "time": time.time(), "record": number, "why": why}
            return self._append_locked(dumped(body), ())

    async def settled(self, number: int) -> None:
        """Returns when the record is on the disk. Raises AuditClosed where it could not be written: then it must not
        be acted upon (the chain says so by itself)."""
        with self._lock:
            if number <= self._durable:
                return
            self._check_open()
            loop = asyncio.get_running_loop()
            future: asyncio.Future[None] = loop.create_future()
            self._waiters.append((number, loop, future))
            self._now.set()
        await future

    def flush(self, timeout_s: float = 30.0) -> None:
        """Returns when all that was recorded is on the disk. Raises AuditClosed where that takes longer."""
        until = time.monotonic() + timeout_s
        with self._more:
            wanted = self._seq
            while self._durable < wanted:
                self._now.set()
                self._more.notify_all()
                if self._dead or time.monotonic() > until:
                    raise AuditClosed(self._closed_because())
                self._more.wait(0.02)

    @property
    def accepting(self) -> bool:
        """Whether a new request may begin."""
        if self._closing or self._dead:
            return False
        if self.options.on_failure == "count" and not self.options.strict:
            return True
        if len(self._queue) > 0.9 * self.options.queue or self._bytes > 0.9 * self.options.queue_bytes:
            return False
        allowed = 0.0 if self.options.strict else self.options.give_up_s
        return not self._failing_since or time.monotonic() - self._failing_since < allowed

    def health(self) -> Health:
        failing = time.monotonic() - self._failing_since if self._failing_since else 0.0
        return Health(
            self.accepting,
            len(self._queue),
            self._durable,
            self._lost_all,
            self._failures,
            failing,
            self._dead or self._why,
            self._heads_failures + (self._sender.failures if self._sender else 0),
            self._heads_why or (self._sender.why if self._sender else ""),
        )

    def close(self, timeout_s: float = 30.0) -> None:
        """Write what is queued and the record that says that nothing is missing. Raises AuditClosed where it could not
        be written."""
        with self._lock:
            if self._closing:
                return
            if not self._dead:
                self._lost_told()
                self._append_locked(dumped({"kind": "stop", "time": time.time()}), ())
            self._closing = True
            self._now.set()
            self._more.notify_all()
        self._thread.join(timeout_s)
        if self._sender is not None:
            self._sender.close()
        missing = len(self._queue)
        if not self._thread.is_alive():
            self._db.close()
            self._lock_file.release()
        if missing:
            raise AuditClosed(f"{self.path}: {missing} records were not written: {self._dead or self._why}")

    # --------------------------------------------------------------------------------------- chain and queue

    def _append(self, body: bytes, beside: tuple[store.Beside, ...] = ()) -> int:
        with self._lock:
            self._check_open()
            full = len(self._queue) >= self.options.queue or self._bytes + len(body) > self.options.queue_bytes
            if full:
                return self._lose()
            self._lost_told()
            return self._append_locked(body, beside)

    def _append_locked(self, body: bytes, beside: tuple[store.Beside, ...]) -> int:
        seq = self._seq + 1
        row = row_number(self.chain, seq)
        code = link(self.keys.chain, self._code, row, body)
        self._seq, self._code = seq, code
        self._queue.append((row, code, body, beside))
        self._bytes += len(body)
        if len(self._queue) == 1:
            self._more.notify()
        elif len(self._queue) == self.options.batch:
            self._now.set()
        return seq

    def _check_open(self) -> None:
        if self._dead or self._closing or (self.options.strict and self._failing_since):
            raise AuditClosed(self._closed_because())

    def _closed_because(self) -> str:
        why = self._dead or self._why or ("it was closed" if self._closing else "it is slow")
        return f"{self.path}: the audit log takes no record: {why}"

    def _lose(self) -> int:
        if self.options.strict:
            raise AuditClosed(f"{self.path}: {len(self._queue)} records wait to be written, no more fit")
        if not self._lost:
            self._lost_since = time.time()
            say.error("%s: the queue of the audit log is full; records are lost and counted: %s", self.path, self._why)
        self._lost += 1
        self._lost_all += 1
        return 0

    def _lost_told(self) -> None:
        if self._lost:
            body = {"kind": "gap", "time": time.time(), "lost": self._lost, "since": self._lost_since, "why": self._why}
            self._lost = 0
            self._append_locked(dumped(body), ())

    # ------------------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as problem:  # noqa: BLE001  # whatever it was, the log is closed by it and says so
            with self._lock:
                self._dead = f"the writing thread broke ({type(problem).__name__}: {problem})"
                self._fail_waiters()
            say.critical("%s: %s", self.path, self._dead)

    def _turn(self) -> bool:
        """One commit, or one rest. False when there is nothing left to do."""
        with self._more:
            if not self._queue and not self._closing:
                self._more.wait(self.options.heads_every_s or 1.0)
            if not self._queue:
                closing = self._closing
        if not self._queue:
            self._chores(closing)
            return not closing
        if not (self.options.strict or self._closing or self._now.is_set()):
            self._now.wait(self.options.window_s)
        self._now.clear()
        with self._lock:
            rows = list(itertools.islice(self._queue, self.options.batch))
        try:
            store.insert(self._db, rows)
        except sqlite3.Error as problem:
            return self._failed(problem)
        self._committed(rows)
        self._chores(False)
        return True

    def _committed(self, rows: Sequence[store.Row]) -> None:
        with self._more:
            for _ in rows:
                self._bytes -= len(self._queue.popleft()[2])
            self._durable += len(rows)
            if self._failing_since:
                say.warning("%s: the audit log is written again", self.path)
            self._failing_since = 0.0
            done = [waiter for waiter in self._waiters if waiter[0] <= self._durable]
            self._waiters = [waiter for waiter in self._waiters if waiter[0] > self._durable]
            if self._waiters or len(self._queue) >= self.options.batch:
                self._now.set()
            self._more.notify_all()
        _wake(done, None)

    def _failed(self, problem: sqlite3.Error) -> bool:
        """Keep the rows, say so once, rest. False where the log is closing and has tried long enough."""
        with self._lock:
            self._failures += 1
            self._why = f"it cannot be written ({problem})"
            first = not self._failing_since
            if first:
                self._failing_since = time.monotonic()
            if self.options.strict:
                self._fail_waiters()
        if first:
            say.error("%s: the audit log cannot be written (%s); trying again", self.path, problem)
        if self._closing and time.monotonic() - self._failing_since > self.options.give_up_s:
            return False
        time.sleep(RETRY_S)
        return True

    def _fail_waiters(self) -> None:
        """Those who wait are told that it failed; their records stay in the chain, followed by the word that nothing
        was let out on them. Under the lock."""
        failed, self._waiters = self._waiters, []
        told = self._closed_because()
        for number in sorted({number for number, _, _ in failed}):
            body = {"kind": "unsent", "time": time.time(), "record": number, "why": "log failed"}
            self._append_locked(dumped(body), ())
        _wake(failed, told)

    def _chores(self, closing: bool) -> None:
        now = time.monotonic()
        if (closing or now - self._head_at >= self.options.heads_every_s) and self._durable > self._head_seq:
            self._head_at = now
            self._export()
        if now - self._chores_at >= CHORES_S:
            self._chores_at = now
            try:
                if texts.expire(self._db, time.time()) or self._unscrubbed:
                    self._unscrubbed = not texts.scrub(self._db, wait_s=0.0)
            except sqlite3.Error as problem:  # tried again in a minute
                self._why = f"old texts cannot be erased ({problem})"
                say.error("%s: %s", self.path, self._why)

    def _export(self) -> None:
        last = store.tail(self._db, self.chain)
        if last is None or not (self.options.heads or self._sender):
            return
        head = Head(self.name, self.chain, last.seq, last.code.hex(), time.time())
        if self._sender is not None:
            self._sender.send(head.line(self.keys))
        if self.options.heads:
            try:
                write_heads(Path(self.options.heads), self.path, [head], self.keys)
            except (OSError, ValueError) as problem:
                self._heads_failures += 1
                self._heads_why = f"heads cannot be written ({problem})"
                say.error("%s: %s", self.options.heads, self._heads_why)
                return
        self._head_seq = last.seq


def _wake(waiters: Sequence[tuple[int, asyncio.AbstractEventLoop, asyncio.Future[None]]], why: str | None) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for _, loop, future in waiters:
        by_loop.setdefault(loop, []).append(future)
    for loop, futures in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_resolve, futures, why)


def _resolve(futures: Sequence[asyncio.Future[None]], why: str | None) -> None:
    for future in futures:
        if not future.done():  # who waited may have gone
            if why is None:
                future.set_result(None)
            else:
                future.set_exception(AuditClosed(why))
