"""CPU time of the guard's wire formats: one request and one reply of 1 kB, and a stream of 200 chunks.

    python bench/guard_wire.py [--json]

Parsing, reading, writing and serialising, in one thread; nothing is checked and nothing is sent. Medians of 5 rounds.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import orjson

from fairlead.guard.wire import FORMATS, Format
from fairlead.guard.wire.asked import Allow
from fairlead.guard.wire.events import About, Channel, Close, Delta, Event, Finish, Open

SAID = "word " * 200
REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [{"role": "system", "content": SAID[:300]}, {"role": "user", "content": SAID[:700]}]
    },
    "/v1/completions": {"prompt": SAID},
    "/v1/responses": {"instructions": SAID[:300], "input": SAID[:700]},
    "/v1/messages": {"max_tokens": 64, "system": SAID[:300], "messages": [{"role": "user", "content": SAID[:700]}]},
}


def reply(pieces: list[str]) -> list[Event]:
    channel = Channel(0, 0)
    return [
        About("up-1", "m", 1),
        Open(channel, "reply"),
        *(Delta(channel, piece) for piece in pieces),
        Close(channel),
        Finish(0, "stop"),
    ]


def whole(form: Format, asked: bytes, answer: bytes) -> bytes:
    want = form.read_request(orjson.loads(asked), Allow())
    orjson.dumps(want.upstream)
    return orjson.dumps(form.body(form.events(orjson.loads(answer)), want, ()))


def stream(form: Format, asked: bytes, chunks: list[bytes]) -> bytes:
    want = form.read_request(orjson.loads(asked), Allow())
    orjson.dumps(want.upstream)
    reader, writer = form.reader(), form.writer(want)
    out = [writer.write(event) for chunk in chunks for event in reader.feed(chunk)]
    return b"".join([*out, writer.end()])


def cost(run: Callable[[], object], times: int) -> float:
    """CPU time of one run in microseconds."""
    rounds = []
    for _ in range(5):
        start = time.process_time()
        for _ in range(times):
            run()
        rounds.append((time.process_time() - start) / times * 1e6)
    return statistics.median(rounds)


def measured() -> dict[str, dict[str, float]]:
    found = {}
    for route, request in REQUESTS.items():
        form = FORMATS[route]
        asked = orjson.dumps({"model": "m", "temperature": 0.5, **request})
        want = form.read_request(orjson.loads(asked), Allow())
        answer = orjson.dumps(form.body(reply([SAID]), want, ()))
        writer = form.writer(want)
        chunks = [data for event in reply([f"word{i} " for i in range(200)]) if (data := writer.write(event))]
        chunks.append(writer.end())
        found[route] = {
            "whole_us": round(cost(lambda: whole(form, asked, answer), 2000), 1),  # noqa: B023  # run at once
            "stream_ms": round(cost(lambda: stream(form, asked, chunks), 100) / 1000, 2),  # noqa: B023
        }
    return found


if __name__ == "__main__":
    table = measured()
    if "--json" in sys.argv:
        print(json.dumps(table))
    else:
        for route, row in table.items():
            print(f"{route:24} whole {row['whole_us']:6.1f} us   stream of 200 {row['stream_ms']:5.2f} ms")
