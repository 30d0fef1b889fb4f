"""One kind of thing scores: a `Judge` maps exchanges to verdicts, a `Comparer` pairs of them to probabilities.

The same protocol is the reward in RL, the labeller of preferences, the scorer in a measure and the check in a guard.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from fairlead.exchange import Exchange, Verdict
from fairlead.judges.lineage import Lineage


@runtime_checkable
class Judge(Protocol):
    """Scores exchanges: same length, same order. `lineage` is its identity, `name` only how it is printed."""

    @property
    def name(self) -> str: ...
    @property
    def lineage(self) -> Lineage: ...

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]: ...


@runtime_checkable
class Comparer(Protocol):
    """P(first is better) for each pair of exchanges that answer the same messages, or None with nothing to say."""

    @property
    def name(self) -> str: ...
    @property
    def lineage(self) -> Lineage: ...

    def compare(self, pairs: Sequence[tuple[Exchange, Exchange]]) -> list[float | None]: ...
