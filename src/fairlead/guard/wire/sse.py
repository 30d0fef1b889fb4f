"""Server-sent events: bytes in any pieces to JSON objects, in time linear in their length, and objects to bytes.

The rules are those of the HTML standard (section 9.2, event streams): lines end in LF, CRLF or CR, a line that starts
with a colon is a comment, the `data` lines of an event are joined by newlines, an empty line ends the event. Names of
events are not needed: every format here repeats them as `type` inside the data.
"""

from __future__ import annotations

from typing import Any, Protocol

import orjson

from fairlead.guard.wire.events import End, Event, Failed, Unknown

LONGEST = 4 << 20  # bytes of one event; the final events of the Responses API repeat a whole reply
DONE = b"[DONE]"

TOO_LONG = f"the provider sent one event of more than {LONGEST:,} bytes"
NOT_JSON = "the provider sent an event that is not JSON in UTF-8"
BROKE_OFF = "the provider broke off before the reply was whole"


class TooLong(Exception):
    """An event is longer than `LONGEST`."""


class Lines:
    """Bytes to the data of whole events."""

    __slots__ = ("_after_cr", "_data", "_held", "_pending", "_size", "_start")

    def __init__(self) -> None:
        self._pending: list[bytes] = []  # an unfinished line, in pieces: joined once, when its end comes
        self._size = 0  # bytes in `_pending`
        self._data: list[bytes] = []  # the data lines of an unfinished event
        self._held = 0  # bytes in `_data`
        self._after_cr = False  # a CR ended the last line: an LF that follows belongs to it
        self._start = True

    def feed(self, data: bytes) -> list[bytes]:
        """The data of each event that is whole now. Raises `TooLong`."""
        if self._after_cr and data:
            self._after_cr = False
            if data[0] == 10:
                data = data[1:]
        last = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        if not last:
            self._keep(data)
            return []
        whole = data[:last]
        if self._pending:
            whole = b"".join((*self._pending, whole))
            self._pending, self._size = [], 0
        self._after_cr = whole[-1] == 13
        if self._start:
            self._start = False
            whole = whole.removeprefix(b"\xef\xbb\xbf")
        found: list[bytes] = []
        for line in whole.splitlines():  # of bytes: at LF, CRLF and CR, nothing else
            self._line(line, found)
        self._keep(data[last:])
        return found

    def eof(self) -> list[bytes]:
        """The event at the end to which its empty line is missing."""
        found: list[bytes] = []
        self._line(b"".join(self._pending), found)
        self._line(b"", found)
        self._pending = []
        return found

    def _line(self, line: bytes, found: list[bytes]) -> None:
        if not line:
            if self._data:
                found.append(self._data[0] if len(self._data) == 1 else b"\n".join(self._data))
                self._data, self._held = [], 0
        elif line.startswith(b"data:"):
            value = line[6:] if line[5:6] == b" " else line[5:]
            self._held += len(value) + 1
            if self._held > LONGEST:
                raise TooLong
            self._data.append(value)

    def _keep(self, rest: bytes) -> None:
        if rest:
            self._pending.append(rest)
            self._size += len(rest)
            if self._size > LONGEST:
                raise TooLong


class Understood(Protocol):
    """What a format knows of a stream: it turns each JSON object into events. It never raises on what it is given."""

    def take(self, said: dict[str, Any], out: list[Event]) -> None: ...

    def done(self, out: list[Event]) -> None:
        """`[DONE]` was said."""
        ...

    def eof(self, out: list[Event]) -> None:
        """The connection ended, and neither `End` nor `Failed` had been given."""
        ...


class Stream:
    """The reader of a stream (`format.Reader`) over what one format understands."""

    __slots__ = ("_lines", "_over", "_understood")

    def __init__(self, understood: Understood) -> None:
        self._understood = understood
        self._lines = Lines()
        self._over = False

    def feed(self, data: bytes) -> list[Event]:
        if self._over:
            return []
        try:
            found = self._lines.feed(data)
        except TooLong:
            return self._fail(TOO_LONG)
        return self._read(found, NOT_JSON) if found else []

    def eof(self) -> list[Event]:
        if self._over:
            return []
        try:
            out = self._read(self._lines.eof(), BROKE_OFF)
        except TooLong:
            return self._fail(TOO_LONG)
        if not self._over:
            self._understood.eof(out)
            self._over = True
        return out

    def _read(self, found: list[bytes], no_json: str) -> list[Event]:
        out: list[Event] = []
        for data in found:
            if data == DONE:
                self._understood.done(out)
            else:
                try:
                    said = orjson.loads(data)
                except orjson.JSONDecodeError:
                    out.extend(self._fail(no_json))
                    break
                if isinstance(said, dict):
                    self._understood.take(said, out)
                else:
                    out.append(Unknown("event that is no object"))
            if out and isinstance(out[-1], Failed | End):
                self._over = True
                break
        return out

    def _fail(self, why: str) -> list[Event]:
        self._over = True
        return [Failed(why)]


def data(body: dict[str, Any]) -> bytes:
    """One event without a name."""
    return b"data: " + orjson.dumps(body) + b"\n\n"


def named(body: dict[str, Any]) -> bytes:
    """One event whose name is its `type`."""
    name: str = body["type"]
    return b"event: " + name.encode() + b"\ndata: " + orjson.dumps(body) + b"\n\n"
