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
        # an exception's message may hold what was asked: neither it nor a status made of it goes into the span
        with tracer.start_as_current_span(
            f"guard {route}", context=context, kind=trace.SpanKind.SERVER, record_exception=False,
            set_status_on_exception=False,
        ) as current:  # fmt: skip
            current.set_attribute("http.route", route)
            current.set_attribute("fairlead.request", request.id)
            current.set_attribute("gen_ai.request.model", request.asked.model)
            code = 0
            try:
                yield
            except BaseException as error:
                kind, code = type(error).__name__, getattr(error, "status", 0)
                current.set_attribute("error.type", kind)
                current.set_status(trace.Status(trace.StatusCode.ERROR, kind))
                raise
            finally:
                current.set_attribute("fairlead.decision", request.decision)
                if code := request.out.status or code:
                    current.set_attribute("http.response.status_code", code)

    return span
