"""What checks say about an alternative, worked in: rulings of watches, decisions, failures, and how to mend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fairlead.guard.alternative import NEVER, Alternative
from fairlead.guard.decision import Decision
from fairlead.guard.watch import Cut, Ruling

if TYPE_CHECKING:
    from fairlead.guard.release import Release


def ruled(release: Release, i: int, ruling: Ruling, choice: Alternative) -> None:
    """One ruling of a watch that runs here. What is no ruling raises, and is a failure of the check."""
    if not release.plan.followed[i].policy.shadow:
        for channel, upto in ruling.safe.items():
            text = release.texts[channel]
            let = text.let
            if type(upto) is not int or upto < let[i]:
                failed(release, i, choice, f"let go of {upto!r} characters after {let[i]}")
                return
            let[i] = upto if upto < text.seen else text.seen
            if channel.choice != choice.index:
                release.dirty.add(channel.choice)
    decision = ruling.decision
    if decision.outcome == "allow" and decision.evidence and not decision.spans:
        release.tally.passed[f"{release.plan.followed[i].name}: {decision.evidence}"] += 1  # no verdict, and why
    if decision.outcome != "allow":
        found(release, i, decision, ruling.cuts, choice)
    elif ruling.cuts:
        failed(release, i, choice, "named cuts without a decision to redact")
    if ruling.doubt is not None:
        if release.questions is None:
            found(release, i, ruling.doubt.otherwise, (), choice)
        else:
            release.questions.doubted(i, ruling.doubt, choice)


def found(
    release: Release, i: int, decision: Decision, cuts: Sequence[Cut], choice: Alternative, ms: float = 0.0
) -> str:
    """What a check wants done; the id of its verdict ("" where it is none yet)."""
    one = release.plan.followed[i]
    outcome = decision.outcome
    if outcome in ("allow", "hold"):
        return ""
    if outcome == "failed":
        return failed(release, i, choice, decision.evidence)
    principle = decision.principle or one.principle
    if one.policy.shadow:
        choice.would(principle or one.name, outcome)
        return release.ledger.verdict(one.name, principle, outcome, decision.evidence, ms, shadow=True)
    verdict = release.ledger.verdict(one.name, principle, outcome, decision.evidence, ms)
    release.tally.decisions[principle or one.name, outcome] += 1
    if not choice.ended:
        said = decision if decision.principle else Decision(outcome, principle, decision.evidence, decision.spans)
        if outcome in ("redact", "block_tool_call"):
            _mend(release, said, cuts, verdict, choice)
        else:
            choice.judge(said, verdict)
    return verdict


def failed(release: Release, i: int, choice: Alternative, why: str, ms: float = 0.0) -> str:
    """A check gave no verdict: its principle says what follows.

    A watch that broke is not asked again, since its state is unknown, and so has failed on every alternative; a model
    has failed on this one.
    """
    one = release.plan.followed[i]
    shadow = one.policy.shadow
    closed = one.policy.on_error == "refuse" and not shadow
    release.tally.failed[one.name, "closed" if closed else "open"] += 1
    verdict = release.ledger.verdict(one.name, one.principle, "failed", why, ms, shadow=shadow)
    if shadow:
        choice.would(one.principle or one.name, "failed")
    decision = Decision("failed", one.principle, why, (), one.name)
    if one.start is None:
        if not shadow:
            _fell(release, i, choice, decision, verdict, closed)
        return verdict
    release.live = [(other, watch) for other, watch in release.live if other != i]
    if not shadow:
        if closed:
            release.refusing = (decision, verdict)
        else:
            release.open_failed[i] = verdict
            release.let[i] = NEVER
        for other in release.choices.values():
            if not other.ended:
                _fell(release, i, other, decision, verdict, closed)
                if other is not choice:
                    release.dirty.add(other.index)
    return verdict


def _fell(release: Release, i: int, choice: Alternative, decision: Decision, verdict: str, closed: bool) -> None:
    if closed:
        choice.judge(decision, verdict)
        return
    choice.cover = None
    for text in choice.all_texts:
        text.let[i] = NEVER
        if release.plan.followed[i].start is None:
            text.answered(i, NEVER, verdict)


def _mend(release: Release, decision: Decision, cuts: Sequence[Cut], verdict: str, choice: Alternative) -> None:
    """Paint over, or take calls out; where that cannot be done any more, the alternative goes."""
    ahead = False
    for cut in cuts:
        text = release.texts[cut.channel]
        if text.done:
            continue
        if text.place == "tool_call" and (decision.outcome == "block_tool_call" or cut.start >= cut.end):
            text.blocked = text.blocked or verdict
            ahead = True
        elif decision.outcome == "redact":
            ahead = text.cut(cut.start, cut.end, verdict) or ahead
        if cut.channel.choice != choice.index:
            release.dirty.add(cut.channel.choice)
    if ahead:
        choice.judge(decision, verdict)
        return
    why = f"{decision.evidence}; it has left already, or it is not said which part to take out"
    choice.judge(Decision("refuse", decision.principle, why), verdict)
