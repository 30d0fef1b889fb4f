"""What one request asks of models, in the order of their cost.

Code runs at once, on every piece (`release.py`). A classifier (cost 1) is asked about windows or whole alternatives; a
critic (cost 2) after it, and where a cheaper check of its principle answers doubts, on a doubt alone. What holds in
the meantime is `Held.let`: a model that was not heard lets nothing go.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

from fairlead.exchange import Exchange, Message
from fairlead.guard import verdict_cache
from fairlead.guard.alternative import NEVER, Alternative
from fairlead.guard.asker import Asker
from fairlead.guard.asking import USED_UP, failure
from fairlead.guard.decision import Decision, Span
from fairlead.guard.holding import Held
from fairlead.guard.plan import Followed
from fairlead.guard.saying import failed, found
from fairlead.guard.verdict_cache import Answer
from fairlead.guard.watch import Cut, Doubt, Seen, as_part, cut_of

if TYPE_CHECKING:
    from fairlead.guard.release import Release


__all__ = ["Asker", "Questions"]


class Questions:
    """What one request asks of models, and what becomes of the answers."""

    def __init__(self, release: Release, asker: Asker, dear: int) -> None:
        self.release, self.asker, self.plan, self.dear = release, asker, release.plan, dear
        self.left = self.plan.budget
        self._asking = 0
        self._since = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._base: tuple[tuple[Message, ...], Any] | None = None  # of the keys, for the messages it was made for

    # ------------------------------------------------------------------------------------- when to ask

    def more(self, choice: Alternative) -> None:
        """More text came: asks those models that read by windows."""
        for i in self.plan.models:
            one = self.plan.followed[i]
            if one.window and not one.asleep and i not in choice.asking:
                new = sum(text.seen - text.asked.get(i, 0) for text in choice.texts if _readable(text))
                if new >= one.window:
                    self._ask(i, choice)

    def last(self, choice: Alternative) -> None:
        """An alternative is whole: asks what is left to ask, dear models only where cheap ones did not settle it."""
        costs: dict[int, list[int]] = {}
        for i in self.plan.models:
            one = self.plan.followed[i]
            if not one.asleep or i in choice.awake:
                costs.setdefault(one.cost, []).append(i)
        choice.stages = [costs[cost] for cost in sorted(costs)]
        self._stage(choice)

    def doubted(self, i: int, doubt: Doubt, choice: Alternative) -> None:
        """A check is not sure: wakes whom it names. What is not out yet waits for them."""
        one = self.plan.followed[i]
        targets = self.plan.targets(i, doubt.ask)
        if one.policy.shadow:
            targets = ()
        if not targets:
            found(self.release, i, doubt.otherwise, self._cuts(doubt.otherwise, choice, None), choice)
            return
        for target in targets:
            if not self.plan.followed[target].asleep:
                continue  # it reads everything anyway
            if target in choice.awake:
                if target in choice.asking:
                    choice.again.add(target)  # what it is reading now ends before this doubt
                continue
            choice.awake.add(target)
            if not self.plan.followed[target].policy.shadow:
                for text in choice.all_texts:
                    text.let[target] = text.out
            if choice.finish is not None:
                choice.stages.append([target])
            elif self.plan.followed[target].policy.stream == "window":
                self._ask(target, choice)

    def _stage(self, choice: Alternative) -> None:
        while choice.stages and not choice.waiting and not choice.hard:
            for i in choice.stages.pop(0):
                self._ask(i, choice)

    # ---------------------------------------------------------------------------------------- asking

    def may(self) -> str:
        """ "" where one more dear call is within the cap of the request, else why not. What a tenant may spend is held
        where it is spent, by the model itself (`BudgetReached`)."""
        if self.dear < 1:
            return f"the request has had its {self.plan.dear} dear calls"
        self.dear -= 1
        return ""

    def time_left(self, deadline: float) -> float:
        waited = time.monotonic() - self._since if self._asking else 0.0
        return min(deadline, self.left - waited)

    def _ask(self, i: int, choice: Alternative) -> None:
        one, release = self.plan.followed[i], self.release
        shown = [(text, _start(text, one, i)) for text in choice.all_texts if _readable(text)]
        upto = [(text, text.seen) for text, _ in shown]
        if one.window:
            known = any(i in text.asked for text, _ in shown)
            shown = [(text, start) for text, start in shown if text.seen > text.asked.get(i, 0) or _new_call(text, i)]
            if known and not shown:
                return  # nothing has come since it was asked
        for text, seen in upto:
            text.asked[i] = seen
        parts = tuple(
            as_part(Seen(text.channel, text.place, "", name=text.name), text.tail(start))
            for text, start in shown
            if text.seen > start or text.place == "tool_call"
        )
        item = Exchange(release.messages, (Message("assistant", parts),) if parts else ())
        name = self._key(one, item)
        kept = self.asker.cache.get(name) if self.asker.cache is not None and name else None
        say = partial(self._said, i, choice, upto, shown)
        if kept is not None:
            release.tally.cost[one.name, "cached"] += 1
            say(kept, 0.0)
            return
        left = self.time_left(one.deadline)
        why = "" if left > 0 else "the time that a request may wait upon checks is used up"
        why = why or (self.may() if one.cost >= 2 else "")
        if why:
            release.tally.cost[one.name, "refused by a cap"] += 1
            say(failure(one.check, why), 0.0)
            return
        release.tally.cost[one.name, "asked"] += 1
        started = time.monotonic()
        future = self.asker.batchers[i].ask(one, item, left)
        choice.asking.add(i)
        if one.policy.shadow:
            choice.shadow_open += 1
        else:
            choice.waiting += 1
            self._begin(started)
        future.add_done_callback(partial(self._answered, i, choice, name, started, say))

    def _answered(
        self,
        i: int,
        choice: Alternative,
        name: bytes | None,
        started: float,
        say: Callable[[Answer, float], None],
        future: asyncio.Future[Answer],
    ) -> None:
        now = time.monotonic()
        choice.asking.discard(i)
        if self.plan.followed[i].policy.shadow:
            choice.shadow_open -= 1
        else:
            choice.waiting -= 1
            self._finish(now)
        if future.cancelled():
            return
        answer = future.result()
        if self.asker.cache is not None and name:
            self.asker.cache.put(name, answer)
        if choice.ended and not self.plan.followed[i].policy.shadow:
            self.release.tally.cost[self.plan.followed[i].name, "after the end"] += 1
            return
        try:
            say(answer, (now - started) * 1000.0)
            self._go_on(choice)
        except Exception as problem:  # noqa: BLE001  # nobody else would see it here, and the reply would wait for ever
            self.release.lost(choice, f"the guard raised {type(problem).__name__}")
            self.release.news()

    def _go_on(self, choice: Alternative) -> None:
        if choice.ended:
            choice.count(self.release)
        else:
            if choice.finish is None:
                self.more(choice)
            else:
                self._stage(choice)
            self.release.act(choice)
            self.release.whole(choice)
        self.release.news()

    def _key(self, one: Followed, item: Exchange) -> bytes | None:
        if self.asker.cache is None:
            return None
        if self._base is None or self._base[0] is not item.messages:
            plan = self.plan
            shared = verdict_cache.base(self.release.tenant, plan.sha256, plan.classifier, item.messages)
            self._base = item.messages, shared
        return verdict_cache.key(self._base[1], one.identity, item.reply)

    # --------------------------------------------------------------------------------------- answers

    def _said(
        self,
        i: int,
        choice: Alternative,
        upto: list[tuple[Held, int]],
        shown: list[tuple[Held, int]],
        answer: Answer,
        ms: float,
    ) -> None:
        one, release = self.plan.followed[i], self.release
        outcome = "doubt" if isinstance(answer, Doubt) else answer.outcome
        if isinstance(answer, Decision) and outcome == "hold":
            answer, outcome = failure(one.check, "asked to hold what it was asked about"), "failed"
        if outcome == "failed":
            assert isinstance(answer, Decision)
            release.tally.cost[one.name, "refused by a cap" if answer.evidence == USED_UP else "failed"] += 1
            failed(release, i, choice, answer.evidence, ms)
            asks: frozenset[str] = getattr(one.check, "asks", frozenset())
            if one.policy.on_error != "refuse" and asks and self.plan.targets(i, ask := min(asks)):
                self.doubted(i, Doubt(ask, answer, answer.evidence), choice)  # it let pass what it could not read
            return
        if isinstance(answer, Doubt) or outcome == "allow":
            why = answer.why if isinstance(answer, Doubt) else answer.evidence
            verdict = release.ledger.verdict(one.name, one.principle, outcome, why, ms, shadow=one.policy.shadow)
        else:
            verdict = found(release, i, answer, self._cuts(answer, choice, shown), choice, ms)
        if isinstance(answer, Doubt):
            self.doubted(i, answer, choice)
        if one.policy.shadow:
            return
        for text, seen in upto:
            text.answered(i, seen, verdict)
        if i in choice.again:
            choice.again.discard(i)
            self._ask(i, choice)
        elif one.asleep and choice.finish is None:
            choice.awake.discard(i)  # until the next doubt
            for text in choice.all_texts:
                text.let[i] = NEVER

    def _cuts(self, decision: Decision, choice: Alternative, shown: list[tuple[Held, int]] | None) -> list[Cut]:
        """The spans of a decision about what was shown, as cuts of the texts. One that points elsewhere is none."""
        if shown is None:
            shown = [(text, 0) for text in choice.all_texts if _readable(text)]
        read = [(text, start) for text, start in shown if text.seen > start or text.place == "tool_call"]
        out = []
        for span in decision.spans:
            if span.at[0] == 0 and span.at[1] < len(read):
                text, start = read[span.at[1]]
                out.append(cut_of(Span((0, 0), span.start, span.end), text.channel, text.place, text.name, start))
        return out if len(out) == len(decision.spans) else []

    # ------------------------------------------------------------------------------------- revisions

    def improve(self, choice: Alternative, work: Coroutine[Any, Any, None]) -> None:
        """Runs what revises an alternative; the reply waits for it."""
        choice.waiting += 1
        self._begin(time.monotonic())
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(partial(self._improved, choice))

    def _improved(self, choice: Alternative, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        choice.waiting -= 1
        self._finish(time.monotonic())
        if not task.cancelled() and task.exception() is not None:
            self.release.lost(choice, f"revising it raised {type(task.exception()).__name__}")
        self._go_on(choice)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _begin(self, now: float) -> None:
        if not self._asking:
            self._since = now
        self._asking += 1

    def _finish(self, now: float) -> None:
        self._asking -= 1
        if not self._asking:
            self.left -= now - self._since


def _readable(text: Held) -> bool:
    """Withheld calls are read by nobody, and calls that are not whole are no calls yet."""
    return not (text.place == "tool_call" and (not text.whole or (text.done and not text.opened)))


def _new_call(text: Held, i: int) -> bool:
    return text.place == "tool_call" and i not in text.asked


def _start(text: Held, one: Followed, i: int) -> int:
    return max(0, text.asked.get(i, 0) - one.context) if one.window else 0
