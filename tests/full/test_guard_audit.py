"""The audit log over many kills and many records."""

from __future__ import annotations

import random
import sqlite3
import time
from pathlib import Path

import pytest

from fairlead.guard.audit.chain import row_number
from guard.audit.helpers import entry, log_of, opened, verified, whats
from guard.audit.test_log import program, wait_for

pytestmark = pytest.mark.full


def test_a_log_that_is_killed_again_and_again_stays_whole(tmp_path: Path) -> None:
    draw, heads = random.Random(7), tmp_path / "audit.heads"
    for kill in range(12):
        before = heads.read_bytes() if heads.exists() else b""
        worker = program(
            """
            log = opened(folder, window_s=0.001, heads_every_s=0.01)
            number = 0
            while True:
                log.record(entry(number))
                number += 1
                if log.health().waiting > 2000:
                    log.flush()
            """,
            tmp_path,
        )
        wait_for(lambda before=before: heads.exists() and heads.read_bytes() != before)  # it has committed something
        time.sleep(draw.uniform(0.0, 0.4))
        worker.kill()
        worker.wait()
        report = verified(tmp_path / "audit.db")
        assert whats(report) == [] and report.crashes == kill
    log_of(tmp_path, 1)
    report = verified(tmp_path / "audit.db")
    assert whats(report) == [] and (report.crashes, report.chains) == (12, 1)


def test_a_hundred_thousand_records_verify_and_one_changed_byte_among_them_is_found(tmp_path: Path) -> None:
    log = opened(tmp_path)
    for number in range(100_000):
        log.record(entry(number))
        if number % 1000 == 0:
            wait_for(lambda: log.health().waiting < 5000)
    log.close()
    report = verified(log.path)
    assert whats(report) == [] and report.exchanges == 100_000
    with sqlite3.connect(log.path) as db:
        db.execute("update records set body = replace(body, '200', '201') where row = ?", (row_number(1, 77_777),))
    assert whats(verified(log.path)) == ["chain 1, record 77777: was changed, moved or put in: its code does not fit"]
