"""What the processes of test_reinforce.py do: importable, so that they can be started."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fairlead.engine import parallel
from fairlead.stack.reinforce import PolicyOrder, reinforce_stage
from fairlead.stack.voice import Quiet


def stage(folder: str, name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Reinforcement learning as `fairlead train` runs it, on every process."""
    where = Path(folder)
    os.chdir(where)  # whatever is written to a place of its own shows
    out = where / f"{name}-{parallel.world().size}"
    order = PolicyOrder(
        name, str(where / "base"), str(where / "tasks.jsonl"), ["regex:[aeiou]"], settings=settings, threads=1
    )
    voice = Quiet()
    told = reinforce_stage(order, out, voice)
    return {
        "missing": told["missing"],
        "replies": told["replies"],
        "reward": told["metrics"]["reward"],
        "said": [line for line in voice.lines if line.startswith("step")],
        "there": sorted(p.name for p in out.iterdir()),
    }
