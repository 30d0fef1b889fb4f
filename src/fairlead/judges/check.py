"""A judge as the guard sees it: one exchange in, kept or broken or failed out, within a deadline.

The guard turns this into a `Decision`; the judge knows nothing of guards. Late or broken is never "kept".
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fairlead.exchange import Exchange, Verdict
from fairlead.judges.lineage import Lineage
from fairlead.judges.protocol import Judge

Outcome: TypeAlias = Literal["kept", "broken", "failed"]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """`failed` means the judge gave no verdict (late, unreadable); `reason` says which."""

    outcome: Outcome
    verdict: Verdict | None
    reason: str = ""


@dataclass(frozen=True, eq=False)
class JudgeCheck:
    """`judge` below `threshold` is broken; no verdict within `deadline` seconds is failed (None: wait)."""

    judge: Judge
    principle: str = ""
    deadline: float | None = None
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.deadline is not None and self.deadline <= 0:
            raise ValueError(f"deadline is {self.deadline} s: give a positive number of seconds, or None to wait")
        if not 0.0 < self.threshold < 1.0:
            raise ValueError(f"threshold is {self.threshold}: a check needs one strictly between 0 and 1")

    @property
    def name(self) -> str:
        return self.judge.name

    @property
    def lineage(self) -> Lineage:
        """The judge's own: standing in a guard does not make it another judge."""
        return self.judge.lineage

    def check(self, exchanges: Sequence[Exchange]) -> list[CheckResult]:
        """One result per exchange, in order; the deadline holds for the whole batch."""
        verdicts = self._verdicts_in_time(exchanges)
        if verdicts is None:
            late = CheckResult("failed", None, f"{self.name} gave no verdict within {self.deadline} s")
            return [late] * len(exchanges)
        return [self._result(verdict) for verdict in verdicts]

    def _result(self, verdict: Verdict) -> CheckResult:
        if verdict.score is None:
            return CheckResult("failed", verdict, verdict.reason)
        outcome: Outcome = "kept" if verdict.score >= self.threshold else "broken"
        return CheckResult(outcome, verdict, verdict.reason)

    def _verdicts_in_time(self, exchanges: Sequence[Exchange]) -> list[Verdict] | None:
        """None when late. An error of the judge is raised here, for the guard's `on_error` to decide on."""
        if self.deadline is None:
            return self.judge.judge(exchanges)
        answer: list[list[Verdict]] = []
        error: list[BaseException] = []

        def work() -> None:
            try:
                answer.append(self.judge.judge(exchanges))
            except BaseException as raised:  # noqa: BLE001  # carried over to the caller's thread and raised there
                error.append(raised)

        # A daemon thread: a judge that hangs for ever must not keep the process alive.
        thread = threading.Thread(target=work, name=f"check {self.name}", daemon=True)
        thread.start()
        thread.join(self.deadline)
        if error:
            raise error[0]
        return answer[0] if answer else None
