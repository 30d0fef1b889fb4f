"""The folder of a bulk job: finished shards, journals of those at work, and what the job is.

    job.json              what is done: input, settings, code, critic, by hash; a job that differs is refused
    shards/000000.jsonl   one line per input row, in order, written whole (write, fsync, rename)
    index.jsonl           of each finished shard its rows, labels, reasons and hash
    parts/000003.jsonl    rows of an unfinished shard as they come: a killed job goes on from here

A row is on disk once: in its shard, or in its shard's journal. A kill between the two leaves both; the shard wins.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from fairlead.errors import InputError, MissingResource
from fairlead.feedback.write import write_whole

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Done:
    """What became of one row: a value, or None with the reason."""

    row: int
    place: str
    value: Any
    reason: str = ""

    def line(self) -> bytes:
        body = {"row": self.row, "place": self.place, "value": self.value, "reason": self.reason}
        return orjson.dumps(body, option=orjson.OPT_APPEND_NEWLINE)


@dataclass(slots=True)
class JobFolder:
    """The state of a job: which shards are finished, and which rows of the others are. Made by `open_folder`.

    Without `lists` it is the view of one worker of several, who leaves the index to the one that `adopt`s its shards.
    """

    path: Path
    rows: int
    shard_rows: int
    lists: bool = True
    index: dict[int, dict[str, Any]] = field(default_factory=dict)
    parts: dict[int, set[int]] = field(default_factory=dict)

    @property
    def shards(self) -> int:
        return -(-self.rows // self.shard_rows)

    @property
    def kept(self) -> int:
        """Rows that are on disk."""
        return sum(int(entry["rows"]) for entry in self.index.values()) + sum(map(len, self.parts.values()))

    @property
    def finished(self) -> bool:
        return len(self.index) == self.shards

    def has(self, row: int) -> bool:
        shard = row // self.shard_rows
        return shard in self.index or row in self.parts.get(shard, ())

    @property
    def first_undone(self) -> int:
        """No row before this one is missing."""
        return next((k for k in range(self.shards) if k not in self.index), self.shards) * self.shard_rows

    def resume(self, shard: int) -> None:
        """Read what an earlier worker left of a shard."""
        if self._shard(shard).exists():
            self.adopt(shard)
        elif self._part(shard).exists():
            self._read_part(shard)

    def adopt(self, shard: int) -> None:
        """Take up a shard that another worker wrote."""
        self._enter(shard, self._shard(shard).read_bytes().splitlines(keepends=True))
        self._write_index()
        self.parts.pop(shard, None)

    def size(self, shard: int) -> int:
        """How many rows a shard has when it is finished."""
        return min(self.shard_rows, self.rows - shard * self.shard_rows)

    def add(self, done: Sequence[Done]) -> None:
        """Put rows into the journals of their shards, and finish the shards that are complete by that."""
        by_shard: dict[int, list[Done]] = {}
        for item in done:
            if self.has(item.row):
                raise ValueError(f"row {item.row} is labelled twice")
            by_shard.setdefault(item.row // self.shard_rows, []).append(item)
        for shard, items in by_shard.items():
            _append(self._part(shard), b"".join(item.line() for item in items))
            self.parts.setdefault(shard, set()).update(item.row for item in items)
            if len(self.parts[shard]) == self.size(shard):
                self._finish(shard)

    def labels(self) -> Iterator[Mapping[str, Any]]:
        """The lines of all finished shards, in the order of the input."""
        for shard in sorted(self.index):
            with self._shard(shard).open("rb") as file:
                yield from map(orjson.loads, file)

    def counts(self) -> tuple[int, Counter[str]]:
        """Labelled rows of the finished shards, and the others by reason."""
        reasons: Counter[str] = Counter()
        for entry in self.index.values():
            reasons.update(entry["reasons"])
        return sum(entry["labelled"] for entry in self.index.values()), reasons

    def ask_again(self) -> int:
        """Take the rows without a label out, so that they are asked once more; returns how many."""
        taken = 0
        for shard in sorted({*self.index, *self.parts}):
            file = self._shard(shard) if shard in self.index else self._part(shard)
            lines = file.read_bytes().splitlines(keepends=True)
            good = [line for line in lines if orjson.loads(line)["value"] is not None]
            if len(good) == len(lines):
                continue
            taken += len(lines) - len(good)
            write_whole(self._part(shard), good)
            self.parts[shard] = {orjson.loads(line)["row"] for line in good}
            if shard in self.index:
                del self.index[shard]
                self._write_index()
                self._shard(shard).unlink()
        return taken

    # -------------------------------------------------------------------------------------------- within

    def _shard(self, shard: int) -> Path:
        return self.path / "shards" / f"{shard:06}.jsonl"

    def _part(self, shard: int) -> Path:
        return self.path / "parts" / f"{shard:06}.jsonl"

    def _finish(self, shard: int) -> None:
        lines = sorted(_whole_lines(self._part(shard)), key=lambda line: int(orjson.loads(line)["row"]))
        write_whole(self._shard(shard), lines)
        self._enter(shard, lines)
        self._write_index()
        self._part(shard).unlink()
        del self.parts[shard]

    def _enter(self, shard: int, lines: Sequence[bytes]) -> None:
        rows = [orjson.loads(line) for line in lines]
        first = shard * self.shard_rows
        if [row["row"] for row in rows] != list(range(first, first + self.size(shard))):
            raise InputError(f"{self._shard(shard)}: does not hold its rows, each once; remove it to have them asked")
        self.index[shard] = {
            "shard": shard,
            "rows": len(rows),
            "labelled": sum(row["value"] is not None for row in rows),
            "reasons": dict(Counter(kind_of(row["reason"]) for row in rows if row["value"] is None)),
            "sha256": hashlib.sha256(b"".join(lines)).hexdigest(),
        }

    def _write_index(self) -> None:
        if not self.lists:
            return
        lines = [orjson.dumps(self.index[k], option=orjson.OPT_APPEND_NEWLINE) for k in sorted(self.index)]
        write_whole(self.path / "index.jsonl", lines, sync=False)  # it can be made again from the shards

    def _read(self) -> None:
        """What an earlier run left: shards as the index knows them, shards it does not know yet, journals."""
        known = _listed(self.path / "index.jsonl")
        for file in sorted((self.path / "shards").glob("[0-9]*.jsonl")):
            shard, body = int(file.stem), file.read_bytes()
            if shard not in known:  # a kill came before the index
                self._enter(shard, body.splitlines(keepends=True))
            elif known[shard]["sha256"] == hashlib.sha256(body).hexdigest():
                self.index[shard] = known[shard]
            else:
                raise InputError(f"{file}: was changed after it was written; remove it to have its rows asked again")
        for file in sorted((self.path / "parts").glob("[0-9]*.jsonl")):
            if int(file.stem) in self.index:
                file.unlink()
            else:
                self._read_part(int(file.stem))
        self._write_index()

    def _read_part(self, shard: int) -> None:
        file = self._part(shard)
        lines = _whole_lines(file)
        self.parts[shard] = {orjson.loads(line)["row"] for line in lines}
        if len(self.parts[shard]) < len(lines):
            raise InputError(f"{file}: holds a row twice; remove it to have its rows asked again")
        os.truncate(file, sum(map(len, lines)))  # a line that a kill cut off
        if len(self.parts[shard]) == self.size(shard):
            self._finish(shard)


@contextmanager
def open_folder(path: Path, facts: Mapping[str, Any], *, rows: int, shard_rows: int) -> Iterator[JobFolder]:
    """The folder of a job for this process alone, made or gone on with.

    facts   what determines the labels, JSON: written to `job.json`, and compared with what stands there

    Raises InputError where the folder holds another job, or another process works in it.
    """
    with _alone(path):
        _claim(path / "job.json", {"schema": SCHEMA, "rows": rows, "shard_rows": shard_rows, **facts})
        (path / "shards").mkdir(exist_ok=True)
        (path / "parts").mkdir(exist_ok=True)
        for stray in (*path.glob(".*.tmp"), *path.glob("*/.*.tmp")):
            stray.unlink()
        folder = JobFolder(path, rows, shard_rows)
        folder._read()
        yield folder


def kind_of(reason: str) -> str:
    """A reason without what is particular to one row, for counting."""
    return reason.split(": ")[0][:120]


def _claim(file: Path, facts: Mapping[str, Any]) -> None:
    """Write what the job is, or compare it with the job that is there."""
    body = orjson.dumps(facts, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
    if not file.exists():
        others = [item.name for item in file.parent.iterdir() if not item.name.startswith(".")]
        if others:
            raise InputError(f"{file.parent}: is no folder of a bulk job, and holds {others[0]}; give another --out")
        write_whole(file, [body])
        return
    try:
        there = orjson.loads(file.read_bytes())
    except orjson.JSONDecodeError:
        raise InputError(f"{file}: is damaged; give another --out") from None
    here = orjson.loads(body)
    changed = _changed(there, here)
    if changed:
        shown = "; ".join(f"{name} was {_short(was)}, is {_short(now)}" for name, was, now in changed[:3])
        raise InputError(
            f"{file.parent}: holds another job ({shown}). Its labels and new ones would not be of one kind: give "
            "another --out, or the same input and settings"
        )


def _changed(was: Any, now: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(was, dict) and isinstance(now, dict):
        keys = sorted({*was, *now})
        return [found for k in keys for found in _changed(was.get(k), now.get(k), f"{name}.{k}" if name else k)]
    return [] if was == now else [(name, was, now)]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return text[:16] + "…" if len(text) > 60 else text


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No other process of this machine works in the folder meanwhile. The lock goes with the process."""
    import fcntl

    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / ".lock").open("w")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}; give another --out") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{path}: another process works on this job; wait for it, or give another --out") from None
        yield


def _listed(file: Path) -> dict[int, dict[str, Any]]:
    """The entries of the index; none where there is none, or a power cut spoilt it."""
    try:
        return {entry["shard"]: entry for entry in map(orjson.loads, file.read_bytes().splitlines())}
    except (FileNotFoundError, orjson.JSONDecodeError):
        return {}


def _whole_lines(file: Path) -> list[bytes]:
    """The lines of a journal; what a kill cut off at the end is left out."""
    lines = file.read_bytes().splitlines(keepends=True)
    return lines if not lines or lines[-1].endswith(b"\n") else lines[:-1]


def _append(file: Path, data: bytes) -> None:
    """Add to a journal; where that fails, nothing of it stays."""
    size = file.stat().st_size if file.exists() else 0
    try:
        with file.open("ab", buffering=0) as journal:
            written = 0
            while written < len(data):
                written += journal.write(data[written:])
    except OSError as error:
        if file.exists():
            os.truncate(file, size)
        raise MissingResource(
            f"{file}: cannot be written: {error.strerror or error}. Free some space and give the same command again: "
            "what is labelled is kept"
        ) from error
