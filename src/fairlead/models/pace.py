"""How many calls are in flight: fewer when the server says 429, more again when it answers.

Additive increase, multiplicative decrease (Chiu & Jain 1989, Computer Networks 17:1), as TCP has it: a refusal halves
the width, once for all calls that were sent before it was heard; a width's worth of answers widens it by one. What a
retry-after header asks for holds back every call, not only the one that was refused. Tries again go before first tries.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time


class Pace:
    """The gate in front of one server. All methods run on the background loop.

    most    calls in flight at most; also where it starts, unless `start` is lower
    """

    def __init__(self, most: int, start: int | None = None) -> None:
        self.most = most
        self.width = float(min(start or most, most))
        self.narrowed = 0  # how often a refusal has halved the width
        self._active = 0
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._hold_until = 0.0
        self._heard = 0.0  # when the last refusal that counted was heard
        self._timer: asyncio.TimerHandle | None = None

    async def enter(self, *, again: bool) -> float:
        """Wait for a place; the time at which it was given. `again`: not the first try of its call."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (0 if again else 1, next(self._order), turn))
        self._let_in()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()  # the place was given in the moment in which nobody wanted it any more
            raise
        return time.monotonic()

    def leave(self) -> None:
        """Give the place back."""
        self._active -= 1
        self._let_in()

    def answered(self) -> None:
        """The server did its work: a width's worth of these widens by one."""
        self.width = min(float(self.most), self.width + 1.0 / max(self.width, 1.0))

    def refused(self, sent: float, wait: float | None) -> None:
        """The server is busy: it refused a call that was sent at `sent`, and asks for `wait` seconds, if it does."""
        now = time.monotonic()
        if sent >= self._heard:
            self.width, self._heard, self.narrowed = max(1.0, self.width / 2), now, self.narrowed + 1
        if wait is not None:
            self._hold_until = max(self._hold_until, now + wait)

    def _let_in(self) -> None:
        while self._waiting and self._active < int(self.width):
            held = self._hold_until - time.monotonic()
            if held > 0:
                if self._timer is None:
                    self._timer = asyncio.get_running_loop().call_later(held, self._after_hold)
                return
            turn = heapq.heappop(self._waiting)[2]
            if not turn.done():  # else cancelled while it waited
                self._active += 1
                turn.set_result(None)

    def _after_hold(self) -> None:
        self._timer = None
        self._let_in()
