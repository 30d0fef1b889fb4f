"""Drives a release: events of a provider in, lists of what may leave out, each as soon as it may."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from fairlead.errors import InputError
from fairlead.exchange import Message
from fairlead.guard.improve import Best
from fairlead.guard.plan import Plan
from fairlead.guard.release import Release
from fairlead.guard.released import Out
from fairlead.guard.wire.events import End, Event


def release_for(plan: Plan, messages: Sequence[Message], *, n: int = 1, **more: Any) -> Release | Best:
    """The release that a plan asks for. Where it wants the best of several, the provider must be asked for
    `plan.best.n` alternatives, of which one leaves (so `n` must be 1). Of `more` see `Release`."""
    if plan.best is None:
        return Release(plan, messages, n=n, **more)
    if n != 1:
        raise InputError(f"n is {n}: where the best of {plan.best.n} is chosen, one alternative can be asked for")
    return Best(Release(plan, messages, n=plan.best.n, **more), plan.best)


async def whole(guard: Release | Best, events: Iterable[Event]) -> list[Out]:
    """All that leaves of a reply that came whole."""
    out: list[Out] = []
    for event in events:
        out += guard.feed(event)
    if not guard.ended:
        out += guard.feed(End())
    while guard.pending:
        out += await guard.settle()
    return out


async def follow(guard: Release | Best, chunks: AsyncIterator[Sequence[Event]]) -> AsyncIterator[list[Out]]:
    """Of a reply that streams: reads no further than is needed, and ends with the reply.

    The caller closes `chunks`; where it stops before the end, it calls `guard.close()`.
    """
    coming: asyncio.Task[Sequence[Event] | None] | None = None
    answer: asyncio.Task[list[Out]] | None = None
    reading = True
    try:
        while not guard.ended:
            if reading and guard.over:
                reading = False
                if out := guard.feed(End()):
                    yield out
            if not reading and not guard.pending and answer is None:
                return
            if reading and coming is None:
                coming = asyncio.ensure_future(_next(chunks))
            if guard.pending and answer is None:
                answer = asyncio.ensure_future(guard.settle())
            waiting: set[asyncio.Task[Any]] = {task for task in (coming if reading else None, answer) if task}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if answer is not None and answer.done():
                out, answer = answer.result(), None
                if out:
                    yield out
            if reading and coming is not None and coming.done():
                events, coming = coming.result(), None
                reading = events is not None
                for event in (End(),) if events is None else events:
                    if out := guard.feed(event):
                        yield out
    finally:
        for task in (coming, answer):
            if task is not None:
                task.cancel()


async def _next(chunks: AsyncIterator[Sequence[Event]]) -> Sequence[Event] | None:
    return await anext(chunks, None)
