"""What the guard did: one record per reply it did not let pass untouched, and counts of everything."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from fairlead.guard.decision import Decision

Released: TypeAlias = Literal["allowed", "redacted", "revised", "call blocked", "refused", "escalated", "missing"]


@dataclass(frozen=True, slots=True)
class Record:
    """One reply and what became of it.

    prompt, reply  where it stood in the call of `generate` with number `call`
    released       what left the guard
    decisions      all that the checks said besides "allow", in the order of the rounds
    rounds         how often the reply was changed and looked at again
    withheld       parts that no check can read and that were taken out
    failed         checks that failed on it: (check, "closed" or "open", why)
    """

    call: int
    prompt: int
    reply: int
    released: Released
    decisions: tuple[Decision, ...] = ()
    rounds: int = 0
    withheld: tuple[str, ...] = ()
    failed: tuple[tuple[str, str, str], ...] = ()

    @property
    def principle(self) -> str:
        """The principle of the decision that counted."""
        return self.decisions[-1].principle if self.decisions else ""

    @property
    def evidence(self) -> str:
        return self.decisions[-1].evidence if self.decisions else ""


@dataclass(slots=True)
class GuardLog:
    """Counts and records over the life of one guarded model. `every` keeps the records of untouched replies too."""

    every: bool = False
    calls: int = 0
    released: Counter[str] = field(default_factory=Counter)
    decisions: Counter[tuple[str, str]] = field(default_factory=Counter)  # (principle or check, outcome)
    failed: Counter[tuple[str, str]] = field(default_factory=Counter)  # (check, "closed" | "open")
    withheld: Counter[str] = field(default_factory=Counter)
    records: list[Record] = field(default_factory=list)

    def add(self, record: Record) -> None:
        self.released[record.released] += 1
        self.withheld.update(record.withheld)
        for decision in record.decisions:
            self.decisions[decision.principle or decision.check, decision.outcome] += 1
        for check, how, _ in record.failed:
            self.failed[check, how] += 1
        if self.every or record.decisions or record.withheld:
            self.records.append(record)

    def summary(self) -> dict[str, Any]:
        """The counts as plain JSON: `{"replies", "released", "principles", "failed", "withheld"}`."""
        principles: dict[str, dict[str, int]] = {}
        for (principle, outcome), n in sorted(self.decisions.items()):
            principles.setdefault(principle, {})[outcome] = n
        failed: dict[str, dict[str, int]] = {}
        for (check, how), n in sorted(self.failed.items()):
            failed.setdefault(check, {})[how] = n
        return {
            "replies": self.released.total(),
            "released": dict(sorted(self.released.items())),
            "principles": principles,
            "failed": failed,
            "withheld": dict(sorted(self.withheld.items())),
        }
