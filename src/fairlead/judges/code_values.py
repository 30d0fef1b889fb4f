"""Plain values from one process to another, with their exact types: numbers, texts, lists, dicts and their kin."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable
from typing import Any

MESSAGE = 4 << 20  # bytes of one message


class NotPlain(BaseException):
    """A value that does not go from one process to the other. No test's `except Exception` takes it."""


def encode(value: Any, other: Callable[[Any], Any]) -> Any:
    """A plain value as JSON with its type; anything else as what `other` makes of it.

    Subclasses go as what they are underneath (a Counter as a dict): their own methods stay behind.
    """
    if value is None or value is True or value is False:
        return value
    if isinstance(value, int):
        return ["i", hex(int.__int__(value))]
    if isinstance(value, float):
        return ["x", float.hex(value)]
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, complex):
        return ["c", float.hex(value.real), float.hex(value.imag)]
    if isinstance(value, bytes | bytearray):
        return ["b", bytes(value).hex()]
    if isinstance(value, range):
        return ["r", value.start, value.stop, value.step]
    sequences: tuple[tuple[Any, str], ...] = ((list, "l"), (tuple, "t"), (set, "s"), (frozenset, "f"))
    for kind, mark in sequences:
        if isinstance(value, kind):
            return [mark, [encode(item, other) for item in kind.__iter__(value)]]
    if isinstance(value, dict):
        return ["d", [[encode(k, other), encode(v, other)] for k, v in dict.items(value)]]
    return other(value)


def decode(data: Any, handle: Callable[[int], Any]) -> Any:
    """The value of `encode`, of exactly the plain types. Raises ValueError for what is none."""
    if data is None or isinstance(data, bool | str):
        return data
    mark, body = data[0], data[1]
    if mark == "i":
        return int(body, 16)
    if mark == "x":
        return float.fromhex(body)
    if mark == "c":
        return complex(float.fromhex(body), float.fromhex(data[2]))
    if mark == "b":
        return bytes.fromhex(body)
    if mark == "r":
        return range(body, data[2], data[3])
    if mark == "h":
        return handle(int(body))
    if mark == "d":
        return {decode(k, handle): decode(v, handle) for k, v in body}
    made = [decode(item, handle) for item in body]
    return {"l": list, "t": tuple, "s": set, "f": frozenset}[mark](made)


def send(link: socket.socket, message: Any) -> None:
    body = json.dumps(message).encode()
    if len(body) > MESSAGE:
        raise NotPlain(f"a value of more than {MESSAGE >> 20} MiB")
    link.sendall(struct.pack("!I", len(body)) + body)


def receive(link: socket.socket) -> Any:
    """The next message. Raises EOFError where there is none, ValueError where it is none of ours."""
    size = struct.unpack("!I", _exactly(link, 4))[0]
    if size > MESSAGE:
        raise ValueError("a message that is too long")
    return json.loads(_exactly(link, size))


def _exactly(link: socket.socket, size: int) -> bytes:
    body = bytearray()
    while len(body) < size:
        more = link.recv(min(size - len(body), 1 << 16))
        if not more:
            raise EOFError
        body += more
    return bytes(body)
