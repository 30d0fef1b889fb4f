"""What the parent of several workers hears of them, without any worker: the other end of the sockets is the test's."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import time
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is missing: pip install 'fairlead[guard]'")
pytest.importorskip("aiohttp", reason="aiohttp is missing: pip install 'fairlead[guard]'")

from fairlead.errors import MissingResource
from fairlead.guard.proxy import several
from fairlead.guard.proxy.serve import Place, run
from fairlead.guard.proxy.settings import Settings
from fairlead.guard.proxy.setup import Inputs, Options
from fairlead.guard.proxy.several import Child, House


async def _child() -> tuple[Child, socket.socket]:
    ours, theirs = socket.socketpair()
    nothing: Any = None
    child = Child(0, ours, nothing)
    child.reader, child.writer = await asyncio.open_connection(sock=ours, limit=several.LINE)
    return child, theirs


def test_a_worker_that_is_dead_gives_no_answer_and_is_known_to_be_gone() -> None:
    """Also when it is asked again: the loop then refuses to write at all."""

    async def work() -> int:
        child, theirs = await _child()
        theirs.close()
        for _ in range(3):
            assert await child.ask("status") is None and child.gone
            await asyncio.sleep(0.01)
        return 0

    assert run(work()) == 0


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> int:
        child, theirs = await _child()
        monkeypatch.setattr(several, "ANSWERS", 0.05)
        assert await child.ask("metrics") is None and not child.gone
        monkeypatch.setattr(several, "ANSWERS", 10.0)
        asked = asyncio.create_task(child.ask("status"))
        await asyncio.sleep(0.05)
        assert [json.loads(line)["ask"] for line in theirs.recv(1000).splitlines()] == ["metrics", "status"]
        theirs.sendall(b'{"n": 1, "counts": []}\n{"n": 2, "ready": true}\n')
        assert await asked == {"ready": True}
        theirs.close()
        return 0

    assert run(work()) == 0


def _house(workers: int = 1) -> tuple[House, list[str]]:
    said: list[str] = []
    inputs = Inputs(Settings(workers=workers), None, {})
    return House(Options("c"), inputs, "127.0.0.1", socket.create_server(("127.0.0.1", 0)), None, said.append), said


def _no_more(*_: object) -> int:
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def _sockets() -> int:
    return len(os.listdir("/dev/fd"))


def test_where_no_process_can_be_started_it_is_tried_later_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "fork", _no_more)
    house, said = _house()
    (seat,), before = house.seats, _sockets()
    for wait in ("1", "2", "4"):
        seat.due = 0.0
        house.look_after(seat)
        house.look_after(seat)  # not due yet
        assert said.pop().endswith(f"{os.strerror(errno.EAGAIN)}; it is tried again in {wait} s") and not said
        assert seat.child is None and seat.due > time.monotonic() and os.strerror(errno.EAGAIN) in seat.why
    assert _sockets() == before
    with pytest.raises(MissingResource, match=r"cannot start 2 workers: .*take fewer \(--workers\)"):
        monkeypatch.setattr(several, "read_inputs", lambda _: Inputs(Settings(workers=2), None, {}))
        several.several(Options("c"), Place(port=0, admin=None), said.append)


@pytest.mark.parametrize("outdated", [True, False])
def test_a_worker_that_was_made_of_what_went_is_started_anew_at_once_and_has_not_failed(
    monkeypatch: pytest.MonkeyPatch, outdated: bool
) -> None:
    """Something was committed while it started: it says hello, is not taken, and the next is made of what there is."""

    async def work() -> int:
        house, said = _house()
        (seat,) = house.seats
        seat.failed = 3
        forked: list[Inputs] = []

        def fork(seat: several.Seat) -> None:
            ours, theirs = socket.socketpair()
            forked.append(house.inputs)
            seat.child, seat.up = Child(2**30, ours, house.inputs), False
            theirs.sendall(
                b'{"n": 0, "worker": 0}\n' if outdated or len(forked) > 1 else b'{"n": 0, "failed": "no", "code": 2}\n'
            )
            ends.append(theirs)

        ends: list[socket.socket] = []
        monkeypatch.setattr(house, "fork", fork)
        house.look_after(seat)
        if outdated:
            house._commit(Inputs(Settings(budget=9.0), None, {}))
        assert seat.greeting is not None
        hello = await seat.greeting
        assert (hello is None) is outdated and not seat.up
        house.look_after(seat)  # it is dead, and was no child of this process
        assert seat.child is None and seat.failed == (0 if outdated else 4)
        assert bool(said) is not outdated and (seat.due <= time.monotonic()) is outdated
        seat.due = 0.0
        house.look_after(seat)
        assert await seat.greeting and seat.up and forked[1] is house.inputs
        for end in ends:
            end.close()
        return 0

    assert run(work()) == 0
