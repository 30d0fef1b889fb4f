"""How an alternative ends: everything may leave, or the words of a principle stand in its place, or it is stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fairlead.exchange import Exchange
from fairlead.guard.alternative import Alternative
from fairlead.guard.decision import Decision
from fairlead.guard.improve import revised
from fairlead.guard.leaving import drain, say
from fairlead.guard.released import Broken, Noted, Stop
from fairlead.guard.saying import failed
from fairlead.guard.watch import STOP
from fairlead.guard.wire.events import Channel, Finish, Reason, Told

if TYPE_CHECKING:
    from fairlead.guard.release import Release


def whole(release: Release, choice: Alternative) -> None:
    """An alternative of which no more is coming, once every model has answered."""
    if choice.ended or choice.finish is None or ((choice.waiting or choice.stages) and not choice.hard):
        return
    if not choice.hard:
        for text in choice.all_texts:
            if not text.done and min(text.let) < text.seen:
                i = text.let.index(min(text.let))
                failed(release, i, choice, f"let go of {text.let[i]} of {text.seen} characters of a text that is whole")
    if choice.hard:
        end(release, choice)
        release.act(choice)
    elif choice.revising is not None:
        _revise(release, choice)
    else:
        finish(release, choice)


def finish(release: Release, choice: Alternative) -> None:
    """Everything of it may leave."""
    assert choice.finish is not None
    choice.whole = True
    drain(release, choice)
    reason: Reason = choice.finish.reason
    if reason == "tool_calls" and choice.lost_call and not choice.calls:
        reason = "stop"
    outcome = choice.worst.outcome if choice.worst is not None else "allow"
    if choice.worst is not None:
        release.emit(Noted(choice.index, Told(outcome, choice.principle, choice.verdict)))
    release.emit(Finish(choice.index, reason, _stop_string(release, choice)))
    said_nothing = outcome == "allow" and not any(text.out for text in choice.texts) and not choice.calls
    done(release, choice, "empty" if said_nothing else outcome)


def _stop_string(release: Release, choice: Alternative) -> str:
    text = choice.stop
    if text is None:
        return ""
    if text.cuts:
        release.tally.withheld["stop string"] += 1
        return ""
    stop = "".join(piece for piece, _ in text.pieces)
    release.ledger.write(choice.index, STOP, "reply", stop, choice.covering(release, text, text.seen)[0])
    return stop


def end(release: Release, choice: Alternative) -> None:
    """Nothing more of it: stopped where it is on its way, else the words of the principle in its place."""
    if choice.revising is not None and choice.sent:
        decision, verdict = choice.revising
        choice.judge(Decision("refuse", decision.principle, f"{decision.evidence}; too late to revise"), verdict)
    worst = choice.worst
    assert worst is not None
    if worst.outcome == "escalate":
        _escalate(release, choice)
    told = Told(worst.outcome, worst.principle, choice.verdict)
    choice.withheld += sum(text.drop() for text in choice.texts if not text.done)
    if choice.sent:
        release.emit(Stop(choice.index, "content_filter", told))
    elif worst.outcome == "failed" and not release.sent:
        release.broke(Broken(told, worst.evidence, worst.check))
        return
    else:
        say(release, Channel(choice.index, 0), release.plan.policy(worst.principle).say, choice.verdict)
        release.emit(Noted(choice.index, told), Finish(choice.index, "content_filter"))
    done(release, choice, told.decision)


def _escalate(release: Release, choice: Alternative) -> None:
    assert choice.worst is not None
    if release.escalate is None:
        release.tally.failed["escalation", "closed"] += 1
        return
    try:
        release.escalate(Exchange(release.messages, choice.reply()), choice.worst, choice.verdict)
    except Exception:  # noqa: BLE001  # the reply stays withheld; that nobody will look at it is counted
        release.tally.failed["escalation", "closed"] += 1


def _revise(release: Release, choice: Alternative) -> None:
    if release.plan.revise is None:
        give_up(release, choice, "there is no model to revise it")
    elif release.rounds < 1:
        give_up(release, choice, "still not in keeping")
    else:
        assert release.questions is not None
        release.questions.improve(choice, revised(release, choice))


def give_up(release: Release, choice: Alternative, why: str) -> None:
    """A revision that came to nothing is an error of the guard: `on_error` says what follows."""
    assert choice.revising is not None
    decision, _ = choice.revising
    choice.revising = None
    closed = release.plan.policy(decision.principle).on_error == "refuse"
    release.tally.failed["revise", "closed" if closed else "open"] += 1
    told = f"{decision.evidence}; {why}"
    verdict = release.ledger.verdict("revise", decision.principle, "refuse" if closed else "failed", told)
    if closed:
        choice.judge(Decision("refuse", decision.principle, told), verdict)
        end(release, choice)
    else:
        finish(release, choice)


def done(release: Release, choice: Alternative, how: str) -> None:
    choice.ended = True
    choice.stages = []
    release.tally.replies[how] += 1
    release.tally.withheld["characters"] += choice.withheld
    choice.count(release)
    release.check_over()
