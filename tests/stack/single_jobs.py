"""What the processes of test_single.py do: importable, so that they can be started."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fairlead.engine import parallel
from fairlead.stack.single import Order, train_stage
from fairlead.stack.voice import Quiet


def stage(folder: str, name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """One stage as `fairlead train` runs it, on every process."""
    where = Path(folder)
    os.chdir(where)  # whatever is written to a place of its own shows
    out = where / f"{name}-{parallel.world().size}"
    told = train_stage(Order(name, str(where / "base"), where / "pairs.jsonl", settings, threads=1), out, Quiet())
    return {"told": told, "there": sorted(p.name for p in out.iterdir())}
