"""Whether every byte that left was covered: ranges end to end from 0, each with the verdicts it needed.

Reads records as stored (docs/guard-audit.md has their keys), one after the other, and keeps only what is open.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fairlead.guard.audit.entry import policy_digest

# A byte may leave under these: text that passed, what stands in place of text that did not, and the guard's refusals.
COVERS = frozenset({"allow", "redact", "revise", "refuse", "escalate", "block_tool_call"})
GUARDS_OWN = "guard"  # place of words that are the guard's own: the verdict that led to them is enough

Ends = dict[tuple[int, int], int]


@dataclass(slots=True)
class Coverage:
    """Of one chain. `required` are the checks by place, by (constitution, classifier, policy), as its policy records
    say; under "" the last of a constitution and classifier, for exchanges of old logs, that name no policy.

    pruned      whether records before it were taken away: what goes on from them cannot be told
    open_       requests of which more is to come: where their texts end, and bytes so far
    uncounted   exchanges of which nobody counted what was written
    open_failed  exchanges let through although a check failed, as the constitution's on_error allows
    """

    required: dict[tuple[str, str, str], dict[str, frozenset[str]]] = field(default_factory=dict)
    pruned: bool = False
    open_: dict[str, tuple[Ends, int]] = field(default_factory=dict)
    withheld: Counter[str] = field(default_factory=Counter)
    passed: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    exchanges: int = 0
    uncounted: int = 0
    open_failed: int = 0

    def policy(self, body: Mapping[str, Any]) -> None:
        required = {place: frozenset(checks) for place, checks in body["required"].items()}
        for policy in ("", policy_digest(required)):
            self.required[body["constitution"], body.get("classifier", ""), policy] = required

    def exchange(self, body: Mapping[str, Any]) -> list[str]:
        """What is wrong with it, in words; empty where all is covered."""
        request, faults = body["request"], []
        known = request in self.open_
        ends, total = self.open_.pop(request, ({}, 0))
        cut = self.pruned and not known and any(r[3] for r in body["released"][:1])
        if cut:
            ends.update({(r[0], r[1]): r[3] for r in reversed(body["released"])})
        by = (body["constitution"], body.get("classifier", ""), body.get("policy", ""))
        required = self.required.get(by, {})
        if by[2] and by not in self.required:
            faults.append(f"no policy {by[2]} was written down before it")
        verdicts, failed = body["verdicts"], False
        for choice, part, place, start, end, size, _, ids in body["released"]:
            where = f"{place} {choice}.{part} [{start}, {end})"
            before = ends.get((choice, part), 0)
            if start != before or end < start or not end - start <= size <= 4 * (end - start):
                faults.append(f"{where}, {size} bytes, does not go on where the text stood at {before}")
            ends[choice, part] = end
            total += size
            fault, open_ = _uncovered(ids, verdicts, required.get(place, frozenset()), place)
            failed = failed or open_
            if fault and size:
                faults.append(f"{where}: {size} bytes not covered by a verdict: {fault}")
        self.open_failed += failed
        if body.get("more"):
            self.open_[request] = (ends, total)
        else:
            self.exchanges += 1
            written = body["written"]
            if written < 0:
                self.uncounted += bool(total)
            elif written != total and not cut:
                faults.append(f"{written} bytes were written to the client, the verdicts cover {total}")
        self.bytes += sum(r[5] for r in body["released"])
        for name, count in body.get("withheld", {}).items():
            self.withheld[name] += count
        for name, count in body.get("passed", {}).items():
            self.passed[name] += count
        return faults


def _uncovered(
    ids: Sequence[int | str], verdicts: Sequence[Sequence[Any]], required: frozenset[str], place: str
) -> tuple[str, bool]:
    """Why these verdicts do not cover a range ("" where they do), and whether one of them is a failed check's."""
    if not ids:
        return "none is named", False
    named, failed = set(), False
    for id in ids:
        if not isinstance(id, int) or not 0 <= id < len(verdicts):
            return f"{id} is not among its verdicts", failed
        _, check, _, outcome, _, _ = verdicts[id]
        if outcome == "failed":
            failed = True
        elif outcome == "doubt":  # a cheap check's, that handed on to a dearer one: covers nothing, forbids nothing
            continue
        elif outcome not in COVERS:
            return f"{check} said {outcome}", failed
        named.add(check)
    if not named:
        return "all of them are in doubt", failed
    missing = required - named if place != GUARDS_OWN else frozenset()
    return (f"no verdict of {', '.join(sorted(missing))}" if missing else ""), failed
