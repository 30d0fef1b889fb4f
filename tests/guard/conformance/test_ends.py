"""Replies that do not end as they should: errors with texts in them, and what the guard has no name for."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is missing: pip install 'fairlead[guard]'")
pytest.importorskip("aiohttp", reason="aiohttp is missing: pip install 'fairlead[guard]'")
pytest.importorskip("openai", reason="openai is missing: pip install 'fairlead[dev]'")
pytest.importorskip("anthropic", reason="anthropic is missing: pip install 'fairlead[dev]'")

from guard.conformance import upstream
from guard.conformance.bench import Bench
from guard.conformance.cells import AXES, Cell
from guard.conformance.holds import nothing_leaks
from guard.conformance.markers import CANARY, mark
from guard.conformance.said import spoken
from support.mock_upstream import Step, json_reply, sse_reply

WHERE = list(itertools.product(AXES["endpoint"], ("whole", "window")))
UNKNOWN = {  # in the middle of a stream
    "chat": {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "type": "custom", "custom": "X"}]}}]},
    "completions": {"choices": [{"index": 0, "text": {"more": "X"}}]},
    "responses": {"type": "response.odd_event", "text": "X"},
    "messages": {"type": "odd_event", "text": "X"},
}


def _cell(endpoint: str, reply: str) -> Cell:
    return Cell(endpoint, reply, "none", "none", "1", "off", "allow")


def _error(endpoint: str) -> dict[str, object]:
    said = f"{mark('error body')} {CANARY}"
    error = {"type": "error", "error": {"type": "api_error", "message": said}}
    return error if endpoint == "messages" else {"error": {"message": said, "type": said, "code": said, "param": said}}


def _streamed(cell: Cell, *then: object) -> Sequence[Step]:
    """The first half of the reply, and what comes then."""
    events = [event for event in upstream.STREAMS[cell.endpoint](cell, spoken(cell)) if isinstance(event, dict)]
    known = [event for event in events if event.get("type") not in ("response.odd_event", "odd_event")]
    return sse_reply(*known[:-20], *then)  # type: ignore[arg-type]


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 529])
@pytest.mark.parametrize(("endpoint", "reply"), WHERE)
def test_of_an_error_the_status_leaves_and_none_of_its_words(
    matrix: Bench, endpoint: str, reply: str, status: int
) -> None:
    cell = _cell(endpoint, reply)
    found = matrix.ask("strict", cell, json_reply(_error(endpoint), status, upstream.HEADERS))
    assert list(nothing_leaks(cell, found)) == []
    assert found.status == (502 if status == 401 else status)
    assert len(json.dumps(found.error)) > 40
    [entry] = matrix.entries("strict", found)
    assert (entry["status"], entry["released"]) == (found.status, [])


@pytest.mark.parametrize("endpoint", AXES["endpoint"])
def test_an_error_in_the_middle_of_a_stream_is_told_in_words_of_the_guards(matrix: Bench, endpoint: str) -> None:
    cell = _cell(endpoint, "window")
    found = matrix.ask("strict", cell, _streamed(cell, 0.1, _error(endpoint) | {"type": "error"}))
    assert list(nothing_leaks(cell, found)) == []
    assert found.status == 200
    assert found.error or found.at(0).finish == "failed"
    [entry] = matrix.entries("strict", found)
    assert (entry["status"], entry["ended"]) == (200, "upstream failed")
    assert entry["released"]


@pytest.mark.parametrize("endpoint", AXES["endpoint"])
def test_what_has_no_name_ends_a_stream_well_formed(matrix: Bench, endpoint: str) -> None:
    cell = _cell(endpoint, "window")
    word = mark("unknown event")
    unknown = json.loads(json.dumps(UNKNOWN[endpoint]).replace("X", f"{word} {CANARY}"))
    found = matrix.ask("strict", cell, _streamed(cell, unknown, "close"))
    assert list(nothing_leaks(cell, found)) == []
    assert (found.status, found.error) == (200, None)
    assert [one["decision"] for one in found.told] == ["failed"]
    one = found.at(0)
    assert one.finish in ("content_filter", "incomplete (content_filter)", "refusal")
    assert len(one.text) > 100
    assert spoken(cell)[0].text.startswith(one.text)
    [entry] = matrix.entries("strict", found)
    assert (entry["decision"], entry["withheld"]["unknown event"]) == ("failed", 1)


@pytest.mark.parametrize("endpoint", [one for one in AXES["endpoint"] if one != "completions"])
def test_what_has_no_name_in_one_body_leaves_nothing_of_it(matrix: Bench, endpoint: str) -> None:
    cell = Cell(endpoint, "whole", "one", "none", "1", "off", "allow")
    found = matrix.ask("strict", cell, upstream.answer(cell))
    assert list(nothing_leaks(cell, found)) == []
    assert found.status == 502
    assert "x-should-retry: false" in found.head
