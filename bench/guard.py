"""How fast the guard's proxy is, and LiteLLM's beside it, on the same machine in the same run.

    python bench/guard.py --out runs/bench-guard.json
    python bench/guard.py --litellm /path/to/its/venv/bin/python

Ours runs with rules, secrets, canaries with decoding and the audit log on; LiteLLM's without any guard, in an
environment of its own (`pip install 'litellm[proxy]'`), by bench/guard_litellm.yaml. Both stand in front of the same
mock of a model's server on loopback, with one worker, and are asked by the same client: the package's own load
generator, and wrk as well where it is on PATH. A third stands beside them: `guard_bare.py`, the same server and client
libraries without a guard, which is what one hop costs in Python on this machine. Works: `chat` (1 kB in, 1 kB out),
`stream` (200 chunks at once), `paced` (60 chunks, one every 5 ms: what the first text of a stream waits), `long` (a
conversation of 8,000 tokens). What is told: requests per second, added milliseconds by percentile, load before.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from fairlead.guard.proxy import bench
from fairlead.guard.proxy.load import WORKS

CONFIG = Path(__file__).with_name("guard_litellm.yaml")
STARTS = 120.0  # seconds that LiteLLM may take to listen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", default="chat,stream,paced,long")
    parser.add_argument("--depths", default="1,16")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--warm", type=float, default=5.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--litellm", metavar="PYTHON", help="the Python of an environment with litellm[proxy]")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-guard.json"))
    args = parser.parse_args()
    works, depths = args.works.split(","), [int(depth) for depth in args.depths.split(",")]
    found = bench.measure(
        works, depths, seconds=args.seconds, warm=args.warm, workers=args.workers, audit=True, say=print
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        bench.mock("chat") as mock,
        bench.proxy(mock, bench.options(Path(folder))) as (port, _, _),
    ):
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        found["wrk"] = {str(depth): bench.wrk(url, WORKS["chat"], depth, args.seconds) for depth in depths}
    found["bare"] = beside(_bare, depths, args.seconds, args.warm)
    found["litellm"] = None
    if args.litellm:
        found["litellm"] = beside(lambda mock: _litellm(args.litellm, mock), depths, args.seconds, args.warm)
        found["litellm"]["config"] = CONFIG.name
        for side, rows in (("times_litellm", found["rows"]), ("bare_times_litellm", found["bare"]["rows"])):
            rates = {row["in_flight"]: row["requests_per_second"] for row in rows if row["work"] == "chat"}
            found[side] = {
                str(row["in_flight"]): round(rates[row["in_flight"]] / row["requests_per_second"], 1)
                for row in found["litellm"]["rows"]
                if row["in_flight"] in rates
            }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    for row in found["rows"]:
        print(f"{row['work']:7} x{row['in_flight']:<3} {row['requests_per_second']:>9,.1f}/s  added {row['added_ms']}")
        if "added_first_byte_ms" in row:
            print(f"{'':12} first text {row['added_first_byte_ms']}, held back {row.get('hold_back_ms')} ms")
    print(
        json.dumps(
            {key: found.get(key) for key in ("wrk", "bare", "litellm", "times_litellm", "bare_times_litellm")}, indent=1
        )
    )
    print(args.out)
    return 0


def beside(
    running: Callable[[int], AbstractContextManager[tuple[int, str]]], depths: list[int], seconds: float, warm: float
) -> dict[str, Any]:
    """Requests per second and milliseconds of `chat` through another proxy, of one worker."""
    rows = []
    with bench.mock("chat") as mock, running(mock) as (port, name):
        for depth in depths:
            print(f"{name}, {depth} in flight")
            direct, through = (bench.ask("chat", where, depth, warm, seconds) for where in (mock, port))
            rows.append(bench.row("chat", depth, direct, through))
    return {"name": name, "workers": 1, "rows": rows}


@contextmanager
def _bare(mock: int) -> Iterator[tuple[int, str]]:
    port = _free()
    command = [sys.executable, str(Path(__file__).with_name("guard_bare.py")), str(mock), str(port)]
    with _listening(subprocess.Popen(command), port):
        yield port, "a hop without a guard"


@contextmanager
def _litellm(python: str, mock: int) -> Iterator[tuple[int, str]]:
    port = _free()
    version = subprocess.run(
        [python, "-c", "from importlib.metadata import version; print(version('litellm'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    environment = {
        **os.environ, "MOCK_URL": f"http://127.0.0.1:{mock}/v1", "LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR",
        "LITELLM_TELEMETRY": "False", "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_MASTER_KEY": "sk-unused",  # what load.py sends
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }  # fmt: skip
    command = [str(Path(python).with_name("litellm")), "--config", str(CONFIG), "--host", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--num_workers", "1"], env=environment, stdout=subprocess.DEVNULL
    )
    with _listening(process, port):
        yield port, f"litellm {version}"


def _free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


@contextmanager
def _listening(process: subprocess.Popen[Any], port: int) -> Iterator[None]:
    """Until it listens, then while it is needed."""
    try:
        until = time.monotonic() + STARTS
        while time.monotonic() < until and process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.5)
        yield
    finally:
        process.terminate()
        process.wait(30)


if __name__ == "__main__":
    raise SystemExit(main())
