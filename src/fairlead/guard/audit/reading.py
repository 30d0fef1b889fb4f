"""Records of the log for people: found by the id of a request or verdict, and in words."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from fairlead.guard.audit.chain import place


@dataclass(frozen=True, slots=True)
class Found:
    """A record and where it stands."""

    chain: int
    record: int
    body: dict[str, Any]

    def lines(self) -> Iterator[str]:
        body = self.body
        when = datetime.fromtimestamp(body["time"], UTC).isoformat(timespec="milliseconds")
        head = f"chain {self.chain}, record {self.record}: {when} {body['kind']}"
        if body["kind"] != "exchange":
            yield f"{head} {', '.join(f'{k} {v}' for k, v in body.items() if k not in ('kind', 'time'))}"
            return
        by = f" by {body['principle']} ({body.get('verdict', '')})" if body.get("principle") else ""
        yield f"{head} {body['request']} {body['route']}: {body['decision']}{by}, status {body['status']}"
        names = []
        for id, check, principle, outcome, ms, evidence in body["verdicts"]:
            names.append(check)
            yield f"  {id} {check}{f' ({principle})' if principle else ''}: {outcome}, {ms:g} ms{_dash(evidence)}"
        for id, check, principle, outcome, ms, evidence in body.get("shadow", ()):
            would = f"{check}{f' ({principle})' if principle else ''} would have: {outcome}, {ms:g} ms{_dash(evidence)}"
            yield f"  {id} {would}"
        for choice, part, where, start, end, size, digest, ids in body["released"]:
            under = ", ".join(names[i] if isinstance(i, int) and i < len(names) else f"{i}?" for i in ids)
            at = f"{where} {choice}.{part} [{start}, {end})"
            yield f"  released {at}, {size} bytes, {digest}: {under or 'no verdict'}"
        for key in ("withheld", "passed", "usage", "ended"):
            if key in body:
                yield f"  {key} {body[key]}"


def find(db: sqlite3.Connection, id: str) -> list[Found]:
    """All records that speak of this request or verdict, in order; reads the whole log."""
    asked = db.execute("select row, body from records where instr(body, ?) order by row", (f'"{id}"',))
    found = [Found(*place(row), orjson.loads(body)) for row, body in asked]
    requests = {f.body["request"] for f in found if f.body.get("request") and f.body["kind"] == "exchange"}
    if id not in requests and len(requests) == 1:  # a verdict: the whole of its request
        return find(db, requests.pop())
    return found


def _dash(evidence: str) -> str:
    return f" – {evidence}" if evidence else ""
