"""Servers' refusals and who a remote model is: what a failed call means for the user, told without any key."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from fairlead.errors import InputError, MissingResource
from fairlead.exchange import Message, Refusal
from fairlead.models.keys import Secret, near
from fairlead.models.prices import without_date
from fairlead.models.protocol import CapabilityError, Reply, Usage
from fairlead.models.toolong import TooLong
from fairlead.models.wire import whole


class Transient(Exception):
    """A try that failed for a reason that may pass.

    wait     seconds the server asks to wait, None where it does not say
    billed   the provider may charge for it all the same
    dead     nobody listens there
    busy     the server asks for fewer calls
    """

    def __init__(
        self, message: str, *, wait: float | None = None, billed: bool = False, dead: bool = False, busy: bool = False
    ) -> None:
        super().__init__(message)
        self.wait, self.billed, self.dead, self.busy = wait, billed, dead, busy


@dataclass(frozen=True, slots=True)
class Who:
    """Whom an error is about. The key itself is never part of it."""

    name: str
    model: str
    url: str
    key_variable: str


def status_error(
    who: Who, status: int, message: str, headers: Mapping[str, str], *, code: str = "", param: str = ""
) -> Exception:
    """What an HTTP error status means for the user. `message` is the server's, already free of keys."""
    said = f": {message}" if message else ""
    if status == 401 or status == 403:
        return MissingResource(
            f"{who.name}: {who.url} refused the key ({status}){said}. Set {who.key_variable} to a key that may use it."
        )
    if status == 404:
        return MissingResource(
            f"{who.name}: {who.url} does not know model {who.model!r}, or the URL is wrong (404){said}"
        )
    if status == 402 or code == "insufficient_quota":
        return MissingResource(f"{who.name}: the account behind {who.key_variable} has no credit left ({status}){said}")
    if status in (408, 409, 425, 429) or status >= 500:
        busy = status in BUSY
        return Transient(f"{who.url} answered {status}{said}", wait=retry_after(headers), busy=busy)
    text = f"{param} {message}".lower()
    if status in (400, 422) and (field := _refused_field(text)):
        error = CapabilityError(f"{who.name} does not take {field!r} ({status}){said}")
        error.capability = field
        return error
    refused = f"{who.name}: {who.url} refused the request ({status}){said}"
    # OpenAI has a code for it; vLLM and Anthropic say it in these words only.
    if code == "context_length_exceeded" or any(words in text for words in _TOO_LONG_WORDS):
        return TooLong(refused)
    return InputError(refused)


BUSY = (429, 503, 529)
"""Too many calls; unavailable; overloaded (Anthropic's own)."""

_TOO_LONG_WORDS = ("maximum context length", "prompt is too long")

_FIELDS = ("temperature", "top_p", "top_k", "seed", "stop", "top_logprobs", "logprobs")


def _refused_field(text: str) -> str | None:
    """The first parameter that a refusal names: those after it may be what the model does take."""
    words = (word.strip("`'\"():,.;") for word in text.split())
    return next((word for word in words if word in _FIELDS), None)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from retry-after-ms, or retry-after as seconds or a date."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        value = headers.get("retry-after")
        if value is None:
            return None
        try:
            return max(0.0, float(value))
        except ValueError:
            return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def remote_lineage(provider: str, model: str, url: str, official: str) -> str:
    """`api:…`: the provider and model, or the server and model where it is somebody's own; snapshots' dates removed."""
    parts = urlsplit(url)
    host = (parts.hostname or "").replace("localhost", "127.0.0.1")
    where = provider if url.rstrip("/") == official.rstrip("/") else f"{host}:{parts.port or parts.scheme}"
    return f"api:{where}/{without_date(model.lower())}"


def vendor(model: object) -> str:
    """The host that reads what this model, or server, is asked (by its `url`); "" where it is no other's: in this
    process, or on a network of one's own."""
    host = urlsplit(getattr(model, "url", None) or "").hostname or ""
    return "" if near(host) else host


def scrub(text: str, *keys: Secret | None) -> str:
    """A server's words without the keys it may have echoed, printable, and not longer than a line or two."""
    for key in keys:
        text = key.taken_out_of(text) if key is not None else text
    clean = whole(text)
    return " ".join(clean.split())[:300]


def filtered(text: str, usage: Usage) -> Reply:
    """A reply the provider's filter stopped: a refusal with its words, never an empty answer."""
    return Reply((Message("assistant", (Refusal(text),)),), "filter", usage=usage)
