"""HTTPS with the standard library: JSON, forms, a streamed file. The key goes to the provider's own address alone.

An answer is a status, headers and bytes. What may pass (a connection that breaks, 429, 5xx) is `Transient`, everything
else that is not expected an error for the user, with the server's own words and without the key.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fairlead.errors import InputError
from fairlead.models.access import Transient, Who, scrub, status_error
from fairlead.models.keys import Secret

MOST = 64 * 2**20
"""Bytes of an answer that are read; longer ones are refused."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    def json(self, url: str) -> Mapping[str, Any]:
        """The object in the body. Raises Transient for anything else: an answer that was cut off, a proxy's page."""
        try:
            data = json.loads(self.body)
        except ValueError:
            raise Transient(f"{url} answered {self.status} with something that is not JSON", billed=True) from None
        if not isinstance(data, Mapping):
            raise Transient(f"{url} answered {self.status} with something that is not a JSON object", billed=True)
        return data


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirects are answers here: where a file is to be sent is said by one, and the key must not follow it."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class _NoContentType(urllib.request.BaseHandler):
    """The standard library puts a content type on every body; the signature of a place to upload to covers none."""

    handler_order = 600  # after the library's own, which adds it

    def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
        if request.get_method() == "PUT":
            request.unredirected_hdrs.pop("Content-type", None)
        return request

    https_request = http_request


@dataclass(frozen=True, slots=True)
class Wire:
    """Calls to one provider. `repr` holds no key."""

    who: Who
    key: Secret | None = field(repr=False)
    timeout: float = 60.0

    def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        form: Mapping[str, str] | None = None,
        expect: Sequence[int] = (200,),
    ) -> Answer:
        """One request to the provider. A status in `expect` is an answer, any other an error."""
        url = f"{self.who.url.rstrip('/')}{path}" + (f"?{urlencode(query)}" if query else "")
        headers = {"Accept": "application/json", "User-Agent": "fairlead"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key.reveal()}"
        data: bytes | None = None
        if body is not None:
            data, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        elif form is not None:
            data, headers["Content-Type"] = multipart(form)
        elif method == "POST":
            data = b""
        answer = self._open(urllib.request.Request(url, data=data, headers=headers, method=method))
        if answer.status not in expect:
            message, code = _message(answer, self.key)
            raise status_error(self.who, answer.status, message, answer.headers, code=code)
        return answer

    def put(self, url: str, file: Path, size: int) -> None:
        """Send a file's bytes to a place the provider named. No key goes there: its address is the permission."""
        with file.open("rb") as handle:
            # the body is a stream, so a redirect or a retry cannot replay it: the caller starts the upload again
            request = urllib.request.Request(url, data=handle, headers={"Content-Length": str(size)}, method="PUT")
            answer = self._open(request, timeout=max(self.timeout, 600.0))
        if answer.status != 200:
            message, _ = _message(answer, self.key)
            if answer.status < 500 and answer.status not in (408, 429):
                raise InputError(f"{self.who.name}: the place for the file refused it ({answer.status}): {message}")
            raise Transient(f"the place for the file answered {answer.status}: {message}")

    def _open(self, request: urllib.request.Request, timeout: float | None = None) -> Answer:
        opener = urllib.request.build_opener(_NoRedirect, _NoContentType)
        host = request.host
        try:
            with opener.open(request, timeout=timeout or self.timeout) as answer:
                return _read(answer.status, answer.headers, answer)
        except urllib.error.HTTPError as error:
            with error:
                return _read(error.code, error.headers, error)
        except urllib.error.URLError as error:
            # nothing was heard: whether the request arrived is not known, but for a connection that was refused
            dead = isinstance(error.reason, ConnectionRefusedError | socket.gaierror)
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise InputError(f"{self.who.name}: {host} shows a certificate that is not trusted") from None
            raise Transient(f"no answer from {host}: {error.reason}", billed=not dead, dead=dead) from None
        except (TimeoutError, OSError, http.client.HTTPException) as error:
            raise Transient(f"no answer from {host}: {type(error).__name__}", billed=True) from None


def _read(status: int, headers: Any, stream: Any) -> Answer:
    body = stream.read(MOST + 1)
    if len(body) > MOST:
        raise InputError(f"an answer of more than {MOST:,} bytes was not read")
    return Answer(status, {str(k).lower(): str(v) for k, v in headers.items()}, body)


def multipart(form: Mapping[str, str]) -> tuple[bytes, str]:
    """(body, content type) of a form of texts."""
    border = uuid.uuid4().hex
    parts = [
        f'--{border}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in form.items()
    ]
    return "".join([*parts, f"--{border}--\r\n"]).encode(), f"multipart/form-data; boundary={border}"


def _message(answer: Answer, key: Secret | None) -> tuple[str, str]:
    """(the server's words, its code) of an error, without the key it may have echoed."""
    try:
        body = json.loads(answer.body)
    except ValueError:
        return scrub(answer.body[:300].decode("utf-8", "replace"), key), ""
    inner = body.get("error", body) if isinstance(body, Mapping) else body
    if isinstance(inner, Mapping):
        return scrub(str(inner.get("message", inner)), key), str(inner.get("code") or "")
    return scrub(str(inner), key), ""
