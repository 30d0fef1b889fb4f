"""Texts beside the chain: kept for a time, erased for good, missed when they are gone without a word."""

from __future__ import annotations

import os
import time
from pathlib import Path

from fairlead.guard.audit import texts
from fairlead.guard.audit.store import connect
from guard.audit.helpers import edit, entry, opened, verified, whats

MARKER = "the-text-that-was-said"


def kept(folder: Path, count: int = 3, keep_s: float = 3600.0) -> Path:
    log = opened(folder, keep_s=keep_s)
    now = time.time()
    for number in range(count):
        said = [("asked", f"{MARKER} asked {number}"), ("released", f"{MARKER} released {number}")]
        log.record(entry(number, time=now, tenant=f"t{number % 2}"), said)
    log.close()
    return folder / "audit.db"


def on_disk(path: Path) -> bytes:
    return b"".join(
        file.read_bytes() for file in path.parent.iterdir() if file.name.startswith("audit.db") and file.is_file()
    )


def test_texts_are_kept_beside_the_chain_and_read_again(tmp_path: Path) -> None:
    path = kept(tmp_path)
    db = connect(path, readonly=True)
    assert [(text.what, text.text) for text in texts.kept(db, f"{1:016x}")] == [
        ("asked", f"{MARKER} asked 1"),
        ("released", f"{MARKER} released 1"),
    ]
    assert MARKER not in "".join(body for (body,) in db.execute("select body from records"))
    report = verified(path)
    assert whats(report) == [] and report.texts == 6


def test_one_tenant_may_ask_for_another_time_or_none(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.record(entry(1, time=time.time()), [("asked", MARKER)])
    log.record(entry(2, time=time.time()), [("asked", MARKER)], keep_s=3600.0)
    log.record(entry(3, time=time.time()), [("asked", MARKER)], keep_s=0.0)
    log.close()
    assert verified(log.path).texts == 1


def test_what_is_erased_is_gone_from_the_disk_and_the_chain_stays_whole(tmp_path: Path) -> None:
    path = kept(tmp_path)
    assert f"{MARKER} asked 1".encode() in on_disk(path)
    log = opened(tmp_path)
    db = connect(path)
    assert texts.erase(db, log, requests=[f"{1:016x}", "nobody"], who="ann", why="asked to") == ([f"{1:016x}"], 2)
    assert f"{MARKER} asked 1".encode() not in on_disk(path)
    db.close()
    log.close()
    assert b"asked 1" not in on_disk(path) and b"asked 2" in on_disk(path)
    report = verified(path)
    assert whats(report) == [] and (report.texts, report.erased) == (4, 2)


def test_all_of_a_tenant_is_erased(tmp_path: Path) -> None:
    path = kept(tmp_path)
    log, db = opened(tmp_path), connect(path)
    assert texts.erase(db, log, tenant="t0", who="ann", why="left") == ([f"{0:016x}", f"{2:016x}"], 4)
    db.close()
    log.close()
    assert MARKER.encode() + b" asked 0" not in on_disk(path)
    assert verified(path).whole


def test_what_is_over_is_erased_by_the_log_itself(tmp_path: Path) -> None:
    path = kept(tmp_path, keep_s=0.2)
    time.sleep(0.3)
    log = opened(tmp_path)  # its first turn looks for what is over
    log.flush()
    log.close()
    assert MARKER.encode() not in on_disk(path)
    report = verified(path)
    assert whats(report) == [] and (report.texts, report.expired) == (0, 6)


def test_a_reader_does_not_hold_the_log_back_and_the_next_scrub_does_it(tmp_path: Path) -> None:
    path = kept(tmp_path)
    reader, db = connect(path, readonly=True), connect(path)
    reader.execute("begin")
    reader.execute("select * from texts").fetchone()
    assert texts.expire(db, time.time() + 9999.0) == 6
    began = time.monotonic()
    assert not texts.scrub(db, wait_s=0.0)
    assert time.monotonic() - began < 5.0 and MARKER.encode() in on_disk(path)
    reader.close()
    assert texts.scrub(db, wait_s=0.0) and MARKER.encode() not in on_disk(path)
    db.close()


def test_a_text_taken_away_in_secret_is_missed(tmp_path: Path) -> None:
    path = kept(tmp_path)
    edit(path, "delete from texts where n = 1 and request = ?", values=(f"{1:016x}",))
    assert whats(verified(path)) == [
        f"chain 1, record 3: the text kept of request {1:016x} is gone before its time, and nobody erased it"
    ]


def test_a_text_that_was_changed_moved_or_added_is_found(tmp_path: Path) -> None:
    path = kept(tmp_path)
    edit(path, "update texts set text = 'another' where n = 1 and request = ?", values=(f"{1:016x}",))
    assert whats(verified(path)) == ["chain 1, record 3: the text kept of it (released) was changed"]
    path = kept(_folder(tmp_path, "b"))
    edit(path, "update texts set request = 'another' where n = 1 and request = ?", values=(f"{1:016x}",))
    assert whats(verified(path)) == ["chain 1, record 3: the text kept of it (released) was changed"]
    path = kept(_folder(tmp_path, "c"))
    edit(path, "insert into texts select row, 7, request, tenant, what, salt, until, text from texts where n = 1")
    assert len([told for told in whats(verified(path)) if "of which it does not know" in told]) == 3
    path = kept(_folder(tmp_path, "d"))
    edit(path, "insert into texts select row + 90, n, request, tenant, what, salt, until, text from texts where n = 1")
    assert len([told for told in whats(verified(path)) if "a record that is not there" in told]) == 3


def _folder(parent: Path, name: str) -> Path:
    os.mkdir(parent / name)
    return parent / name


def test_half_a_surrogate_pair_is_kept_as_its_escape(tmp_path: Path) -> None:
    log = opened(tmp_path, keep_s=3600.0)
    log.record(entry(1, time=time.time()), [("asked", "\ud83d half")])
    log.close()
    report = verified(log.path)
    assert whats(report) == [] and report.texts == 1
