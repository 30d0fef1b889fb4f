from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from fairlead.exchange import Message, Text, ToolCall, ToolResult, user
from fairlead.guard.decision import Decision, Span
from fairlead.guard.ledger import Ledger
from fairlead.guard.policy import Policy
from fairlead.guard.pool import Pool
from fairlead.guard.prompt_side import Prompted, ask, without
from fairlead.guard.tally import Tally
from fairlead.guard.wire.events import Told

POLICIES = {"p": Policy("be kind", "i will not ."), "open": Policy("x", "no .", "allow"), "dark": Policy(shadow=True)}
CALL = Message("assistant", (ToolCall("1", "send", '{"to": "4417"}'),))
RESULT = Message("tool", (ToolResult("1", (Text("sent to 4417"),)),))
ASKED = (user("my code is 4417"), CALL, RESULT)


@dataclass
class Asks:
    rule: Callable[[Sequence[Message]], Any]
    name: str = "c"
    principle: str = "p"
    cost: int = 0
    deadline: float = 5.0

    def ask(self, messages: Sequence[Message]) -> Any:
        return self.rule(messages)


def says(outcome: str, *spans: Span, principle: str = "", **more: Any) -> Asks:
    return Asks(lambda messages: Decision(outcome, principle, "seen", spans), **more)  # type: ignore[arg-type]


def run(*checks: Asks, **more: Any) -> tuple[Prompted, Ledger, Tally]:
    ledger, tally = Ledger(), Tally()

    async def work() -> Prompted:
        return await ask(checks, ASKED, POLICIES, ledger=ledger, tally=tally, **more)

    return asyncio.run(asyncio.wait_for(work(), 20)), ledger, tally


def test_what_nobody_minds_goes_on_unchanged() -> None:
    prompted, ledger, _ = run(says("allow"))
    assert prompted == Prompted(ASKED, Told("allow", "", ""), dear=16) and prompted.goes_on
    assert [verdict.outcome for verdict in ledger.verdicts] == ["allow"]
    assert run()[0].goes_on


def test_redaction_paints_over_texts_results_and_arguments() -> None:
    spans = Span((0, 0), 11, 15), Span((1, 0), len('send\n{"to": "'), len('send\n{"to": "4417')), Span((2, 0, 0), 8, 12)
    prompted, ledger, tally = run(says("redact", *spans))
    assert "4417" not in repr(prompted.messages) and prompted.goes_on
    assert prompted.messages[1].parts == (ToolCall("1", "send", '{"to": "[redacted]"}'),)
    assert prompted.told == Told("redact", "p", ledger.verdicts[0].id) and tally.decisions["p", "redact"] == 1


@pytest.mark.parametrize(
    "span", [Span((1, 0), 0, 4), Span((1, 0), 2, 17), Span((9, 9), 0, 1), Span((1, 0), 5, 6), Span((0, 0), 0, 99)]
)
def test_what_cannot_be_painted_over_does_not_go_on(span: Span) -> None:
    prompted, _, _ = run(says("redact", span))
    assert not prompted.goes_on and prompted.told.decision == "refuse" and prompted.say == "i will not ."


def test_a_span_that_begins_in_the_name_of_a_call_is_not_painted_in_half() -> None:
    call = Message("assistant", (ToolCall("1", "send", '["4417"]'),))
    assert without((call,), [Span((0, 0), 5, 11)]) is not None
    assert without((call,), [Span((0, 0), 2, 11)]) is None


def test_the_most_severe_decision_wins_and_dear_checks_are_spared() -> None:
    asked: list[int] = []
    dear = Asks(lambda messages: asked.append(1), "dear", cost=2)
    prompted, _, _ = run(dear, says("redact", Span((0, 0), 0, 2)), says("refuse", principle="open"))
    assert prompted.told.decision == "refuse" and prompted.say == "no ." and asked == []
    assert run(says("revise"))[0].told.decision == "refuse" == run(says("block_tool_call"))[0].told.decision


def test_dear_questions_are_bounded_and_what_is_left_is_told() -> None:
    asked: list[str] = []

    def critic(name: str, principle: str = "p") -> Asks:
        return Asks(lambda messages: asked.append(name) or Decision("allow"), name, cost=2, principle=principle)

    three = [critic("a"), critic("b"), critic("c", "open")]
    prompted, _, tally = run(*three, dear=3)
    assert asked == ["a", "b", "c"] and (prompted.told.decision, prompted.dear) == ("allow", 0)
    prompted, _, tally = run(critic("a"), critic("c", "open"), dear=1)
    assert prompted.goes_on and prompted.dear == 0 and tally.failed == {("c", "open"): 1}
    asked.clear()
    prompted, ledger, tally = run(*three, dear=1)
    assert asked == ["a"] and prompted.told.decision == "failed" and prompted.check == "b"
    assert tally.failed == {("b", "closed"): 1}  # so `c` need not be asked
    assert tally.cost == {("a", "asked"): 1, ("b", "refused by a cap"): 1}
    assert "has had its 1 dear calls" in ledger.verdicts[1].evidence


def test_escalation_hands_over_what_was_asked() -> None:
    queue: list[Any] = []
    prompted, _, tally = run(says("escalate"), escalate=lambda *seen: queue.append(seen))
    assert prompted.say == "i will not ." and queue[0][0].messages == ASKED and not tally.failed
    assert run(says("escalate"))[2].failed == {("escalation", "closed"): 1}


@pytest.mark.parametrize(
    "rule",
    [lambda m: 1 / 0, lambda m: None, lambda m: float("nan"), lambda m: Decision("hold"), lambda m: Decision("failed")],
)
def test_a_broken_check_is_closed_by_default_and_says_whose_fault_it_is(rule: Any) -> None:
    prompted, ledger, tally = run(Asks(rule))
    assert prompted.told.decision == "failed" and prompted.check == "c" and tally.failed == {("c", "closed"): 1}
    assert "4417" not in ledger.verdicts[0].evidence
    prompted, _, tally = run(Asks(rule, principle="open"))
    assert prompted.goes_on and tally.failed == {("c", "open"): 1}


def test_a_model_that_hangs_is_late() -> None:
    free = threading.Event()
    try:
        hangs = Asks(lambda m: free.wait(30) and Decision("allow"), cost=1, deadline=0.05)
        prompted, ledger, _ = run(hangs, pool=Pool())
        assert prompted.told.decision == "failed" and "within" in ledger.verdicts[0].evidence
    finally:
        free.set()


def test_in_shadow_mode_it_goes_on_and_is_counted() -> None:
    prompted, ledger, tally = run(says("refuse", principle="dark"), Asks(lambda m: 1 / 0, principle="dark"))
    assert prompted.told.decision == "allow" and ledger.verdicts == [] and len(ledger.shadow) == 2
    assert tally.shadow == {("dark (prompt)", "refuse"): 1, ("dark (prompt)", "failed"): 1}


def test_code_that_takes_too_long_over_what_is_asked_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short texts: seen when it gives back. Long ones: in a thread, and nobody waits for it longer."""
    times = iter(range(100))
    monkeypatch.setattr("fairlead.guard.prompt_side.perf_counter", lambda: float(next(times)))
    slow = says("allow", deadline=0.5)
    prompted, ledger, tally = run(slow)
    assert (prompted.told.decision, prompted.check) == ("failed", "c") and tally.failed == {("c", "closed"): 1}
    assert "0.5 s is what it may take" in ledger.verdicts[-1].evidence
    prompted, _, tally = run(slow, on_error={0: "allow"})
    assert prompted.goes_on and tally.failed == {("c", "open"): 1}
    free = threading.Event()
    try:
        hangs = Asks(lambda messages: free.wait(20), deadline=0.05)
        prompted, ledger, _ = run(hangs, long=True, pool=Pool())
        assert prompted.check == "c" and "no answer within 0.05 s" in ledger.verdicts[-1].evidence
    finally:
        free.set()
