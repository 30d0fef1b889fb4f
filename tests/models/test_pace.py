"""Calls in flight: a refusal halves them, answers bring them back, a retry-after holds all of them."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from fairlead.exchange import user
from fairlead.models import Sampling
from fairlead.models.pace import Pace
from fairlead.models.remote import Limits
from support.fakes import Echo, Fault, Faulty
from support.many import ask_with_faults, opened


def test_a_refusal_halves_once_for_all_that_were_in_flight() -> None:
    async def work() -> tuple[list[float], int]:
        pace = Pace(16)
        sent = [await pace.enter(again=False) for _ in range(16)]
        widths = []
        for at in sent:  # sixteen refusals of one burst
            pace.refused(at, None)
            pace.leave()
            widths.append(pace.width)
        later = await pace.enter(again=True)
        pace.refused(later, None)
        widths.append(pace.width)
        return widths, pace.narrowed

    widths, narrowed = asyncio.run(work())
    assert widths == [8.0] * 16 + [4.0] and narrowed == 2


def test_answers_widen_by_one_for_each_width_of_them_up_to_the_most() -> None:
    pace = Pace(10, start=4)
    for _ in range(5):  # 4 answers and a little: the width grows while they come
        pace.answered()
    assert 5.0 <= pace.width < 5.3
    for _ in range(200):
        pace.answered()
    assert pace.width == 10.0


def test_never_below_one_and_never_stuck() -> None:
    async def work() -> int:
        pace, done = Pace(4), 0

        async def one() -> None:
            nonlocal done
            sent = await pace.enter(again=False)
            await asyncio.sleep(0)
            pace.refused(sent, None)
            pace.leave()
            done += 1

        await asyncio.gather(*(one() for _ in range(40)))
        assert pace.width == 1.0
        return done

    assert asyncio.run(asyncio.wait_for(work(), 10)) == 40


def test_tries_again_go_first_and_the_cancelled_take_no_place() -> None:
    async def work() -> list[str]:
        pace, order = Pace(1), []
        await pace.enter(again=False)

        async def one(name: str, again: bool) -> None:
            await pace.enter(again=again)
            order.append(name)
            pace.leave()

        tasks = [asyncio.ensure_future(one(n, a)) for n, a in (("new", False), ("gone", True), ("again", True))]
        await asyncio.sleep(0)
        tasks[1].cancel()
        pace.leave()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.wait_for(pace.enter(again=False), 1)  # the place is free again
        return order

    assert asyncio.run(work()) == ["again", "new"]


def test_a_place_given_to_one_that_was_cancelled_is_not_lost() -> None:
    async def work() -> None:
        pace = Pace(1)
        await pace.enter(again=False)
        waiting = asyncio.ensure_future(pace.enter(again=False))
        await asyncio.sleep(0)
        pace.leave()  # gives the place; the task has not run since
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await asyncio.wait_for(pace.enter(again=False), 1)

    asyncio.run(work())


def test_a_retry_after_holds_back_every_call() -> None:
    """Eight calls are in flight when one hears 429 with half a second; the twelve others are not sent before."""
    first = threading.Event()

    def plan(i: int, body: bytes) -> Fault | None:
        if i == 0:
            first.set()
            return Fault(429, headers=(("retry-after", "0.5"),))
        first.wait(5)
        if i < 8:
            time.sleep(0.2)  # so that the refusal is heard before any of these makes room
        return None

    with Faulty(Echo(), plan) as server:
        model = opened("openai", server, Limits(concurrency=8, backoff=0.01, timeout=30))
        replies = model.generate([[user(f"number {i}")] for i in range(20)], Sampling(max_tokens=9))
    assert [r.text for (r,) in replies] == [f"number {i} #0" for i in range(20)]
    assert server.times[8] - server.times[0] >= 0.5 and model.pace.narrowed == 1
    assert server.count == 21


def test_a_server_that_allows_two_is_not_run_over() -> None:
    """A server that refuses whatever is beyond two at a time: nothing is lost, and the calls in flight become few."""

    class Slow(Echo):
        def generate(self, prompts, sampling=Sampling()):  # noqa: B008
            time.sleep(0.005)
            return super().generate(prompts, sampling)

    def plan(i: int, body: bytes) -> Fault | None:
        return Fault(429, headers=(("retry-after", "0.02"),)) if server.active > 2 else None

    with Faulty(Slow(), plan) as server:
        model = opened("openai", server, Limits(concurrency=16, attempts=50, backoff=0.01, timeout=30))
        replies = model.generate([[user(f"number {i}")] for i in range(60)], Sampling(max_tokens=9))
    assert [r.text for (r,) in replies] == [f"number {i} #0" for i in range(60)]
    assert server.count - 60 < 60, "fewer refusals than answers: without adapting, most tries are refused"
    assert model.pace.narrowed > 0


def test_a_wait_longer_than_the_deadline_fails_the_call_and_does_not_stop_the_others() -> None:
    plan = lambda i, body: Fault(429, headers=(("retry-after", "86400"),)) if b"number 0" in body else None  # noqa: E731
    with Faulty(Echo(), plan) as server:
        model = opened("openai", server, Limits(backoff=0.01, deadline=20.0))
        (a,), (b,) = model.generate([[user("number 0")], [user("number 1")]], Sampling(max_tokens=9))
    assert a.finish == "error" and "429" in a.error and b.text == "number 1 #0"


def test_the_deadline_bounds_a_call_with_all_its_tries() -> None:
    with Faulty(Echo(), lambda i, body: Fault(500)) as server:
        started = time.monotonic()
        limits = Limits(backoff=0.3, backoff_cap=0.3, attempts=1000, deadline=1.0)
        ((reply,),) = opened("openai", server, limits).generate([[user("hi")]])
    assert reply.finish == "error" and "500" in reply.error and time.monotonic() - started < 10


def test_a_last_try_that_the_deadline_cuts_short_does_not_hide_what_was_wrong() -> None:
    with Faulty(Echo(), lambda i, _: Fault(500 if i == 0 else 0, kind="" if i == 0 else "hang")) as server:
        limits = Limits(backoff=0.01, backoff_cap=0.01, attempts=2, timeout=60.0, deadline=1.5)
        ((reply,),) = opened("openai", server, limits).generate([[user("hi")]])
    assert reply.error is not None and "no answer" in reply.error and "; before: " in reply.error
    assert "500" in reply.error and "2 tries" in reply.error


@pytest.mark.parametrize("provider", ["openai", "openai-responses", "anthropic"])
def test_a_hundred_calls_with_faults_none_lost_none_twice_the_budget_kept(provider: str) -> None:
    ask_with_faults(provider, 100)
