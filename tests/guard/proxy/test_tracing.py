"""Spans go to whoever has set a provider up, and nowhere otherwise."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fairlead.guard.proxy import tracing

trace = pytest.importorskip("opentelemetry.trace", reason="opentelemetry-api is missing: pip install 'fairlead[guard]'")


class _Span(trace.NonRecordingSpan):  # type: ignore[misc, name-defined]
    def __init__(self, told: list[tuple[str, object]]) -> None:
        super().__init__(trace.INVALID_SPAN_CONTEXT)
        self.told = told

    def set_attribute(self, key: str, value: object) -> None:
        self.told.append((key, value))


class _Tracer(trace.NoOpTracer):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []
        self.parents: list[int] = []

    def start_as_current_span(self, name: str, context: object = None, **_: object) -> object:
        self.told.append(("name", name))
        parent = trace.get_current_span(context).get_span_context()
        self.parents.append(parent.trace_id)
        return trace.use_span(_Span(self.told))


class _Provider(trace.TracerProvider):  # type: ignore[misc, name-defined]
    def __init__(self, tracer: _Tracer) -> None:
        self.tracer = tracer

    def get_tracer(self, *_: object, **__: object) -> _Tracer:
        return self.tracer


def test_without_a_provider_there_is_no_tracer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: trace.ProxyTracerProvider())
    assert tracing.find_tracer() is None


def test_a_request_is_a_span_under_the_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    tracer = _Tracer()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: _Provider(tracer))
    found = tracing.find_tracer()
    assert found is not None
    request = SimpleNamespace(id="0123456789abcdef", asked=SimpleNamespace(model="mock"), decision="redact")
    with found("/v1/messages", f"00-{'a' * 32}-{'b' * 16}-01", request):
        pass
    assert tracer.parents == [int("a" * 32, 16)]
    assert dict(tracer.told) == {
        "name": "guard /v1/messages", "http.route": "/v1/messages", "fairlead.request": "0123456789abcdef",
        "gen_ai.request.model": "mock", "fairlead.decision": "redact",
    }  # fmt: skip
