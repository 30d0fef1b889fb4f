"""What a check says about an exchange, and what a check is.

A check is batched like a judge: `decide(exchanges)` returns one decision per exchange, in order. It never changes a
reply itself; the guard does, by the most severe decision (`guard.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from fairlead.exchange import Exchange
from fairlead.judges.lineage import Lineage

Outcome: TypeAlias = Literal["allow", "hold", "redact", "revise", "refuse", "escalate", "block_tool_call", "failed"]
OnError: TypeAlias = Literal["refuse", "escalate", "allow"]

# From mild to severe. `failed` stands last: what it leads to is the constitution's `on_error`, and no milder decision
# of another check may hide it.
SEVERITY: dict[Outcome, int] = {
    "allow": 0, "hold": 1, "redact": 2, "revise": 3, "block_tool_call": 4, "escalate": 5, "refuse": 6, "failed": 7,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Span:
    """Characters [start, end) of one text of the reply.

    `at` is the way to it: index of the message in the reply, index of the part, and for the parts of a tool's result
    the index inside it.
    """

    at: tuple[int, ...]
    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise ValueError(f"span [{self.start}, {self.end}) is not a stretch of text")


@dataclass(frozen=True, slots=True)
class Decision:
    """What one check wants done with one reply, and why.

    `evidence` is for a log and a report: it says what was seen and where, and never repeats a secret.
    """

    outcome: Outcome
    principle: str = ""
    evidence: str = ""
    spans: tuple[Span, ...] = ()
    check: str = ""

    def __post_init__(self) -> None:
        if self.outcome not in SEVERITY:
            raise ValueError(f"unknown outcome {self.outcome!r}: use one of {', '.join(SEVERITY)}")
        if self.outcome == "redact" and not self.spans:
            raise ValueError("a decision to redact must say what: give spans=, or refuse")


ALLOW = Decision("allow")


def unplaced(outcome: Outcome) -> Outcome:
    """What a check wants that knows that something is broken, and not where: nothing can be painted over, and no call
    taken out, so that the whole is refused."""
    return "refuse" if outcome in ("redact", "block_tool_call") else outcome


def most_severe(decisions: Iterable[Decision]) -> Decision:
    """The decision that wins; of equals the first. Nothing to choose from is `allow`."""
    return max(decisions, key=lambda decision: SEVERITY[decision.outcome], default=ALLOW)


@runtime_checkable
class Check(Protocol):
    """Decides on exchanges: same length, same order.

    name       how it is printed and counted
    principle  id of the principle it stands for ("" for none)
    lineage    identity of the judge behind it: the train side of the run (DESIGN, idea 3)
    cost       0 code, 1 a local classifier, 2 a model call; the guard asks cheap checks first

    One that sends texts to another vendor says so: `sends_to`, its host. A guard takes it only where the constitution
    allows that (`vendors`), or the host serves the guarded model.
    """

    @property
    def name(self) -> str: ...
    @property
    def principle(self) -> str: ...
    @property
    def lineage(self) -> Lineage: ...
    @property
    def cost(self) -> int: ...

    def decide(self, exchanges: Sequence[Exchange]) -> list[Decision]: ...
