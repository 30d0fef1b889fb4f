"""Headers, by allow-list: what is read of a request's, what goes to the model's server, what comes back from it.

A client's credentials are read and never sent on. What two servers could read in two ways is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Raw: TypeAlias = Iterable[tuple[bytes, bytes]]

_NAMES = (
    "content-length transfer-encoding content-type content-encoding authorization x-api-key host origin traceparent "
    "anthropic-version anthropic-beta openai-beta"
)
_ONCE = frozenset(_NAMES.encode().split())
_VERSION = re.compile(r"\d{4}-\d{2}-\d{2}")
_TRACE = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_SECONDS = re.compile(r"\d{1,5}")


@dataclass(frozen=True, slots=True)
class Head:
    """What was read of a request's headers. `page`: a page in a browser asks."""

    key: str = ""
    length: int | None = None
    version: str = ""
    beta: str = ""
    trace: str = ""
    page: bool = False


@dataclass(frozen=True, slots=True)
class BadHead:
    """Why a request's headers are refused."""

    status: int
    sentence: str


def read_head(raw: Raw) -> Head | BadHead:
    """The headers of a request, or why they are refused. Names come in lower case, as ASGI has them."""
    found: dict[bytes, bytes] = {}
    for name, value in raw:
        if name in _ONCE:
            if name in found:
                return BadHead(400, f"the header {name.decode()} is given twice")
            found[name] = value
    if b"transfer-encoding" in found:
        if b"content-length" in found:
            return BadHead(400, "content-length and transfer-encoding are both given")
        if found[b"transfer-encoding"].strip().lower() != b"chunked":
            return BadHead(400, "transfer-encoding is not chunked")
    length = found.get(b"content-length")
    if length is not None and not length.isdigit():
        return BadHead(400, "content-length is not a number")
    if found.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        return BadHead(415, "the body is compressed; send it as it is")
    kind = found.get(b"content-type")
    if kind is not None and kind.partition(b";")[0].strip().lower() != b"application/json":
        return BadHead(415, "content-type is not application/json")
    bearer = found.get(b"authorization", b"").decode("latin-1").strip()
    scheme, _, token = bearer.partition(" ")
    given = {token.strip()} if scheme.lower() == "bearer" else set()
    given |= {found.get(b"x-api-key", b"").decode("latin-1").strip()}
    keys = given - {""}
    if len(keys) > 1:
        return BadHead(400, "authorization and x-api-key hold different keys; send one")
    version = found.get(b"anthropic-version", b"").decode("latin-1")
    if version and not _VERSION.fullmatch(version):
        return BadHead(400, "anthropic-version is not a date (YYYY-MM-DD)")
    trace = found.get(b"traceparent", b"").decode("latin-1")
    beta = found.get(b"anthropic-beta") or found.get(b"openai-beta") or b""
    return Head(
        next(iter(keys), ""),
        None if length is None else int(length),
        version,
        beta.decode("latin-1"),
        trace if _TRACE.fullmatch(trace) else "",
        b"origin" in found,
    )


def to_upstream(route: str, key: str, head: Head) -> dict[str, str]:
    """The headers for the model's server: built anew, none of the client's but a version and a trace."""
    headers = {
        "content-type": "application/json",
        "accept": "application/json, text/event-stream",
        "accept-encoding": "identity",
        "user-agent": "fairlead-guard",
    }
    if route == "/v1/messages":
        headers["anthropic-version"] = head.version or "2023-06-01"
        if key:
            headers["x-api-key"] = key
    elif key:
        headers["authorization"] = f"Bearer {key}"
    if head.beta:  # only where the policy lets it pass
        headers["anthropic-beta" if route == "/v1/messages" else "openai-beta"] = head.beta
    if head.trace:
        headers["traceparent"] = head.trace
    return headers


def from_upstream(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """What of the server's headers a client may see: how long to wait. Its ids are text that no check has read."""
    after = headers.get("retry-after", "")
    return [(b"retry-after", after.encode())] if _SECONDS.fullmatch(after) and after.isascii() else []


def too_many(raw: Sequence[tuple[bytes, bytes]], most: int, size: int) -> BadHead | None:
    """Whether there are more headers, or longer ones, than allowed; for servers that do not count while they read."""
    if len(raw) > most:
        return BadHead(431, f"there are more than {most} headers")
    if sum(len(name) + len(value) for name, value in raw) > size:
        return BadHead(431, f"the headers are longer than {size:,} bytes")
    return None
