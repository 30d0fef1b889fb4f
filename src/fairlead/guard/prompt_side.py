"""What is asked, before any model reads it: every check of prompts looks, the most severe decision counts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from types import MappingProxyType

from fairlead.exchange import Exchange, Message, ToolCall
from fairlead.guard.arguments import painted
from fairlead.guard.decision import SEVERITY, Decision, Span, most_severe
from fairlead.guard.ledger import Ledger
from fairlead.guard.pieces import pieces, redact
from fairlead.guard.plan import DEADLINES, DEAR
from fairlead.guard.policy import Policy
from fairlead.guard.pool import NoAnswer, Pool
from fairlead.guard.release import Escalate
from fairlead.guard.tally import Tally
from fairlead.guard.watch import PromptCheck
from fairlead.guard.wire.events import Told

NONE: Mapping[int, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Prompted:
    """What the checks say of what is asked.

    messages  as the model may read them, painted over where that is what was decided
    told      what was decided; `allow` and `redact` go on to the model, everything else is answered by `say`
    check     name of the check that failed closed ("" for none): an error of the guard, not an answer
    dear      questions to critics that are left for the reply
    """

    messages: tuple[Message, ...]
    told: Told
    say: str = ""
    check: str = ""
    dear: int = 0

    @property
    def goes_on(self) -> bool:
        return self.told.decision in ("allow", "redact")


async def ask(
    checks: Sequence[PromptCheck],
    messages: Sequence[Message],
    policies: Mapping[str, Policy],
    *,
    ledger: Ledger,
    tally: Tally,
    pool: Pool | None = None,
    deadlines: Mapping[int, float] = DEADLINES,
    on_error: Mapping[int, str] = NONE,
    dear: int = DEAR,
    long: bool = False,
    escalate: Escalate | None = None,
) -> Prompted:
    """Asks all checks, cheap ones first (`cost`, 0 where a check has none); dear ones only where no cheap one refuses,
    and a critic (cost 2) not where a check that `settles_prompts` of its principle has allowed without a doubt.

    A model (cost 1 or 2) is asked in the pool, within its deadline; so is code where what is asked is `long`, else it
    runs at once and has failed where it took longer. A check that fails is what the policy of its principle says, or
    `on_error` by its cost; so has one of cost 2 beyond the `dear` questions that the request may ask. A prompt can be
    painted over, refused or escalated; what would revise it or block a call refuses.
    """
    asked = tuple(messages)
    said: list[tuple[Decision, str]] = []
    settled: set[str] = set()
    left = dear
    for check in sorted(checks, key=lambda check: getattr(check, "cost", 0)):
        cost = getattr(check, "cost", 0)
        if cost and any(SEVERITY[decision.outcome] >= SEVERITY["escalate"] for decision, _ in said):
            break
        principle = getattr(check, "principle", "")
        if cost == 2 and principle in settled:
            tally.cost[check.name, "spared"] += 1
            continue
        if cost == 2:
            tally.cost[check.name, "asked" if left else "refused by a cap"] += 1
        if cost == 2 and not left:
            decision = Decision("failed", principle, f"the request has had its {dear} dear calls", (), check.name)
        else:
            left -= cost == 2
            deadline = getattr(check, "deadline", 0.0) or deadlines.get(cost, 20.0)
            decision = await _asked(check, asked, pool if cost or long else None, deadline)
        if settles(check, decision):
            settled.add(principle)
        one = _resolved(check, decision, policies, on_error.get(cost, ""), ledger, tally)
        if one is not None:
            said.append(one)
    worst = most_severe(decision for decision, _ in said)
    if worst.outcome == "allow":
        return Prompted(asked, Told("allow", "", ""), dear=left)
    verdict = next(verdict for decision, verdict in said if decision is worst)
    policy = policies.get(worst.principle) or Policy()
    told = Told(worst.outcome, worst.principle, verdict)
    if worst.outcome == "redact":
        spans = [span for decision, _ in said for span in decision.spans if decision.outcome == "redact"]
        changed = without(asked, spans)
        if changed is not None:
            return Prompted(changed, told, dear=left)
        told = Told("refuse", worst.principle, verdict)  # what cannot be painted over does not go on
    if worst.outcome == "escalate":
        _escalate(escalate, asked, worst, verdict, tally)
    return Prompted(asked, told, policy.say, worst.check if worst.outcome == "failed" else "")


def settles(check: PromptCheck, decision: Decision) -> bool:
    """Whether a critic of the same principle need not be asked: this check reads for it, and is in no doubt."""
    sure = decision.outcome == "allow" and not decision.evidence
    return sure and bool(getattr(check, "settles_prompts", False))


def without(messages: Sequence[Message], spans: Iterable[Span]) -> tuple[Message, ...] | None:
    """The messages with these stretches painted over, inside strings in the arguments of calls; None where one of them
    cannot be."""
    places = {piece.at: piece.place for piece in pieces(messages)}
    texts: list[Span] = []
    calls: dict[tuple[int, ...], list[Span]] = {}
    for span in spans:
        if span.at not in places:
            return None
        (calls.setdefault(span.at, []) if places[span.at] == "tool_call" else texts).append(span)
    try:
        changed = list(redact(messages, texts))
    except ValueError:
        return None
    for (m, p), found in calls.items():
        parts = list(changed[m].parts)
        call = parts[p]
        assert isinstance(call, ToolCall)
        before = len(call.name) + 1  # `pieces` reads a call as its name, then its arguments
        if any(span.start < before for span in found):
            return None
        left = painted(call.arguments, [(span.start - before, span.end - before) for span in found])
        if left is None:
            return None
        parts[p] = dataclasses.replace(call, arguments=left)
        changed[m] = dataclasses.replace(changed[m], parts=tuple(parts))
    return tuple(changed)


async def _asked(check: PromptCheck, messages: tuple[Message, ...], pool: Pool | None, deadline: float) -> Decision:
    """What a check says; what goes wrong inside it is a decision `failed` that says what, and quotes nothing."""
    principle = getattr(check, "principle", "")
    try:
        if pool is not None:
            said: object = await pool.submit(check.name, lambda: check.ask(messages), deadline)
        else:
            began = perf_counter()
            said = check.ask(messages)
            if (took := perf_counter() - began) > deadline:
                said = Decision("failed", principle, f"took {took:.2g} s, {deadline:g} s is what it may take")
    except NoAnswer as problem:
        return Decision("failed", principle, str(problem), (), check.name)
    except Exception as problem:  # noqa: BLE001  # becomes a counted failure, by default closed
        return Decision("failed", principle, f"raised {type(problem).__name__}", (), check.name)
    if not isinstance(said, Decision):
        return Decision("failed", principle, "gave no decision", (), check.name)
    if said.outcome == "hold":
        return Decision("failed", principle, "asked to hold what is asked", (), check.name)
    return said


def _resolved(
    check: PromptCheck, decision: Decision, policies: Mapping[str, Policy], on_error: str, ledger: Ledger, tally: Tally
) -> tuple[Decision, str] | None:
    """A decision that counts, with the id of its verdict; None for one that changes nothing."""
    outcome, principle = decision.outcome, decision.principle or getattr(check, "principle", "")
    policy = policies.get(principle) or Policy()
    key = principle or check.name
    if policy.shadow:
        tally.shadow[f"{key} (prompt)", outcome] += 1
    if outcome == "allow":
        ledger.verdict(check.name, principle, "allow", decision.evidence, shadow=policy.shadow)
        return None
    verdict = ledger.verdict(check.name, principle, outcome, decision.evidence, shadow=policy.shadow)
    if outcome == "failed":
        closed = (on_error or policy.on_error) == "refuse" and not policy.shadow
        tally.failed[check.name, "closed" if closed else "open"] += 1
        if not closed:
            return None
    if policy.shadow:
        return None
    tally.decisions[key, outcome] += 1
    if outcome in ("revise", "block_tool_call"):
        outcome = "refuse"
    return Decision(outcome, principle, decision.evidence, decision.spans, check.name), verdict


def _escalate(
    escalate: Escalate | None, messages: tuple[Message, ...], decision: Decision, verdict: str, tally: Tally
) -> None:
    try:
        if escalate is None:
            raise LookupError
        escalate(Exchange(messages, ()), decision, verdict)
    except Exception:  # noqa: BLE001  # nothing goes on; that nobody will look at it is counted
        tally.failed["escalation", "closed"] += 1
