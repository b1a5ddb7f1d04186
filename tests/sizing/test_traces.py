"""Traces are a server's own access logs, or plain lists."""

from __future__ import annotations

import pytest
from polyhost.sizing.traces import parse_trace

LOG = """\
2026-11-21 10:00:00,000 [INFO ] polyhost - ready on http://127.0.0.1:8080
2026-11-21 10:00:00,500 [INFO ] polyhost.access - 1d1c InvokeEndpoint endpoint=p variant=AllTraffic target=a.tar.gz \
status=200 bytes_in=27 bytes_out=16 total_ms=1.204 model_ms=0.730 loaded=hit
2026-11-21 10:00:01,000 [INFO ] polyhost.access - 1d1d InvokeEndpoint endpoint=p variant=AllTraffic target="b \\"x\\"" \
status=200 bytes_in=27 bytes_out=16 total_ms=1.204 model_ms=0.730 loaded=hit
2026-11-21 10:00:02,000 [INFO ] polyhost.access - 1d1e InvokeEndpoint endpoint=p variant=AllTraffic target=- \
status=200 bytes_in=27 bytes_out=16 total_ms=1.204 model_ms=0.730 loaded=-
2026-11-21 10:00:02,500 [INFO ] polyhost.access - 1d1f InvokeEndpoint endpoint=p variant=AllTraffic target=gone.tar.gz \
status=400 bytes_in=27 bytes_out=16 total_ms=1.204 model_ms=0.730 loaded=-
2026-11-21 10:00:02,500 [INFO ] polyhost.access - 1d20 InvokeEndpoint endpoint=p variant=AllTraffic target=a.tar.gz \
status=200 bytes_in=27 bytes_out=16 total_ms=1.204 model_ms=0.730 loaded=hit
"""
JSON_LOG = """\
{"time": "2026-11-21T10:00:00.000Z", "level": "INFO", "logger": "polyhost", "message": "ready"}
{"time": "2026-11-21T10:00:00.000Z", "level": "INFO", "logger": "polyhost.access", "target": "a.tar.gz"}
{"time": "2026-11-21T10:00:04.000Z", "level": "INFO", "logger": "polyhost.access", "target": "a.tar.gz"}
{"time": "2026-11-21T10:00:0
"""


def test_an_access_log_in_text() -> None:
    """Targets in order, also quoted ones, and the rate; other lines and calls without a target are none."""
    trace = parse_trace(LOG.splitlines(), {"a.tar.gz", 'b "x"'})

    assert trace.targets == ("a.tar.gz", 'b "x"', "a.tar.gz")
    assert trace.unknown == 1
    assert trace.requests_per_sec == 1.0


def test_an_access_log_in_json() -> None:
    """One object a line; half a line at the end is none."""
    trace = parse_trace(JSON_LOG.splitlines(), {"a.tar.gz"})

    assert (trace.targets, trace.requests_per_sec) == (("a.tar.gz", "a.tar.gz"), 0.25)


def test_a_plain_list() -> None:
    """One target a line, also with spaces; no times, no rate."""
    trace = parse_trace(["a.tar.gz\n", "\n", "my model.tar.gz\n", "other\n"], {"a.tar.gz", "my model.tar.gz"})

    assert trace.targets == ("a.tar.gz", "my model.tar.gz")
    assert (trace.unknown, trace.requests_per_sec) == (1, None)


@pytest.mark.parametrize("lines", [[], ["nothing.tar.gz"], ['{"target": 5}', "{}", "[]"], ["\udcff\x00"]])
def test_a_trace_without_any_of_the_models_is_refused(lines: list[str]) -> None:
    """With a sentence that says what a trace is."""
    with pytest.raises(ValueError, match="it must be an access log of Polyhost's, or have one target a line"):
        parse_trace(lines, {"a.tar.gz"})
