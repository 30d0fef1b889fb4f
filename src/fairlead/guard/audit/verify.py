"""Is the log whole: every code fits, nothing is missing, heads match, every released byte was covered by a verdict.

One pass in the order of the chains, in time linear in the log and memory that does not grow with it. What is read is
one state of the file, so that a log can be verified while workers write into it.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from fairlead.errors import InputError, MissingResource
from fairlead.guard.audit.chain import Keys, anchor_seal, genesis, link, place, read_key, same
from fairlead.guard.audit.coverage import Coverage
from fairlead.guard.audit.heads import Head, read_heads
from fairlead.guard.audit.store import connect
from fairlead.guard.audit.texts import digest

SHOWN = 100  # breaks that are kept; all are counted
_EVERY = 2000


@dataclass(frozen=True, slots=True)
class Break:
    """Where the log is not whole, and why. `chain` and `record` are 0 where it is the log as a whole."""

    chain: int
    record: int
    what: str

    def __str__(self) -> str:
        at = f"chain {self.chain}, record {self.record}: " if self.record else f"chain {self.chain}: "
        return f"{at if self.chain else ''}{self.what}"


@dataclass(slots=True)
class Report:
    """What `verify` found. `heads` is match, none or broken; `cut` says whether a tail cut off could go unseen.

    crashes    starts after an end that was not orderly, by chain: what was queued then is missing, at most `window_s`
               and the commit under way
    gaps       records that were lost while the log could not be written, as the log says itself
    unsent     exchanges on record that were then not sent, or not to the end
    open       requests of which the last part is missing: cut off by a crash, or still running
    """

    path: str
    records: int = 0
    chains: int = 0
    exchanges: int = 0
    bytes: int = 0
    first: float = 0.0
    last: float = 0.0
    heads: str = "none"
    cut: bool = False
    breaks: list[Break] = field(default_factory=list)
    broken: int = 0
    withheld: Counter[str] = field(default_factory=Counter)
    passed: Counter[str] = field(default_factory=Counter)
    uncounted: int = 0
    open_failed: int = 0
    open: int = 0
    crashes: int = 0
    window_s: float = 0.0
    gaps: int = 0
    unsent: int = 0
    texts: int = 0
    expired: int = 0
    erased: int = 0
    uncovered: int = 0
    unfit: int = 0

    @property
    def whole(self) -> bool:
        return not self.broken

    def found(self, chain: int, record: int, what: str) -> None:
        self.broken += 1
        if len(self.breaks) < SHOWN:
            self.breaks.append(Break(chain, record, what))


@dataclass(slots=True)
class _Chain:
    """One chain on the way through it."""

    number: int
    code: bytes
    seq: int
    coverage: Coverage = field(default_factory=Coverage)
    at_head: bytes | None = None  # the code of the record that its head speaks of
    unsent: set[int] = field(default_factory=set)
    begun: int = 0  # the last record that was taken away


@dataclass(slots=True)
class _Texts:
    """What the chain says of kept texts, against those that are there."""

    rows: Iterator[tuple[Any, ...]]
    now: float
    next: tuple[Any, ...] | None = None
    missing: list[tuple[int, int, str]] = field(default_factory=list)
    erased: set[str] = field(default_factory=set)
    decided: dict[str, tuple[str, str]] = field(default_factory=dict)  # what people said, by request


def verify(
    path: Path,
    key: Path,
    heads: Path | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
    now: float | None = None,
) -> Report:
    """The report. `heads` is the exported file; without it a cut tail goes unseen, and `Report.cut` says so.

    Raises InputError where the log, key or heads cannot be read at all.
    """
    if not path.exists():
        raise InputError(f"{path}: there is no such log")
    report, keys = Report(str(path)), read_key(key)
    known = read_heads(heads, keys) if heads is not None else {}  # before the log: it goes on while this runs
    try:
        with contextlib.closing(connect(path, readonly=True)) as db:
            db.execute("begin")
            total = db.execute("select count(*) from records").fetchone()[0] if progress else 0
            name, begun_with = db.execute("select id, key from log").fetchone() or ("", keys.id)
            if begun_with != keys.id:
                report.found(0, 0, f"wrong key: the log was begun with key {begun_with}, this is {keys.id}")
                return report
            _walk(db, report, keys, str(name), known, now or time.time(), progress, total)
            if heads is not None and report.heads != "broken":
                report.heads = "match"
    except (sqlite3.DatabaseError, MissingResource, UnicodeDecodeError) as problem:  # the last: a column's damaged name
        report.found(0, 0, f"the file itself is damaged; what could be read ends there ({problem})")
    if report.unfit and report.unfit == report.records:
        report.found(0, 0, "not one record fits: this is not the key they were made with, or all were changed")
    return report


def _walk(
    db: sqlite3.Connection,
    report: Report,
    keys: Keys,
    name: str,
    known: dict[int, Head],
    now: float,
    progress: Callable[[int, int], None] | None,
    total: int,
) -> None:
    db.text_factory = bytes
    kept = _Texts(db.cursor().execute("select row, n, request, salt, text from texts order by row, n"), now)
    kept.next = next(kept.rows, None)
    begins = _anchors(db, report, keys)
    chain: _Chain | None = None
    for row, code, body in db.cursor().execute("select row, code, body from records order by row"):
        number, seq = place(row)
        if number < 1:
            report.found(0, 0, f"a record stands outside of every chain (row {row})")
            continue
        if chain is None or chain.number != number:
            if chain is not None:
                _chain_ends(chain, report, known, name)
            report.chains += 1
            chain = begins.pop(number, None) or _Chain(number, genesis(keys, name, number), 0)
        _record(chain, row, seq, code, body, report, keys, kept)
        head = known.get(number)
        if head is not None and head.seq == seq:
            chain.at_head = _raw(code)
        if progress is not None and report.records % _EVERY == 0:
            progress(report.records, total)
    if chain is not None:
        _chain_ends(chain, report, known, name)
    for pruned in begins.values():  # nothing is left of it but the mark
        report.chains += 1
        _chain_ends(pruned, report, known, name)
    for head in known.values():
        report.heads = "broken"
        report.found(head.chain, head.seq, "the whole chain is gone, but there is a head of it")
    _texts_end(report, kept)
    _queue(db, report, kept.decided)


def _anchors(db: sqlite3.Connection, report: Report, keys: Keys) -> dict[int, _Chain]:
    """Chains of which old records were taken away, as they begin."""
    begins: dict[int, _Chain] = {}
    for chain, seq, code, at, policies, seal in db.execute("select * from anchors"):
        code, policies = _raw(code), _raw(policies)
        if not same(anchor_seal(keys, chain, seq, code, at, policies), _raw(seal)):
            report.found(chain, 0, "the mark of where it begins was changed, or made with another key")
            continue
        begins[chain] = _Chain(chain, code, seq, Coverage(pruned=True), code, seq)
        for policy in orjson.loads(policies):
            begins[chain].coverage.policy(policy)
    return begins


def _record(chain: _Chain, row: int, seq: int, code: Any, body: Any, report: Report, keys: Keys, kept: _Texts) -> None:
    report.records += 1
    code, body = (_raw(code), _raw(body))
    if seq <= chain.seq:
        report.found(chain.number, seq, f"stands before record {chain.seq + 1}, where the chain begins")
        return
    follows = seq == chain.seq + 1
    if not follows:
        many = f"records {chain.seq + 1} to {seq - 1} are" if seq > chain.seq + 2 else f"record {seq - 1} is"
        report.found(chain.number, chain.seq + 1, f"{many} missing")
    # The record after a hole has nothing to be held against: the hole is what is told.
    fits = not follows or same(link(keys.chain, chain.code, row, body), code)
    chain.code, chain.seq = code, seq
    if not fits:
        report.unfit += 1
        report.found(chain.number, seq, "was changed, moved or put in: its code does not fit")
        _pass_texts(kept, row, report, chain.number, seq, None)
        return
    try:
        fields = orjson.loads(body)
        _read(chain, seq, row, fields, report, kept)
    except (ValueError, KeyError, TypeError) as problem:
        report.found(chain.number, seq, f"cannot be read ({type(problem).__name__}: {problem})")


def _raw(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _read(chain: _Chain, seq: int, row: int, body: dict[str, Any], report: Report, kept: _Texts) -> None:
    kind, at = body["kind"], body["time"]
    report.first = min(report.first or at, at)
    report.last = max(report.last, at)
    if kind == "exchange":
        for fault in chain.coverage.exchange(body):
            report.uncovered += 1
            report.found(chain.number, seq, f"request {body['request']}: {fault}")
    elif kind == "start":
        if body["after"] == "crash":
            report.crashes += 1
            report.window_s = max(report.window_s, body["window_s"])
    elif kind == "policy":
        chain.coverage.policy(body)
    elif kind == "gap":
        report.gaps += body["lost"]
        report.found(chain.number, seq, f"{body['lost']} records before it were lost: {body['why']}")
    elif kind == "unsent":
        report.unsent += body["record"] not in chain.unsent
        chain.unsent.add(body["record"])
    elif kind == "human":
        kept.decided[body["request"]] = (body["decision"], body["who"])
    elif kind == "erased":
        kept.erased.update(body["requests"])
        report.erased += body["count"]
    _pass_texts(kept, row, report, chain.number, seq, body.get("texts", ()), body.get("request", ""))


def _chain_ends(chain: _Chain, report: Report, known: dict[int, Head], name: str) -> None:
    coverage = chain.coverage
    report.exchanges += coverage.exchanges
    report.bytes += coverage.bytes
    report.uncounted += coverage.uncounted
    report.open_failed += coverage.open_failed
    report.open += len(coverage.open_)
    report.withheld += coverage.withheld
    report.passed += coverage.passed
    head = known.pop(chain.number, None)
    if head is None:
        report.cut = True
        return
    if head.log != name:
        what = f"its head is of another log ({head.log}, this is {name})"
    elif head.seq > chain.seq:
        what = f"ends at record {chain.seq}, its head is record {head.seq}: {head.seq - chain.seq} were cut off"
    elif chain.at_head is not None and head.seq >= chain.begun and not same(chain.at_head.hex(), head.code):
        what = f"record {head.seq} is not the one its head speaks of"
    else:
        return
    report.heads = "broken"
    report.found(chain.number, 0, what)


# ----------------------------------------------------------------------------------------------- texts beside it


def _pass_texts(
    kept: _Texts, row: int, report: Report, chain: int, seq: int, said: Any = (), request: str = ""
) -> None:
    """The texts of this record against what the record says of them."""
    there: dict[int, tuple[Any, ...]] = {}
    while kept.next is not None and kept.next[0] <= row:
        if kept.next[0] == row:
            there[kept.next[1]] = kept.next
        else:
            report.found(*place(kept.next[0]), "a text is kept of a record that is not there")
        kept.next = next(kept.rows, None)
    if said is None:  # the record is broken: it cannot say what belongs to it
        return
    for n, (what, code, until) in enumerate(said):
        found = there.pop(n, None)
        if found is None:
            if until > kept.now:
                kept.missing.append((chain, seq, request))
            else:
                report.expired += 1
        elif not same(digest(_raw(found[3]), _raw(found[4])), code) or _raw(found[2]) != request.encode():
            report.found(chain, seq, f"the text kept of it ({what}) was changed")
        else:
            report.texts += 1
    if there:
        report.found(chain, seq, f"{len(there)} texts are kept with it of which it does not know")


def _texts_end(report: Report, kept: _Texts) -> None:
    while kept.next is not None:
        report.found(*place(kept.next[0]), "a text is kept of a record that is not there")
        kept.next = next(kept.rows, None)
    for chain, seq, request in kept.missing:
        if request not in kept.erased:
            report.found(
                chain, seq, f"the text kept of request {request} is gone before its time, and nobody erased it"
            )


def _queue(db: sqlite3.Connection, report: Report, decided: dict[str, tuple[str, str]]) -> None:
    """What the table says that people decided, against the chain."""
    for cells in db.execute("select request, decision, who from queue where state = 'decided' order by id"):
        request, decision, who = (_raw(cell).decode(errors="replace") for cell in cells)
        known = decided.get(request)
        if known != (decision, who):
            says = f"{known[0]!r}, by {known[1]}" if known else "nothing"
            report.found(0, 0, f"the queue says {decision!r} of request {request}, by {who}; the chain says {says}")
