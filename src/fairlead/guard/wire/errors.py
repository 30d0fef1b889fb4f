"""Errors in each format's own terms, and the headers that tell the official SDKs whether to try again.

Both SDKs obey `x-should-retry: true | false` before anything else; without it they send the request again on 408, 409,
429 and every status of 500 and more (`_should_retry` in `openai/_base_client.py` and `anthropic/_base_client.py`). A
check that broke would break again on the same request, so that its 503 says "false"; a full queue says "true".
"""

from __future__ import annotations

from typing import Any

KINDS = {  # kind: (type for OpenAI's routes, type for Anthropic's)
    "invalid_request": ("invalid_request_error", "invalid_request_error"),
    "authentication": ("authentication_error", "authentication_error"),
    "permission": ("permission_error", "permission_error"),
    "not_found": ("not_found_error", "not_found_error"),
    "too_large": ("invalid_request_error", "request_too_large"),
    "rate_limit": ("rate_limit_error", "rate_limit_error"),
    "budget": ("insufficient_quota", "rate_limit_error"),
    "overloaded": ("overloaded_error", "overloaded_error"),
    "check_failed": ("guard_check_failed", "api_error"),
    "upstream": ("upstream_error", "api_error"),
    "timeout": ("timeout_error", "timeout_error"),
    "internal": ("server_error", "api_error"),
}
_RETRIED = frozenset({"rate_limit", "overloaded", "upstream", "timeout"})
_OF_STATUS = {
    400: "invalid_request", 401: "authentication", 403: "permission", 404: "not_found", 408: "timeout",
    413: "too_large", 429: "rate_limit", 502: "upstream", 503: "overloaded", 504: "timeout", 529: "overloaded",
}  # fmt: skip


def kind_of(status: int) -> str:
    """The kind of an error of which only the status is known (a provider's)."""
    return _OF_STATUS.get(status, "invalid_request" if status < 500 else "internal")


def headers(kind: str, retry_after: float | None = None) -> tuple[tuple[str, str], ...]:
    """The headers of an error. `retry_after` is in seconds; with it an SDK waits that long before it tries again."""
    again = ("x-should-retry", "true" if kind in _RETRIED else "false")
    if retry_after is None:
        return (again,)
    return (again, ("retry-after", str(max(1, round(retry_after)))))


def openai(status: int, sentence: str, kind: str = "", field: str = "") -> dict[str, Any]:
    """The body of an error on OpenAI's routes. An error inside a stream is the same object as an event."""
    kind = kind or kind_of(status)
    return {"error": {"message": sentence, "type": KINDS[kind][0], "param": field or None, "code": kind}}


def anthropic(status: int, sentence: str, kind: str = "", field: str = "") -> dict[str, Any]:
    """The body of an error on Anthropic's routes. They have no place for a field: the sentence names it."""
    named = sentence if not field or field in sentence else f"{field}: {sentence}"
    return {"type": "error", "error": {"type": KINDS[kind or kind_of(status)][1], "message": named}}
