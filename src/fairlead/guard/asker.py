"""The models among the checks of one plan: asked in threads with deadlines, in batches over requests."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any

from fairlead.errors import BudgetReached, FairleadError
from fairlead.exchange import Exchange
from fairlead.guard.asking import USED_UP, answers_of, failure
from fairlead.guard.decision import Decision
from fairlead.guard.plan import Followed, Plan
from fairlead.guard.pool import NoAnswer, Pool
from fairlead.guard.verdict_cache import Answer, VerdictCache
from fairlead.guard.watch import Doubt


@dataclass(frozen=True, slots=True, eq=False)
class _Question:
    one: Followed
    exchange: Exchange
    future: asyncio.Future[Answer]
    due: float  # time of the loop at which it is late

    def fail(self, why: str) -> None:
        self.future.set_result(failure(self.one.check, why))


class Batcher:
    """Questions of many requests to one model, put together. Several checks may share the model (`watch.Sharing`).

    A question is passed on at once where none is under way, else it waits for the answer to come, for `wait` seconds
    or for `size` questions, whichever is first.
    """

    def __init__(self, name: str, pool: Pool, size: int, wait: float) -> None:
        self.name, self.pool, self.size, self.wait = name, pool, size, wait
        self.batches: list[int] = []  # exchanges in the last batches, for tests and metrics
        self.dropped = 0  # answers that came after the deadline of their question, in a batch that was in time
        self._waiting: list[_Question] = []
        self._under_way = 0
        self._timer: asyncio.Handle | None = None

    def ask(self, one: Followed, exchange: Exchange, deadline: float) -> asyncio.Future[Answer]:
        """The answer, at the latest in `deadline` seconds: a failure then, and what comes later is dropped."""
        loop = asyncio.get_running_loop()
        question = _Question(one, exchange, loop.create_future(), loop.time() + deadline)
        timer = loop.call_later(max(deadline, 0.0), self._late, question, deadline)
        question.future.add_done_callback(lambda _: timer.cancel())
        self._waiting.append(question)
        if len(self._waiting) >= self.size:
            self._flush()
        elif self._timer is None:
            self._timer = loop.call_later(self.wait, self._flush) if self._under_way else loop.call_soon(self._flush)
        return question.future

    def _late(self, question: _Question, deadline: float) -> None:
        if not question.future.done():
            question.fail(f"gave no answer within {deadline:.3g} s")

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch = [question for question in self._waiting[: self.size] if not question.future.done()]
        self._waiting = self._waiting[self.size :]
        if self._waiting:
            self._timer = asyncio.get_running_loop().call_later(self.wait, self._flush)
        if not batch:
            return
        # exchanges of one request share their messages: the same question is asked once
        unique = {(id(q.exchange.messages), q.exchange.reply): q for q in batch}
        which = {name: n for n, name in enumerate(unique)}
        places = [which[id(q.exchange.messages), q.exchange.reply] for q in batch]
        exchanges = [q.exchange for q in unique.values()]
        self.batches = [*self.batches[-99:], len(exchanges)]
        left = max(question.due for question in batch) - asyncio.get_running_loop().time()
        try:
            call = self.pool.submit(self.name, partial(_ask, batch[0].one, exchanges), left)
        except NoAnswer as problem:
            for question in batch:
                question.fail(str(problem))
            return
        self._under_way += 1
        call.add_done_callback(partial(self._answered, batch, places))

    def _answered(self, batch: list[_Question], places: list[int], call: asyncio.Future[list[Any]]) -> None:
        self._under_way -= 1
        problem = call.exception()
        for question, place in zip(batch, places, strict=True):
            if question.future.done():
                self.dropped += 1
            elif problem is not None:
                question.fail(str(problem) if isinstance(problem, NoAnswer) else f"raised {type(problem).__name__}")
            else:
                question.future.set_result(_answer(question.one, call.result()[place]))
        if self._waiting and not self._under_way:
            self._flush()


def _ask(one: Followed, exchanges: list[Exchange]) -> list[Any]:
    """Decisions or doubts; of a model that is shared, its readings, or a failure.

    Requests that know nothing of each other are asked together: what cannot be read of one fails no other.
    """
    check: Any = one.check
    try:
        if one.model is not None:
            return answers_of(check, check.read, (object,), exchanges, alone=1, quiet=True)
        if one.weighs:
            return answers_of(check, check.weigh, (Decision, Doubt), exchanges, alone=1, quiet=True)
        return answers_of(check, check.decide, (Decision,), exchanges, alone=1, quiet=True)
    except BudgetReached:
        return [failure(check, USED_UP) for _ in exchanges]
    except (FairleadError, MemoryError) as problem:
        if len(exchanges) > 1:
            return [said for item in exchanges for said in _ask(one, [item])]
        return [failure(check, f"raised {type(problem).__name__}") for _ in exchanges]


def _answer(one: Followed, said: Any) -> Answer:
    """What follows for one check from what its model said."""
    check: Any = one.check
    if one.model is None:
        return said  # type: ignore[no-any-return]
    if isinstance(said, Decision):
        return failure(check, said.evidence)  # of another check over the same model
    try:
        answer = check.said(said)
    except Exception as problem:  # noqa: BLE001  # becomes a counted failure of the check, closed by default
        return failure(check, f"raised {type(problem).__name__}")
    return answer if isinstance(answer, Decision | Doubt) else failure(check, "gave no decision")


class Asker:
    """The models of one plan, with the pool and the cache they share: one per plan, kept over requests.

    size, wait  of batches to classifiers, by exchanges; critics are asked one exchange at a time
    """

    def __init__(
        self, plan: Plan, pool: Pool, cache: VerdictCache | None = None, *, size: int = 16, wait: float = 0.003
    ) -> None:
        self.plan, self.pool, self.cache = plan, pool, cache
        groups: dict[Hashable, list[int]] = {}
        for i in plan.models:
            model = plan.followed[i].model
            groups.setdefault((i,) if model is None else ("shared", model), []).append(i)
        self.batchers: dict[int, Batcher] = {}
        for members in groups.values():
            first = plan.followed[members[0]]
            batcher = Batcher(first.name, pool, size * len(members) if first.cost < 2 else 1, wait)
            self.batchers |= dict.fromkeys(members, batcher)
