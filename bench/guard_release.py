"""CPU time of the release alone, by request: `python bench/guard_release.py`.

Four watches that let everything go, a reply of 1 kB in one body and one of 200 chunks; no socket, no format, no real
check. Prints microseconds of CPU time (least of five rounds: the machine may be busy with other things) and the aims.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fairlead.exchange import user
from fairlead.guard.plan import Plan, plan
from fairlead.guard.policy import Policy
from fairlead.guard.release import Release
from fairlead.guard.tally import Tally
from fairlead.guard.watch import Ruling, Seen
from fairlead.guard.wire.events import About, Channel, Close, Delta, End, Event, Finish, Open
from fairlead.judges.lineage import Lineage, leaf

AIMS = {"whole": 80.0, "stream": 3000.0}  # microseconds
C = Channel(0, 0)
LINEAGE = leaf("rule", text="bench")


class Passing:
    __slots__ = ("n",)

    def __init__(self) -> None:
        self.n = 0

    def feed(self, seen: Seen) -> Ruling:
        self.n += len(seen.text)
        return Ruling(safe={seen.channel: self.n})

    def finish(self, choice: int) -> Ruling:
        return Ruling()


@dataclass(frozen=True)
class Check:
    name: str
    principle: str = "p"
    cost: int = 0
    lineage: Lineage = LINEAGE

    def decide(self, exchanges: Sequence[Any]) -> list[Any]:
        raise NotImplementedError

    def watch(self, messages: Sequence[Any]) -> Passing:
        return Passing()


def reply(pieces: Sequence[str]) -> list[Event]:
    deltas = [Delta(C, piece) for piece in pieces]
    usage = About("", "", 0, {"total_tokens": 300})
    return [About("r-1", "m-1"), Open(C, "reply"), *deltas, Close(C), Finish(0, "stop"), usage, End()]


def spent(the_plan: Plan, events: Sequence[Event], times: int) -> float:
    """Microseconds of CPU time for one request."""
    tally, asked = Tally(), (user("hello"),)
    began = time.process_time()
    for _ in range(times):
        release = Release(the_plan, asked, tally=tally)
        for event in events:
            release.feed(event)
        assert release.ended and release.ledger.ranges
    return (time.process_time() - began) / times * 1e6


def main() -> None:
    the_plan = plan([Check(f"c{n}") for n in range(4)], {"p": Policy(stream="window")})
    workloads = {"whole": (reply(["x" * 1000]), 2000), "stream": (reply(["hello"] * 200), 100)}
    for name, (events, times) in workloads.items():
        least = min(spent(the_plan, events, times) for _ in range(5))
        print(
            json.dumps({"workload": name, "cpu_us": round(least, 1), "aim_us": AIMS[name], "met": least <= AIMS[name]})
        )


if __name__ == "__main__":
    main()
