from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fairlead.guard.cascade import Asker
from fairlead.guard.decision import Decision
from fairlead.guard.follow import follow, release_for
from fairlead.guard.ledger import faults
from fairlead.guard.pool import Pool
from fairlead.guard.released import Out
from fairlead.guard.wire.events import Channel, Delta, End, Event, Finish, Open
from guard.streams import ASKED, BUFFER, Passing, Words, check, kinds, planned, reply, said
from guard.test_cascade import ByWindows, Model, bad
from guard.test_improve import Revises, best, candidates

C0 = Channel(0, 0)


class Source:
    """Chunks as they come; knows how many were read."""

    def __init__(self, *chunks: Sequence[Event], forever: bool = False) -> None:
        self.chunks, self.read, self.forever = chunks, 0, forever

    async def __aiter__(self) -> AsyncIterator[Sequence[Event]]:
        for chunk in self.chunks:
            self.read += 1
            yield chunk
            await asyncio.sleep(0)
        if self.forever:
            await asyncio.sleep(1000)


def run(plan: Any, source: Source) -> tuple[Any, list[list[Out]]]:
    async def work() -> tuple[Any, list[list[Out]]]:
        guard = release_for(plan, ASKED, asker=Asker(plan, Pool()))
        outs = [out async for out in follow(guard, aiter(source))]
        assert faults(guard.ledger, [event for out in outs for event in out]) == []
        return guard, outs

    return asyncio.run(asyncio.wait_for(work(), 20))


def flat(outs: list[list[Out]]) -> list[Out]:
    return [event for out in outs for event in out]


def chunked(*pieces: str) -> list[list[Event]]:
    return [[event] for event in reply(*pieces)]


def test_what_may_leave_leaves_at_once() -> None:
    guard, outs = run(planned(check(Passing)), Source(*chunked("a", "b")))
    assert [kinds(out) for out in outs] == [
        ["Open", "Delta"],
        ["Delta"],
        ["Close"],
        ["Finish"],
        ["End"],
    ] and guard.ended


def test_it_reads_on_while_a_model_is_asked_and_waits_for_it_at_the_end() -> None:
    free = threading.Event()

    def slow(item: Any) -> Decision:
        free.wait(30)
        return bad(item)

    source = Source(*chunked("abcd", "efgh", "ij"))

    async def work() -> list[list[Out]]:
        plan = planned(ByWindows(slow))
        guard = release_for(plan, ASKED, asker=Asker(plan, Pool()))
        outs: list[list[Out]] = []

        async def collect() -> None:
            async for out in follow(guard, aiter(source)):
                outs.append(out)  # noqa: PERF401  # each as it comes: the test looks while more is coming

        task = asyncio.ensure_future(collect())
        while source.read < len(source.chunks):
            await asyncio.sleep(0.005)
        assert outs == []
        free.set()
        await task
        return outs

    outs = asyncio.run(asyncio.wait_for(work(), 20))
    assert said(flat(outs)) == "abcdefghij" and kinds(flat(outs))[-2:] == ["Finish", "End"]


def test_nothing_more_is_read_where_nothing_more_is_needed() -> None:
    chunks = chunked("bad", *["more"] * 50)
    source = Source(*chunks)
    _, outs = run(planned(check(lambda: Words("bad", "refuse")), policy=BUFFER), source)
    assert said(flat(outs)) == "i will not ." and source.read <= 4 and isinstance(flat(outs)[-1], End)


def test_a_provider_that_goes_silent_does_not_hold_a_reply_that_is_over() -> None:
    source = Source([Open(C0, "reply"), Delta(C0, "hi"), Finish(0, "stop")], forever=True)
    guard, outs = run(planned(check(Passing)), source)
    assert said(flat(outs)) == "hi" and guard.ended


def test_a_stream_that_ends_in_the_middle_is_said_to_have_broken_off() -> None:
    _, outs = run(planned(check(Passing)), Source([Open(C0, "reply"), Delta(C0, "hi")]))
    assert kinds(flat(outs)) == ["Open", "Delta", "Failed"]


def test_revisions_and_the_best_of_n_come_through_it_too() -> None:
    plan = planned(check(lambda: Words("bad", "revise")), revise=Revises(lambda text: "good"), policy=BUFFER)
    assert said(flat(run(plan, Source(*chunked("bad")))[1])) == "good"
    _, outs = run(best(), Source(candidates("no", "longest", "long"), forever=True))
    assert said(flat(outs)) == "longest" and isinstance(flat(outs)[-1], End)


def test_a_critic_at_the_end_is_waited_for() -> None:
    _, outs = run(planned(Model(bad, cost=2)), Source(*chunked("good", " day")))
    assert said(flat(outs)) == "good day"
