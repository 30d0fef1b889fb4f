"""The way back to one client: status, headers and bytes over ASGI, each written once and counted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

from fairlead.guard.proxy.watchdog import Watchdog

Send: TypeAlias = Callable[[dict[str, Any]], Awaitable[None]]
Headers: TypeAlias = Sequence[tuple[bytes, bytes]]

_JSON = (b"content-type", b"application/json")
_STREAM = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store"))
_NO_RETRY = (b"x-should-retry", b"false")
CLOSE = (b"connection", b"close")


class Out:
    """One answer. `status` is 0 until it began; `written` counts the bytes of its body."""

    __slots__ = ("_ending", "_id", "_pinging", "_send", "_sending", "_watch", "id", "status", "written")

    def __init__(self, send: Send, id: str, watch: Watchdog) -> None:
        self._send, self._watch = send, watch
        self.id = id
        self._id = (b"x-request-id", id.encode())
        self.status = self.written = 0
        self._sending = self._pinging = self._ending = False

    @property
    def ended(self) -> bool:
        """Nothing more can be sent."""
        return self._ending

    async def whole(self, status: int, body: bytes, more: Headers = (), *, retry: bool = True) -> None:
        """A whole answer. `retry` False tells the SDKs not to ask again."""
        headers = [_JSON, (b"content-length", b"%d" % len(body)), self._id, *more]
        if not retry:
            headers.append(_NO_RETRY)
        self.status, self.written, self._ending = status, len(body), True
        self._watch.now("client")
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def begin(self, more: Headers = ()) -> None:
        """A stream begins; its status is 200 from here on, whatever comes."""
        self.status = 200
        await self._send({"type": "http.response.start", "status": 200, "headers": [*_STREAM, self._id, *more]})

    async def write(self, data: bytes) -> None:
        """Bytes of a stream. Waits while the client is slow, for so long as the limits say."""
        if not data:
            return
        self._sending = True
        self.written += len(data)
        self._watch.now("client")
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        self._watch.now("stream")
        self._sending = False

    async def ping(self, data: bytes) -> None:
        """A heartbeat, from beside the one that writes: left out while that one waits for the client."""
        if self._sending or self._pinging or self._ending or not data:
            return
        self._pinging = True
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        self._pinging = False

    async def end(self, data: bytes = b"") -> None:
        """The stream ends with these bytes."""
        self._ending = True
        self.written += len(data)
        self._watch.now("client")
        await self._send({"type": "http.response.body", "body": data})
