"""Streams of bytes as providers, networks and enemies send them."""

from __future__ import annotations

import json
import random

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.guard.wire import FORMATS, sse
from fairlead.guard.wire.asked import Allow
from fairlead.guard.wire.events import End, Event, Failed, Unknown
from guard.wire.fuzz import changed_at_random, something
from guard.wire.samples import BODIES, CHAT, ROUTES, STREAMS, chat_chunk, request
from guard.wire.samples import sse as stream


def lines(*pieces: bytes) -> list[bytes]:
    decoder = sse.Lines()
    return [data for piece in pieces for data in decoder.feed(piece)] + decoder.eof()


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (b"data: a\n\n", [b"a"]),
        (b"data:a\n\n", [b"a"]),
        (b"data:  a\n\n", [b" a"]),
        (b"data: a\r\n\r\n", [b"a"]),
        (b"data: a\r\r", [b"a"]),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b": wait\n\ndata: a\n\n", [b"a"]),
        (b"event: x\nid: 7\nretry: 3\ndata: a\n\n", [b"a"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data: a\n: between\ndata: b\n\n", [b"a\nb"]),
        (b"data: a", [b"a"]),
        (b"data: a\n", [b"a"]),
        (b"data\n\n", []),
        (b"database: a\n\n", []),
        (b"\n\n\n", []),
        (b"", []),
        (b"data: a\n\n\n\ndata: b\n\n", [b"a", b"b"]),
    ],
)
def test_lines(given: bytes, found: list[bytes]) -> None:
    assert lines(given) == found
    assert lines(*(given[i : i + 1] for i in range(len(given)))) == found


def test_an_event_that_is_split_after_cr_is_not_ended_by_its_lf() -> None:
    assert lines(b"data: a\r", b"\ndata: b\r", b"\n\r", b"\n") == [b"a\nb"]


def read(route: str, *pieces: bytes) -> list[Event]:
    reader = FORMATS[route].reader()
    return [event for piece in pieces for event in reader.feed(piece)] + reader.eof()


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "data",
    [
        b"data: {oh\n\n",
        b'data: {"a": "\xff\xfe"}\n\n',
        b'data: {"a": "\\ud800"}\n\n',
        b'data: {"a": NaN}\n\n',
        b"data: " + b"[" * 5000 + b"]" * 5000 + b"\n\n",
        b"data: \x00\n\n",
    ],
)
def test_what_is_no_json_ends_the_stream(route: str, data: bytes) -> None:
    assert read(route, data, STREAMS[route]) == [Failed(sse.NOT_JSON)]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("data", [b"data: 7\n\n", b'data: "x"\n\n', b"data: []\n\n", b"data: null\n\n"])
def test_what_is_no_object_is_counted(route: str, data: bytes) -> None:
    assert read(route, data)[0] == Unknown("event that is no object")


@pytest.mark.parametrize("route", ROUTES)
def test_an_end_without_a_word_is_a_break(route: str) -> None:
    assert read(route) == [Failed(sse.BROKE_OFF)]
    half = STREAMS[route][: len(STREAMS[route]) // 2]
    assert read(route, half)[-1] == Failed(sse.BROKE_OFF)


def test_a_stream_without_done_is_whole_if_every_alternative_has_ended() -> None:
    said = stream(chat_chunk(0, {"content": "a"}), chat_chunk(0, {}, "stop"))
    assert read(CHAT, said)[-1] == End()
    assert read(CHAT, stream(chat_chunk(0, {"content": "a"})))[-1] == Failed(sse.BROKE_OFF)


@pytest.mark.parametrize("route", ROUTES)
def test_nothing_is_read_after_the_end(route: str) -> None:
    assert read(route, STREAMS[route], STREAMS[route]) == read(route, STREAMS[route])


@pytest.mark.parametrize("by", [1 << 16, 1 << 20, sse.LONGEST + 1])
@pytest.mark.parametrize("start", [b"data: ", b"", b":"])
def test_a_line_without_an_end_is_cut_off(by: int, start: bytes) -> None:
    reader = FORMATS[CHAT].reader()
    assert reader.feed(start) == []
    for sent in range(0, 3 * sse.LONGEST, by):
        found = reader.feed(b"x" * by)
        assert found in ([], [Failed(sse.TOO_LONG)])
        if found:
            assert sent + by <= sse.LONGEST + by
            break
    else:
        raise AssertionError("it was never cut off")
    assert reader.feed(STREAMS[CHAT]) == [] and reader.eof() == []


def test_an_event_of_many_lines_is_cut_off() -> None:
    reader = FORMATS[CHAT].reader()
    line = b"data: " + b"x" * 60_000 + b"\n"
    found = [event for _ in range(100) for event in reader.feed(line)]
    assert found == [Failed(sse.TOO_LONG)]


def test_a_line_that_comes_byte_by_byte_is_joined_once() -> None:
    """A million pieces. Joined at every piece this would copy half a terabyte, and nobody would wait for it."""
    decoder = sse.Lines()
    assert all(decoder.feed(piece) == [] for piece in (b"data: ", *(b"y",) * 1_000_000, b"\n"))
    assert decoder.feed(b"\n") == [b"y" * 1_000_000]


# ------------------------------------------------------------------------------------------------------ fuzz


@pytest.mark.parametrize("route", ROUTES)
def test_no_object_breaks_a_reader_or_a_writer(route: str) -> None:
    form, chance = FORMATS[route], random.Random(7)
    want = form.read_request(request(route), Allow(opaque=True))
    for _ in range(1500):
        said = [something(chance) for _ in range(chance.randrange(1, 6))]
        events = read(route, b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in said))
        assert isinstance(events[-1], End | Failed)
        writer = form.writer(want)
        is_a_stream(b"".join(writer.write(event) for event in events) + writer.end())
        assert isinstance(form.events(said[0])[-1], End | Failed)


@pytest.mark.parametrize("route", ROUTES)
def test_no_change_of_a_real_stream_breaks_a_reader_or_a_writer(route: str) -> None:
    form, chance = FORMATS[route], random.Random(8)
    want = form.read_request(request(route), Allow(opaque=True))
    said = [orjson.loads(one) for one in lines(STREAMS[route]) if one != sse.DONE]
    for _ in range(600):
        changed = [changed_at_random(chance, one) if chance.random() < 0.3 else one for one in said]
        chance.random() < 0.3 and chance.shuffle(changed)
        events = read(
            route, stream(*({k: v for k, v in one.items() if k != "type" or isinstance(v, str)} for one in changed))
        )
        assert isinstance(events[-1], End | Failed)
        writer = form.writer(want)
        is_a_stream(b"".join(writer.write(event) for event in events) + writer.end())
        assert isinstance(form.events(changed_at_random(chance, BODIES[route]))[-1], End | Failed)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(ROUTES), st.lists(st.binary(max_size=60), max_size=6))
def test_no_bytes_break_a_reader(route: str, pieces: list[bytes]) -> None:
    assert isinstance(read(route, *pieces)[-1], End | Failed)


def is_a_stream(data: bytes) -> None:
    """What is written is a stream of JSON."""
    for one in lines(data):
        assert one == b"[DONE]" or isinstance(orjson.loads(one), dict)
