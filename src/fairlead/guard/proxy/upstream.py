"""The model's server: asked once for each request, over a pool of connections, and never again after an answer began.

What goes wrong becomes a `Broken` with a status and a sentence of the guard's own; the server's words do not pass.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

import aiohttp
import orjson
from aiohttp import ClientResponse, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector
from multidict import CIMultiDict
from yarl import URL

from fairlead.errors import InputError
from fairlead.guard.proxy.headers import Head, from_upstream, to_upstream
from fairlead.guard.proxy.settings import Limits
from fairlead.models.keys import Secret, key_from, travels_safely

STREAM, JSON = "text/event-stream", "application/json"
_POOL = 4.0  # seconds an idle connection is kept: servers of the kind uvicorn close theirs after 5
_KEYS = {"api.openai.com": "OPENAI_API_KEY", "api.anthropic.com": "ANTHROPIC_API_KEY"}


class Broken(Exception):
    """The model's server gave no answer that can be read. `again` says whether a client does well to try again."""

    def __init__(self, status: int, sentence: str, *, again: bool = True, kind: str = "upstream") -> None:
        super().__init__(sentence)
        self.status, self.again, self.kind = status, again, kind
        self.headers: list[tuple[bytes, bytes]] = []


class Answer(Protocol):
    """A 200 of a model's server, its body still to come."""

    headers: list[tuple[bytes, bytes]]

    async def whole(self) -> dict[str, Any]: ...

    def pieces(self) -> AsyncIterator[bytes]: ...

    def close(self) -> None: ...


class Upstream(Protocol):
    """Who answers."""

    shown: str  # without any key, for print

    @property
    def url(self) -> str | None: ...  # of the server, a managed model's too; None where nothing leaves this process

    async def ask(self, route: str, body: dict[str, Any], head: Head, *, stream: bool) -> Answer: ...

    async def models(self, head: Head) -> dict[str, Any]: ...

    async def close(self) -> None: ...


@dataclass
class Connections:
    """The pool of one server. It outlives a change of the server's key."""

    limits: Limits
    _session: ClientSession | None = field(default=None, init=False)

    def session(self) -> ClientSession:
        """The pool, made on first use, since it belongs to a loop."""
        if self._session is None:
            connector = TCPConnector(
                limit=self.limits.connections, keepalive_timeout=_POOL, ttl_dns_cache=60, enable_cleanup_closed=False
            )
            self._session = ClientSession(
                connector=connector,
                cookie_jar=DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                timeout=ClientTimeout(total=None, sock_connect=self.limits.connect),
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            )
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


@dataclass
class Server:
    """A server by URL, with its key as it was when the setup was read. Ask it inside a running loop."""

    url: str
    key: Secret | None
    limits: Limits
    pool: Connections
    shown: str = field(init=False)
    _urls: dict[str, URL] = field(default_factory=dict, init=False)
    _fixed: dict[str, CIMultiDict[str]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"upstream {self.url!r} is no URL of a server; write https://api.openai.com")
        if parts.username or parts.password:
            raise InputError("upstream: the URL holds credentials; put the key into the environment")
        if parts.query or parts.fragment:
            raise InputError(f"upstream {self.url!r} has a query or a fragment; name the server alone")
        self.shown = self.url
        self._base = self.url.rstrip("/").removesuffix("/v1")

    async def ask(self, route: str, body: dict[str, Any], head: Head, *, stream: bool) -> Answer:
        """The server's 200 to a body; anything else is raised as `Broken`."""
        url = self._urls.get(route)
        if url is None:
            url = self._urls[route] = URL(self._base + route)
        response = await self._send("POST", url, orjson.dumps(body), self._headers(route, head))
        return await self._checked(response, STREAM if stream else JSON)

    async def models(self, head: Head) -> dict[str, Any]:
        """What /v1/models says there."""
        response = await self._send("GET", URL(f"{self._base}/v1/models"), None, self._headers("/v1/models", head))
        answer = await self._checked(response, JSON)
        try:
            return await answer.whole()
        finally:
            answer.close()

    def _headers(self, route: str, head: Head) -> CIMultiDict[str]:
        if head.trace or head.beta or head.version:
            return CIMultiDict(to_upstream(route, self.key.reveal() if self.key else "", head))
        if route not in self._fixed:
            self._fixed[route] = CIMultiDict(to_upstream(route, self.key.reveal() if self.key else "", head))
        return self._fixed[route]

    async def _send(self, method: str, url: URL, data: bytes | None, headers: CIMultiDict[str]) -> ClientResponse:
        try:
            return await self.pool.session().request(method, url, data=data, headers=headers, allow_redirects=False)
        except aiohttp.ClientConnectorCertificateError:
            raise Broken(502, "the certificate of the model's server does not hold", again=False) from None
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, ssl.SSLError) as error:
            why = "in time" if isinstance(error, aiohttp.ConnectionTimeoutError) else f"({type(error).__name__})"
            raise Broken(502, f"the model's server could not be reached {why}") from None
        except (TimeoutError, aiohttp.ClientError, ConnectionError, ValueError) as error:
            told = f"the model's server closed the connection or sent no HTTP ({type(error).__name__})"
            raise Broken(502, told) from None

    async def _checked(self, response: ClientResponse, wanted: str) -> Answer:
        if response.status != 200:
            response.close()
            raise _told(response)
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != wanted or encoding != "identity":
            response.close()
            found = f"{kind[:60]!r}" if kind != wanted else f"content-encoding {encoding[:20]!r}"
            raise Broken(502, f"the model's server answered with {ascii(found)[1:-1]} where {wanted} was due")
        length = response.content_length
        if length is not None and length > self.limits.reply:
            response.close()
            raise _too_long(self.limits)
        return Body(response, self.limits, from_upstream(response.headers))

    async def close(self) -> None:
        await self.pool.close()


@dataclass(slots=True)
class Body:
    """A 200 of a server, read to its end or closed."""

    response: ClientResponse
    limits: Limits
    headers: list[tuple[bytes, bytes]]

    async def whole(self) -> dict[str, Any]:
        """The body as a JSON object."""
        content, most = self.response.content, self.limits.reply
        data, parts = b"", [b""]
        try:
            data = await content.readany()
            if not content.at_eof():
                size, parts = len(data), [data]
                while part := await content.readany():
                    size += len(part)
                    if size > most:
                        raise _too_long(self.limits)
                    parts.append(part)
                data = b"".join(parts)
        except (aiohttp.ClientError, ConnectionError, ValueError) as error:
            raise _broke_off(error) from None
        try:
            body = orjson.loads(data)
        except orjson.JSONDecodeError:
            raise Broken(502, "the model's server sent a body that is no JSON, or no UTF-8") from None
        if not isinstance(body, dict):
            raise Broken(502, "the model's server sent JSON that is no object")
        return body

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        content, most, size = self.response.content, self.limits.reply, 0
        try:
            while part := await content.readany():
                size += len(part)
                if size > most:
                    raise _too_long(self.limits)
                yield part
        except (aiohttp.ClientError, ConnectionError, ValueError) as error:
            raise _broke_off(error) from None

    def close(self) -> None:
        """Give the connection back where all was read, else close it, which tells the server to stop."""
        if self.response.content.at_eof():
            self.response.release()
        else:
            self.response.close()


def open_server(url: str, key: str | None, limits: Limits, before: Server | None = None) -> Server:
    """A server with its key from the environment: `key` names the variable, or the host's usual one is taken. `before`
    is the same server as it was: it stays where its key has not changed, and its connections stay in any case."""
    host = urlsplit(url).hostname or ""
    variable = key or _KEYS.get(host)
    secret = None
    if variable is not None:
        secret = key_from(variable, url=url, optional=False, name=f"upstream {url}")
        travels_safely(variable, url, f"upstream {url}")
    if before is None:
        return Server(url, secret, limits, Connections(limits))
    old, new = (held.reveal() if held else "" for held in (before.key, secret))
    return before if old == new else Server(url, secret, limits, before.pool)


def _told(response: ClientResponse) -> Broken:
    """What a client is told of a status other than 200. The body that came with it is text nobody looked at."""
    status = response.status
    if status in (401, 403):
        broken = Broken(502, f"the model's server does not take the proxy's key (it said {status})", again=False)
    elif status == 429:
        broken = Broken(429, "the model's server is over its rate", kind="rate_limit")
    elif status == 404:
        broken = Broken(404, "the model's server has no such model or route", again=False, kind="not_found")
    elif 400 <= status < 500:
        told = f"the model's server refused the request (it said {status}); its words are withheld"
        code = status if status in (400, 408, 409, 413, 422) else 400
        broken = Broken(code, told, again=status in (408, 409), kind="invalid_request")
    elif status >= 500:
        code = status if status in (500, 502, 503, 504, 529) else 502
        broken = Broken(code, f"the model's server failed (it said {status})")
    else:
        broken = Broken(502, f"the model's server answered {status} where 200 was due", again=False)
    broken.headers = from_upstream(response.headers)
    return broken


def _too_long(limits: Limits) -> Broken:
    told = f"the reply of the model's server is longer than {limits.reply:,} bytes (limits.reply)"
    return Broken(502, told, again=False)


def _broke_off(error: Exception) -> Broken:
    return Broken(502, f"the model's server broke off in its reply ({type(error).__name__})")
