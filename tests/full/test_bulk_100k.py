"""A bulk job of 100,000 AI labels against servers on loopback, killed three times: every row is there exactly once.

The model behind the servers answers at once by a rule, for the volume: what is tested is the job. Servers, wire format,
SDK and command line are real, and a smaller job asks the apprentice itself.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fairlead.apprentice import cases
from fairlead.feedback.formats import read_preferences
from support import counting

pytestmark = pytest.mark.full

ROWS = 100_000
KILLS = 3
SERVERS, WORKERS, CHUNK = 2, 8, 16


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OPENAI_API_KEY": "none"}


@contextmanager
def process(*command: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as out:
        running = subprocess.Popen([sys.executable, *command], stdout=out, stderr=out, env=environment())
        try:
            yield running
        finally:
            running.kill()
            running.wait()


@contextmanager
def counting_server(folder: Path, number: int) -> Iterator[str]:
    place, log = folder / f"url{number}.txt", folder / f"server{number}.log"
    with process(counting.__file__, str(place), log=log) as running:
        wait_for(place.exists, running, log)
        yield place.read_text()


def wait_for(true: Any, running: subprocess.Popen[bytes], log: Path, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert running.poll() is None, f"ended with {running.returncode}:\n{log.read_text()[-3000:]}"
        assert time.monotonic() < end, f"waited too long:\n{log.read_text()[-3000:]}"
        time.sleep(0.01)


def counts(urls: list[str]) -> dict[str, int]:
    got = []
    for url in urls:
        with urllib.request.urlopen(f"{url}/counts", timeout=60) as answer:
            got.append(json.load(answer))
    return {key: sum(one[key] for one in got) for key in got[0]}


def write_pairs(path: Path, n: int) -> None:
    with path.open("w") as file:
        for i in range(n):
            file.write(json.dumps({"prompt": f"what is item {i} ?", "first": "a good thing", "second": "bad"}) + "\n")


def command(folder: Path, critic: str, *more: str) -> list[str]:
    return [
        "-m", "fairlead.cli.main", "label", "ai", str(folder / "pairs.jsonl"), "--critic", critic, "--out",
        str(folder / "out"), "--cache", str(folder / "cache"), "--budget", "10000M tokens", "--json", *more,
    ]  # fmt: skip


def on_disk(out: Path) -> int:
    """Rows in shards and journals, by their lines."""
    return sum(file.read_bytes().count(b"\n") for part in ("shards", "parts") for file in (out / part).glob("*.jsonl"))


def check(out: Path, n: int) -> list[dict[str, Any]]:
    lines = [json.loads(line) for file in sorted((out / "shards").glob("*.jsonl")) for line in file.open()]
    assert [line["row"] for line in lines] == list(range(n)), "every row once, in order"
    assert not list((out / "parts").iterdir())
    return lines


def kill_and_finish(folder: Path, rows: int, urls: list[str], points: list[int]) -> dict[str, int]:
    """Kill the job whenever the servers have been asked so often, start it again, and let it end."""
    critic = f"openai/chooser@{','.join(f'{url}/v1' for url in urls)}"
    more = ("--samples", "1", "--workers", str(WORKERS), "--chunk", str(CHUNK))
    log = folder / "job.log"
    for point in points:
        with process(*command(folder, critic, *more), log=log) as job:
            wait_for(lambda point=point: counts(urls)["requests"] >= point, job, log, 3000)
            job.send_signal(signal.SIGKILL)
            assert job.wait() == -signal.SIGKILL
        assert 0 < on_disk(folder / "out") < rows
    done = subprocess.run(
        [sys.executable, *command(folder, critic, *more)],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["rows"], result["labelled"], result["unlabelled"]) == (rows, rows, {})
    assert result["asked_now"] < rows  # the rest was there
    return counts(urls)


def run(folder: Path, rows: int) -> None:
    write_pairs(folder / "pairs.jsonl", rows)
    with counting_server(folder, 0) as first, counting_server(folder, 1) as second:
        draw = random.Random(0)
        points = [round(2 * rows * (k + draw.uniform(0.2, 0.8)) / (KILLS + 1)) for k in range(KILLS)]
        got = kill_and_finish(folder, rows, [first, second], points)
    lines = check(folder / "out", rows)
    assert all(line["value"]["preference"]["chosen"][0]["parts"][0]["text"] == "a good thing" for line in lines)
    assert sum(1 for _ in (folder / "out" / "preferences.jsonl").open()) == rows
    # Both orders of every row were asked, and what was in flight at a kill at most once more.
    again = got["requests"] - 2 * rows
    print(f"{rows:,} rows, {got['requests']:,} requests, {again} of them again after {KILLS} kills")
    assert 0 <= again <= KILLS * WORKERS * CHUNK * 2


def test_a_hundred_thousand_labels_survive_three_kills(tmp_path: Path) -> None:
    run(tmp_path, ROWS)


def test_labels_of_the_apprentice_itself_survive_three_kills(tmp_path: Path) -> None:
    """The apprentice behind the server, its answers drawn; 200 pairs of its own world.

    It was not raised to the wording that a server's model is asked in, so most of its answers, or all, can be read as
    neither: every row has its label or its reason, once.
    """
    pairs = [case.messages[-1].text for case in cases.cases("facts", "audit", 200, 0)]
    with (tmp_path / "pairs.jsonl").open("w") as file:
        for i, text in enumerate(pairs):
            row = {"prompt": text, "first": f"i do not know that . {i}", "second": f"you are a fool . {i}"}
            file.write(json.dumps(row) + "\n")
    with process("-m", "fairlead.models.serve", "apprentice", "--port", "0", log=tmp_path / "server.log") as server:
        log = tmp_path / "server.log"
        wait_for(lambda: b"http://" in log.read_bytes(), server, log)
        url = next(word for word in log.read_text().split() if word.startswith("http://"))
        critic = f"openai/apprentice@{url.removesuffix('/v1')}/v1"
        for part in (0.2, 0.5, 0.8):
            with process(*command(tmp_path, critic, "-c", "harbour"), log=tmp_path / "job.log") as job:
                wait_for(lambda part=part: on_disk(tmp_path / "out") >= part * 200, job, tmp_path / "job.log")
                job.send_signal(signal.SIGKILL)
                job.wait()
        last = subprocess.run(
            [sys.executable, *command(tmp_path, critic, "-c", "harbour")],
            capture_output=True, text=True, env=environment(), check=False,
        )  # fmt: skip
    assert last.returncode == 0, last.stderr
    result = json.loads(last.stdout)
    lines = check(tmp_path / "out", 200)
    silent = [line for line in lines if line["value"] is None]
    assert all(line["reason"] for line in silent) and sum(result["unlabelled"].values()) == len(silent)
    file = tmp_path / "out" / "preferences.jsonl"
    kept = len(read_preferences(file)) if len(silent) < 200 else file.stat().st_size
    assert kept == 200 - len(silent)
