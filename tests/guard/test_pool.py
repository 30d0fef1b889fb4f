from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

from fairlead.guard.pool import NoAnswer, Pool


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


async def until(true: Any) -> None:
    for _ in range(2000):
        if true():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came to be")


def hanging() -> tuple[threading.Event, Any]:
    free = threading.Event()
    return free, lambda: free.wait(120)


def test_it_gives_answers_and_errors() -> None:
    async def work() -> None:
        pool = Pool(2)
        assert await asyncio.gather(*(pool.submit("a", lambda n=n: n * n, 5) for n in range(20))) == [
            n * n for n in range(20)
        ]
        with pytest.raises(KeyError):
            await pool.submit("a", lambda: {}["x"], 5)
        for odd in (SystemExit, StopIteration):
            with pytest.raises(NoAnswer, match=odd.__name__):
                await pool.submit(
                    "a", lambda odd=odd: (_ for _ in ()).throw(odd()) if odd is SystemExit else next(iter(())), 5
                )
        pool.close()
        with pytest.raises(NoAnswer):
            pool.submit("a", int, 5)

    run(work())


def test_who_waits_is_free_at_the_deadline_and_another_takes_the_place_of_a_thread_that_hangs() -> None:
    async def work() -> None:
        pool = Pool(workers=1, spare=2)
        free, hang = hanging()
        while not pool.hangs["slow"]:  # on a busy machine a call may be late before a thread took it
            with pytest.raises(NoAnswer, match="within 0.05 s"):
                await pool.submit("slow", hang, 0.05)
        assert pool.hangs == {"slow": 1}
        assert await pool.submit("quick", lambda: 7, 5) == 7
        free.set()
        await until(lambda: pool.dropped["slow"] == 1)
        assert pool.hangs["slow"] == 0

    run(work())


def test_a_lane_of_which_too_many_hang_fails_at_once_and_comes_back() -> None:
    async def work() -> None:
        pool = Pool(workers=2, spare=2)
        free, hang = hanging()
        while pool.hangs["slow"] < 2:
            with pytest.raises(NoAnswer, match="within"):
                await pool.submit("slow", hang, 0.02)
        with pytest.raises(NoAnswer, match="2 calls of it hang"):
            pool.submit("slow", hang, 5)
        assert await asyncio.gather(*(pool.submit("quick", lambda: 1, 5) for _ in range(8))) == [1] * 8
        free.set()
        await until(lambda: pool.hangs["slow"] == 0)
        assert await pool.submit("slow", lambda: 3, 5) == 3

    run(work())


def test_threads_are_bounded_whatever_hangs() -> None:
    async def work() -> None:
        before = threading.active_count()
        pool = Pool(workers=2, spare=3)
        free, hang = hanging()
        while pool.hangs["slow"] < 3:  # on a busy machine a call may be late before a thread took it
            with pytest.raises(NoAnswer, match="within"):
                await pool.submit("slow", hang, 0.02)
        for _ in range(40):
            with pytest.raises(NoAnswer, match="3 calls of it hang"):
                pool.submit("slow", hang, 5)
        assert threading.active_count() - before <= 2 + 3
        free.set()
        await until(lambda: pool.hangs.total() == 0)
        assert await pool.submit("slow", lambda: 1, 5) == 1
        await until(lambda: threading.active_count() - before <= 2)
        pool.close()
        await until(lambda: threading.active_count() <= before)

    run(work())


def test_calls_that_wait_are_bounded_and_late_in_the_queue_too() -> None:
    async def work() -> None:
        pool = Pool(workers=1, spare=1, waiting=2)
        free, hang = hanging()
        first = pool.submit("a", hang, 100)
        await until(lambda: pool._queued == 0)
        ran: list[int] = []
        queued = [pool.submit("b", lambda: ran.append(1), 0.02) for _ in range(2)]
        with pytest.raises(NoAnswer, match="2 calls are waiting"):
            pool.submit("b", int, 5)
        for future in queued:
            with pytest.raises(NoAnswer, match="within"):
                await future
        free.set()
        await first
        assert await pool.submit("b", lambda: 1, 5) == 1 and ran == []

    run(work())


def test_a_pool_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="1 or more"):
        Pool(0)
