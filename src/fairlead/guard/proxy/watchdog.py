"""How long one request may take, in one timer: it looks every while how long nothing has happened.

A timeout around every chunk would cost more than the chunk. Here a chunk notes the time, and the one timer of the
request cancels its task when a bound is passed, with the reason kept for the answer.
"""

from __future__ import annotations

import asyncio
from typing import Literal, TypeAlias

from fairlead.guard.proxy.settings import Limits

Phase: TypeAlias = Literal["request", "first byte", "stream", "checks", "client", "done"]
Why: TypeAlias = Literal["", "request", "first byte", "stream", "checks", "client", "total", "gone"]


class Watchdog:
    """Watches over the task that made it, from now on. `why` says which bound was passed ("gone": the client left)."""

    __slots__ = ("_bounds", "_due", "_end", "_handle", "_loop", "_since", "_task", "phase", "why")

    def __init__(self, limits: Limits) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._loop = task, asyncio.get_running_loop()
        self._bounds = limits
        self.phase: Phase = "request"
        self.why: Why = ""
        self._since = self._loop.time()
        self._end = self._since + limits.total
        self._due = min(self._since + limits.request, self._end)  # when the timer looks next: early, never late
        self._handle: asyncio.TimerHandle | None = self._loop.call_at(self._due, self._look)

    def now(self, phase: Phase) -> None:
        """Something happened, and this is waited for next."""
        self.phase, self._since = phase, self._loop.time()
        due = self._since + self._bound(phase)
        if due < self._due and self._handle is not None:
            self._handle.cancel()
            self._due = due
            self._handle = self._loop.call_at(due, self._look)

    def _bound(self, phase: Phase) -> float:
        limits = self._bounds
        match phase:
            case "request":
                return limits.request
            case "first byte":
                return limits.first_byte
            case "client":
                return limits.stalled
            case "checks":  # they have deadlines of their own
                return limits.total
            case _:
                return limits.idle

    def _look(self) -> None:
        now = self._loop.time()
        due = min(self._since + self._bound(self.phase), self._end)
        if now < due:
            self._due = due
            self._handle = self._loop.call_at(due, self._look)
            return
        self._handle = None
        self.stop("total" if now >= self._end else self.phase if self.phase != "done" else "total")

    def stop(self, why: Why) -> None:
        """Cancel the request, once, for this reason."""
        if not self.why and self.phase != "done":
            self.why = why
            self._task.cancel()

    def done(self) -> None:
        """Nothing more is waited for."""
        self.phase = "done"
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
