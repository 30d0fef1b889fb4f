"""The run folder of DESIGN §7: built beside its place and renamed into it, so that it is whole or absent."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from ruamel.yaml import YAML

from fairlead.errors import InputError
from fairlead.stack.atomic import plain_disk_errors, point, sweep, whole_folder

RUNS = Path("runs")


@dataclass(slots=True)
class Log:
    """What happened and when, kept in memory until the folder is written: `log.jsonl`."""

    entries: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, event: str, **more: Any) -> None:
        self.entries.append({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": event, **more})


def place_for(out: Path | None, name: str) -> Path:
    """Where the run goes: `--out`, or `runs/<time>-<name>`. Raises InputError where something else lies there."""
    if out is None:
        stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')[:40]}"
        place = RUNS / stem
        count = 2
        while place.exists():
            place = RUNS / f"{stem}-{count}"
            count += 1
        return place
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; --out names the folder that the run makes")
    if out.is_dir() and any(out.iterdir()) and not _is_run(out):
        raise InputError(f"{out}: exists and is no run folder, so it is not replaced; give another --out")
    return out


def _is_run(folder: Path) -> bool:
    try:
        return "layers" in json.loads((folder / "results.json").read_bytes())
    except (OSError, ValueError):
        return False


@contextmanager
def run_folder(place: Path) -> Iterator[Path]:
    """A folder to fill that becomes `place` when the block ends well. An earlier run there is replaced at the end.

    On any error nothing of the new run is left, and an earlier run stays as it was.
    """
    with plain_disk_errors(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        sweep(place.parent)
        aside = place.parent / f".old-{place.name}"
        shutil.rmtree(aside, ignore_errors=True)
        fresh = place.parent / f".new-{place.name}"
        shutil.rmtree(fresh, ignore_errors=True)
        with whole_folder(fresh) as temporary:
            yield temporary
        if place.exists():
            place.rename(aside)
        fresh.rename(place)
        shutil.rmtree(aside, ignore_errors=True)
    if place.parent.name == RUNS.name:
        point(place.parent / "latest", place)


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """JSON Lines; returns how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with path.open("wb") as file:
        for row in rows:
            file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
            count += 1
    return count


def read_lines(path: Path) -> list[Any]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines() if line]


def write_yaml(path: Path, value: Any, comment: str) -> None:
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 120
    with path.open("w", encoding="utf-8") as file:
        file.write(f"# {comment}\n")
        yaml.dump(value, file)
