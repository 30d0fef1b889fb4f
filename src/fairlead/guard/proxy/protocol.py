"""uvicorn's HTTP protocol on httptools, with bounds on what arrives before a request is known.

httptools refuses content-length given twice and content-length beside transfer-encoding by itself, but reads headers
without end, waits for them without end, and takes what follows a closed request as another one. All three are closed
here.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fairlead.guard.proxy.settings import Limits

WATCH = "fairlead.watch"  # in the scope: the watchdog of a request, to be told when its client leaves
ABORT = "fairlead.abort"  # in the scope: ends the connection at once, whatever is still to be sent

_ANSWER = (
    b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n"
    b"x-should-retry: false\r\n\r\n%s"
)


def bounded(limits: Limits) -> type[HttpToolsProtocol]:
    """The protocol with these limits; uvicorn takes a class."""

    class Bounded(HttpToolsProtocol):
        _held = 0  # bytes of the request line and headers of the request that is being read
        _many = 0
        _over = False
        _slow: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._expect()

        def connection_lost(self, exc: Exception | None) -> None:
            self._settle()
            cycle: Any = self.cycle  # None before the first request, whatever its type says
            if cycle is not None and not cycle.response_complete and WATCH in cycle.scope:
                cycle.scope[WATCH].stop("gone")
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._over:
                return
            cycle: Any = self.cycle
            if self._slow is None and (cycle is None or cycle.response_complete):
                self._expect()
            super().data_received(data)
            # a request line or header that never ends reaches no callback: count the bytes as they come
            if self._slow is not None:
                self._held += len(data)
                if self._held > 2 * limits.header:
                    self._refuse(b"431 Request Header Fields Too Large", f"longer than {limits.header:,} bytes")

        def on_message_begin(self) -> None:
            self._held = self._many = 0
            super().on_message_begin()

        def on_url(self, url: bytes) -> None:
            super().on_url(url)
            if len(self.url) > limits.header:
                self._refuse(b"414 URI Too Long", f"the address is longer than {limits.header:,} bytes")

        def on_header(self, name: bytes, value: bytes) -> None:
            if self._over:
                return
            self._many += 1
            self._held += len(name) + len(value)
            if self._many > limits.headers:
                self._refuse(b"431 Request Header Fields Too Large", f"there are more than {limits.headers} headers")
            elif self._held > limits.header:
                told = f"the headers are longer than {limits.header:,} bytes"
                self._refuse(b"431 Request Header Fields Too Large", told)
            else:
                super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._settle()
            if not self._over:
                scope: Any = self.scope
                scope[ABORT] = self.transport.abort
                super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            if not self._over:
                super().on_body(body)

        def on_message_complete(self) -> None:
            if not self._over:
                super().on_message_complete()
                if not self.pipeline:
                    self.flow.resume_reading()  # else nobody would see that the client leaves

        def send_400_response(self, msg: str) -> None:
            self._refuse(b"400 Bad Request", "this is not a well-formed HTTP/1.1 request")

        def _refuse(self, status: bytes, sentence: str) -> None:
            if self._over:
                return
            self._over = True
            self._settle()
            kind = b"invalid_request_error"
            body = b'{"type":"error","error":{"type":"%s","message":"%s"}}' % (kind, sentence.encode())
            self.transport.write(_ANSWER % (status, len(body), body))
            self.transport.close()

        def _expect(self) -> None:
            """The headers of a request have to arrive within a time."""
            self._held = 0
            self._slow = self.loop.call_later(limits.request, self._late)

        def _settle(self) -> None:
            if self._slow is not None:
                self._slow.cancel()
                self._slow = None

        def _late(self) -> None:
            self._slow = None
            self._refuse(b"408 Request Timeout", f"the request did not arrive within {limits.request:g} seconds")

    return Bounded
