"""Traces: which spans a call has, in whose trace, and that they reach a collector."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from polyhost.api.http import Request
from polyhost.api.runtime import _invocation_of, _traced
from polyhost.config import Config
from polyhost.endpoint import traces as module
from polyhost.endpoint.calls import CallContext
from polyhost.endpoint.traces import Traces, open_traces
from polyhost.endpoint_server import endpoint_half
from polyhost.errors import MissingDependency
from polyhost.limits import Limits
from polyhost.metrics import Metrics
from polyhost.plan import Plan
from support.endpoint import EndpointServer, fill, packed
from support.tree import wait_until

HOUSE = "1998,2150,3,2.5,0.4,2"
# W3C's own example.
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADERS = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "congo=t61rcWkgMzE"}


@pytest.fixture
def exported() -> tuple[Traces, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Traces(provider), exporter


def test_a_call_is_part_of_its_clients_trace(exported: tuple[Traces, InMemorySpanExporter]) -> None:
    """Its hops are part of the call, in their times; its model is sent the call as its parent."""
    traces, exporter = exported
    trace, sent = traces.begin({**HEADERS, "accept": "text/csv"}, 100.0)
    trace.hop("load", 100.25, 101.0, "a.tar.gz")
    trace.hop("model", 101.0, 101.5, "a.tar.gz")
    trace.answered(200, "house", "blue", "a.tar.gz", "id-1")

    load, model, call = exporter.get_finished_spans()
    assert (call.name, load.name, model.name) == ("InvokeEndpoint", "load", "model")
    assert f"{call.context.trace_id:032x}" == TRACE
    assert f"{call.parent.span_id:016x}" == PARENT
    for hop in (load, model):
        assert (hop.context.trace_id, hop.parent.span_id) == (call.context.trace_id, call.context.span_id)
    assert load.start_time - call.start_time == pytest.approx(0.25e9, abs=1e3)
    assert (load.end_time - load.start_time, model.end_time - model.start_time) == pytest.approx((75e7, 5e8), abs=1e3)
    assert sent["traceparent"] == f"00-{TRACE}-{call.context.span_id:016x}-01"
    assert (sent["tracestate"], sent["accept"]) == (HEADERS["tracestate"], "text/csv")
    assert dict(call.attributes) == {
        "http.response.status_code": 200, "polyhost.endpoint": "house", "polyhost.variant": "blue",
        "polyhost.target": "a.tar.gz", "aws.request_id": "id-1",
    }  # fmt: skip
    assert call.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("traceparent", ["", "nonsense", f"00-{'0' * 32}-{PARENT}-01", f"00-{TRACE}-{PARENT}-01" * 3])
def test_a_parent_that_is_none_begins_a_trace(exported: tuple[Traces, InMemorySpanExporter], traceparent: str) -> None:
    """As W3C says: it is ignored, and no reason to refuse a call."""
    traces, exporter = exported
    headers = {"traceparent": traceparent} if traceparent else {}
    invocation = _invocation_of(Request("POST", "/", "", headers, b""), "house", "id-1")
    context = CallContext()
    _traced(traces, invocation, context)
    assert context.trace is not None
    context.trace.answered(424, "house", "blue", "", "id-1")
    (call,) = exporter.get_finished_spans()
    assert call.parent is None
    assert call.status.status_code is StatusCode.ERROR


def test_without_traces_models_are_sent_what_the_client_sent() -> None:
    invocation = _invocation_of(Request("POST", "/", "", dict(HEADERS), b""), "house", "id-1")
    assert dict(invocation.item.headers) == HEADERS


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(MissingDependency, match=r"pip install 'polyhost\[traces\]'"):
        open_traces({})


class Collector(BaseHTTPRequestHandler):
    """OTLP over HTTP."""

    spans: list[Any]

    def do_POST(self) -> None:
        request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
        assert self.path == "/v1/traces"
        for resource in request.resource_spans:
            name = {one.key: one.value.string_value for one in resource.resource.attributes}["service.name"]
            self.spans += [(name, span) for scope in resource.scope_spans for span in scope.spans]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Any]]]:
    """Its address, and the spans that it gets, with their services' names."""
    spans: list[Any] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Collector,), {"spans": spans}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", spans
    server.shutdown()
    thread.join()
    server.server_close()


def test_spans_reach_a_collector(collector: tuple[str, list[Any]], tmp_path: Path, samples_folder: Path) -> None:
    """Of a load, a hit, and a refusal; two fronts answer none of them themselves."""
    address, spans = collector
    folder = fill(tmp_path / "models", ["a.tar.gz"], samples_folder / "houston.tar.gz")
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": address, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    server = EndpointServer("native", folder, "--traces", "otlp", "--fronts", "2", environ=environ)
    try:
        for _ in range(2):
            server.predict("a.tar.gz", HOUSE)
        with pytest.raises(ClientError):
            server.predict("missing.tar.gz", HOUSE)
        wait_until(lambda: len(spans) >= 7, 120, "the spans reach the collector")
    finally:
        assert server.stop() == 0, server.process.log
    assert sorted(span.name for _, span in spans) == ["InvokeEndpoint"] * 3 + ["load"] * 2 + ["model"] * 2
    assert {name for name, _ in spans} == {"polyhost"}
    assert len({span.trace_id for _, span in spans}) == 3


def test_the_last_spans_are_sent_when_the_server_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LAST_SECS", 120.0)
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=3_600_000))
    config = Config(models=f"{tmp_path}/", state_dir=tmp_path / "state")
    limits = Limits.of_platform(config, {"SAGEMAKER_MULTI_MODEL": "true"})
    engine: Any = None  # nobody is asked
    half = endpoint_half(Plan(config=config, environ={}, limits=limits), {}, engine, Metrics(), lambda _: None)
    traces = Traces(provider)

    traces.begin({}, 100.0)[0].answered(200, "house", "blue", "a.tar.gz", "id-1")
    assert exporter.get_finished_spans() == ()
    asyncio.run(dataclasses.replace(half, traces=traces).stop())

    assert [span.name for span in exporter.get_finished_spans()] == ["InvokeEndpoint"]


@pytest.mark.parametrize("traces", ["otlp", "off"])
def test_a_models_code_sees_the_trace(traces: str, tmp_path: Path) -> None:
    """
    As a header of its request: the client's where nothing is traced here, otherwise with our span as its parent.

    A collector that is not there keeps neither a call nor a stop.
    """
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "handler.py").write_text(
        "def handle(data, context):\n    return [context.get_request_header(0, 'traceparent')] if data else None\n"
    )
    (folder / "MAR-INF").mkdir()
    (folder / "MAR-INF" / "MANIFEST.json").write_text('{"model": {"modelName": "m", "handler": "handler:handle"}}')
    packed(folder, tmp_path / "models" / "a.tar.gz")
    server = EndpointServer(
        "native", tmp_path / "models", "--traces", traces,
        environ={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"},
    )  # fmt: skip
    try:
        answer = server.request(
            "POST", "/endpoints/polyhost/invocations", b"x", X_Amzn_SageMaker_Target_Model="a.tar.gz", **HEADERS,
        )  # fmt: skip
    finally:
        assert server.stop() == 0, server.process.log
    assert answer.status == 200, answer.text
    assert answer.text.startswith(f"00-{TRACE}-")
    assert (PARENT in answer.text) is (traces == "off")
