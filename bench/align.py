"""Seconds per stage of the main job: `python bench/align.py [--cases 200] [--seed 0]`.

Runs `fairlead align` on the apprentice with an empty cache, then the same command again with nothing changed, each as a
process of its own, so that starting up counts. Prints the seconds of every stage, what is left for imports, the report
and the folder, and the two aims: 180 s for the first run, 10 s for the second.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

AIMS = {"first": 180.0, "unchanged": 10.0}


def timed(command: list[str]) -> float:
    """Wall seconds of a command that must succeed."""
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
    return time.perf_counter() - began


def measured(work: Path, cases: int, seed: int) -> dict[str, Any]:
    """Seconds per stage of a first run, and of the same run again."""
    base = [sys.executable, "-m", "fairlead.cli.main", "align", "--cases", str(cases), "--seed", str(seed)]
    cache = ["--cache", str(work / "cache")]
    first = timed([*base, *cache, "--out", str(work / "first")])
    again = timed([*base, *cache, "--out", str(work / "again")])
    results, repeated = (json.loads((work / name / "results.json").read_bytes()) for name in ("first", "again"))
    stages: dict[str, float] = results.pop("seconds")
    repeated.pop("seconds")
    if repeated != results:
        raise SystemExit("the unchanged run gave other results than the first one: the cache is broken")
    return {"stages": stages, "first": first, "unchanged": again}


def table(found: dict[str, Any]) -> str:
    stages: dict[str, float] = found["stages"]
    rows = [*stages.items(), ("everything else", found["first"] - sum(stages.values())), ("whole run", found["first"])]
    rows.append(("the same run again", found["unchanged"]))
    lines = [f"{name:<24} {seconds:8.1f} s" for name, seconds in rows]
    lines += [f"{name}: {found[name]:.1f} s, aim below {aim:.0f} s" for name, aim in AIMS.items()]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        found = measured(Path(work), args.cases, args.seed)
    print(json.dumps(found, indent=1) if args.json else table(found))
    return 0 if all(found[name] < aim for name, aim in AIMS.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
