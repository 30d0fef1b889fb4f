"""Many streams at once, and memory over many requests. No times: those are bench/guard.py."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is missing: pip install 'fairlead[guard]'")
pytest.importorskip("aiohttp", reason="aiohttp is missing: pip install 'fairlead[guard]'")

import aiohttp

from fairlead.guard.proxy import bench
from support.guard_proxy import WINDOWED, Proxy
from support.mock_upstream import Mock, chat_stream, sse_reply

pytestmark = pytest.mark.full

BODY = {"model": "mock", "messages": [{"role": "user", "content": "hello"}]}


def test_two_hundred_streams_at_once(tmp_path: Path) -> None:
    """All of them are open at the same time; each ends well-formed with its whole text."""
    words = [f"word{n} " for n in range(200)]
    stream = chat_stream(*words)
    script = sse_reply(*stream[:3], 2.0, *stream[3:])

    async def one(session: aiohttp.ClientSession, url: str) -> str:
        async with session.post(f"{url}/v1/chat/completions", json={**BODY, "stream": True}) as answer:
            return (await answer.read()).decode()

    async def all_(url: str) -> list[str]:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(300)) as session:
            return await asyncio.gather(*(one(session, url) for _ in range(200)))

    most = 0

    def asked(_: object) -> list[object]:
        nonlocal most
        most = max(most, proxy.worker.app.in_flight)
        return script  # type: ignore[return-value]

    with Mock(asked) as mock, Proxy(tmp_path, mock.url, constitution=WINDOWED) as proxy:  # type: ignore[arg-type]
        told = asyncio.run(all_(proxy.url))
        assert all(text.rstrip().endswith("data: [DONE]") and "word199" in text for text in told)
        assert most > 150 and proxy.worker.app.in_flight == 0


def test_memory_stays_flat(tmp_path: Path) -> None:
    """Over 100,000 requests, kept in the audit log, the proxy's process grows by less than 8 MB.

    160,000 go before: so long its caches and the log's take to fill.
    """

    def resident(pid: int) -> int:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def ask(port: int, requests: int) -> None:
        done = 0
        while done < requests:
            found = bench.ask("chat", port, 16, 0.0, 10.0)
            assert found["not_200"] == 0
            done += found["requests"]

    with bench.mock("chat") as server, bench.proxy(server, bench.options(tmp_path)) as (port, _, pid):
        ask(port, 160_000)
        before = resident(pid)
        ask(port, 100_000)
        assert resident(pid) - before < 8 * 2**20
