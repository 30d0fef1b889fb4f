"""Results by content: the folder of a result is named by the hash of everything that determines it.

An entry holds what a stage or a measure made, `key.json` (what determined it, readable) and `sums.json` (size and
sha256 of each file). Entries appear whole or not at all; one whose files no longer match their sums is said aloud,
removed and made again. Two runs may share a cache.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairlead.stack.atomic import sweep, whole_folder, write_file
from fairlead.stack.identity import digest, file_hash

_OWN = ("key.json", "sums.json")


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished result: where it lies, its key, and whether this run made it (False: it was there)."""

    path: Path
    key: str
    made: bool


@dataclass(slots=True)
class Cache:
    """`root/<kind>/<key>/`. `say` hears about damaged entries; `fresh` makes every result again once."""

    root: Path
    say: Callable[[str], None] = print
    fresh: bool = False
    _sound: set[Path] = field(default_factory=set)  # checked by this process already

    def find(self, kind: str, what: Mapping[str, Any]) -> Entry | None:
        """The sound entry for what determines it, or None."""
        key = digest(what)
        path = self._place(kind, key)
        if path in self._sound:
            return Entry(path, key, made=False)
        if self.fresh or not path.is_dir():
            return None
        fault = damage(path)
        if fault:
            self.say(f"cache: {kind} {key[:12]} is damaged ({fault}); it is removed and made again")
            shutil.rmtree(path)
            return None
        self._sound.add(path)
        return Entry(path, key, made=False)

    def make(self, kind: str, what: Mapping[str, Any], build: Callable[[Path], None]) -> Entry:
        """The entry for `what`; where there is none, `build` fills an empty folder first."""
        found = self.find(kind, what)
        if found:
            return found
        key = digest(what)
        path = self._place(kind, key)
        sweep(path.parent)
        if self.fresh and path.is_dir():
            shutil.rmtree(path)
        with whole_folder(path) as temporary:
            build(temporary)
            write_file(temporary / "key.json", json.dumps(what, indent=1, sort_keys=True, default=str))
            write_file(temporary / "sums.json", json.dumps(sums(temporary), indent=1, sort_keys=True))
        self._sound.add(path)
        return Entry(path, key, made=True)

    def _place(self, kind: str, key: str) -> Path:
        return self.root / kind / key[:32]


def sums(folder: Path) -> dict[str, list[Any]]:
    """[bytes, sha256] of every file under the folder, by relative path, but for `sums.json` itself."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.name != "sums.json")
    return {str(f.relative_to(folder)): [f.stat().st_size, file_hash(f)] for f in files}


def damage(entry: Path) -> str:
    """What is wrong with an entry's files, or "" where they match their sums."""
    try:
        stated = json.loads((entry / "sums.json").read_bytes())
    except (OSError, ValueError):
        return "sums.json is missing or unreadable"
    for name, (size, sha256) in stated.items():
        file = entry / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes, not {size}"
        if file_hash(file) != sha256:
            return f"{name} does not match its checksum"
    return ""


def copy_entry(entry: Path, to: Path, *, link: bool = False) -> None:
    """Copy an entry's files without the cache's own. `link` shares big files by hard link where the disk allows it."""
    for file in sorted(entry.rglob("*")):
        if not file.is_file() or file.name in _OWN:
            continue
        target = to / file.relative_to(entry)
        target.parent.mkdir(parents=True, exist_ok=True)
        if link and file.stat().st_size > 1 << 20:
            try:
                target.hardlink_to(file)
                continue
            except OSError:
                pass  # another file system: copy
        shutil.copyfile(file, target)
