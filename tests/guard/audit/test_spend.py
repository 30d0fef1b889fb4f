"""The ledger of money: nobody spends more than the limit, whoever asks at the same time."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path

import pytest

from fairlead.guard.audit import spend
from fairlead.guard.audit.store import connect
from guard.audit.helpers import log_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return log_of(tmp_path, 0)


def test_what_is_reserved_is_settled_and_a_limit_holds(path: Path) -> None:
    with closing(connect(path)) as db:
        assert spend.reserve(db, "t", 0.6, 1.0, "2026-11-26")
        assert not spend.reserve(db, "t", 0.5, 1.0, "2026-11-26")
        spend.settle(db, "t", 0.6, 0.1, "2026-11-26")
        assert spend.reserve(db, "t", 0.9, 1.0, "2026-11-26") and spend.spent(db, "t", "2026-11-26") == 1.0
        assert spend.reserve(db, "t", 0.5, 1.0, "2026-11-27")  # another day
        assert spend.reserve(db, "u", 0.5, 1.0, "2026-11-26")  # another tenant
        assert not spend.reserve(db, "new", 1.1, 1.0)
        assert spend.spent(db, "new") == 0.0
    with closing(connect(path)) as db:  # after a restart
        assert spend.spent(db, "t", "2026-11-26") == 1.0


def test_many_tiny_amounts_are_not_free_and_wrong_ones_are_refused(path: Path) -> None:
    with closing(connect(path)) as db:
        for _ in range(10):
            assert spend.reserve(db, "t", 1e-9, 1.0)
        assert spend.spent(db, "t") == pytest.approx(1e-5)
        for wrong in (-1.0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="give 0 or more"):
                spend.reserve(db, "t", wrong, 1.0)


def test_workers_that_ask_at_once_take_no_more_than_there_is(path: Path) -> None:
    taken: list[bool] = []

    def worker() -> None:
        with closing(connect(path)) as db:
            db.execute("pragma synchronous = off")
            taken.extend(spend.reserve(db, "t", 0.01, 0.25) for _ in range(20))

    workers = [threading.Thread(target=worker) for _ in range(3)]
    for one in workers:
        one.start()
    for one in workers:
        one.join()
    assert taken.count(True) == 25
    with closing(connect(path)) as db:
        assert spend.spent(db, "t") == 0.25


def test_the_day_is_one_of_utc() -> None:
    assert spend.today(86_399.0) == "1970-01-01" and spend.today(86_400.0) == "1970-01-02"
