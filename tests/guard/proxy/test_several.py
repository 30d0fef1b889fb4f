"""What the parent of several workers hears of them, without any worker: the other end of the sockets is the test's."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is missing: pip install 'fairlead[guard]'")
pytest.importorskip("aiohttp", reason="aiohttp is missing: pip install 'fairlead[guard]'")

from fairlead.guard.proxy import several
from fairlead.guard.proxy.serve import run
from fairlead.guard.proxy.several import Child


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
