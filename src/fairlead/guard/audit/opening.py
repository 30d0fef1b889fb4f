"""Opening a log: a chain of its own for this process, taken up where it ends, and refused where it does not go on."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import orjson

from fairlead.errors import InputError
from fairlead.guard.audit import store
from fairlead.guard.audit.chain import key_beside, link, read_key, row_number, same
from fairlead.guard.audit.heads import heads_beside, read_heads
from fairlead.guard.audit.log import AuditLog
from fairlead.guard.audit.options import Options


def open_log(path: str | Path, *, key: str | Path | None = None, options: Options | None = None) -> AuditLog:
    """The log at `path`, made where there is none, and a chain of its own for this process.

    `key` is the key file, `NAME.key` beside the log (audit.key) where not given; it is made with the log. Raises
    InputError where the log does not go on whole: the last record was changed, or records that a head speaks of are
    gone.
    """
    path, options = Path(path), options or Options()
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
    opening = store.take(path, "opening", wait=True)  # workers that start together make one log
    assert opening is not None
    try:
        new = not path.exists() or path.stat().st_size == 0
        keys = read_key(Path(key) if key else key_beside(path), make=new)
        db = store.connect(path, make=True)
        name = store.identity(db, keys.id, path)
        chain, lock = store.take_chain(path)
    finally:
        opening.release()
    try:
        log = AuditLog(path, keys, options, db, name, chain, lock)
        after = _continued(log)
    except BaseException:
        lock.release()
        db.close()
        raise
    log._thread.start()
    log.note("start", after=after, window_s=options.window_s, strict=options.strict, heads=_heads_kept(options))
    return log


@contextlib.contextmanager
def opened_beside(path: Path, key: Path | None) -> Iterator[tuple[AuditLog, sqlite3.Connection]]:
    """A log that is there, for a command that goes on record in it: a chain of its own, and a connection to read with.
    Its heads go where those of the workers lie beside the log, if they do."""
    if not path.exists():
        raise InputError(f"{path}: there is no such log")
    heads = heads_beside(path)
    log = open_log(path, key=key, options=Options(heads=str(heads) if heads.exists() else ""))
    try:
        with contextlib.closing(store.connect(path)) as db:
            yield log, db
    finally:
        log.close()


def _heads_kept(options: Options) -> bool:
    return bool(options.heads or options.heads_url)


def _continued(log: AuditLog) -> str:
    """Take up the chain where it ends. How it ended: "" for a new one, "stop", or "crash"."""
    base = store.anchor(log._db, log.chain) or (0, log._code)
    last = store.tail(log._db, log.chain)
    seq, code = (last.seq, last.code) if last else base
    if last is not None:
        earlier = store.tail(log._db, log.chain, back=1)
        before = earlier.code if earlier else base[1]
        if not same(link(log.keys.chain, before, row_number(log.chain, seq), last.body), code):
            raise InputError(
                f"{log.path}: record {seq} of chain {log.chain}, the last, was changed; the log is not continued. "
                f"Look at it with `fairlead guard audit verify {log.path}` and name another --audit"
            )
    heads = Path(log.options.heads) if log.options.heads else None
    head = read_heads(heads, log.keys).get(log.chain) if heads and heads.exists() else None
    if head is not None and (head.log != log.name or head.seq > seq):
        what = "is of another log" if head.log != log.name else f"is its record {head.seq}: what followed {seq} is gone"
        raise InputError(
            f"{log.path}: chain {log.chain} ends at record {seq}, but its head in {heads} {what}. The log is not "
            f"continued; look at it with `fairlead guard audit verify {log.path}` and name another --audit"
        )
    log._seq = log._durable = log._head_seq = seq
    log._code = code
    if last is None:
        return ""
    return "stop" if orjson.loads(last.body).get("kind") == "stop" else "crash"
