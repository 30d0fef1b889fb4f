"""How fast the guard's proxy is, and LiteLLM's beside it, on the same machine in the same run.

    python bench/guard.py --out runs/bench-guard.json
    python bench/guard.py --litellm /path/to/its/venv/bin/python

Ours runs with rules, secrets, canaries with decoding and the audit log on; LiteLLM's without any guard, in an
environment of its own (`pip install 'litellm[proxy]'`), by bench/guard_litellm.yaml. Both stand in front of the same
mock of a model's server on loopback, with one worker, and are asked by the same client: the package's own load
generator, and wrk as well where it is on PATH. Works: `chat` (1 kB in, 1 kB out), `stream` (200 chunks at once),
`paced` (60 chunks, one every 5 ms: what the first text of a stream waits), `long` (a conversation of 8,000 tokens).
What is told: requests per second, added milliseconds by percentile, load before.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
    found["litellm"] = None
    if args.litellm:
        found["litellm"] = litellm(args.litellm, depths, args.seconds, args.warm)
        ours = {row["in_flight"]: row["requests_per_second"] for row in found["rows"] if row["work"] == "chat"}
        found["times_litellm"] = {
            str(row["in_flight"]): round(ours[row["in_flight"]] / row["requests_per_second"], 1)
            for row in found["litellm"]["rows"]
            if row["in_flight"] in ours
        }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    for row in found["rows"]:
        print(f"{row['work']:7} x{row['in_flight']:<3} {row['requests_per_second']:>9,.1f}/s  added {row['added_ms']}")
        if "added_first_byte_ms" in row:
            print(f"{'':12} first text {row['added_first_byte_ms']}, held back {row.get('hold_back_ms')} ms")
    print(json.dumps({key: found.get(key) for key in ("wrk", "litellm", "times_litellm")}, indent=1))
    print(args.out)
    return 0


def litellm(python: str, depths: list[int], seconds: float, warm: float) -> dict[str, Any]:
    """Requests per second and milliseconds of `chat` through LiteLLM's proxy."""
    rows = []
    with bench.mock("chat") as mock, _running(python, mock) as (port, version):
        for depth in depths:
            print(f"litellm, {depth} in flight")
            direct, through = (bench.ask("chat", where, depth, warm, seconds) for where in (mock, port))
            rows.append(bench.row("chat", depth, direct, through))
    return {"version": version, "config": CONFIG.name, "workers": 1, "rows": rows}


@contextmanager
def _running(python: str, mock: int) -> Iterator[tuple[int, str]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    version = subprocess.run(
        [python, "-c", "from importlib.metadata import version; print(version('litellm'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    environment = {
        **os.environ, "MOCK_URL": f"http://127.0.0.1:{mock}/v1", "LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR",
        "LITELLM_TELEMETRY": "False", "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",  # no key to look up: the faster way for it
    }  # fmt: skip
    command = [str(Path(python).with_name("litellm")), "--config", str(CONFIG), "--host", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--num_workers", "1"], env=environment, stdout=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + STARTS
        while time.monotonic() < until and process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.5)
        yield port, version
    finally:
        process.terminate()
        process.wait(30)


if __name__ == "__main__":
    raise SystemExit(main())
