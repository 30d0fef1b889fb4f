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
from fairlead.guard.proxy.out import Headers, Out
from fairlead.guard.proxy.settings import Limits, Settings
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
    """One request on its way. `waited` counts the seconds in which the model's server was waited for. `writer` is that
    of a stream, `headers` are what the model's server sent and may pass."""

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
    writer: Writer | None = None
    headers: Headers = ()


async def exchange(one: Exchange) -> None:
    """Answers one request. What breaks is raised, as `Broken` where it is the model's server or a check: the answer, or
    the end of a stream that has begun, is left to who called."""
    guard, beat = Guarding(one), None
    if one.asked.stream:
        one.writer = one.form.writer(one.asked)
        beat = _Beat(one, one.writer)
    one.watch.now("checks")
    try:
        prompted = await guard.ask()
        if isinstance(prompted, Instead):
            await _said(one, guard, prompted)
            return
        one.asked = prompted
        answer = await _ask(one)
        one.headers = answer.headers
        try:
            if beat is None:
                await _whole(one, guard, answer)
            elif isinstance(body := getattr(answer, "body", None), dict):
                await _streamed(one, guard, one.form.events(body))
            else:
                await _stream(one, guard, answer, beat)
        finally:
            answer.close()
    except asyncio.CancelledError:
        guard.ended = _LEFT.get(one.watch.why, "deadline" if one.watch.why else "stopped")
        raise
    except Broken as broken:
        guard.ended = "upstream failed" if broken.kind != "check_failed" else "check failed"
        guard.status = broken.status
        raise
    except BaseException:
        guard.ended = guard.ended or "fault inside"
        raise
    finally:
        if beat is not None:
            beat.stop()
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
    await _put(one, guard, items)


async def _put(one: Exchange, guard: Guarding, items: Sequence[Item]) -> None:
    data = orjson.dumps(one.form.body(whole(items), one.asked, guard.tolds))
    await guard.settle()
    await one.out.whole(200, data, one.headers)


async def _said(one: Exchange, guard: Guarding, prompted: Instead) -> None:
    """What the guard answers in the model's place."""
    if one.writer is None:
        await _put(one, guard, prompted.items)
    else:
        await _at_once(one, guard, prompted.items)


async def _streamed(one: Exchange, guard: Guarding, events: list[Event]) -> None:
    """A reply that came whole, to a client that asked for a stream."""
    items = await guard.feed(events)
    for item in items:
        if isinstance(item, Failed):
            raise Broken(item.status, item.why)
    await _at_once(one, guard, items)


async def _at_once(one: Exchange, guard: Guarding, items: Sequence[Item]) -> None:
    """A stream of which all is there."""
    await guard.settle()
    await _begin(one)
    writer = one.form.writer(one.asked)
    await one.out.end(b"".join(_write(writer, item) for item in items) + writer.end())


async def _begin(one: Exchange) -> None:
    """A stream begins, if no heartbeat has begun it."""
    if not one.out.status:
        await one.out.begin(one.headers)


async def _stream(one: Exchange, guard: Guarding, answer: Answer, beat: _Beat) -> None:
    reader, writer, out = one.form.reader(), one.form.writer(one.asked), one.out
    strict = one.log is not None and one.log.options.strict
    kept: list[bytes] = []  # with a strict log nothing leaves before its entry is on the disk
    if not strict:
        one.writer = writer  # else what breaks is told by one that has written nothing, as the client has read nothing
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
                await _begin(one)
                if not out.written:
                    one.metrics.took("first_byte_seconds", one.asked.route, time.perf_counter() - one.began)
                guard.sent()
                await out.write(data)
                beat.seen()
            if piece is None:
                break
    finally:
        pieces.stop()
    if not guard.ended or kept:
        await guard.settle()
    await _begin(one)
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


def overdue(why: str, limits: Limits) -> Broken:
    """What a client is told of the bound that its request passed (watchdog.py)."""
    if why == "request":
        return Broken(408, f"the request did not arrive within {limits.request:g} seconds", again=False)
    if why == "first byte":
        return Broken(504, f"the model's server did not answer within {limits.first_byte:g} seconds")
    if why == "stream":
        return Broken(504, f"the model's server went silent for {limits.idle:g} seconds")
    return Broken(504, f"the request took longer than {limits.total:g} seconds")


class _Beat:
    """Heartbeats from the moment that a request was read, while nothing else is sent, by one timer that looks how long
    that has been. The first may begin the stream: from then on what breaks is told in it and not by a status."""

    __slots__ = ("_every", "_handle", "_last", "_loop", "_one", "_task", "_writer")

    def __init__(self, one: Exchange, writer: Writer) -> None:
        self._one, self._writer, self._every = one, writer, one.settings.heartbeat
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._handle = self._loop.call_later(self._every, self._look)
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
        await _begin(self._one)
        await self._one.out.ping(self._writer.ping())
