"""Old records are taken away or moved, and each part still verifies."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import pytest

from fairlead.errors import InputError
from fairlead.exchange import exchange
from fairlead.guard.audit import AuditLog, Verdict, queue
from fairlead.guard.audit.entry import policy_digest
from fairlead.guard.audit.opening import opened_beside
from fairlead.guard.audit.rotate import prune
from fairlead.guard.audit.store import connect
from fairlead.guard.audit.verify import verify
from guard.audit.helpers import CONSTITUTION, edit, entry, opened, released, verified, whats

START = 1_000_000.0  # entries of these tests are old; what the log itself writes is of today


def old(then: pytest.MonkeyPatch, now: float = START) -> None:
    """What the log itself writes is as old as the entries."""
    then.setattr("time.time", lambda: now)


def written(folder: Path, numbers: range, then: pytest.MonkeyPatch) -> Path:
    log: AuditLog = opened(folder)
    for number in numbers:
        log.record(entry(number, time=START + number))
    old(then, START + 50)  # it ends later than it began
    log.close()
    return folder / "audit.db"


def test_what_is_pruned_is_gone_and_the_rest_verifies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as then:
        old(then)
        log = opened(tmp_path)
        log.policy(CONSTITUTION, "", {"reply": ["rules", "secrets"]})
        for number in range(10):
            log.record(entry(number, time=START + number))
        log.close()
        path = log.path
    with opened_beside(path, None) as (held, db):
        assert prune(db, held, START + 6) == 8  # start, policy, six exchanges
    report = verified(path)
    assert whats(report) == [] and report.heads == "match" and report.exchanges == 4
    with opened_beside(path, None) as (held, db):
        held.record(
            entry(
                50,
                verdicts=entry().verdicts[:1],
                released=(released("hm", entry().released[0].verdicts[:1]),),
                written=2,
            )
        )
    assert any("no verdict of rules" in told for told in whats(verified(path)))  # what was required is still known


def test_an_older_policy_is_known_after_its_record_was_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that ran over a reload may stay where both policies go."""
    before, after = {"reply": ["rules", "secrets"]}, {"reply": ["rules", "secrets", "more"]}
    with monkeypatch.context() as then:
        old(then)
        log = opened(tmp_path)
        log.policy(CONSTITUTION, "", before)
        log.policy(CONSTITUTION, "", after)
        for number in range(10):
            log.record(entry(number, time=START + number, policy=policy_digest(before)))
        log.close()
    with opened_beside(log.path, None) as (held, db):
        assert prune(db, held, START + 6) == 9  # start, two policies, six exchanges
    report = verified(log.path)
    assert whats(report) == [] and report.exchanges == 4


def test_what_is_moved_verifies_as_a_log_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as then:
        old(then)
        path = written(tmp_path, range(10), then)
    with opened_beside(path, None) as (held, db):
        prune(db, held, START + 3, tmp_path / "first.db")
    with opened_beside(path, None) as (held, db):
        prune(db, held, START + 6, tmp_path / "second.db")
        with pytest.raises(InputError, match="is there already"):
            prune(db, held, START + 9, tmp_path / "second.db")
        assert prune(db, held, START + 6) == 0
    reports = [verify(tmp_path / name, path.with_suffix(".key")) for name in ("first.db", "second.db")]
    assert [whats(report) for report in reports] == [[], []]
    assert [report.exchanges for report in (*reports, verified(path))] == [3, 3, 4]


def test_a_mark_cannot_be_forged_or_taken_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as then:
        old(then)
        path = written(tmp_path, range(10), then)
    with opened_beside(path, None) as (held, db):
        prune(db, held, START + 3)
    whole = tmp_path / "whole.db"
    shutil.copy(path, whole)
    edit(path, "delete from anchors")
    assert "chain 1, record 1: records 1 to 4 are missing" in whats(verified(path))
    for change in ("seq = 5", "code = zeroblob(32)", "policies = '[]  '", "chain = 2"):
        shutil.copy(whole, path)
        edit(path, f"update anchors set {change}")
        assert not verified(path).whole


def test_a_request_that_was_cut_by_pruning_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = tuple(v.id for v in entry(1).verdicts)
    with monkeypatch.context() as then:
        old(then)
        log = opened(tmp_path)
        log.record(entry(1, "good", time=START + 1, more=True, written=-1))
        log.record(entry(1, time=START + 5, released=(released(" day", ids, start=4),), written=8))
        log.close()
    with opened_beside(log.path, None) as (held, db):
        prune(db, held, START + 3)
    assert whats(verified(log.path)) == []


def test_what_people_decided_goes_with_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by = Verdict("v-1", "critic", "no-harm", "escalate")
    with monkeypatch.context() as then:
        old(then)
        log = opened(tmp_path)
        for number in (1, 2):
            log.record(entry(number, time=START, decision="escalate", verdict="v-1", verdicts=(by,), released=(), written=0),
                       escalated=exchange("where?", "there"))  # fmt: skip
        log.flush()
        with closing(connect(log.path)) as db:
            queue.decide(db, log, 1, "ann", "kept")
        old(then, START + 50)
        log.close()
    with opened_beside(log.path, None) as (held, db):
        prune(db, held, START + 10)
        assert queue.count(db) == {"open": 1, "claimed": 0, "decided": 0}
    assert whats(verified(log.path)) == []
