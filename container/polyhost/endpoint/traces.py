"""
Traces by OpenTelemetry: a span for each call, with one for each hop in it, in the trace that the client names.

Where they go is said by OpenTelemetry's own variables, OTEL_EXPORTER_OTLP_ENDPOINT above all. A span waits in memory
until a thread sends it; what does not fit, or is not taken, is lost, and no call waits for it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from polyhost import __version__
from polyhost.errors import MissingDependency

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

# What a server that stops waits for its last spans.
_LAST_SECS = 2.0
_NANOS = 1_000_000_000


class CallTrace:
    """Of one call. Times are of time.perf_counter()."""

    def __init__(self, tracer: Tracer, span: Span, nanos_ahead: int) -> None:
        """`nanos_ahead`: of 1970's clock, to that one."""
        self._tracer = tracer
        self._span = span
        self._nanos_ahead = nanos_ahead

    def hop(self, name: str, begin: float, end: float, target: str) -> None:
        """A part of it that is over: a wait for a load, or a model's answer."""
        from opentelemetry.trace import set_span_in_context

        span = self._tracer.start_span(
            name,
            set_span_in_context(self._span),
            attributes={"polyhost.target": target},
            start_time=self._moment(begin),
        )
        span.end(self._moment(end))

    def answered(self, status: int, endpoint: str, variant: str, target: str, request_id: str) -> None:
        """It is over."""
        from opentelemetry.trace import Status, StatusCode

        self._span.set_attributes({
            "http.response.status_code": status, "polyhost.endpoint": endpoint, "polyhost.variant": variant,
            "polyhost.target": target, "aws.request_id": request_id,
        })  # fmt: skip
        if status >= 400:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end(self._moment(time.perf_counter()))

    def _moment(self, secs: float) -> int:
        return int(secs * _NANOS) + self._nanos_ahead


class Traces:
    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("polyhost", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, headers: Mapping[str, str], began: float) -> tuple[CallTrace, dict[str, str]]:
        """A call's trace, and its headers as its models are sent them: with this span as their parent."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        ahead = time.time_ns() - time.perf_counter_ns()
        span = self._tracer.start_span(
            "InvokeEndpoint",
            self._propagator.extract(headers),
            kind=SpanKind.SERVER,
            start_time=int(began * _NANOS) + ahead,
        )
        sent = dict(headers)
        self._propagator.inject(sent, set_span_in_context(span))
        return CallTrace(self._tracer, span, ahead), sent

    async def stop(self) -> None:
        """What waits is sent, if that is quick."""
        # A thread that nobody waits for: a collector that does not answer keeps no server from its end.
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        await asyncio.get_running_loop().run_in_executor(None, ending.join, _LAST_SECS)


def open_traces(environ: Mapping[str, str]) -> Traces:
    """Raises MissingDependency."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingDependency(
            f"--traces otlp needs OpenTelemetry ({error}): pip install 'polyhost[traces]'."
        ) from error
    resource = {"service.name": environ.get("OTEL_SERVICE_NAME", "polyhost"), "service.version": __version__}
    provider = TracerProvider(resource=Resource.create(resource), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Traces(provider)
