"""Escalated exchanges before people: claimed by one, decided once, and in the chain."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from sqlite3 import Connection

import pytest

from fairlead.errors import InputError
from fairlead.exchange import exchange
from fairlead.guard.audit import AuditLog, Entry, Verdict, queue, texts
from fairlead.guard.audit.store import connect
from guard.audit.helpers import entry, opened, verified, whats

ITEM = exchange("where is the gate?", "beyond the pier")


def escalated(number: int) -> Entry:
    by = Verdict(f"v-{number}", "critic", "no-harm", "escalate", "scored 0.40, below 0.5")
    return entry(number, time=time.time(), decision="escalate", principle="no-harm", verdict=by.id, verdicts=(by,),
                 released=(), written=0, tenant="t")  # fmt: skip


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AuditLog]:
    log = opened(tmp_path)
    for number in range(3):
        log.record(escalated(number), escalated=ITEM)
    log.flush()
    yield log
    log.close()


@pytest.fixture
def db(log: AuditLog) -> Iterator[Connection]:
    db = connect(log.path)
    yield db
    db.close()


def test_what_is_escalated_waits_with_its_exchange(db: Connection) -> None:
    assert queue.count(db) == {"open": 3, "claimed": 0, "decided": 0}
    first, second, _ = queue.waiting(db)
    assert first.exchange == ITEM
    assert (first.state, first.principle, first.verdict, first.evidence) == (
        "open",
        "no-harm",
        "v-0",
        "scored 0.40, below 0.5",
    )
    assert queue.waiting(db, after=first.id, limit=1) == [second]


def test_of_two_who_claim_one_gets_it(db: Connection) -> None:
    assert queue.claim(db, 1, "ann").who == "ann"
    assert queue.claim(db, 1, "ann").state == "claimed"  # once more is no harm
    with pytest.raises(InputError, match="exchange 1 is claimed by ann"):
        queue.claim(db, 1, "bob")
    with pytest.raises(InputError, match="not claimed by bob"):
        queue.give_back(db, 1, "bob")
    assert queue.give_back(db, 1, "ann").state == "open"
    assert queue.claim(db, 1, "bob").who == "bob"


def test_a_decision_stands_in_the_table_and_in_the_chain(db: Connection, log: AuditLog) -> None:
    done = queue.decide(db, log, 2, "ann", "broken", "it names the gate")
    assert (done.state, done.decision, done.who, done.note) == ("decided", "broken", "ann", "it names the gate")
    with pytest.raises(InputError, match="exchange 2 is decided by ann"):
        queue.decide(db, log, 2, "ann", "kept")
    assert [item.id for item in queue.waiting(db)] == [1, 3]
    report = verified(log.path)
    assert whats(report) == [] and report.texts == 3
    db.execute("update queue set decision = 'kept' where id = 2")
    assert whats(verified(log.path)) == [
        f"the queue says 'kept' of request {1:016x}, by ann; the chain says 'broken', by ann"
    ]
    db.execute("update queue set state = 'decided', who = 'eve', decision = 'kept' where id = 3")
    db.execute("update queue set decision = 'broken' where id = 2")
    assert whats(verified(log.path)) == [f"the queue says 'kept' of request {2:016x}, by eve; the chain says nothing"]


def test_who_decides_has_a_name_and_says_something_known(db: Connection, log: AuditLog) -> None:
    with pytest.raises(InputError, match="say who decides"):
        queue.decide(db, log, 1, " ", "kept")
    with pytest.raises(InputError, match="'maybe' is no decision"):
        queue.decide(db, log, 1, "ann", "maybe")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no exchange 9"):
        queue.claim(db, 9, "ann")


def test_erasing_takes_the_exchange_and_leaves_the_row(db: Connection, log: AuditLog) -> None:
    texts.erase(db, log, tenant="t", who="ann", why="left")
    assert [item.exchange for item in queue.waiting(db)] == [None] * 3
    assert whats(verified(log.path)) == []
