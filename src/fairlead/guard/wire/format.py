"""The contract of a wire format: how its requests, replies and streams become values, and values bytes again.

    asked = form.read_request(body, policy)            # raises Refused
    events = form.events(reply)                        # a reply in one body …
    form.body(released, asked, told)                   # … and one body back
    reader, writer = form.reader(), form.writer(asked)
    for data in upstream: events = reader.feed(data)   # a stream …
    events = reader.eof()                              # … whose end is told too: a provider may break off
    out = writer.write(event)                          # … and a stream back, in whatever order was released

Nothing here raises on what a provider sends; what cannot be read becomes `Failed` or `Unknown`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from fairlead.guard.wire.asked import Allow, Asked
from fairlead.guard.wire.events import Event, Reason, Told

Tolds: TypeAlias = Sequence[tuple[int, Told]]  # what was done, each with the alternative that it was done to


class Reader(Protocol):
    """Reads one stream, in time linear in its length. After `Failed` or `End` it gives nothing more."""

    def feed(self, data: bytes) -> list[Event]:
        """The events that are whole with these bytes."""
        ...

    def eof(self) -> list[Event]:
        """The connection has ended: nothing if the provider had said so before, else `Failed`."""
        ...


class Writer(Protocol):
    """Writes one stream. The opening of the stream writes itself; `end` has to be called once, last.

    An event that has no bytes in the format gives b"". `Unknown` and `End` never have any.
    """

    def write(self, event: Event) -> bytes:
        """A released event. `Failed` writes the format's own error event; only `end` may follow it."""
        ...

    def ping(self) -> bytes:
        """A heartbeat: keeps the connection, and says nothing."""
        ...

    def told(self, choice: int, told: Told) -> bytes:
        """What the guard did to an alternative that goes on. Some formats can say it only in their last event."""
        ...

    def stop(self, choice: int, reason: Reason, told: Told) -> bytes:
        """The well-formed ending of an alternative in the middle of it. What comes later of it writes nothing."""
        ...

    def end(self) -> bytes:
        """The well-formed ending of the stream. Parts and alternatives that are still open are closed."""
        ...


class ErrorBody(Protocol):
    def __call__(self, status: int, sentence: str, kind: str = "", field: str = "") -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Format:
    """One route's format. `error` takes the status, a sentence of ours, and one of `errors.KINDS`."""

    name: str
    read_request: Callable[[Any, Allow], Asked]
    events: Callable[[Any], list[Event]]
    body: Callable[[Iterable[Event], Asked, Tolds], dict[str, Any]]
    reader: Callable[[], Reader]
    writer: Callable[[Asked], Writer]
    error: ErrorBody
