"""Entries and logs to try the audit log on."""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path
from typing import Any

from fairlead.guard.audit import AuditLog, Entry, Options, Range, Verdict, open_log
from fairlead.guard.audit.heads import heads_beside
from fairlead.guard.audit.verify import Report, verify

CONSTITUTION = "c" * 64


def entry(number: int = 0, text: str = "good day", **more: Any) -> Entry:
    """An exchange of which the whole reply was let go by two checks."""
    verdicts = tuple(
        Verdict(f"v-{number:011x}{n}", check, principle, ms=0.2)
        for n, (check, principle) in enumerate([("secrets", "keep-secrets"), ("rules", "no-harm")])
    )
    plain: dict[str, Any] = {
        "time": 1_800_000_000.0 + number,
        "request": f"{number:016x}",
        "route": "/v1/chat/completions",
        "decision": "allow",
        "constitution": CONSTITUTION,
        "verdicts": verdicts,
        "released": (released(text, tuple(v.id for v in verdicts)),),
        "written": len(text.encode()),
    }
    return Entry(**{**plain, **more})


def released(text: str, verdicts: tuple[str, ...], start: int = 0, part: int = 0, place: str = "reply") -> Range:
    raw = text.encode()
    return Range(0, part, place, start, start + len(text), len(raw), hashlib.sha256(raw).hexdigest(), verdicts)


def opened(folder: Path, **options: Any) -> AuditLog:
    path = folder / "audit.db"
    return open_log(path, options=Options(heads=str(heads_beside(path)), **options))


def log_of(folder: Path, count: int = 5, **options: Any) -> Path:
    """A closed log of `count` exchanges: records 2 to count + 1, between a start and a stop."""
    log = opened(folder, **options)
    for number in range(count):
        log.record(entry(number))
    log.close()
    return folder / "audit.db"


def verified(path: Path, heads: bool = True, **more: Any) -> Report:
    return verify(path, path.with_suffix(".key"), heads_beside(path) if heads else None, **more)


def whats(report: Report) -> list[str]:
    return [str(broken) for broken in report.breaks]


def edit(path: Path, *statements: str, values: tuple[Any, ...] = ()) -> None:
    """Somebody who can write the file, but has no key."""
    db = sqlite3.connect(path)
    for statement in statements:
        db.execute(statement, values)
    db.commit()
    db.close()


def rows(path: Path) -> list[tuple[Any, ...]]:
    db = sqlite3.connect(path)
    found = db.execute("select * from records order by row").fetchall()
    db.close()
    return found


def replace_rows(path: Path, rows: list[tuple[Any, ...]]) -> None:
    db = sqlite3.connect(path)
    db.execute("pragma synchronous = off")
    db.execute("delete from records")
    db.executemany("insert into records values (?, ?, ?)", rows)
    db.commit()
    db.close()
