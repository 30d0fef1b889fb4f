"""Headers by allow-list: credentials stay here, and nothing that two servers could read in two ways passes."""

from __future__ import annotations

import pytest

from fairlead.guard.proxy.headers import BadHead, Head, from_upstream, read_head, to_upstream, too_many

ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/models")


@pytest.mark.parametrize(
    "style", [(b"authorization", b"Bearer k1"), (b"x-api-key", b"k1"), (b"authorization", b"bearer  k1 ")]
)
def test_both_styles_of_key_are_read(style: tuple[bytes, bytes]) -> None:
    head = read_head([style])
    assert isinstance(head, Head) and head.key == "k1"


def test_two_keys_that_differ_are_refused_and_the_same_twice_is_one() -> None:
    assert isinstance(read_head([(b"authorization", b"Bearer a"), (b"x-api-key", b"b")]), BadHead)
    head = read_head([(b"authorization", b"Bearer a"), (b"x-api-key", b"a")])
    assert isinstance(head, Head) and head.key == "a"


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        ([(b"content-length", b"3"), (b"content-length", b"3")], 400),
        ([(b"content-length", b"3"), (b"transfer-encoding", b"chunked")], 400),
        ([(b"transfer-encoding", b"gzip, chunked")], 400),
        ([(b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"chunked")], 400),
        ([(b"content-length", b"+3")], 400),
        ([(b"content-length", b"-3")], 400),
        ([(b"content-encoding", b"gzip")], 415),
        ([(b"content-type", b"application/x-www-form-urlencoded")], 415),
        ([(b"anthropic-version", b"2023-06-01\nx: y")], 400),
        ([(b"authorization", b"Bearer a"), (b"authorization", b"Bearer a")], 400),
    ],
)
def test_what_is_not_plain_is_refused(raw: list[tuple[bytes, bytes]], status: int) -> None:
    bad = read_head(raw)
    assert isinstance(bad, BadHead) and bad.status == status


@pytest.mark.parametrize("route", ROUTES)
def test_nothing_of_the_clients_goes_upstream(route: str) -> None:
    raw = [
        (b"authorization", b"Bearer client-key"), (b"x-api-key", b"client-key"), (b"cookie", b"session=1"),
        (b"openai-organization", b"org-client"), (b"x-forwarded-for", b"10.0.0.1"), (b"host", b"proxy"),
        (b"x-stainless-os", b"Linux"), (b"proxy-authorization", b"Basic client-key"), (b"user-agent", b"client"),
        (b"traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"), (b"anthropic-version", b"2023-06-01"),
    ]  # fmt: skip
    head = read_head(raw)
    assert isinstance(head, Head)
    sent = to_upstream(route, "server-key", head)
    assert set(sent) <= {
        "content-type", "accept", "accept-encoding", "user-agent", "authorization", "x-api-key", "anthropic-version",
        "traceparent",
    }  # fmt: skip
    assert "client" not in str(sent)
    assert sent["x-api-key" if route == "/v1/messages" else "authorization"].endswith("server-key")


def test_a_trace_that_is_none_is_left_out() -> None:
    head = read_head([(b"traceparent", b"00-zz\r\nx: y")])
    assert isinstance(head, Head) and head.trace == ""


def test_only_what_is_known_comes_back() -> None:
    headers = {
        "retry-after": "3",
        "x-request-id": "req_1",
        "set-cookie": "a=b",
        "server": "x",
        "openai-organization": "o",
    }
    assert from_upstream(headers) == [(b"retry-after", b"3")]
    for after in ("3\r\nset-cookie: a=b", "the-secret", "٣", "123456"):
        assert from_upstream({"retry-after": after}) == []


def test_many_and_long_headers_are_refused() -> None:
    assert too_many([(b"a", b"b")] * 100, 100, 10_000) is None
    many, long = too_many([(b"a", b"b")] * 101, 100, 10_000), too_many([(b"a", b"b" * 10_000)], 100, 10_000)
    assert many is not None and long is not None and (many.status, long.status) == (431, 431)
