"""Write feedback as JSON Lines that `formats` reads back: whole, or not at all (write, fsync, rename)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from fairlead.errors import MissingResource
from fairlead.exchange import Exchange, Preference, to_json


def write_preferences(
    path: Path,
    rows: Sequence[Preference],
    *,
    groups: Sequence[str] | None = None,
    generators: Sequence[tuple[str, str] | None] | None = None,
) -> None:
    """One preference per line, with its group and its writers where they are given."""
    for name, column in (("groups", groups), ("generators", generators)):
        if column is not None and len(column) != len(rows):
            raise ValueError(f"{len(rows)} preferences but {len(column)} {name}")
    lines = []
    for i, row in enumerate(rows):
        body = to_json(row)
        if groups is not None:
            body["group"] = groups[i]
        if generators is not None and generators[i] is not None:
            body["generators"] = list(generators[i] or ())
        lines.append(body)
    _write_lines(path, lines)


def write_exchanges(path: Path, rows: Iterable[Exchange]) -> None:
    """One exchange per line."""
    _write_lines(path, (to_json(row) for row in rows))


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One object per line, as it is."""
    _write_lines(path, rows)


def write_whole(path: Path, lines: Iterable[bytes], *, sync: bool = True) -> None:
    """Write a file so that a reader finds the old one or the whole new one. Raises MissingResource where it cannot.

    sync  wait until it is on the disk; without, a power cut may lose it, and a killed process does not
    """
    # A partial file must never carry the final name: a reader could not tell it from a short data set.
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.writelines(lines)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        temporary.replace(path)
        if sync:
            _sync_folder(path.parent)
    except OSError as error:
        raise MissingResource(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)  # after the rename there is nothing left to forget


def _sync_folder(folder: Path) -> None:
    """The new name is on the disk too, not only the bytes."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _write_lines(path: Path, bodies: Iterable[Mapping[str, Any]]) -> None:
    write_whole(path, (orjson.dumps(body) + b"\n" for body in bodies))
