"""Errors as the official SDKs take them: of which class, and whether they try again."""

from __future__ import annotations

import anthropic
import httpx2
import openai
import pytest

from fairlead.guard.wire import FORMATS, errors, models
from guard.wire import sdk
from guard.wire.samples import CHAT, MESSAGES, ROUTES

CLASSES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    429: "RateLimitError",
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 429, 502, 503, 504])
def test_an_error_is_the_sdk_s_own(route: str, status: int) -> None:
    module = anthropic if route == MESSAGES else openai
    value = FORMATS[route].error(status, "a sentence of ours", "", "messages[0].role")
    with pytest.raises(module.APIStatusError) as caught:
        sdk.whole(route, sdk.body(value, status))
    assert type(caught.value).__name__ == CLASSES.get(status, type(caught.value).__name__)
    assert "a sentence of ours" in str(caught.value) and caught.value.status_code == status
    if module is openai:
        assert caught.value.param == "messages[0].role"
    else:
        assert "messages[0].role" in str(caught.value)


@pytest.mark.parametrize("route", (CHAT, MESSAGES))
@pytest.mark.parametrize(
    ("status", "kind", "tries"),
    [
        (503, "check_failed", 1),
        (500, "internal", 1),
        (429, "budget", 1),
        (503, "overloaded", 2),
        (429, "rate_limit", 2),
        (502, "upstream", 2),
    ],
)
def test_a_broken_check_is_not_tried_again(route: str, status: int, kind: str, tries: int) -> None:
    seen = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        headers = (*errors.headers(kind), ("retry-after-ms", "1"))
        return sdk.body(FORMATS[route].error(status, "no", kind), status, headers)(request)

    client = sdk.anthropic_client(answer, 1) if route == MESSAGES else sdk.openai_client(answer, 1)
    with pytest.raises((openai.APIStatusError, anthropic.APIStatusError)):
        if isinstance(client, anthropic.Anthropic):
            client.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "x"}])
        else:
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
    assert len(seen) == tries


def test_headers() -> None:
    assert errors.headers("check_failed") == (("x-should-retry", "false"),)
    assert errors.headers("overloaded", 0.2) == (("x-should-retry", "true"), ("retry-after", "1"))
    assert set(errors.KINDS) >= {errors.kind_of(status) for status in range(400, 600)}


def test_both_sdks_read_the_list_of_models() -> None:
    listed = models.listed(["small", "large"])
    assert [one.id for one in sdk.openai_client(sdk.body(listed)).models.list()] == ["small", "large"]
    assert [one.id for one in sdk.anthropic_client(sdk.body(listed)).models.list()] == ["small", "large"]
    assert models.listed([])["data"] == []
    assert models.read(listed) == ["small", "large"]
    assert models.read({"data": [{"id": "a b"}, {"id": 7}, {}, 7, {"id": "org/m-1:free"}]}) == ["org/m-1:free"]
    assert models.read([]) == models.read({"data": 7}) == []
