"""Calls that may hang, with deadlines that hold: a bounded number of threads, and nobody waits for one that is late.

A call that is late is given up: who waits gets `NoAnswer` at its deadline, and what it returns later is dropped and
counted. A thread cannot be killed, so another takes its place, as often as `spare` per lane (a lane is a check); from
then on calls of that lane fail at once, until one of those that hang returns.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class NoAnswer(Exception):
    """A call gave nothing: late, or refused at once because too many of its kind hang or wait. Says which."""


class _Call:
    __slots__ = ("future", "hangs", "lane", "loop", "over", "run", "running", "timer")

    def __init__(self, lane: str, run: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> None:
        self.lane, self.run, self.loop = lane, run, loop
        self.future: asyncio.Future[Any] = loop.create_future()
        self.timer: asyncio.TimerHandle | None = None
        self.running = self.hangs = self.over = False


class Pool:
    """Threads for calls of models. At most `workers` work, and at most `waiting` calls wait for one.

    hangs    calls that are past their deadline and still run, by lane
    dropped  answers that came after their deadline, by lane
    """

    def __init__(self, workers: int = 4, spare: int = 2, waiting: int = 256) -> None:
        if workers < 1 or spare < 1 or waiting < 1:
            raise ValueError(f"a pool of {workers} workers, {spare} spare, {waiting} waiting: each must be 1 or more")
        self.workers, self.spare, self.waiting = workers, spare, waiting
        self.hangs: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = self._idle = self._queued = 0
        self._closed = False

    def submit(self, lane: str, run: Callable[[], T], deadline: float) -> asyncio.Future[T]:
        """Runs it in a thread; `deadline` seconds from now the future has its answer, or `NoAnswer`. Raises `NoAnswer`
        at once where it cannot be run. To be called from a running loop."""
        with self._lock:
            if self._closed:
                raise NoAnswer("the guard is shutting down")
            if self.hangs[lane] >= self.spare:
                raise NoAnswer(f"{self.hangs[lane]} calls of it hang")
            if self._queued >= self.waiting:
                raise NoAnswer(f"{self._queued} calls are waiting already")
            if deadline <= 0:
                raise NoAnswer("gave no answer within the time that was left for it")
            call = _Call(lane, run, asyncio.get_running_loop())
            self._queued += 1
            if self._queued > self._idle:
                self._grow()
        call.timer = call.loop.call_later(deadline, self._late, call, deadline)
        self._calls.put(call)
        return call.future

    def close(self) -> None:
        """No more calls. Threads that hang are daemons and go with the process."""
        with self._lock:
            self._closed = True
            for _ in range(self._threads):
                self._calls.put(None)

    def _grow(self) -> None:
        if self._threads - self.hangs.total() < self.workers:
            self._threads += 1
            threading.Thread(target=self._work, name="guard check", daemon=True).start()

    def _late(self, call: _Call, deadline: float) -> None:
        with self._lock:
            if call.over:
                return
            call.over = True
            if call.running:
                call.hangs = True
                self.hangs[call.lane] += 1
                if self._queued > self._idle:
                    self._grow()
            else:
                self._queued -= 1
        if not call.future.done():
            call.future.set_exception(NoAnswer(f"gave no answer within {deadline:.3g} s"))

    def _work(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            call = self._calls.get()
            with self._lock:
                self._idle -= 1
                if call is None:
                    self._threads -= 1
                    return
                if call.over:
                    continue
                self._queued -= 1
                call.running = True
            value: Any = None
            error: BaseException | None = None
            try:
                value = call.run()
            except BaseException as raised:  # noqa: BLE001  # carried over to who waits
                error = raised
            with self._lock:
                if call.hangs:
                    self.hangs[call.lane] -= 1
                    self.dropped[call.lane] += 1
                    if self._threads - self.hangs.total() > self.workers:
                        self._threads -= 1
                        return  # its place was taken
                    continue
                call.over = True
            try:
                call.loop.call_soon_threadsafe(_give, call, value, error)
            except RuntimeError:  # the loop is closed: nobody waits any more
                with self._lock:
                    self.dropped[call.lane] += 1


def _give(call: _Call, value: Any, error: BaseException | None) -> None:
    if call.timer is not None:
        call.timer.cancel()
    if call.future.done():
        return
    if error is None:
        call.future.set_result(value)
    elif isinstance(error, Exception) and not isinstance(error, StopIteration):
        call.future.set_exception(error)
    else:
        call.future.set_exception(NoAnswer(f"raised {type(error).__name__}"))
