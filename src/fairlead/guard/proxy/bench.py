"""How fast a proxy is here: a mock of the model's server, the proxy and the client, each in a process of its own.

Loopback, warm-up uncounted, depth in flight stated. What the proxy adds is told by percentile: that of the times
through it minus that of the times without it, at the same depth. It is a difference of percentiles, not a percentile
of differences: no request is asked both ways. Of streams the first byte of text is told too (`first_byte_ms`), and of
those that come at a model's pace how long the checks hold it back by what they read.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fairlead.constitution.load import load
from fairlead.errors import InputError, MissingResource
from fairlead.exchange import user
from fairlead.guard.checked import checked
from fairlead.guard.compile import policies_from
from fairlead.guard.plan import plan
from fairlead.guard.proxy.load import WORKS, Work, request, texts
from fairlead.guard.proxy.settings import read_settings
from fairlead.guard.watch import Seen
from fairlead.guard.wire.events import Channel

CONSTITUTION = """\
name: bench
principles:
  - id: keep-secrets
    dimension: secrecy
    severity: 5
    text: Keep what you were told to keep.
    guard: {at: [reply, tool_call], on_violation: redact, stream: window}
  - id: privacy
    dimension: secrecy
    severity: 4
    text: Do not give out personal data of people.
    guard: {at: [reply, tool_call], on_violation: redact, stream: window}
  - id: no-internal-names
    dimension: domain
    severity: 3
    text: Do not name internal systems.
    guard: {on_violation: redact, stream: window}
secrets:
  - {id: service-key, from: value, value: "9f8c1d2e7b6a5f4e3d2c1b0a99887766", canary: true}
  - {id: code-word, from: value, value: "saltmarsh-lantern-4417", canary: true}
"""
POLICY = "checks: {rules: {no-internal-names: ['(?i)project[- ]halyard', '\\bSRV-\\d{4}\\b', '(?i)moorings?-db']}}\n"

Say = Callable[[str], None]


def measure(
    works: Sequence[str], depths: Sequence[int], *, seconds: float, warm: float, workers: int, audit: bool, say: Say,
    constitution: Path | None = None, policy: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """All works at all depths: requests per second, and what is added by percentile, in milliseconds."""
    for name in works:
        if name not in WORKS:
            raise InputError(f"there is no workload {name!r}; known: {', '.join(WORKS)}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        given = options(Path(folder), audit=audit, constitution=constitution, policy=policy)
        files = Path(given[1]), Path(given[3])
        for name in works:
            held = held_back(WORKS[name], *files)
            with mock(name) as server, proxy(server, [*given, "--workers", str(workers)]) as (port, told, _):
                for depth in depths:
                    say(f"{name}, {depth} in flight")
                    direct = ask(name, server, depth, warm, seconds)
                    through = ask(name, port, depth, warm, seconds)
                    rows.append({**row(name, depth, direct, through), **held})
    return {
        "requests_per_second": {f"{row['work']} x{row['in_flight']}": row["requests_per_second"] for row in rows},
        "added_ms": {f"{row['work']} x{row['in_flight']}": row["added_ms"] for row in rows},
        "rows": rows,
        "works": {name: asdict(WORKS[name]) for name in works},
        "machine": {"cores": len(os.sched_getaffinity(0)), "load_before": os.getloadavg()[0]},
        "workers": workers, "audit": audit, "seconds": seconds, "warm_up_seconds": warm,
        "client": "fairlead.guard.proxy.load (asyncio, uvloop, httptools), one process", "guard": told,
    }  # fmt: skip


def held_back(work: Work, constitution: Path, policy: Path) -> dict[str, float]:
    """`hold_back_ms`: how long the checks keep the first character of a paced stream by what they hold back, were they
    to take no time themselves. Time to first token may be that much later, and hardly more. None for other works, and
    where a critic reads along, whose own time it would be."""
    settings = read_settings(policy)
    if not work.every or settings.checks.ask is not None:
        return {}
    written = load(str(constitution))
    made = plan(checked(written, None, settings.checks).replies, policies_from(written))
    chunks, channel = texts(work), Channel(0, 0)
    watches = [one.start((user("hello"),)) for one in made.followed if one.start is not None]
    go = [0] * len(watches)
    window = max((made.followed[i].window or math.inf for i in made.models), default=0)
    came, n = 0, 0
    for n, text in enumerate(chunks):
        came += len(text)
        seen = Seen(channel, "reply", text, last=n + 1 == len(chunks))
        go = [max(far, watch.feed(seen).safe.get(channel, 0)) for far, watch in zip(go, watches, strict=True)]
        if "reply" not in made.buffered and came >= window and all(go):
            break
    return {"hold_back_ms": n * work.every}


def options(
    folder: Path, *, audit: bool = True, constitution: Path | None = None, policy: Path | None = None
) -> list[str]:
    """Of `fairlead guard serve`: the checks that are measured where nothing else is named, their files in a folder."""
    (folder / "c.yaml").write_text(CONSTITUTION)
    (folder / "guard.yaml").write_text(POLICY if constitution is None else "{}\n")
    given = ["--constitution", str(constitution or folder / "c.yaml"), "--policy", str(policy or folder / "guard.yaml")]
    return [*given, "--audit", str(folder / "audit.db")] if audit else given


def wrk(url: str, work: Work, depth: int, seconds: float) -> dict[str, float] | None:
    """The same by wrk, where it is installed: requests per second and its latencies in milliseconds."""
    tool = shutil.which("wrk")
    if tool is None:
        return None
    body = request(work, 0).partition(b"\r\n\r\n")[2].decode()
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(
            f'wrk.method="POST"\nwrk.headers["content-type"]="application/json"\nwrk.body={json.dumps(body)}\n'
        )
        script.flush()
        command = [tool, "-t1", f"-c{depth}", f"-d{seconds:.0f}s", "--latency", "-s", script.name, url]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {"requests_per_second": float(re.search(r"Requests/sec:\s+([\d.]+)", told)[1])}  # type: ignore[index]
    for share, value, unit in re.findall(r"^\s+(50|90|99)%\s+([\d.]+)(us|ms|s)$", told, re.M):
        found[f"p{share}"] = float(value) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]
    return found


def row(name: str, depth: int, direct: dict[str, Any], through: dict[str, Any]) -> dict[str, Any]:
    added = {q: through["ms"][q] - direct["ms"][q] for q in through["ms"] if q in direct["ms"]}
    row = {
        "work": name, "in_flight": depth, "requests": through["requests"],
        "requests_per_second": round(through["requests_per_second"], 1),
        "added_ms": {q: round(v, 3) for q, v in added.items()},
        "direct_ms": direct["ms"], "through_ms": through["ms"],
        "not_200": through["not_200"], "connections_lost": through["connections_lost"],
    }  # fmt: skip
    if WORKS[name].chunks:
        told, plain = through["first_byte_ms"], direct["first_byte_ms"]
        row["added_first_byte_ms"] = {q: round(told[q] - plain[q], 3) for q in told if q in plain}
    return row


@contextmanager
def mock(name: str) -> Iterator[int]:
    """The mock of a model's server, in a process of its own: its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fairlead.guard.proxy.load", "serve", name, "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


@contextmanager
def proxy(upstream: int, more: list[str]) -> Iterator[tuple[int, list[str], int]]:
    """The proxy in a process of its own: its port, what it said at start, and its process id."""
    process = subprocess.Popen(
        [
            sys.executable, "-m", "fairlead.cli.main", "guard", "serve", "--upstream", f"http://127.0.0.1:{upstream}",
            "--port", "0", "--admin-port", "-1", *more,
        ],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    told: list[str] = []
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"guard at http://127.0.0.1:(\d+)", line):
                yield int(found[1]), told, process.pid
                return
            told.append(line.rstrip())
        raise MissingResource("the proxy did not start: " + " ".join(told))
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def ask(name: str, port: int, depth: int, warm: float, seconds: float) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "fairlead.guard.proxy.load",
        "ask",
        name,
        str(port),
        str(depth),
        str(warm),
        str(seconds),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MissingResource(f"the load generator failed: {done.stderr.strip().splitlines()[-1:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    if not found["requests"]:
        raise MissingResource(f"{name}: nothing was answered within {seconds:g} s; give --seconds more")
    return found
