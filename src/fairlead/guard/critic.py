"""A judge in the guard: what it holds broken is a decision, what it cannot answer is a failed check."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from fairlead.exchange import Exchange, ToolCall
from fairlead.guard.decision import Decision, Outcome, Span, unplaced
from fairlead.guard.pieces import PLACES, only, pieces
from fairlead.judges.check import CheckResult, JudgeCheck
from fairlead.judges.lineage import Lineage
from fairlead.models.access import vendor


@dataclass(frozen=True)
class CriticCheck:
    """`check` (a judge with its threshold and deadline) as a check that leads to `on_violation`.

    A judge says that something is wrong and not where, so a reply it would redact is refused. The threshold is chosen
    on the select side of a run, never on audit cases; it is part of the printed name. The judge reads what stands `at`
    those places of the reply; where nothing of it does, there is nothing to ask.
    """

    check: JudgeCheck
    on_violation: Outcome = "refuse"
    at: frozenset[str] = PLACES
    cost: int = 2

    @property
    def name(self) -> str:
        return f"{self.check.name} < {self.check.threshold:g}"

    @property
    def principle(self) -> str:
        return self.check.principle

    @property
    def lineage(self) -> Lineage:
        return self.check.lineage

    @property
    def sends_to(self) -> str:
        """The host that reads what is judged; "" for a model in this process, or in a network of one's own."""
        return vendor(getattr(self.check.judge, "model", None))

    def decide(self, exchanges: Sequence[Exchange]) -> list[Decision]:
        shown = [dataclasses.replace(item, reply=only(item.reply, self.at)) for item in exchanges]
        # an empty reply is still one to be judged
        asked = [n for n, item in enumerate(exchanges) if shown[n].reply or not pieces(item.reply)]
        results = self.check.check([shown[n] for n in asked]) if asked else []
        if len(results) != len(asked):
            raise ValueError(f"{self.name} gave {len(results)} verdicts for {len(asked)} exchanges")
        decisions = [Decision("allow", self.principle, "", (), self.name)] * len(exchanges)
        for n, result in zip(asked, results, strict=True):
            decisions[n] = self._one(exchanges[n], result)
        return decisions

    def _one(self, item: Exchange, result: CheckResult) -> Decision:
        if result.outcome == "failed":
            return Decision("failed", self.principle, result.reason or "gave no verdict", (), self.name)
        if result.outcome == "kept":
            return Decision("allow", self.principle, "", (), self.name)
        score = result.verdict.score if result.verdict else None
        evidence = f"scored {score:.2f}, below {self.check.threshold:g}" if score is not None else result.reason
        spans = _calls(item) if self.on_violation == "block_tool_call" else ()
        outcome = self.on_violation if spans else unplaced(self.on_violation)
        return Decision(outcome, self.principle, evidence, spans, self.name)


def _calls(item: Exchange) -> tuple[Span, ...]:
    return tuple(
        Span((m, p), 0, len(part.arguments))
        for m, message in enumerate(item.reply)
        for p, part in enumerate(message.parts)
        if isinstance(part, ToolCall)
    )


def threshold_at(scores_of_good: Sequence[float], false_alarm_rate: float) -> float:
    """The threshold below which at most `false_alarm_rate` of these scores lie.

    `scores_of_good` are a judge's scores on replies known to keep the principle, from the select side of a run. Raises
    ValueError where there are too few of them to speak about that rate (fewer than 1 / rate).
    """
    if not 0.0 < false_alarm_rate < 1.0:
        raise ValueError(f"false_alarm_rate is {false_alarm_rate}: it must lie between 0 and 1")
    scores = sorted(scores_of_good)
    if len(scores) < 1.0 / false_alarm_rate:
        raise ValueError(
            f"{len(scores)} scores cannot place a threshold at a false-alarm rate of {false_alarm_rate:g}: "
            f"give at least {math.ceil(1.0 / false_alarm_rate)}"
        )
    allowed = int(false_alarm_rate * len(scores))  # this many may lie below
    return min(max(scores[allowed], 1e-6), 1.0 - 1e-6)
