"""What handlers count and measure by MMS's `context.metrics`."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Servers
from prometheus_client.parser import text_string_to_metric_families
from support.server import Server

SERVICE = """
def handle(data, context):
    if data is None:
        return None
    context.metrics.add_counter("Rows seen", 3)
    context.metrics.add_size("BodySize", 2.5, unit="kB")
    context.metrics.add_error("Oddity", "a text")
    return ["done"]
"""


@pytest.fixture
def server(servers: Servers) -> Server:
    return servers.get("native", environ={"SAGEMAKER_MULTI_MODEL": "true"})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text(SERVICE)
    return tmp_path


def samples(server: Server) -> dict[str, float]:
    """By name and model, as Prometheus reads them."""
    answer = server.request("GET", "/metrics")
    assert answer.status == 200
    assert answer.fields["content-type"].startswith("text/plain; version=0.0.4")
    families = text_string_to_metric_families(answer.text)
    return {
        f"{sample.name} {sample.labels['model']}": sample.value
        for family in families
        for sample in family.samples
        if sample.name.startswith("polyhost_handler_")
    }


def test_handlers_metrics_are_exposed_and_logged(server: Server, model: Path) -> None:
    with server.loaded("counting", model, handler="service:handle") as invoke:
        for _ in range(4):
            assert invoke().status == 200

        seen = samples(server)
        assert seen["polyhost_handler_rows_seen_count_total counting"] == 12
        assert seen["polyhost_handler_bodysize_kilobytes_count counting"] == 4
        assert seen["polyhost_handler_bodysize_kilobytes_sum counting"] == 10
        assert seen["polyhost_handler_predictiontime_milliseconds_count counting"] == 4
        line = server.process.wait_for_line(r"Rows seen\.Count:3\|#ModelName:counting,Level:Model")
        assert "polyhost.metrics" in line
        assert "PredictionTime" not in server.process.log


def test_an_unloaded_models_metrics_end(server: Server, model: Path) -> None:
    with server.loaded("passing", model, handler="service:handle") as invoke:
        assert invoke().status == 200
        assert "polyhost_handler_rows_seen_count_total passing" in samples(server)

    assert not [name for name in samples(server) if name.endswith(" passing")]
