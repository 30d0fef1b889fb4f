"""OpenTelemetry spans, where opentelemetry-api is installed and the process has set a provider up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeAlias

Tracer: TypeAlias = Callable[[str, str, Any], AbstractContextManager[None]]


def find_tracer() -> Tracer | None:
    """One span for each request, child of the client's `traceparent`; None where nobody would read it."""
    try:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    except ModuleNotFoundError:
        return None
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None
    tracer = provider.get_tracer("fairlead.guard")
    reader = TraceContextTextMapPropagator()

    @contextmanager
    def span(route: str, parent: str, request: Any) -> Iterator[None]:
        context = reader.extract({"traceparent": parent}) if parent else None
        with tracer.start_as_current_span(
            f"guard {route}", context=context, kind=trace.SpanKind.SERVER, record_exception=False
        ) as current:
            current.set_attribute("http.route", route)
            current.set_attribute("fairlead.request", request.id)
            current.set_attribute("gen_ai.request.model", request.asked.model)
            yield
            current.set_attribute("fairlead.decision", request.decision)

    return span
