"""Many streams at once, and memory over many requests. No times: those are bench/guard.py."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is missing: pip install 'fairlead[guard]'")
pytest.importorskip("aiohttp", reason="aiohttp is missing: pip install 'fairlead[guard]'")

import aiohttp

from support.guard_proxy import WINDOWED, Proxy
from support.mock_upstream import Mock, chat, chat_stream, json_reply, sse_reply

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


def _resident() -> int:
    """Bytes of this process in memory; the proxy runs in a thread of it."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_stays_flat(tmp_path: Path) -> None:
    """100,000 requests, kept in the audit log; from the 20,000th on memory grows by less than 8 MB."""

    async def some(url: str, n: int) -> None:
        async with aiohttp.ClientSession() as session:

            async def line() -> None:
                for _ in range(n // 16):
                    async with session.post(f"{url}/v1/chat/completions", json=BODY) as answer:
                        assert answer.status == 200
                        await answer.read()

            await asyncio.gather(*(line() for _ in range(16)))

    with (
        Mock(lambda _: json_reply(chat("say abracadabra to all of them")), keep=False) as mock,
        Proxy(tmp_path, mock.url, audit=tmp_path / "audit.db") as proxy,
    ):
        asyncio.run(some(proxy.url, 20_000))
        before = _resident()
        asyncio.run(some(proxy.url, 80_000))
        assert _resident() - before < 8 * 2**20
