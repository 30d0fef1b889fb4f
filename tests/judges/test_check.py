from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from fairlead.exchange import Exchange, Verdict, exchange
from fairlead.judges.check import JudgeCheck
from fairlead.judges.critic import critic
from fairlead.judges.lineage import leaf
from fairlead.judges.rules import Judged
from measures.speakers import always

ITEM = exchange("x", "y")


def judge(verdict: Verdict) -> Judged:
    return Judged("j", lambda items: [verdict] * len(items), leaf("rule", text="j"))


@pytest.mark.parametrize(("score", "outcome"), [(0.5, "kept"), (0.49, "broken"), (1.0, "kept"), (0.0, "broken")])
@pytest.mark.parametrize("deadline", [None, 5.0])
def test_below_the_threshold_is_broken(score: float, outcome: str, deadline: float | None) -> None:
    assert JudgeCheck(judge(Verdict(score)), deadline=deadline).check([ITEM])[0].outcome == outcome


def test_no_verdict_is_failed_never_kept() -> None:
    result = JudgeCheck(judge(Verdict(None, reason="unreadable"))).check([ITEM])[0]
    assert (result.outcome, result.reason) == ("failed", "unreadable")


def test_late_is_failed() -> None:
    gate = threading.Event()

    def slow(items: Sequence[Exchange]) -> list[Verdict]:
        gate.wait(30)
        return [Verdict(1.0)] * len(items)

    results = JudgeCheck(Judged("slow", slow, leaf("rule")), deadline=0.05).check([ITEM, ITEM])
    gate.set()
    assert [result.outcome for result in results] == ["failed", "failed"]
    assert "no verdict within 0.05 s" in results[0].reason


@pytest.mark.parametrize("deadline", [None, 5.0])
def test_an_error_of_the_judge_reaches_the_guard(deadline: float | None) -> None:
    def broken(items: Sequence[Exchange]) -> list[Verdict]:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        JudgeCheck(Judged("b", broken, leaf("rule")), deadline=deadline).check([ITEM])


def test_a_critic_gives_its_own_check() -> None:
    polite = critic("Be polite.", always("no"), samples=1)
    check = polite.as_check(deadline=2.0, threshold=0.3)
    assert (check.deadline, check.threshold, check.lineage) == (2.0, 0.3, polite.lineage)
    assert check.check([ITEM])[0].outcome == "broken"


def test_senseless_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="deadline"):
        JudgeCheck(judge(Verdict(1.0)), deadline=0.0)
    with pytest.raises(ValueError, match="threshold"):
        JudgeCheck(judge(Verdict(1.0)), threshold=1.0)
