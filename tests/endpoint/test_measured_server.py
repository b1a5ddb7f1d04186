"""A server's measures as its users see them: in the log, and on /metrics."""

from __future__ import annotations

import contextlib
import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from prometheus_client.parser import text_string_to_metric_families
from support.endpoint import EndpointServer, fill

HOUSE = "1998,2150,3,2.5,0.4,2"


def lines(server: EndpointServer, logger: str) -> list[dict[str, Any]]:
    every = [json.loads(line) for line in server.process.log.splitlines()]
    return [line for line in every if line["logger"] == logger]


def test_calls_reach_the_access_log_prometheus_and_cloudwatch(tmp_path: Path, samples_folder: Path) -> None:
    """
    A miss, a hit and a missing model, under the ids that the client got; what CloudWatch is told when the server stops.
    """
    folder = fill(tmp_path / "models", ["a.tar.gz"], samples_folder / "houston.tar.gz")
    server = EndpointServer("native", folder, "--log-format", "json", "--emf-namespace", "Polyhost")
    try:
        call = {"EndpointName": "polyhost", "ContentType": "text/csv", "Body": HOUSE}
        with contextlib.closing(server.client("sagemaker-runtime")) as client:
            answers = [client.invoke_endpoint(TargetModel="a.tar.gz", **call) for _ in range(2)]
            ids = [answer["ResponseMetadata"]["RequestId"] for answer in answers]
            (bytes_out,) = {len(answer["Body"].read()) for answer in answers}
            with pytest.raises(ClientError) as refused:
                client.invoke_endpoint(TargetModel='b.tar.gz" status=200', **call)
        ids.append(refused.value.response["ResponseMetadata"]["RequestId"])
        page = server.request("GET", "/metrics").text
    finally:
        assert server.stop() == 0, server.process.log

    log = lines(server, "polyhost.access")
    assert [line["request_id"] for line in log] == ids
    assert [(line["status"], line["loaded"]) for line in log] == [(200, "miss"), (200, "hit"), (400, None)]
    assert (log[0]["target"], log[0]["bytes_in"], log[0]["bytes_out"]) == ("a.tar.gz", len(HOUSE), bytes_out)
    assert log[2]["target"] == 'b.tar.gz" status=200'
    assert log[0]["total_ms"] > log[0]["model_ms"] > 0

    samples = {
        (sample.name, sample.labels.get("model", "")): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    assert samples["polyhost_invocations_total", ""] == 3
    assert samples["polyhost_loaded_model_count", ""] == 1
    assert samples["polyhost_model_loading_wait_time_seconds_count", ""] == 1
    assert samples["polyhost_per_model_invocations_total", "a.tar.gz"] == 2
    assert samples["polyhost_per_model_loads_total", "a.tar.gz"] == 1

    documents = [line for line in lines(server, "polyhost.emf") if line["EndpointName"] == "polyhost"]
    assert sum(document["Invocations"]["Sum"] for document in documents if "Invocations" in document) == 3
    assert sum(document["ModelCacheHit"]["Sum"] for document in documents if "ModelCacheHit" in document) == 1


def test_a_walk_through_reads_its_metrics(tmp_path: Path, samples_folder: Path) -> None:
    """As it does with CloudWatch, to plot them: hits and times while it runs, and the same from the next server."""
    folder = fill(tmp_path / "models", ["a.tar.gz"], samples_folder / "houston.tar.gz")
    names = {"EndpointName": "polyhost", "VariantName": "AllTraffic"}
    asked = {
        "Namespace": "AWS/SageMaker",
        "Dimensions": [{"Name": name, "Value": value} for name, value in names.items()],
        "StartTime": datetime.now(timezone.utc) - timedelta(minutes=5),
        "EndTime": datetime.now(timezone.utc) + timedelta(minutes=15),
        "Period": 1200,
        "Statistics": ["Sum", "Average", "SampleCount"],
        "ExtendedStatistics": ["p50"],
    }
    server = EndpointServer("native", folder, state=tmp_path / "state")
    for _ in range(4):
        server.predict("a.tar.gz", HOUSE)
    with contextlib.closing(server.client("cloudwatch")) as cloudwatch:
        (hits,) = cloudwatch.get_metric_statistics(MetricName="ModelCacheHit", **asked)["Datapoints"]
        (latency,) = cloudwatch.get_metric_statistics(MetricName="ModelLatency", **asked)["Datapoints"]
        listed = cloudwatch.list_metrics(Namespace="/aws/sagemaker/Endpoints")["Metrics"]
    assert (hits["Sum"], hits["Average"], hits["SampleCount"]) == (3, 0.75, 4)
    assert latency["Unit"] == "Microseconds"
    assert 0 < latency["ExtendedStatistics"]["p50"] < latency["Sum"] < 60e6
    assert {metric["MetricName"] for metric in listed} == {
        "CPUUtilization", "DiskUtilization", "LoadedModelCount", "MemoryUtilization",
    }  # fmt: skip

    server.predict("a.tar.gz", HOUSE)
    assert server.stop() == 0, server.process.log
    server = EndpointServer("native", folder, state=tmp_path / "state")
    try:
        with contextlib.closing(server.client("cloudwatch")) as cloudwatch:
            (invocations,) = cloudwatch.get_metric_statistics(MetricName="Invocations", **asked)["Datapoints"]
    finally:
        assert server.stop() == 0, server.process.log
    assert invocations["Sum"] == 5
