"""What a measurement is made of: a mock that keeps a model's pace, and the time to the first text."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httptools", reason="httptools is missing: pip install 'fairlead[guard]'")

from fairlead.cli import guard_bench
from fairlead.guard.proxy import bench, load
from fairlead.guard.proxy.load import WORKS, Work


def _asked(work: Work) -> dict[str, Any]:
    """A second of requests to the mock, one in flight, in one loop."""

    async def both() -> dict[str, Any]:
        replies = load.answers(work)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: load._Serving(replies, work.every), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            return await load.ask(port, work, 1, 0.0, 1.0)
        finally:
            server.close()

    return asyncio.run(asyncio.wait_for(both(), 60))


def test_a_paced_stream_takes_the_time_that_its_chunks_take() -> None:
    work = Work("w", chunks=20, every=5.0)
    found = _asked(work)
    assert found["not_200"] == 0 and 0 < found["requests"] <= 1000 / (19 * 5.0) + 1
    assert found["ms"]["p50"] > 19 * 5.0 > found["first_byte_ms"]["p50"] > 0
    assert _asked(Work("w", chunks=20))["requests"] > found["requests"]  # all of them at once


def test_every_chunk_is_a_write_of_its_own_and_they_say_the_same() -> None:
    work = WORKS["paced"]
    assert (work.chunks, work.every) == (60, 5.0)
    _, writes = load.answers(work)
    _, [whole] = load.answers(Work("w", chunks=60))
    assert len(writes) == len(load.texts(work)) + 1 and b"".join(writes) == whole
    assert b"".join(text.encode() for text in load.texts(work)) == load._text(work.answered).encode()


@pytest.mark.parametrize("event, says", [(b'{"role":"assistant","content":""}', False), (b'{"content": "a"}', True)])
def test_the_event_that_opens_a_stream_is_no_text(event: bytes, says: bool) -> None:
    assert bool(load._SAYS.search(event)) is says


def test_how_long_the_checks_hold_back_is_told_in_the_time_of_the_stream(tmp_path: Path) -> None:
    given = bench.options(tmp_path, audit=False)
    written, policy = Path(given[1]), Path(given[3])
    held = bench.held_back(WORKS["paced"], written, policy)["hold_back_ms"]
    assert 5.0 <= held < 60 * 5.0 and held % 5.0 == 0
    assert bench.held_back(WORKS["stream"], written, policy) == {}
    written.write_text(bench.CONSTITUTION.replace("stream: window", "stream: buffer"))
    last = len(load.texts(WORKS["paced"])) - 1
    assert bench.held_back(WORKS["paced"], written, policy) == {"hold_back_ms": last * 5.0}


def test_time_to_first_text_is_told_as_json_and_in_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def times(first: float, whole: float) -> dict[str, Any]:
        return {"requests": 9, "requests_per_second": 3.0, "not_200": 0, "connections_lost": 0,
                "ms": {"p50": whole, "p99": whole}, "first_byte_ms": {"p50": first, "p99": first + 1}}  # fmt: skip

    row = {**bench.row("paced", 1, times(1.0, 300.0), times(151.5, 302.0)), "hold_back_ms": 150.0}
    assert row["added_first_byte_ms"] == {"p50": 150.5, "p99": 150.5} and row["added_ms"]["p50"] == 2.0
    monkeypatch.setattr(bench, "measure", lambda *_, **__: {"rows": [row]})
    options: Any = {"work": ["paced"], "depth": [1], "seconds": 1.0, "warm": 0.0, "workers": 1, "audit": False}
    guard_bench.bench(**options, constitution=None, policy=None, as_json=False)
    assert "its first text comes later by p50 150.50, p99 150.50 ms; held back by what is read: 150 ms" in (
        capsys.readouterr().out
    )
    guard_bench.bench(**options, constitution=None, policy=None, as_json=True)
    assert '"added_first_byte_ms"' in capsys.readouterr().out
