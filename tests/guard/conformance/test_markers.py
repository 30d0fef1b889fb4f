"""The reader that looks for marks finds them: else no cell could fail."""

from __future__ import annotations

import base64

import pytest

from guard.conformance.markers import CANARY, FORMS, mark, planted, texts, unchunked

WORD = mark("somewhere").encode()


@pytest.mark.parametrize("name", FORMS)
def test_the_canary_is_found_in_every_form_in_which_it_is_hidden(name: str) -> None:
    said = f'HTTP/1.1 200 OK\r\nx-a: b\r\n\r\n{{"text":"it is {FORMS[name]} today"}}'.encode()
    assert planted(said) == {"canary"}
    assert planted(said[: len(said) // 2 - 12] + b"..." + said[-12:]) == set()


@pytest.mark.parametrize(
    "hidden",
    [
        WORD, WORD.upper(), WORD[::-1], WORD.hex().encode(), base64.b64encode(WORD), base64.urlsafe_b64encode(b"a" + WORD),
        base64.b64encode(WORD[::-1]), base64.b64encode(base64.b64encode(b"xx" + WORD)), str(list(WORD)).encode(),
        "".join(f"%{byte:02x}" for byte in WORD).encode(), "".join(f"\\u{byte:04x}" for byte in WORD).encode(),
    ],
)  # fmt: skip
def test_a_mark_is_found_in_every_form(hidden: bytes) -> None:
    assert planted(b'{"id":"' + hidden + b'"}') == {"somewhere"}


def test_what_is_split_over_events_is_joined() -> None:
    events = "".join(
        f'data: {{"choices":[{{"index":0,"delta":{{"content":"{CANARY[i : i + 3]}"}}}}]}}\n\n' for i in range(0, 32, 3)
    )
    raw = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(events), events.encode())
    assert planted(raw) == set()
    assert planted(texts(raw)) == {"canary"}
    with pytest.raises(ValueError, match="chunk"):
        unchunked(b"3\r\nabcd\r\n0\r\n\r\n")
