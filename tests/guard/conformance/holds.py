"""What has to hold of a cell's answer. Every function returns what is wrong, in words; empty where nothing is."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from guard.conformance.cells import Cell
from guard.conformance.clients import Alternative, Heard
from guard.conformance.markers import CANARY, IN_A_TEXT, planted, texts
from guard.conformance.said import Expected, Said, expected

FINISHES = {  # of a reply that ended by itself, that called, and that the guard ended
    "chat": ("stop", "tool_calls", "content_filter"),
    "completions": ("stop", "stop", "content_filter"),
    "responses": ("completed", "completed", "incomplete (content_filter)"),
    "messages": ("end_turn", "tool_use", "refusal"),
}


def all_of(cell: Cell, heard: Heard) -> list[str]:
    want = expected(cell)
    return [*nothing_leaks(cell, heard), *terms(cell, want, heard), *allowed(cell, want, heard)]


# ------------------------------------------------------------------------------------------------- leaks


def nothing_leaks(cell: Cell, heard: Heard) -> Iterator[str]:
    """No mark in any byte, in any form, and nothing of the canary unless the guard only watches."""
    secret = cell.decision != "shadow"
    for place in planted(heard.raw, canary=secret):
        yield f"on the wire stands {place}"
    read = "\n".join(" ".join([a.text, a.reasoning, a.refusal, a.stop, a.tokens, *a.titles, *(" ".join(c) for c in a.calls)])
                     for a in heard.alternatives.values())  # fmt: skip
    for place in planted(read.encode(), IN_A_TEXT, canary=secret):
        yield f"in what the client reads stands {place}"
    for place in planted(texts(heard.raw), IN_A_TEXT, canary=secret):
        yield f"in the texts of the events, joined, stands {place}"
    if any(a.chosen for a in heard.alternatives.values()):
        yield "alternatives to tokens left"
    if b"8417730155" in heard.raw:
        yield "a number under an unknown name left"
    if secret and any(CANARY in a.stop for a in heard.alternatives.values()):
        yield "the stop string left"


# ------------------------------------------------------------------------------------------------- terms


def terms(cell: Cell, want: Expected, heard: Heard) -> Iterator[str]:
    """The decision in the terms of the format, and under `fairlead`."""
    if heard.status != want.status:
        yield f"status {heard.status}, not {want.status}: {heard.error}"
    if want.status != 200:
        if "x-should-retry: false" not in heard.head:
            yield "an SDK would ask again"
        kind = (heard.error or {}).get("error", heard.error or {}).get("type")
        if kind != ("api_error" if cell.endpoint == "messages" else "guard_check_failed"):
            yield f"the error is of the type {kind}"
        return
    told = [one["decision"] for one in heard.told]
    told += [other["decision"] for one in heard.told for other in one.get("others", ())]
    if set(told) != ({want.decision} if want.decision else set()):
        yield f"told {told}, not {want.decision or 'nothing'}"
    if any(not one["verdict"].startswith("v-") or not one["principle"] for one in heard.told):
        yield "a decision without a verdict or a principle"
    for index, said in enumerate(want.exactly):
        yield from _finish(cell, want, index, said, heard.at(index))


def _finish(cell: Cell, want: Expected, index: int, said: Said, one: Alternative) -> Iterator[str]:
    by_itself, called, ended = FINISHES[cell.endpoint]
    refused = want.decision in ("refuse", "escalate") and index == (1 if cell.n == "3" else 0)
    if index in want.stopped or refused:
        finish = ended
    elif said.calls:
        finish = called
    elif cell.endpoint == "messages" and cell.tools == cell.reasoning == "none" and want.decision in ("", "redact"):
        finish = "end_turn" if want.decision == "redact" else "stop_sequence"
    else:
        finish = by_itself
    if one.finish != finish:
        yield f"alternative {index} ended by {one.finish}, not {finish}"


# ------------------------------------------------------------------------------------------------- texts


def allowed(cell: Cell, want: Expected, heard: Heard) -> Iterator[str]:
    """What may be read arrives complete and unchanged; of what was stopped no more than its beginning."""
    if len(heard.alternatives) != len(want.exactly):
        yield f"{len(heard.alternatives)} alternatives, not {len(want.exactly)}"
    for index, said in enumerate(want.exactly):
        one = heard.at(index)
        if index in want.stopped:
            yield from _stopped(cell, index, said, one)
            continue
        for name in ("text", "reasoning", "refusal"):
            read = getattr(one, name).replace("[redacted]=", "[redacted]")  # base64's padding says nothing
            if read != getattr(said, name) and not (want.decision == "redact" and too_much(read, getattr(said, name))):
                yield f"{name} of {index} is {getattr(one, name)!r}, not {getattr(said, name)!r}"
        if tuple(one.calls) != said.calls:
            yield f"calls of {index} are {one.calls}, not {said.calls}"
        gone = want.decision == "redact" and not one.titles  # painted over so that no JSON was left of it
        if tuple(one.titles) != said.titles and not gone:
            yield f"citations of {index} are {one.titles}, not {said.titles}"
        if cell.logprobs == "on" and want.decision in ("", "block_tool_call") and not one.text.startswith(one.tokens):
            yield f"the tokens of {index} spell {one.tokens!r}"
        if cell.logprobs == "on" and want.decision == "" and one.tokens != said.text:
            yield f"log-probs of {index} are missing: they spell {one.tokens!r}"


def too_much(read: str, said: str) -> bool:
    """Whether a text is the one that was expected with one stretch more painted over: a false alarm, no leak. After a
    leak the check of secrets takes little for more of it, and this depends on the canary's form."""
    at = 0
    for piece in read.split("[redacted]"):
        at = said.find(piece, at)
        if at < 0:
            return False
        at += len(piece)
    return read.count("[redacted]") == said.count("[redacted]") + 1 and len(said) - len(read) < 64


def _stopped(cell: Cell, index: int, said: Said, one: Alternative) -> Iterator[str]:
    words = ("arsenic", "nightshade", "mandrake")
    own = not said.text.startswith(one.text)
    if own and not one.text.endswith(" ."):
        yield f"text of {index} is neither a beginning nor the guard's own words: {one.text!r}"
    if any(word in one.text for word in words) or one.calls or one.refusal or one.titles:
        yield f"alternative {index} went on after it was stopped: {one}"
    if not own and len(one.text) < 100:
        yield f"a window lets go of more than {one.text!r}"
    if not said.reasoning.startswith(one.reasoning):
        yield f"reasoning of {index} is {one.reasoning!r}"


# --------------------------------------------------------------------------------------------- audit log


class Log:
    """The audit log of one proxy, read as a stranger would: by SQL and JSON."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, list[dict[str, Any]]] = {}
        self._row = 0

    def read(self) -> None:
        db = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True, timeout=10)
        try:
            rows = db.execute("select row, body from records where row > ? order by row", (self._row,)).fetchall()
        finally:
            db.close()
        for self._row, body in rows:
            record = json.loads(body)
            if record["kind"] == "exchange":
                self.entries.setdefault(record["request"], []).append(record)


def audited(cell: Cell, heard: Heard, entries: list[dict[str, Any]]) -> Iterator[str]:
    """The request stands there once, with its decision, and every byte that was read under a verdict."""
    want = expected(cell)
    if len(entries) != 1:
        yield f"{len(entries)} entries of the request"
        return
    [entry] = entries
    if entry["decision"] != (want.decision or "allow"):
        yield f"the log says {entry['decision']}, not {want.decision or 'allow'}"
    if entry["status"] != want.status or entry.get("stream", False) != cell.stream:
        yield f"the log says status {entry['status']}, stream {entry.get('stream', False)}"
    if want.decision and want.status == 200 and entry.get("verdict") not in {one["verdict"] for one in heard.told}:
        yield "the client was told of another verdict"
    if cell.decision == "shadow" and not {"refuse", "redact"} <= {one[3] for one in entry["shadow"]}:
        yield f"in shadow stands {entry.get('shadow')}"
    ends: dict[tuple[int, int], int] = {}
    for choice, part, place, start, end, size, digest, verdicts in entry["released"]:
        if start != ends.get((choice, part), 0) or (size and not verdicts) or not digest:
            yield f"{place} {choice}.{part} [{start}, {end}) is not covered"
        if any(not isinstance(v, int) or v >= len(entry["verdicts"]) for v in verdicts):
            yield f"{place} {choice}.{part} names a verdict that is not there"
        ends[choice, part] = end
    cited = {(one[0], one[1]) for one in entry["released"] if one[2] == "citation"}  # as JSON, that nobody reads
    released = sum(one[5] for one in entry["released"] if (one[0], one[1]) not in cited)
    read = sum(len("".join([a.text, a.reasoning, a.refusal, a.stop, *("".join(c) for c in a.calls)]).encode())
               for a in heard.alternatives.values())  # fmt: skip
    if released != read:
        yield f"{read} bytes were read, {released} are covered"
    if cell.decision != "failed" and not entry.get("withheld"):
        yield "nothing is counted as withheld"
    undeclared = entry.get("withheld", {}).get("call of a tool that was not declared", 0)
    to_its_end = want.decision not in ("refuse", "escalate", "failed") and cell.endpoint != "completions"
    if to_its_end and undeclared != int(cell.n):
        yield f"{undeclared} calls of a tool that was not declared are counted"
