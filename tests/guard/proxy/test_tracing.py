"""Spans go to whoever has set a provider up, and nowhere otherwise."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fairlead.guard.proxy import tracing
from fairlead.guard.proxy.upstream import Broken

trace = pytest.importorskip("opentelemetry.trace", reason="opentelemetry-api is missing: pip install 'fairlead[guard]'")


class _Span(trace.NonRecordingSpan):  # type: ignore[misc, name-defined]
    def __init__(self, told: list[tuple[str, object]]) -> None:
        super().__init__(trace.INVALID_SPAN_CONTEXT)
        self.told = told

    def is_recording(self) -> bool:
        return True

    def set_attribute(self, key: str, value: object) -> None:
        self.told.append((key, value))

    def set_status(self, status: Any, description: str | None = None) -> None:
        self.told.append(("status", (status.status_code.name, status.description)))

    def record_exception(self, exception: BaseException, *_: object, **__: object) -> None:
        self.told.append(("exception", str(exception)))


class _Tracer(trace.NoOpTracer):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []
        self.parents: list[int] = []

    def start_as_current_span(self, name: str, context: object = None, **how: Any) -> object:
        self.told.append(("name", name))
        parent = trace.get_current_span(context).get_span_context()
        self.parents.append(parent.trace_id)
        said = {name: how[name] for name in ("record_exception", "set_status_on_exception") if name in how}
        return trace.use_span(_Span(self.told), **said)


class _Provider(trace.TracerProvider):  # type: ignore[misc, name-defined]
    def __init__(self, tracer: _Tracer) -> None:
        self.tracer = tracer

    def get_tracer(self, *_: object, **__: object) -> _Tracer:
        return self.tracer


def _request(decision: str, status: int) -> Any:
    asked, out = SimpleNamespace(model="mock"), SimpleNamespace(status=status)
    return SimpleNamespace(id="0123456789abcdef", asked=asked, decision=decision, out=out)


def test_without_a_provider_there_is_no_tracer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: trace.ProxyTracerProvider())
    assert tracing.find_tracer() is None


def test_a_request_is_a_span_under_the_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    tracer = _Tracer()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: _Provider(tracer))
    found = tracing.find_tracer()
    assert found is not None
    request = _request("redact", 200)
    with found("/v1/messages", f"00-{'a' * 32}-{'b' * 16}-01", request):
        pass
    assert tracer.parents == [int("a" * 32, 16)]
    assert dict(tracer.told) == {
        "name": "guard /v1/messages", "http.route": "/v1/messages", "fairlead.request": "0123456789abcdef",
        "gen_ai.request.model": "mock", "fairlead.decision": "redact",
        "http.response.status_code": 200,
    }  # fmt: skip


def test_a_span_that_ends_in_an_error_names_its_kind_and_none_of_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the guard may quote what was asked or said."""
    tracer = _Tracer()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: _Provider(tracer))
    found = tracing.find_tracer()
    assert found is not None
    for error in (ValueError("falcon-7781-heron"), Broken(503, "falcon-7781-heron")):
        tracer.told.clear()
        with pytest.raises(type(error)), found("/v1/messages", "", _request("failed", 0)):
            raise error
        assert "falcon" not in str(tracer.told)
        told = dict(tracer.told)
        assert told["status"] == ("ERROR", type(error).__name__) == ("ERROR", told["error.type"])
        assert told["fairlead.decision"] == "failed"
    assert told["http.response.status_code"] == 503
