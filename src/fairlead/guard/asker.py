"""The models among the checks of one plan: asked in threads with deadlines, in batches over requests."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from fairlead.errors import FairleadError
from fairlead.exchange import Exchange
from fairlead.guard.asking import answers_of, failure
from fairlead.guard.decision import Decision
from fairlead.guard.plan import Followed, Plan
from fairlead.guard.pool import NoAnswer, Pool
from fairlead.guard.verdict_cache import Answer, VerdictCache
from fairlead.guard.watch import Doubt


class Batcher:
    """Questions of many requests to one check, put together.

    A question is passed on at once where none is under way, else it waits for the answer to come, for `wait` seconds
    or for `size` questions, whichever is first.
    """

    def __init__(self, one: Followed, pool: Pool, size: int, wait: float) -> None:
        self.one, self.pool, self.size, self.wait = one, pool, size, wait
        self.batches: list[int] = []  # sizes of the last batches, for tests and metrics
        self.dropped = 0  # answers that came after the deadline of their question, in a batch that was in time
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
            if future.done():
                self.dropped += 1
            else:
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
