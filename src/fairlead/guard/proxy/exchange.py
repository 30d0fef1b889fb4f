"""One exchange: what is asked is checked and sent on, and of what comes back leaves what was let go.

The order is the point: bytes become events (wire/), events go through the guard (guarding.py), and bytes are written
from what it released. A stream that has begun ends well-formed whatever breaks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from fairlead.guard.audit import AuditLog
from fairlead.guard.proxy.guarding import Guarding, Instead, Item, whole
from fairlead.guard.proxy.headers import Head
from fairlead.guard.proxy.metrics import Metrics
from fairlead.guard.proxy.out import Out
from fairlead.guard.proxy.settings import Settings
from fairlead.guard.proxy.setup import Account
from fairlead.guard.proxy.upstream import Answer, Broken
from fairlead.guard.proxy.watchdog import Watchdog
from fairlead.guard.released import Noted, Stop
from fairlead.guard.tally import Tally
from fairlead.guard.wire.asked import Asked
from fairlead.guard.wire.events import Event, Failed
from fairlead.guard.wire.format import Format, Writer


@dataclass(slots=True)
class Exchange:
    """One request on its way. `waited` counts the seconds in which the model's server was waited for."""

    id: str
    form: Format
    asked: Asked
    account: Account
    head: Head
    out: Out
    watch: Watchdog
    metrics: Metrics
    tally: Tally
    log: AuditLog | None
    raw: bytes
    began: float
    settings: Settings
    waited: float = 0.0
    decision: str = "allow"


async def exchange(one: Exchange) -> None:
    """Answers one request. Raises `Broken` where nothing was sent yet and nothing can be."""
    guard = Guarding(one)
    try:
        prompted = await guard.ask()
        if isinstance(prompted, Instead):
            await _said(one, guard, prompted)
            return
        one.asked = prompted
        answer = await _ask(one)
        try:
            if not one.asked.stream:
                await _whole(one, guard, answer)
            elif isinstance(body := getattr(answer, "body", None), dict):
                await _streamed(one, guard, answer, one.form.events(body))
            else:
                await _stream(one, guard, answer)
        finally:
            answer.close()
    except asyncio.CancelledError:
        guard.ended = _LEFT.get(one.watch.why, "deadline" if one.watch.why else "stopped")
        await _cut(one, guard)
        raise
    except Broken as broken:
        guard.ended = "upstream failed" if broken.kind != "check_failed" else "check failed"
        guard.status = broken.status
        raise
    except BaseException:
        guard.ended = guard.ended or "fault inside"
        raise
    finally:
        one.decision = guard.decision
        guard.close()
        one.metrics.took("added_seconds", one.asked.route, time.perf_counter() - one.began - one.waited)


_LEFT = {
    "gone": "client left",
    "client": "client stalled",
    "first byte": "upstream silent",
    "stream": "upstream silent",
}


async def _ask(one: Exchange) -> Answer:
    asked = one.asked
    one.watch.now("first byte")
    began = time.perf_counter()
    try:
        return await one.account.upstream.ask(asked.route, asked.upstream, one.head, stream=asked.stream)
    finally:
        one.waited += time.perf_counter() - began
        one.watch.now("stream")


async def _whole(one: Exchange, guard: Guarding, answer: Answer) -> None:
    began = time.perf_counter()
    body = await answer.whole()
    one.waited += time.perf_counter() - began
    items = await guard.feed(one.form.events(body))
    for item in items:
        if isinstance(item, Failed):
            raise Broken(item.status, item.why)
    await _put(one, guard, items, answer)


async def _put(one: Exchange, guard: Guarding, items: Sequence[Item], answer: Answer | None) -> None:
    data = orjson.dumps(one.form.body(whole(items), one.asked, guard.tolds))
    await guard.settle()
    await one.out.whole(200, data, answer.headers if answer else ())


async def _said(one: Exchange, guard: Guarding, prompted: Instead) -> None:
    """What the guard answers in the model's place."""
    if not one.asked.stream:
        await _put(one, guard, prompted.items, None)
        return
    writer = one.form.writer(one.asked)
    await one.out.begin()
    data = b"".join(_write(writer, item) for item in prompted.items)
    await guard.settle()
    await one.out.end(data + writer.end())


async def _streamed(one: Exchange, guard: Guarding, answer: Answer, events: list[Event]) -> None:
    """A reply that came whole, to a client that asked for a stream."""
    items = await guard.feed(events)
    for item in items:
        if isinstance(item, Failed):
            raise Broken(item.status, item.why)
    writer = one.form.writer(one.asked)
    await one.out.begin(answer.headers)
    data = b"".join(_write(writer, item) for item in items)
    await guard.settle()
    await one.out.end(data + writer.end())


async def _stream(one: Exchange, guard: Guarding, answer: Answer) -> None:
    reader, writer, out = one.form.reader(), one.form.writer(one.asked), one.out
    guard.writer = writer
    strict = one.log is not None and one.log.options.strict
    kept: list[bytes] = []  # with a strict log nothing leaves before its entry is on the disk
    beat = _Beat(out, writer, answer, one.settings.heartbeat)
    pieces = _Pieces(one, guard, answer)
    try:
        while not guard.done:
            piece, let_go = await pieces.next()
            items: Sequence[Item] = let_go or ()
            if let_go is None:
                events = reader.eof() if piece is None else reader.feed(piece)
                items = await guard.feed(events) if events else ()
            data = b""
            for item in items:
                if isinstance(item, Failed):
                    if not out.status and (strict or not guard.coming):  # a clean error, while no text goes before it
                        raise Broken(item.status, item.why)
                    guard.ended = "upstream failed"
                data += _write(writer, item)
            if data and strict:
                kept.append(data)
            elif data:
                if not out.status:
                    await out.begin(answer.headers)
                if not out.written:
                    one.metrics.took("first_byte_seconds", one.asked.route, time.perf_counter() - one.began)
                guard.sent()
                await out.write(data)
                beat.seen()
            if piece is None:
                break
    except Broken as broken:
        if not out.status:
            raise
        guard.ended = "upstream failed" if broken.kind != "check_failed" else "check failed"
        one.metrics.counts["upstream_failures", "in the stream"] += broken.kind != "check_failed"
        await out.end(writer.write(Failed(str(broken), broken.status)) + writer.end())
        return
    finally:
        beat.stop()
        pieces.stop()
    if not guard.ended or kept:
        await guard.settle()
    if not out.status:
        await out.begin(answer.headers)
    await out.end(b"".join(kept) + writer.end())


class _Pieces:
    """What comes next: bytes of the server, or, while models are asked, what their answers let go."""

    __slots__ = ("_coming", "_guard", "_one", "_pieces")

    def __init__(self, one: Exchange, guard: Guarding, answer: Answer) -> None:
        self._one, self._guard = one, guard
        self._pieces = answer.pieces()
        self._coming: asyncio.Task[bytes | None] | None = None

    async def next(self) -> tuple[bytes | None, list[Item] | None]:
        """Bytes and None (no bytes at the end), or something and what may leave now."""
        began = time.perf_counter()
        try:
            if self._coming is None and not self._guard.pending:
                return await anext(self._pieces, None), None
            if self._coming is None:
                self._coming = asyncio.get_running_loop().create_task(self._next())
            if self._guard.pending:
                heard = asyncio.get_running_loop().create_task(self._guard.settled())
                await asyncio.wait({self._coming, heard}, return_when=asyncio.FIRST_COMPLETED)
                if heard.done():
                    return b"", heard.result()
                heard.cancel()
            piece = await self._coming
            self._coming = None
            return piece, None
        finally:
            self._one.waited += time.perf_counter() - began
            self._one.watch.now("stream")

    async def _next(self) -> bytes | None:
        return await anext(self._pieces, None)

    def stop(self) -> None:
        if self._coming is not None:
            self._coming.cancel()


def _write(writer: Writer, item: Item) -> bytes:
    if isinstance(item, Stop):
        return writer.stop(item.choice, item.reason, item.told)
    if isinstance(item, Noted):
        return writer.told(item.choice, item.told)
    return writer.write(item)


async def _cut(one: Exchange, guard: Guarding) -> None:
    """A bound was passed in the middle of a stream: it ends well-formed, if there is still somebody to read it."""
    why, writer = one.watch.why, guard.writer
    if not one.out.status or writer is None or why in ("", "gone", "client"):
        return
    told = f"the model's server went silent for {one.settings.limits.idle:g} seconds"
    if why == "total":
        told = f"the request took longer than {one.settings.limits.total:g} seconds"
    one.watch.done()
    await one.out.end(writer.write(Failed(told, 504)) + writer.end())


class _Beat:
    """Heartbeats while nothing else is sent, by one timer that looks how long that has been."""

    __slots__ = ("_answer", "_every", "_handle", "_last", "_loop", "_out", "_task", "_writer")

    def __init__(self, out: Out, writer: Writer, answer: Answer, every: float) -> None:
        self._out, self._writer, self._answer, self._every = out, writer, answer, every
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._handle = self._loop.call_later(every, self._look)
        self._task: asyncio.Task[None] | None = None

    def seen(self) -> None:
        self._last = self._loop.time()

    def stop(self) -> None:
        self._handle.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        if now - self._last >= self._every:
            self._last = now
            self._task = self._loop.create_task(self._ping())
        self._handle = self._loop.call_later(self._last + self._every - now, self._look)

    async def _ping(self) -> None:
        if not self._out.status:
            await self._out.begin(self._answer.headers)
        await self._out.ping(self._writer.ping())
