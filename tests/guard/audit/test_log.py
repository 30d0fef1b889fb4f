"""How the log is written: chains, commits, failures, restarts, and what is lost when."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from fairlead.errors import InputError
from fairlead.guard.audit import AuditClosed, AuditLog, Options, open_log, store
from fairlead.guard.audit.chain import read_key, row_number
from fairlead.guard.audit.heads import heads_beside, read_heads
from guard.audit.helpers import edit, entry, log_of, opened, rows, verified, whats

ROOT = Path(__file__).parents[3]


def program(text: str, *arguments: object) -> subprocess.Popen[str]:
    """A worker in a process of its own."""
    head = "import sys\nfrom pathlib import Path\nfrom guard.audit.helpers import *\nfolder = Path(sys.argv[1])\n"
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}"}
    command = [sys.executable, "-c", head + textwrap.dedent(text), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


# ------------------------------------------------------------------------------------------- opening again


def test_a_chain_is_taken_up_where_it_ended(tmp_path: Path) -> None:
    for count in (3, 2):
        log_of(tmp_path, count)
    report = verified(tmp_path / "audit.db")
    assert report.whole and (report.chains, report.records, report.crashes) == (1, 9, 0)


def test_two_logs_open_at_a_time_write_two_chains_and_later_ones_take_them_up(tmp_path: Path) -> None:
    first, second = opened(tmp_path), opened(tmp_path)
    assert (first.chain, second.chain) == (1, 2)
    for number in range(3):
        first.record(entry(number))
        second.record(entry(number))
    first.close()
    assert opened(tmp_path).chain == 1
    second.close()
    report = verified(tmp_path / "audit.db")
    assert report.whole and report.chains == 2


@pytest.mark.parametrize("back", [0, 1])
def test_a_log_whose_end_was_changed_is_not_continued(tmp_path: Path, back: int) -> None:
    path = log_of(tmp_path)
    last = row_number(1, 7 - back)
    edit(path, f"update records set {'body = body || 1' if back == 0 else 'code = zeroblob(32)'} where row = {last}")
    with pytest.raises(InputError, match="record 7 of chain 1, the last, was changed; the log is not continued"):
        opened(tmp_path)


def test_a_log_whose_end_was_cut_off_is_not_continued(tmp_path: Path) -> None:
    path = log_of(tmp_path)
    edit(path, f"delete from records where row > {row_number(1, 4)}")
    with pytest.raises(InputError, match="chain 1 ends at record 4, but its head .* what followed 4 is gone"):
        opened(tmp_path)


def test_the_key_is_its_owners_alone_and_one_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = log_of(tmp_path)
    key = path.with_suffix(".key")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key.chmod(0o640)
    with pytest.raises(InputError, match=r"others may read this key \(mode 640\)"):
        opened(tmp_path)
    key.unlink()
    with pytest.raises(InputError, match="no such key file"):  # never a new key for an old log
        opened(tmp_path)


def test_a_file_that_is_something_else_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "audit.db"
    other.write_text("These are notes, and long enough to be looked at as a file of a database." * 20)
    (tmp_path / "audit.key").write_text("0" * 64)
    (tmp_path / "audit.key").chmod(0o600)
    with pytest.raises(InputError, match="this is no audit log"):
        opened(tmp_path)
    with pytest.raises(InputError, match="no folder"):
        open_log(tmp_path / "nowhere" / "audit.db")


# ------------------------------------------------------------------------------------------ nobody's secret


def test_no_key_and_no_text_is_in_any_file_or_message(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    marker = "s3cr3t-harbour-marker"
    with caplog.at_level(logging.DEBUG):
        log = opened(tmp_path)
        log.record(entry(1, marker), [("released", marker)])  # no texts are kept here
        full(log)
        filled(log)
        wait_for(lambda: log.health().failures > 0)
        with pytest.raises(AuditClosed) as told:
            log.flush(0.1)
        full(log, False)
        log.close()
    key = (tmp_path / "audit.key").read_text().strip()
    held = b"".join(file.read_bytes() for file in tmp_path.iterdir() if file.is_file() and file.suffix != ".key")
    for secret in (marker, key):
        assert secret.encode() not in held and bytes.fromhex(key) not in held
        assert secret not in caplog.text and secret not in str(told.value)
    assert "cannot be written" in caplog.text


# ----------------------------------------------------------------------------------------------- commits


def wait_for(done: Any, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.005)


def test_records_of_a_window_share_a_commit_that_comes_by_itself(tmp_path: Path) -> None:
    log = opened(tmp_path, window_s=0.2)
    log.flush()
    for number in range(50):
        log.record(entry(number))
    assert log.health().waiting == 50
    wait_for(lambda: log.health().waiting == 0)
    assert log.health().written == 51
    log.close()


def test_a_commit_is_on_the_disk_and_what_is_erased_is_overwritten(tmp_path: Path) -> None:
    log = opened(tmp_path)
    settings = [
        log._db.execute(f"pragma {name}").fetchone()[0] for name in ("synchronous", "secure_delete", "journal_mode")
    ]
    log.close()
    assert settings == [2, 1, "wal"]  # 2 is FULL


def test_strict_waits_for_the_disk(tmp_path: Path) -> None:
    log = opened(tmp_path, strict=True, window_s=30.0)

    async def serve() -> list[int]:
        async def one(number: int) -> int:
            seq = log.record(entry(number))
            await log.settled(seq)
            with sqlite3.connect(log.path) as db:  # another connection sees it: it is committed
                return int(
                    db.execute("select count(*) from records where row = ?", (row_number(1, seq),)).fetchone()[0]
                )

        return await asyncio.gather(*map(one, range(40)))

    assert asyncio.run(serve()) == [1] * 40
    log.close()
    assert verified(log.path).whole


def test_threads_may_record_at_once(tmp_path: Path) -> None:
    log = opened(tmp_path)
    workers = [
        threading.Thread(target=lambda n=n: [log.record(entry(n * 1000 + i)) for i in range(200)]) for n in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    log.close()
    report = verified(log.path)
    assert whats(report) == [] and report.exchanges == 800


# ------------------------------------------------------------------------------------------ when it fails


def full(log: AuditLog, yes: bool = True) -> None:
    """SQLite takes no further page, as on a full disk."""
    log._db.execute(f"pragma max_page_count = {1 if yes else 1_000_000}")


def filled(log: AuditLog, start: int = 0) -> None:
    for number in range(start, start + 40):  # more than the page that is begun can hold
        log.record(entry(number))


def test_a_full_disk_loses_nothing_stops_new_requests_after_the_window_and_recovers(tmp_path: Path) -> None:
    log = opened(tmp_path, give_up_s=0.4)
    log.flush()
    full(log)
    filled(log)
    wait_for(lambda: log.health().failures > 0)
    assert log.accepting  # within the window
    wait_for(lambda: not log.accepting)
    health = log.health()
    assert "full" in health.why and health.failing_s >= 0.4 and health.lost == 0
    log.record(entry(50))  # of a request that was under way
    full(log, False)
    wait_for(lambda: log.accepting and log.health().waiting == 0)
    log.close()
    report = verified(log.path)
    assert whats(report) == [] and report.exchanges == 41


def test_a_full_disk_closes_a_strict_guard_and_the_log_says_what_was_not_let_out(tmp_path: Path) -> None:
    log = opened(tmp_path, strict=True)
    log.flush()
    full(log)

    async def serve() -> None:
        for number in range(40):
            await log.settled(log.record(entry(number)))

    with pytest.raises(AuditClosed, match="takes no record: it cannot be written"):
        asyncio.run(serve())
    assert not log.accepting
    with pytest.raises(AuditClosed):
        log.record(entry(99))
    log.unsent(3, "client left")  # what corrects the chain is taken down all the same
    full(log, False)
    wait_for(lambda: log.accepting)
    log.close()
    report = verified(log.path)
    assert report.whole and report.unsent == 2


def test_what_found_no_room_is_counted_in_the_chain(tmp_path: Path) -> None:
    log = opened(tmp_path, batch=8, queue=50, on_failure="count")
    log.flush()
    full(log)
    numbers = [log.record(entry(number)) for number in range(60)]
    assert numbers.count(0) == 10 and log.health().lost == 10
    assert log.accepting  # as the policy asks
    full(log, False)
    wait_for(lambda: log.health().waiting == 0)
    log.close()
    report = verified(log.path)
    assert report.gaps == 10 and any("10 records before it were lost" in told for told in whats(report))


def test_a_full_queue_closes_a_strict_log(tmp_path: Path) -> None:
    log = opened(tmp_path, strict=True, batch=8, queue=8)
    log.flush()
    held = sqlite3.connect(log.path, isolation_level=None)
    held.execute("begin immediate")  # the commit has to wait
    with pytest.raises(AuditClosed, match="no more fit"):
        for number in range(9):
            log.record(entry(number))
    held.execute("rollback")
    log.close()


def test_a_thread_that_breaks_closes_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = opened(tmp_path)
    log.flush()
    monkeypatch.setattr(store, "insert", lambda *_: 1 / 0)
    log.record(entry(1))
    wait_for(lambda: not log.accepting)
    with pytest.raises(AuditClosed, match="the writing thread broke"):
        log.record(entry(2))
    with pytest.raises(AuditClosed, match="1 records were not written"):
        log.close()


def test_a_file_size_limit_of_the_system_is_a_full_disk(tmp_path: Path) -> None:
    worker = program(
        """
        import resource, signal, time
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        log = opened(folder, give_up_s=0.2)
        log.flush()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        for number in range(2000):
            log.record(entry(number))
        while log.accepting:
            time.sleep(0.01)
        print(log.health().lost, log.health().waiting > 0, flush=True)
        try:
            log.close()
        except Exception as problem:
            print(type(problem).__name__, flush=True)
        """,
        tmp_path,
    )
    out, err = worker.communicate(timeout=60)
    assert out.split() == ["0", "True", "AuditClosed"], err
    report = verified(tmp_path / "audit.db")
    assert whats(report) == []


@pytest.mark.parametrize("after_s", [0.05, 0.4, 0.7])
def test_a_killed_worker_leaves_a_chain_that_verifies_and_the_next_says_so(tmp_path: Path, after_s: float) -> None:
    worker = program(
        """
        log = opened(folder, window_s=0.01, heads_every_s=0.05)
        number = 0
        while True:
            for _ in range(20):
                log.record(entry(number))
                number += 1
            print(log.health().written, flush=True)
        """,
        tmp_path,
    )
    assert worker.stdout is not None
    wait_for(heads_beside(tmp_path / "audit.db").exists)
    time.sleep(after_s)
    worker.send_signal(signal.SIGKILL)
    said = worker.stdout.read().split()
    worker.wait()
    written = int(said[-2]) if len(said) > 1 else 0  # what the worker itself knew to be on the disk
    report = verified(tmp_path / "audit.db")
    assert whats(report) == [] and report.records >= written
    log_of(tmp_path, 1)
    report = verified(tmp_path / "audit.db")
    assert whats(report) == [] and (report.crashes, report.window_s) == (1, 0.05)


def test_two_workers_write_at_once(tmp_path: Path) -> None:
    text = """
        log = opened(folder, window_s=0.005)
        print(log.chain, flush=True)
        for number in range(1500):
            log.record(entry(number))
            if number % 100 == 0:
                log.flush()
        log.close()
        """
    workers = [program(text, tmp_path) for _ in range(2)]
    told = [worker.communicate(timeout=60) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], told
    report = verified(tmp_path / "audit.db")
    assert whats(report) == [] and report.heads == "match" and report.exchanges == 3000


def test_workers_that_start_together_make_one_log(tmp_path: Path) -> None:
    text = """
        log = opened(folder)
        log.record(entry(1))
        log.close()
        """
    workers = [program(text, tmp_path) for _ in range(4)]
    told = [worker.communicate(timeout=60) for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 4, told
    report = verified(tmp_path / "audit.db")
    assert whats(report) == [] and report.exchanges == 4


def test_a_log_is_verified_while_it_is_written(tmp_path: Path) -> None:
    log = opened(tmp_path, window_s=0.001, heads_every_s=0.001)
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            log.record(entry(number))
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        wait_for(lambda: heads_beside(log.path).exists())
        for _ in range(5):
            report = verified(log.path)
            assert whats(report) == [] and report.heads == "match"
    finally:
        stop.set()
        writer.join()
        log.close()


# ------------------------------------------------------------------------------------------------- heads


def test_heads_are_posted_and_a_receiver_that_is_not_there_is_counted(tmp_path: Path) -> None:
    got: list[bytes] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    log = opened(tmp_path, heads_url=f"http://127.0.0.1:{server.server_port}/heads")
    log.record(entry(1))
    log.close()
    server.shutdown()
    server.server_close()
    kept = tmp_path / "elsewhere.heads"
    kept.write_bytes(b"\n".join(got) + b"\n")  # the lines as they came are a heads file
    keys = read_key(tmp_path / "audit.key")
    assert read_heads(kept, keys)[1].seq == 3 == len(rows(log.path))
    log = opened(tmp_path, heads_url=f"http://127.0.0.1:{server.server_port}/heads")
    log.close()
    assert log.health().heads_failures >= 1 and "refused" in log.health().heads_why


def test_heads_that_cannot_be_written_are_counted_and_do_not_stop_the_log(tmp_path: Path) -> None:
    path = tmp_path / "audit.db"
    log = open_log(path, options=Options(heads=str(tmp_path / "no" / "folder")))
    log.record(entry(1))
    log.close()
    assert log.health().heads_failures >= 1
    assert verified(path, heads=False).records == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch": 0},
        {"batch": 5000},
        {"queue": 10},
        {"window_s": -1.0},
        {"keep_s": float("nan")},
        {"heads_url": "ftp://a"},
    ],
)
def test_degenerate_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="audit: "):
        Options(**wrong)
