"""Bulk jobs: whatever stops them, every row ends on disk once, and no labelled row is asked again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fairlead.errors import BudgetReached, InputError, MissingResource
from fairlead.feedback import bulk, shards
from fairlead.feedback.bulk import Outcome, Pace, Summary, run_job
from fairlead.feedback.shards import open_folder
from fairlead.feedback.stream import stream, survey
from feedback import bulk_job

JOB = Path(bulk_job.__file__)
TWO_BY_FOUR = Pace(2, 4)


def write_rows(path: Path, n: int, bad: Sequence[int] = ()) -> Path:
    path.write_text("".join("{bad\n" if i in bad else json.dumps({"i": i}) + "\n" for i in range(n)))
    return path


def double(rows: Sequence[Any]) -> list[Outcome]:
    return [Outcome(2 * row["i"]) for row in rows]


def run(
    source: Path, out: Path, function: Callable[..., Any] = double, pace: Pace = TWO_BY_FOUR, **facts: Any
) -> Summary:
    found = survey(source)
    with open_folder(out, {"input": found.sha256, **facts}, rows=found.rows, shard_rows=10) as folder:
        return run_job(folder, found.files, function, pace, marks=found.marks)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in sorted((out / "shards").iterdir()) for line in file.open()]


def check_whole(out: Path, n: int, value: Callable[[int], Any]) -> None:
    got = lines(out)
    assert [row["row"] for row in got] == list(range(n))
    assert [row["value"] for row in got] == [value(i) for i in range(n)]
    assert not list((out / "parts").iterdir())
    index = [json.loads(line) for line in (out / "index.jsonl").open()]
    assert sum(entry["rows"] for entry in index) == n
    assert [entry["shard"] for entry in index] == list(range(len(index)))


def start(source: Path, out: Path, log: Path, *more: str) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(sys.path)
    return subprocess.Popen(
        [sys.executable, str(JOB), str(source), str(out), str(log), *more],
        env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_killed_at_random_points_every_row_is_there_once(tmp_path: Path) -> None:
    n, kills = 600, 5
    source, out, log = write_rows(tmp_path / "in.jsonl", n), tmp_path / "out", tmp_path / "asked"
    log.touch()
    draw = random.Random(7)
    at = sorted(draw.sample(range(20, 500), kills))
    for point in at:
        job = start(source, out, log, "0.004")
        while log.read_bytes().count(b"\n") < point:
            assert job.poll() is None, job.communicate()[1]
            time.sleep(draw.uniform(0, 0.003))
        job.send_signal(signal.SIGKILL)
        assert job.wait() == -signal.SIGKILL
        job.communicate()
    job = start(source, out, log)
    assert job.wait() == 0, job.communicate()[1]
    job.communicate()
    check_whole(out, n, lambda i: {"twice": 2 * i, "text": "x" * 50})
    asked = Counter(map(int, log.read_text().split()))
    assert set(asked) == set(range(n))
    again = sum(times - 1 for times in asked.values())
    assert again <= kills * bulk_job.WORKERS * bulk_job.CHUNK, "more than what was in flight was asked twice"


def test_a_full_disk_stops_the_job_and_leaves_nothing_torn(tmp_path: Path) -> None:
    source, out, log = write_rows(tmp_path / "in.jsonl", 100), tmp_path / "out", tmp_path / "asked"
    job = start(source, out, log, "0", "1500")  # a shard has about 2,000 bytes: the limit falls into a journal
    _, said = job.communicate()
    assert job.returncode == 4 and b"what is labelled is kept" in said, said
    kept = [json.loads(line) for file in (out / "parts").iterdir() for line in file.open()]
    assert kept and len({row["row"] for row in kept}) == len(kept)
    assert not list(out.rglob("*.tmp"))
    job = start(source, out, log)
    assert job.wait() == 0, job.communicate()[1]
    job.communicate()
    check_whole(out, 100, lambda i: {"twice": 2 * i, "text": "x" * 50})
    asked = list(map(int, log.read_text().split()))
    assert sorted(asked) == sorted(set(range(100)) - {row["row"] for row in kept})


@pytest.mark.parametrize("cut", ["before the shard", "before the index", "before the journal goes", "torn journal"])
def test_a_kill_between_two_writes_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: str) -> None:
    source, out = write_rows(tmp_path / "in.jsonl", 25), tmp_path / "out"

    class Killed(BaseException):
        pass

    real, seen = shards.write_whole, []

    def fragile(path: Path, body: Any, **more: Any) -> None:
        seen.append(path.name)
        first = path.name == "000001.jsonl"
        if first and cut == "before the shard":
            raise Killed
        if path.name == "index.jsonl" and "000001.jsonl" in seen and cut == "before the index":
            raise Killed
        real(path, body, **more)
        if path.name == "index.jsonl" and "000001.jsonl" in seen and cut == "before the journal goes":
            raise Killed

    asked: list[int] = []

    def noting(rows: Sequence[Any]) -> list[Outcome]:
        asked.extend(row["i"] for row in rows)
        if cut == "torn journal" and 12 in asked:
            raise Killed
        return double(rows)

    monkeypatch.setattr(shards, "write_whole", fragile)
    with pytest.raises(Killed):
        run(source, out, noting, Pace(1, 4))
    monkeypatch.setattr(shards, "write_whole", real)
    if cut == "torn journal":
        with (out / "parts" / "000001.jsonl").open("ab") as journal:
            journal.write(b'{"row":12,"pla')
    cut, before = "", len(asked)
    run(source, out, noting, Pace(1, 4))
    check_whole(out, 25, lambda i: 2 * i)
    assert not set(asked[:before]) & set(asked[before:]) - {12, 13, 14, 15}


def test_rows_without_a_label_are_written_and_counted(tmp_path: Path) -> None:
    source, out = write_rows(tmp_path / "in.jsonl", 23, bad=(3,)), tmp_path / "out"

    def picky(rows: Sequence[Any]) -> list[Outcome]:
        if any(row["i"] == 11 for row in rows):
            raise InputError("this prompt is refused: too rude")
        return [Outcome(None, f"unreadable: {row['i']}") if row["i"] % 10 == 5 else Outcome(row["i"]) for row in rows]

    summary = run(source, out, picky)
    reasons = {"not valid JSON": 1, "this prompt is refused": 1, "unreadable": 2}
    assert (summary.labelled, dict(summary.reasons)) == (19, reasons)
    got = lines(out)
    assert [row["row"] for row in got] == list(range(23))
    assert {row["row"]: row["reason"] for row in got if row["value"] is None} == {
        3: got[3]["reason"], 5: "unreadable: 5", 11: "this prompt is refused: too rude", 15: "unreadable: 15"
    }  # fmt: skip
    assert got[3]["place"].endswith("in.jsonl:4") and "not valid JSON" in got[3]["reason"]

    found = survey(source)
    with open_folder(out, {"input": found.sha256}, rows=23, shard_rows=10) as folder:
        assert folder.counts() == (19, Counter(reasons))
        assert folder.ask_again() == 4
        again = run_job(folder, found.files, double)
    assert (again.asked, again.labelled) == (4, 3)
    assert [row["value"] for row in lines(out)][4:7] == [4, 10, 6]


@pytest.mark.parametrize("error", [BudgetReached("spent"), MissingResource("nobody answers"), RuntimeError("a bug")])
def test_what_stops_a_job_keeps_what_others_had_in_flight(tmp_path: Path, error: Exception) -> None:
    source, out = write_rows(tmp_path / "in.jsonl", 40), tmp_path / "out"
    gate = threading.Event()

    def failing(rows: Sequence[Any]) -> list[Outcome]:
        if rows[0]["i"] == 4:
            gate.set()
            raise error
        assert gate.wait(10)
        time.sleep(0.05)
        return double(rows)

    with pytest.raises(type(error), match=str(error)):
        run(source, out, failing, Pace(3, 4))
    asked: list[int] = []

    def noting(rows: Sequence[Any]) -> list[Outcome]:
        asked.extend(row["i"] for row in rows)
        return double(rows)

    summary = run(source, out, noting)
    assert summary.kept == 8 and not set(asked) & {0, 1, 2, 3, 8, 9, 10, 11}
    check_whole(out, 40, lambda i: 2 * i)


def test_a_job_is_only_gone_on_with_by_itself(tmp_path: Path) -> None:
    source, out = write_rows(tmp_path / "in.jsonl", 20), tmp_path / "out"
    run(source, out, critic="a", settings={"samples": 5})
    with pytest.raises(InputError, match=r"critic was a, is b"):
        run(source, out, critic="b", settings={"samples": 5})
    with pytest.raises(InputError, match=r"settings.samples was 5, is 3"):
        run(source, out, critic="a", settings={"samples": 3})
    write_rows(source, 21)
    with pytest.raises(InputError, match="another job"):
        run(source, out, critic="a", settings={"samples": 5})
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"holds thesis.tex"):
        run(source, tmp_path / "taken")


def test_two_processes_do_not_work_on_one_job(tmp_path: Path) -> None:
    source, out, log = write_rows(tmp_path / "in.jsonl", 200), tmp_path / "out", tmp_path / "asked"
    log.touch()
    job = start(source, out, log, "60")
    while not log.read_bytes():
        assert job.poll() is None, job.communicate()[1]
        time.sleep(0.01)
    other = start(source, out, log)
    _, said = other.communicate()
    assert other.returncode == 2 and b"another process works on this job" in said
    job.kill()
    job.communicate()
    assert start(source, out, log).wait() == 0  # the lock went with the process


def test_a_shard_that_was_changed_is_refused(tmp_path: Path) -> None:
    source, out = write_rows(tmp_path / "in.jsonl", 20), tmp_path / "out"
    run(source, out)
    file = out / "shards" / "000001.jsonl"
    whole = file.read_text()
    file.write_text(whole.replace('"value":22', '"value":23'))
    with pytest.raises(InputError, match=r"000001.jsonl: was changed"):
        run(source, out)
    file.unlink()
    assert run(source, out).asked == 10
    assert file.read_text() == whole
    (out / "index.jsonl").unlink()
    file.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match="does not hold its rows"):
        run(source, out)


def test_a_job_without_any_label_stops_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "PATIENCE", 12)
    source, asked = write_rows(tmp_path / "in.jsonl", 400), []

    def mute(rows: Sequence[Any]) -> list[Outcome]:
        asked.extend(rows)
        return [Outcome(None, "the critic did not answer: no") for _ in rows]

    with pytest.raises(InputError, match=r"not one of the first 12 rows .* the critic did not answer\."):
        run(source, tmp_path / "out", mute)
    assert len(asked) < 40


def test_rows_are_read_as_they_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million rows need no more memory than what is in flight: the stream is never far ahead of the answers."""
    source, drawn, answered, ahead = write_rows(tmp_path / "in.jsonl", 3000), [0], [0], []

    def counting(*arguments: Any) -> Any:
        for raw in stream(*arguments):
            drawn[0] += 1
            yield raw

    def noting(rows: Sequence[Any]) -> list[Outcome]:
        ahead.append(drawn[0] - answered[0])
        return double(rows)

    found = survey(source)
    monkeypatch.setattr(bulk, "stream", counting)
    with open_folder(tmp_path / "out", {}, rows=3000, shard_rows=100) as folder:

        def progress(done: int, total: int) -> None:
            answered[0] = done
            assert sum(map(len, folder.parts.values())) < 300

        run_job(folder, found.files, noting, Pace(3, 8), progress=progress)
    assert max(ahead) <= 4 * 8
    assert len(lines(tmp_path / "out")) == 3000


def test_a_function_that_breaks_its_promise_is_caught(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", 8)
    with pytest.raises(ValueError, match="3 outcomes for 4 rows"):
        run(source, tmp_path / "a", lambda rows: double(rows)[1:])
    with pytest.raises(ValueError, match="must say why"):
        run(source, tmp_path / "b", lambda rows: [Outcome(None) for _ in rows])
