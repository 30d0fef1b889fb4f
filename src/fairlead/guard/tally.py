"""Counts of what the guard did, over all requests, and what it would have done in shadow mode."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from fairlead import stats


@dataclass(slots=True)
class Tally:
    """Counts. One per process: events are counted from the thread of the event loop alone.

    replies    alternatives, by what became of them: allow, redact, revise, block_tool_call, refuse, escalate, failed,
               empty (the model said nothing), cut off (the upstream broke off, or the client left)
    decisions  by (principle or check, outcome), one per decision
    failed     by (check, closed | open)
    withheld   what did not leave because nothing could read it, by kind
    passed     what left unread because the policy says so, by kind
    cost       questions to models by (check, asked | cached | refused by a cap | failed | after the end)
    shadow     alternatives by (principle or check, what would have been done); "allow" included
    """

    replies: Counter[str] = field(default_factory=Counter)
    decisions: Counter[tuple[str, str]] = field(default_factory=Counter)
    failed: Counter[tuple[str, str]] = field(default_factory=Counter)
    withheld: Counter[str] = field(default_factory=Counter)
    passed: Counter[str] = field(default_factory=Counter)
    cost: Counter[tuple[str, str]] = field(default_factory=Counter)
    shadow: Counter[tuple[str, str]] = field(default_factory=Counter)

    def would_have(self, confidence: float = 0.95) -> dict[str, dict[str, Any]]:
        """Of each principle in shadow mode: the alternatives it saw (n), and how many of them it would have changed
        or withheld, by outcome, with the rate and its Wilson interval. Alternatives of one conversation are no
        independent cases: the interval is too narrow where a few users ask the same over and over."""
        out: dict[str, dict[str, Any]] = {}
        for principle in sorted({of for of, _ in self.shadow}):
            counts = {outcome: n for (of, outcome), n in sorted(self.shadow.items()) if of == principle}
            n = sum(counts.values())
            acted = n - counts.pop("allow", 0)
            rate = stats.wilson(acted, n, confidence)
            out[principle] = {
                "n": n, "acted": acted, "outcomes": counts, "rate": rate.value, "low": rate.low, "high": rate.high,
            }  # fmt: skip
        return out
