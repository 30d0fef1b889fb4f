"""Better replies: one that breaks a principle revised and looked at again, or the best of several candidates.

A revision is a reply like any other: it goes through a release of its own, with watches of its own that were told what
other alternatives hold, and leaves by the same rules. Rounds are bounded. Where the best of n is asked for, every
candidate is checked first; where none is good enough, the principle's `say` is what the user reads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fairlead.errors import BudgetReached
from fairlead.exchange import Exchange, Message, Verdict
from fairlead.guard.alternative import Alternative
from fairlead.guard.asking import USED_UP
from fairlead.guard.holding import Held
from fairlead.guard.plan import BestOf
from fairlead.guard.pool import NoAnswer
from fairlead.guard.released import Broken, Noted, Out, Stop
from fairlead.guard.saying import failed
from fairlead.guard.tally import Tally
from fairlead.guard.watch import Seen
from fairlead.guard.wire.events import (
    About,
    Channel,
    Close,
    Delta,
    End,
    Event,
    Failed,
    Finish,
    Open,
    Told,
)

if TYPE_CHECKING:
    from fairlead.guard.release import Release

DEADLINE = 30.0  # seconds for one revision: two answers of a model


async def revised(release: Release, choice: Alternative) -> None:
    """Revises an alternative of which nothing has left, and lets go of what the checks say of the revision."""
    assert choice.revising is not None and release.questions is not None and release.plan.revise is not None
    decision, verdict = choice.revising
    questions, revise = release.questions, release.plan.revise
    why = questions.may()
    release.tally.cost["revise", "refused by a cap" if why else "asked"] += 1
    words = release.plan.policy(decision.principle).text or decision.evidence
    item = Exchange(release.messages, choice.reply())
    text = ""
    if not why:
        try:
            call = questions.asker.pool.submit("revise", lambda: revise([(words, item)]), questions.time_left(DEADLINE))
            text = _text(await call)
            why = "" if text else "no revision came back"
        except NoAnswer as problem:
            why = f"no revision came back: {problem}"
        except BudgetReached:
            release.tally.cost["revise", "refused by a cap"] += 1
            why = USED_UP
        except Exception as problem:  # noqa: BLE001  # a counted failure of the guard, `on_error` says what follows
            why = f"no revision came back: {type(problem).__name__}"
    if choice.ended:
        return
    if why:
        release.give_up(choice, why)
        return
    again = _again(release, choice)
    out: list[Out] = []
    channel = Channel(choice.index, 0)
    for event in (Open(channel, "reply"), Delta(channel, text), Close(channel), Finish(choice.index, "stop")):
        out += again.feed(event)
    while again.pending:
        out += await again.settle()
    _merge(release, again)
    if choice.ended:
        return
    if len(release.choices) > 1 or release.n > 1:
        part = 1 + max((channel.part for channel in release.texts if channel.choice == choice.index), default=0)
        _tell(release, choice, Seen(Channel(choice.index, part), "reply", text, True))
    release.take_over(choice, _as_revised(out, Told("revise", decision.principle, verdict)), "revise")


def _text(answer: Any) -> str:
    """The text of the one reply that a reviser gives; "" for none."""
    messages = answer[0] if isinstance(answer, Sequence) and len(answer) == 1 else None
    if not isinstance(messages, Sequence) or not all(isinstance(message, Message) for message in messages):
        return ""
    return "\n".join(message.text for message in messages if message.text)


def _again(release: Release, choice: Alternative) -> Release:
    assert release.questions is not None
    again = type(release)(
        release.plan, release.messages, asker=release.asker, tenant=release.tenant, tally=Tally(),
        ledger=release.ledger, escalate=release.escalate, rounds=release.rounds - 1, dear=release.questions.dear,
    )  # fmt: skip
    again.sent = release.sent
    assert again.questions is not None
    again.questions.left = release.questions.time_left(release.questions.left)
    for other in release.choices.values():
        if other is not choice:
            for text in other.texts:
                told = again.choices.setdefault(text.channel.choice, Alternative(text.channel.choice))
                told.ended = True
                _tell(again, told, Seen(text.channel, text.place, "".join(text.kept or ()), True, text.name))
    return again


def _tell(release: Release, choice: Alternative, seen: Seen) -> None:
    """Tells the watches of a text that has another release: what they are shown here may go on from it."""
    text = release.texts[seen.channel] = Held(Open(seen.channel, seen.place, "", seen.name), release.let.copy(), False)
    text.seen, text.done = len(seen.text), True
    for i, watch in release.live:
        try:
            watch.feed(seen)
        except Exception as problem:  # noqa: BLE001  # a counted failure of the check, closed by default
            failed(release, i, choice, f"raised {type(problem).__name__}")


def _merge(release: Release, again: Release) -> None:
    assert again.questions is not None and release.questions is not None
    release.questions.dear = again.questions.dear
    for name in ("decisions", "failed", "withheld", "passed", "cost"):
        getattr(release.tally, name).update(getattr(again.tally, name))


def _as_revised(out: Sequence[Out], told: Told) -> list[Out]:
    """What the release of a revision gave, noted as a revision where it was let go."""
    noted = next((event for event in out if isinstance(event, Noted)), None)
    if any(isinstance(event, Broken) for event in out):
        return [event for event in out if isinstance(event, Broken)]
    if noted is not None and noted.told.decision not in ("redact", "block_tool_call"):
        return list(out)
    kept: list[Out] = []
    for event in out:
        if isinstance(event, Finish):
            kept.append(Noted(event.choice, told))
        if not isinstance(event, Noted):
            kept.append(event)
    return kept


class Best:
    """A release that lets go of the best candidate alone: the same face as `Release`, around one of n candidates.

    The provider is asked for `n` alternatives; the client sees one.
    """

    def __init__(self, inner: Release, best: BestOf) -> None:
        self.inner, self.best, self.n = inner, best, best.n
        self.over = self.ended = False
        self._candidates: dict[int, list[Out]] = {}
        self._before: list[Out] = []
        self._after: list[Out] = []
        self._judging = False

    @property
    def pending(self) -> int:
        return self.inner.pending or int(self._judging)

    @property
    def ledger(self) -> Any:
        return self.inner.ledger

    @property
    def tally(self) -> Tally:
        return self.inner.tally

    def feed(self, event: Event, last: bool = False) -> list[Out]:
        return self._sort(self.inner.feed(event, last))

    async def settle(self) -> list[Out]:
        if self._judging:
            self._judging = False
            return await self._choose()
        return self._sort(await self.inner.settle())

    def close(self) -> None:
        self.inner.close()
        self.over = self.ended = True

    def _sort(self, out: Sequence[Out]) -> list[Out]:
        given: list[Out] = []
        for event in out:
            match event:
                case Broken() | Failed():
                    self.over = self.ended = True
                    self.inner.ledger.keep_only(-1)
                    given = [*(self._before if isinstance(event, Failed) else ()), event]
                case About():
                    (self._after if self._candidates else self._before).append(event)
                case End():
                    self._judging = True
                case _:
                    self._candidates.setdefault(_choice(event), []).append(event)
        self.over = self.over or self.inner.over
        return given

    async def _choose(self) -> list[Out]:
        """Judges what may be chosen. A judge that fails is a check that fails: its principle says what follows."""
        inner, best = self.inner, self.best
        policy, key = inner.plan.policy(best.principle), best.principle or "best-of-n"
        allowed = [c for c in sorted(self._candidates) if _may_be_chosen(self._candidates[c])]
        if not allowed:
            return self._give(min(self._candidates, default=-1))
        scores, why = await self._scores(allowed)
        closed = policy.on_error == "refuse" and not best.shadow
        chosen, outcome, told = allowed[0], "failed", why
        if why:
            inner.tally.failed["best-of-n", "closed" if closed else "open"] += 1
        else:
            score, c = max((score, -c) for c, score in scores.items())
            chosen, outcome = -c, "allow" if score >= best.threshold else "refuse"
            told = f"the best of {len(allowed)} candidates scored {score:.2f}, the threshold is {best.threshold:g}"
        verdict = inner.ledger.verdict("best-of-n", best.principle, outcome, told, shadow=best.shadow)
        if best.shadow:
            inner.tally.shadow[key, outcome] += 1
            return self._give(allowed[0])
        if outcome == "allow" or (why and not closed):
            return self._give(chosen)
        if outcome == "failed":
            self.over = self.ended = True
            inner.ledger.keep_only(-1)
            inner.tally.replies["failed"] += 1
            return [Broken(Told("failed", best.principle, verdict), why, "best-of-n")]
        inner.tally.decisions[key, "refuse"] += 1
        return self._refuse(policy.say, verdict)

    async def _scores(self, allowed: Sequence[int]) -> tuple[dict[int, float], str]:
        """Scores by candidate, and why there are none ("" where there are)."""
        inner, best = self.inner, self.best
        assert inner.asker is not None
        items = [Exchange(inner.messages, (_released(self._candidates[c]),)) for c in allowed]
        try:
            said: Any = await inner.asker.pool.submit("best-of-n", lambda: best.judge.judge(items), best.deadline)
        except NoAnswer as problem:
            return {}, str(problem)
        except Exception as problem:  # noqa: BLE001  # becomes a counted failure, by default closed
            return {}, f"raised {type(problem).__name__}"
        if not isinstance(said, Sequence) or len(said) != len(items):
            return {}, "gave no verdict for each candidate"
        scores = {
            c: one.score
            for c, one in zip(allowed, said, strict=True)
            if isinstance(one, Verdict) and one.score is not None
        }
        return scores, "" if scores else "gave no score"

    def _give(self, c: int) -> list[Out]:
        self.inner.ledger.keep_only(c)
        out = [_renumbered(event) for event in self._candidates.get(c, ())]
        return self._end(out)

    def _refuse(self, say: str, verdict: str) -> list[Out]:
        ledger, channel = self.inner.ledger, Channel(0, 0)
        ledger.keep_only(-1)
        ledger.write(0, 0, "guard", say, (verdict,))
        self.inner.tally.replies["refuse"] += 1
        told = Noted(0, Told("refuse", self.best.principle, verdict))
        return self._end(
            [Open(channel, "reply"), Delta(channel, say), Close(channel), told, Finish(0, "content_filter")]
        )

    def _end(self, out: Sequence[Out]) -> list[Out]:
        self.over = self.ended = True
        return [*self._before, *out, *self._after, End()]


def _choice(event: Out) -> int:
    channel = getattr(event, "channel", None)
    return int(channel.choice if channel is not None else getattr(event, "choice", 0))


def _may_be_chosen(out: Sequence[Out]) -> bool:
    return not any(
        isinstance(event, Stop)
        or (isinstance(event, Noted) and event.told.decision in ("refuse", "escalate", "failed"))
        for event in out
    )


def _renumbered(event: Any) -> Out:
    if isinstance(event, Open | Delta | Close):
        return dataclasses.replace(event, channel=Channel(0, event.channel.part))
    return dataclasses.replace(event, choice=0)  # type: ignore[no-any-return]


def _released(out: Sequence[Out]) -> Message:
    """A candidate as it would leave, for the judge."""
    from fairlead.guard.watch import as_part

    texts: dict[Channel, list[str]] = {}
    opened: dict[Channel, Open] = {}
    for event in out:
        if isinstance(event, Open):
            opened[event.channel] = event
        elif isinstance(event, Delta):
            texts.setdefault(event.channel, []).append(event.text)
    return Message(
        "assistant",
        tuple(
            as_part(Seen(channel, one.place, "", name=one.name), "".join(texts.get(channel, ())))
            for channel, one in opened.items()
        ),
    )
