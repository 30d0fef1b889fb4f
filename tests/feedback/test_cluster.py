"""The same job under a local Ray: the same function, the same files, and what is on disk is not asked again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fairlead.errors import BudgetReached, InputError
from fairlead.feedback.bulk import Outcome, Pace, RowFunction, run_job
from fairlead.feedback.shards import open_folder
from fairlead.feedback.stream import survey

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'fairlead[cluster]'")
pytestmark = pytest.mark.full  # a cluster takes its time to start

N, SHARD = 95, 10


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    for left in range(4, -1, -1):  # on a busy machine the node may miss Ray's half minute
        try:
            ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
            break
        except Exception:
            ray.shutdown()
            if not left:
                raise
    yield
    ray.shutdown()


@dataclass(frozen=True)
class Make:
    """Makes a function that notes what it is asked in a file, and stops at a row."""

    log: Path
    stop_at: int | None = None
    die_at: int | None = None

    def __call__(self) -> RowFunction:
        def triple(rows: Sequence[Any]) -> list[Outcome]:
            with self.log.open("a") as log:
                log.write("".join(f"{row['i']}\n" for row in rows))
            numbers = [row["i"] for row in rows]
            if self.stop_at in numbers:
                raise BudgetReached("spent")
            if self.die_at in numbers and not (marker := self.log.with_suffix(".died")).exists():
                marker.touch()
                import os

                os.kill(os.getpid(), 9)
            return [Outcome(None, "odd: no") if n % 10 == 7 else Outcome(3 * n) for n in numbers]

        return triple


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "in.jsonl"
    file.write_text("".join("{bad\n" if i == 40 else json.dumps({"i": i}) + "\n" for i in range(N)))
    return file


def on_ray(source: Path, out: Path, make: Make, workers: int = 2, restarts: bool = True) -> Any:
    from fairlead.feedback.cluster import run_on_ray

    found = survey(source)
    with open_folder(out, {"input": found.sha256}, rows=found.rows, shard_rows=SHARD) as folder:
        return run_on_ray(folder, found.files, make, Pace(1, 4), workers=workers, marks=found.marks, restarts=restarts)


def alone(source: Path, out: Path, make: Make) -> Any:
    found = survey(source)
    with open_folder(out, {"input": found.sha256}, rows=found.rows, shard_rows=SHARD) as folder:
        return run_job(folder, found.files, make(), Pace(1, 4))


def files(out: Path) -> dict[str, bytes]:
    return {str(f.relative_to(out)): f.read_bytes() for f in sorted(out.rglob("*.jsonl"))}


def asked(log: Path) -> list[int]:
    return sorted(map(int, log.read_text().split()))


def test_writes_the_same_files_as_without(source: Path, tmp_path: Path) -> None:
    one = alone(source, tmp_path / "alone", Make(tmp_path / "a"))
    two = on_ray(source, tmp_path / "ray", Make(tmp_path / "b"))
    assert files(tmp_path / "ray") == files(tmp_path / "alone") and len(files(tmp_path / "ray")) == 11
    assert (two.asked, two.labelled, two.reasons) == (one.asked, one.labelled, one.reasons)
    assert asked(tmp_path / "b") == asked(tmp_path / "a") == [i for i in range(N) if i != 40]
    assert on_ray(source, tmp_path / "ray", Make(tmp_path / "c")).asked == 0
    assert not (tmp_path / "c").exists()


def test_what_stops_a_worker_stops_the_job_and_the_rest_is_kept(source: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    with pytest.raises(BudgetReached, match="spent"):
        on_ray(source, out, Make(log, stop_at=56))
    kept = {json.loads(line)["row"] for body in files(out).values() for line in body.splitlines() if b'"row"' in line}
    assert {50, 51, 52, 53} <= kept and 56 not in kept
    log.unlink()
    alone(source, out, Make(log))  # and another kind of run takes it up
    assert not set(asked(log)) & kept
    rows = [json.loads(line) for file in sorted((out / "shards").iterdir()) for line in file.open()]
    assert [row["row"] for row in rows] == list(range(N))


def test_a_worker_that_dies_is_started_again_where_it_was(source: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    on_ray(source, out, Make(log, die_at=25))
    rows = [json.loads(line) for file in sorted((out / "shards").iterdir()) for line in file.open()]
    assert [row["row"] for row in rows] == list(range(N))
    twice = [i for i in set(asked(log)) if asked(log).count(i) > 1]
    assert set(twice) <= {24, 25, 26, 27}


def test_with_a_budget_no_worker_is_made_twice(source: Path, tmp_path: Path) -> None:
    """One that died would have its part of the budget once more."""
    out, log = tmp_path / "out", tmp_path / "log"
    with pytest.raises(BudgetReached, match="a worker died"):
        on_ray(source, out, Make(log, die_at=25), workers=1, restarts=False)
    assert not list(out.glob(".workers-*"))
    on_ray(source, out, Make(log), workers=1, restarts=False)
    assert len([line for file in (out / "shards").iterdir() for line in file.open()]) == N


def test_an_input_that_changed_is_refused(source: Path, tmp_path: Path) -> None:
    on_ray(source, tmp_path / "out", Make(tmp_path / "log"))
    source.write_text(source.read_text().replace('{"i": 3}', '{"i": 4}'))
    with pytest.raises(InputError, match="another job"):
        on_ray(source, tmp_path / "out", Make(tmp_path / "log"))


def test_the_command_labels_the_same_on_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from fairlead.cli.main import main
    from support.choosers import Chooser
    from support.fakes import Faulty

    monkeypatch.chdir(tmp_path)
    pairs = [{"prompt": f"what is item {i} ?", "first": f"a good {i}", "second": f"bad {i}"} for i in range(23)]
    Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    with Faulty(Chooser(), lambda i, body: None) as server:
        command = ["label", "ai", "pairs.jsonl", "--critic", f"openai/chooser@{server.url}/v1", "--shard", "5"]
        command += ["--budget", "2M tokens", "--json"]
        assert main([*command, "--out", "ray", "--ray", "2"]) == 0, capsys.readouterr().err
        assert json.loads(capsys.readouterr().out)["labelled"] == 23
        assert main([*command, "--out", "alone"]) == 0
    assert files(tmp_path / "ray") == files(tmp_path / "alone")
