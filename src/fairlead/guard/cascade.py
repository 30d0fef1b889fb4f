"""Models as checks: asked in threads with deadlines, in batches over requests, in the order of their cost.

Code runs at once, on every piece (`release.py`). A classifier (cost 1) is asked about windows or whole alternatives; a
critic (cost 2) after it, and where a cheaper check of its principle answers doubts, on a doubt alone. What holds in
the meantime is `Held.let`: a model that was not heard lets nothing go.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from fairlead.errors import FairleadError
from fairlead.exchange import Exchange, Message
from fairlead.guard import verdict_cache
from fairlead.guard.alternative import NEVER, Alternative
from fairlead.guard.asking import answers_of, failure
from fairlead.guard.decision import Decision, Span
from fairlead.guard.holding import Held
from fairlead.guard.plan import Followed, Plan
from fairlead.guard.pool import NoAnswer, Pool
from fairlead.guard.saying import failed, found
from fairlead.guard.verdict_cache import Answer, VerdictCache
from fairlead.guard.watch import Cut, Doubt, Seen, as_part, cut_of

if TYPE_CHECKING:
    from fairlead.guard.release import Release


class Batcher:
    """Questions of many requests to one check, put together.

    A question is passed on at once where none is under way, else it waits for the answer to come, for `wait` seconds
    or for `size` questions, whichever is first.
    """

    def __init__(self, one: Followed, pool: Pool, size: int, wait: float) -> None:
        self.one, self.pool, self.size, self.wait = one, pool, size, wait
        self.batches: list[int] = []  # sizes of the last batches, for tests and metrics
        self._waiting: list[tuple[Exchange, asyncio.Future[Answer], float]] = []
        self._under_way = 0
        self._timer: asyncio.Handle | None = None

    def ask(self, exchange: Exchange, deadline: float) -> asyncio.Future[Answer]:
        """The answer, at the latest in `deadline` seconds: a failure then, and what comes later is dropped."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        timer = loop.call_later(max(deadline, 0.0), self._late, future, deadline)
        future.add_done_callback(lambda _: timer.cancel())
        self._waiting.append((exchange, future, loop.time() + deadline))
        if len(self._waiting) >= self.size:
            self._flush()
        elif self._timer is None:
            self._timer = loop.call_later(self.wait, self._flush) if self._under_way else loop.call_soon(self._flush)
        return future

    def _late(self, future: asyncio.Future[Answer], deadline: float) -> None:
        if not future.done():
            future.set_result(failure(self.one.check, f"gave no answer within {deadline:.3g} s"))

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch = [entry for entry in self._waiting[: self.size] if not entry[1].done()]
        self._waiting = self._waiting[self.size :]
        if self._waiting:
            self._timer = asyncio.get_running_loop().call_later(self.wait, self._flush)
        if not batch:
            return
        self.batches = [*self.batches[-99:], len(batch)]
        left = max(due for _, _, due in batch) - asyncio.get_running_loop().time()
        try:
            call = self.pool.submit(self.one.name, partial(_ask, self.one, [item for item, _, _ in batch]), left)
        except NoAnswer as problem:
            self._give(batch, [failure(self.one.check, str(problem))] * len(batch))
            return
        self._under_way += 1
        call.add_done_callback(partial(self._answered, batch))

    def _answered(
        self, batch: list[tuple[Exchange, asyncio.Future[Answer], float]], call: asyncio.Future[list[Answer]]
    ) -> None:
        self._under_way -= 1
        problem = call.exception()
        why = str(problem) if isinstance(problem, NoAnswer) else f"raised {type(problem).__name__}"
        self._give(batch, [failure(self.one.check, why)] * len(batch) if problem is not None else call.result())
        if self._waiting and not self._under_way:
            self._flush()

    def _give(self, batch: Sequence[tuple[Exchange, asyncio.Future[Answer], float]], said: Sequence[Answer]) -> None:
        for (_, future, _), answer in zip(batch, said, strict=True):
            if not future.done():
                future.set_result(answer)


def _ask(one: Followed, exchanges: list[Exchange]) -> list[Answer]:
    check = one.check
    try:
        if one.weighs:
            return answers_of(check, check.weigh, (Decision, Doubt), exchanges, alone=1, quiet=True)  # type: ignore[attr-defined]
        return answers_of(check, check.decide, (Decision,), exchanges, alone=1, quiet=True)
    except (FairleadError, MemoryError) as problem:
        return [failure(check, f"raised {type(problem).__name__}") for _ in exchanges]


class Asker:
    """The models of one plan, with the pool and the cache they share: one per plan, kept over requests.

    size, wait  of batches to classifiers; critics are asked one exchange at a time
    """

    def __init__(
        self, plan: Plan, pool: Pool, cache: VerdictCache | None = None, *, size: int = 16, wait: float = 0.003
    ) -> None:
        self.plan, self.pool, self.cache = plan, pool, cache
        self.batchers = {
            i: Batcher(plan.followed[i], pool, size if plan.followed[i].cost < 2 else 1, wait) for i in plan.models
        }


class Questions:
    """What one request asks of models, and what becomes of the answers."""

    def __init__(self, release: Release, asker: Asker) -> None:
        self.release, self.asker, self.plan = release, asker, release.plan
        self.dear = self.plan.dear
        self.left = self.plan.budget
        self._asking = 0
        self._since = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._shared = verdict_cache.base(
            release.tenant, self.plan.sha256, self.plan.classifier, release.messages
        ) if asker.cache is not None else None  # fmt: skip

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
        if not choice.waiting:
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
            if target in choice.awake or not self.plan.followed[target].asleep:
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

    def may(self, kind: str, principle: str) -> str:
        """ "" where one more dear call is within the caps of the request and the tenant, else why not."""
        if self.dear < 1:
            return f"the request has had its {self.plan.dear} dear calls"
        if self.release.spend is not None and not self.release.spend(kind, principle):
            return "the tenant's budget for it is used up"
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
            new = [(text, start) for text, start in shown if text.seen > text.asked.get(i, -1)]
            if not new and any(i in text.asked for text, _ in shown):
                return  # nothing has come since it was asked
            shown = new
        for text, seen in upto:
            text.asked[i] = seen
        parts = tuple(
            as_part(Seen(text.channel, text.place, "", name=text.name), text.tail(start))
            for text, start in shown
            if text.seen > start or text.place == "tool_call"
        )
        item = Exchange(release.messages, (Message("assistant", parts),) if parts else ())
        name = verdict_cache.key(self._shared, one.identity, item.reply) if self._shared is not None else None
        kept = self.asker.cache.get(name) if self.asker.cache is not None and name else None
        say = partial(self._said, i, choice, upto, shown)
        if kept is not None:
            release.tally.cost[one.name, "cached"] += 1
            say(kept, 0.0)
            return
        why = self.may("critic", one.principle) if one.cost >= 2 else ""
        if why:
            release.tally.cost[one.name, "refused by a cap"] += 1
            say(failure(one.check, why), 0.0)
            return
        release.tally.cost[one.name, "asked"] += 1
        started = time.monotonic()
        future = self.asker.batchers[i].ask(item, self.time_left(one.deadline))
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
        say(answer, (now - started) * 1000.0)
        self._go_on(choice)

    def _go_on(self, choice: Alternative) -> None:
        if choice.ended:
            choice.count(self.release)
        else:
            if choice.finish is None:
                self.more(choice)
            elif not choice.waiting:
                self._stage(choice)
            self.release.act(choice)
            self.release.whole(choice)
        self.release.news()

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
            release.tally.cost[one.name, "failed"] += 1
            failed(release, i, choice, answer.evidence, ms)
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
        if one.asleep and choice.finish is None:
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


def _start(text: Held, one: Followed, i: int) -> int:
    return max(0, text.asked.get(i, 0) - one.context) if one.window else 0
