"""The server's metrics, read by boto3 as CloudWatch's, beside another implementation of CloudWatch."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import boto3
import botocore.loaders
import botocore.session
import pytest
import requests
from botocore.config import Config
from botocore.exceptions import ClientError
from polyhost.api.cloudwatch import CloudWatchApi
from polyhost.api.http import Reply, Request
from polyhost.api.routes import Routes
from polyhost.endpoint.measures.emf import Datum, Minute
from polyhost.endpoint.monitoring import Monitoring
from polyhost.endpoint.monitoring import minutes as minutes_module
from polyhost.endpoint.monitoring.minutes import FILE, KEPT_SECS, Minutes
from polyhost.endpoint.monitoring.summary import Summary, condensed, together
from support.endpoint import client
from support.fronts import front

ENDPOINT, VARIANT = "house-prices", "AllTraffic"
DIMENSIONS = [{"Name": "EndpointName", "Value": ENDPOINT}, {"Name": "VariantName", "Value": VARIANT}]
NOW = datetime.now(timezone.utc).replace(second=0, microsecond=0)
BEGIN = NOW - timedelta(hours=2)
STATISTICS = ["SampleCount", "Average", "Sum", "Minimum", "Maximum"]


class Watched:
    """A server of metrics alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.monitoring = Monitoring(folder, lambda: None)
        asyncio.run(self.monitoring.start())
        self.actions: list[str] = []
        api = CloudWatchApi(self.monitoring, lambda _, action: self.actions.append(action))
        self._routes = Routes([api.route()], lambda path: path.split("/")[1:])
        self._pool = ThreadPoolExecutor(1)

    def reply_to(self, request: Request) -> Reply:
        found = self._routes.find(request)
        assert found is not None
        assert found[0].answer is not None
        return self._pool.submit(asyncio.run, found[0].answer(request, "", "request-1")).result()

    def add(self, metric: str, at: datetime, values: dict[float, int], unit: str = "None", **names: str) -> None:
        datum = Datum(unit, {"Values": [*values], "Counts": [*values.values()], "Min": min(values), "Max": max(values)})
        of = {"endpoint": ENDPOINT, "variant": VARIANT, **names}
        self.monitoring.keep([Minute(of["endpoint"], of["variant"], at.timestamp(), {metric: datum})])

    def close(self) -> None:
        self._pool.shutdown()
        asyncio.run(self.monitoring.stop())


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    server = Watched(tmp_path)
    yield server
    server.close()


@pytest.fixture
def address(watched: Watched) -> Iterator[str]:
    with front(watched.reply_to) as address:
        yield address


@pytest.fixture(scope="module", params=["json", "query"])
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> boto3.Session:
    """boto3's, as later releases speak and as those before 1.42 do."""
    return query_session(tmp_path_factory.mktemp("botocore")) if request.param == "query" else boto3.Session()


@pytest.fixture
def cloudwatch(session: boto3.Session, address: str) -> Iterator[Any]:
    reader = session.client(
        "cloudwatch", endpoint_url=address, region_name="us-east-1", aws_access_key_id="any",
        aws_secret_access_key="any", config=Config(parameter_validation=False, retries={"max_attempts": 0}),
    )  # fmt: skip
    with contextlib.closing(reader):
        yield reader


def query_session(folder: Path) -> boto3.Session:
    """With botocore's own serializer and parser of that protocol, which it takes where a service has no other."""
    model = botocore.loaders.Loader().load_service_model("cloudwatch", "service-2")
    model = {**model, "metadata": {**model["metadata"], "protocol": "query", "protocols": ["query"]}}
    (folder / "cloudwatch" / "2010-08-01").mkdir(parents=True)
    (folder / "cloudwatch" / "2010-08-01" / "service-2.json").write_text(json.dumps(model))
    session = botocore.session.get_session()
    session.register_component(
        "data_loader", botocore.loaders.Loader([str(folder), *botocore.loaders.Loader().search_paths])
    )
    return boto3.Session(botocore_session=session)


def statistics(reader: Any, metric: str = "ModelLatency", **asked: Any) -> list[dict[str, Any]]:
    """In the order of time."""
    given = {
        "Namespace": "AWS/SageMaker", "MetricName": metric, "Dimensions": DIMENSIONS, "StartTime": BEGIN,
        "EndTime": NOW, "Period": 60, "Statistics": STATISTICS, **asked,
    }  # fmt: skip
    answer = reader.get_metric_statistics(**{name: value for name, value in given.items() if value is not None})
    assert answer["Label"] == metric
    return sorted(answer["Datapoints"], key=lambda datapoint: datapoint["Timestamp"])


def query(id_: str, metric: str = "ModelLatency", stat: str = "Sum", period: int = 60, **more: Any) -> dict[str, Any]:
    named = {"Namespace": "AWS/SageMaker", "MetricName": metric, "Dimensions": DIMENSIONS}
    return {"Id": id_, "MetricStat": {"Metric": named, "Period": period, "Stat": stat}, **more}


def of(queries: list[dict[str, Any]], dimensions: list[dict[str, str]]) -> list[dict[str, Any]]:
    """The same of another endpoint."""
    return [
        {
            **one,
            "MetricStat": {**one["MetricStat"], "Metric": {**one["MetricStat"]["Metric"], "Dimensions": dimensions}},
        }
        for one in queries
    ]


def data(reader: Any, *queries: dict[str, Any], **asked: Any) -> dict[str, Any]:
    given = {"StartTime": BEGIN, "EndTime": NOW, **asked}
    return reader.get_metric_data(MetricDataQueries=[*queries], **given)


def values_of(answer: dict[str, Any]) -> dict[str, list[tuple[datetime, float]]]:
    return {
        result["Id"]: [*zip(result["Timestamps"], result["Values"], strict=True)]
        for result in answer["MetricDataResults"]
    }


def test_other_cloudwatch_answers_the_same(watched: Watched, cloudwatch: Any, s3_url: str) -> None:
    """
    Any values in any minutes, by any period: moto's CloudWatch was told the same, value by value.
    """
    chosen = random.Random(7)
    # Moto keeps it for the session, and is asked by both protocols.
    there = [{"Name": "EndpointName", "Value": watched.folder}, DIMENSIONS[1]]
    with contextlib.closing(client("cloudwatch", s3_url)) as other:
        # Moto's periods begin with the first value, ours and CloudWatch's with the time that is asked for.
        for minute in (0, *sorted(chosen.sample(range(1, 60), 12))):
            at = BEGIN + timedelta(minutes=minute)
            values = {float(chosen.randrange(1, 50)): chosen.randrange(1, 4) for _ in range(chosen.randrange(1, 6))}
            watched.add("ModelLatency", at, dict(sorted(values.items())), "Microseconds")
            told = [
                {"MetricName": "ModelLatency", "Dimensions": there, "Timestamp": at, "Value": value,
                 "Unit": "Microseconds"}
                for value, count in values.items() for _ in range(count)
            ]  # fmt: skip
            other.put_metric_data(Namespace="AWS/SageMaker", MetricData=told)
        for period in (60, 180, 3600):
            expected = statistics(other, Period=period, Dimensions=there)
            assert expected
            assert statistics(cloudwatch, Period=period) == [
                {name: pytest.approx(value) if name == "Average" else value for name, value in datapoint.items()}
                for datapoint in expected
            ]
        for scan in ("TimestampAscending", "TimestampDescending"):
            asked = [query(f"q{n}", stat=stat, period=120) for n, stat in enumerate(STATISTICS)]
            expected_values = values_of(data(other, *of(asked, there), ScanBy=scan))
            answered = values_of(data(cloudwatch, *asked, ScanBy=scan))
            assert {name: [at for at, _ in pairs] for name, pairs in answered.items()} == {
                name: [at for at, _ in pairs] for name, pairs in expected_values.items()
            }
            for name, pairs in expected_values.items():
                assert [value for _, value in answered[name]] == pytest.approx([value for _, value in pairs])


def names(reader: Any, **asked: Any) -> list[tuple[str, str, tuple[tuple[str, str], ...]]]:
    metrics = [metric for page in reader.get_paginator("list_metrics").paginate(**asked) for metric in page["Metrics"]]
    return sorted(
        (
            metric["Namespace"],
            metric["MetricName"],
            tuple((dimension["Name"], dimension["Value"]) for dimension in metric["Dimensions"]),
        )
        for metric in metrics
    )


def test_percentiles(watched: Watched, cloudwatch: Any) -> None:
    """By nearest rank, over all minutes of a period; and only those that were asked for."""
    durations = [float(number) for number in range(1, 101)]
    for at, some in ((BEGIN, durations[::2]), (BEGIN + timedelta(minutes=1), durations[1::2])):
        watched.add("ModelLatency", at, dict.fromkeys(some, 1), "Microseconds")

    (datapoint,) = statistics(cloudwatch, Period=120, Statistics=None, ExtendedStatistics=["p50", "p99", "p99.9", "p0"])
    assert datapoint["ExtendedStatistics"] == {"p50": 50, "p99": 99, "p99.9": 100, "p0": 1}
    assert set(datapoint) == {"Timestamp", "Unit", "ExtendedStatistics"}
    answer = data(cloudwatch, query("a", stat="p90", period=120), query("b", stat="p100", period=120))
    assert values_of(answer) == {"a": [(BEGIN, 90)], "b": [(BEGIN, 100)]}


def test_the_times_of_minutes(watched: Watched, cloudwatch: Any) -> None:
    """The start is rounded down, the end is not part of it, and minutes without requests are not there."""
    for minute in (0, 1, 4):
        watched.add("Invocations", BEGIN + timedelta(minutes=minute), {1.0: 1})

    def found(start: timedelta, end: timedelta, period: int = 60) -> list[int]:
        told = statistics(cloudwatch, "Invocations", StartTime=BEGIN + start, EndTime=BEGIN + end, Period=period)
        return [int((one["Timestamp"] - BEGIN).total_seconds() / 60) for one in told]

    assert found(timedelta(seconds=59), timedelta(minutes=4)) == [0, 1]
    assert found(timedelta(seconds=60), timedelta(minutes=4, seconds=1)) == [1, 4]
    assert found(timedelta(minutes=1), timedelta(minutes=9), 180) == [1, 4]
    assert found(timedelta(0), timedelta(minutes=9), 1) == [0, 1, 4]
    assert found(timedelta(days=-365), timedelta(minutes=9), 86400 * 400) == [-365 * 1440]


@pytest.mark.parametrize(
    "asked",
    [
        {"Namespace": "Polyhost"},
        {"Namespace": "/aws/sagemaker/Endpoints"},
        {"MetricName": "Nothing"},
        {"Dimensions": DIMENSIONS[:1]},
        {"Dimensions": [*DIMENSIONS, {"Name": "More", "Value": "x"}]},
        {"Dimensions": [DIMENSIONS[0], {"Name": "VariantName", "Value": "other"}]},
        {"Dimensions": []},
        {"Unit": "Seconds"},
    ],
)
def test_another_metric_is_empty(watched: Watched, cloudwatch: Any, asked: dict[str, Any]) -> None:
    """As CloudWatch has it: no error, and no datapoints."""
    watched.add("ModelLatency", BEGIN, {1.0: 1}, "Microseconds")

    assert len(statistics(cloudwatch, Unit="Microseconds")) == 1
    metric = asked.get("MetricName", "ModelLatency")
    assert statistics(cloudwatch, metric, **{k: v for k, v in asked.items() if k != "MetricName"}) == []


def test_metrics_of_both_namespaces_are_listed(watched: Watched, cloudwatch: Any) -> None:
    for metric in ("Invocations", "CPUUtilization", "LoadedModelCount"):
        watched.add(metric, NOW, {1.0: 1})
    watched.add("Invocations", NOW - timedelta(hours=4), {1.0: 1}, endpoint="old")
    own = tuple((one["Name"], one["Value"]) for one in DIMENSIONS)
    old = (("EndpointName", "old"), own[1])

    assert names(cloudwatch) == [
        ("/aws/sagemaker/Endpoints", "CPUUtilization", own),
        ("/aws/sagemaker/Endpoints", "LoadedModelCount", own),
        ("AWS/SageMaker", "Invocations", own),
        ("AWS/SageMaker", "Invocations", old),
        ("AWS/SageMaker", "LoadedModelCount", own),
    ]
    assert [one for _, _, one in names(cloudwatch, MetricName="Invocations", RecentlyActive="PT3H")] == [own]
    assert [one for _, one, _ in names(cloudwatch, Namespace="/aws/sagemaker/Endpoints")] == [
        "CPUUtilization",
        "LoadedModelCount",
    ]
    assert [one for _, _, one in names(cloudwatch, Dimensions=[{"Name": "EndpointName", "Value": "old"}])] == [old]
    assert len(names(cloudwatch, Dimensions=[{"Name": "VariantName"}])) == 5
    assert names(cloudwatch, Dimensions=[{"Name": "InstanceId"}]) == []


def test_lists_have_pages(watched: Watched, cloudwatch: Any) -> None:
    one = minute_of(NOW, "Invocations", 1.0)
    watched.monitoring.keep([one._replace(endpoint=f"e{number:03}") for number in range(501)])

    first = cloudwatch.list_metrics()
    rest = cloudwatch.list_metrics(NextToken=first["NextToken"])
    assert (len(first["Metrics"]), len(rest["Metrics"])) == (500, 1)
    assert "NextToken" not in rest
    assert len({name for _, _, name in names(cloudwatch)}) == 501


@pytest.mark.parametrize("scan", ["TimestampAscending", "TimestampDescending"])
def test_data_has_pages(watched: Watched, cloudwatch: Any, scan: str) -> None:
    """Whatever a page takes, nothing is left out or told twice; a query that is not returned takes no place."""
    for minute in range(5):
        for metric in ("Invocations", "ModelLatency"):
            watched.add(metric, BEGIN + timedelta(minutes=minute), {float(minute): 1})
    asked = [query("a"), query("hidden", ReturnData=False), query("b", "Invocations"), query("c", "Nothing")]
    whole = values_of(data(cloudwatch, *asked, ScanBy=scan))
    assert [len(whole[one]) for one in "abc"] == [5, 5, 0]
    assert "hidden" not in whole

    for most in (1, 3, 4, 10):
        found: dict[str, list[Any]] = {}
        statuses: dict[str, list[str]] = {}
        pages = cloudwatch.get_paginator("get_metric_data").paginate(
            MetricDataQueries=asked, StartTime=BEGIN, EndTime=NOW, ScanBy=scan, MaxDatapoints=most
        )
        for page in pages:
            assert sum(len(result["Values"]) for result in page["MetricDataResults"]) <= most
            for result in page["MetricDataResults"]:
                found.setdefault(result["Id"], []).extend(values_of({"MetricDataResults": [result]})[result["Id"]])
                statuses.setdefault(result["Id"], []).append(result["StatusCode"])
        assert found == whole
        for one in statuses.values():
            assert one == ["PartialData"] * (len(one) - 1) + ["Complete"]


def test_a_page_reads_only_so_much(watched: Watched, address: str) -> None:
    """Many queries over a long time are answered in pages, also where they have hardly a value."""
    watched.add("ModelLatency", BEGIN, {1.0: 1})
    asked = [query(f"q{number}", period=86400) for number in range(20)]
    with contextlib.closing(client("cloudwatch", address)) as cloudwatch:
        paginator = cloudwatch.get_paginator("get_metric_data")
        long_ago = datetime(1971, 1, 1, tzinfo=timezone.utc)
        pages = [*paginator.paginate(MetricDataQueries=asked, StartTime=long_ago, EndTime=NOW)]
    assert len(pages) == 10
    assert [len(result["Values"]) for page in pages for result in page["MetricDataResults"]] == [1] * 20


def error_of(caught: pytest.ExceptionInfo[ClientError]) -> tuple[str, str]:
    return caught.value.response["Error"]["Code"], caught.value.response["Error"]["Message"]


@pytest.mark.parametrize(
    ("asked", "code", "words"),
    [
        ({"Period": 61}, "InvalidParameterValue", "a multiple of 60"),
        ({"Period": 0}, "ValidationError", "valid min value: 1"),
        ({"EndTime": BEGIN}, "InvalidParameterValue", "StartTime must be less than the parameter EndTime"),
        ({"StartTime": NOW - timedelta(minutes=1441)}, "InvalidParameterCombination", "up to 1,441 datapoints"),
        ({"Statistics": None}, "InvalidParameterCombination", "At least one of the parameters Statistics"),
        ({"ExtendedStatistics": ["tm90"]}, "InvalidParameterValue", "tm90 is not a statistic of this server"),
        ({"ExtendedStatistics": ["p100.1"]}, "InvalidParameterValue", "p100.1 is not a statistic"),
        ({"Statistics": ["Median"]}, "ValidationError", "enum value set"),
    ],
)
def test_statistics_that_cannot_be(cloudwatch: Any, asked: dict[str, Any], code: str, words: str) -> None:
    with pytest.raises(ClientError) as caught:
        statistics(cloudwatch, **asked)
    assert error_of(caught)[0] == code
    assert words in error_of(caught)[1]


@pytest.mark.parametrize(
    ("queries", "more", "code", "words"),
    [
        ([{"Id": "e", "Expression": "a + b"}], {}, "ValidationError", "there is no metric math here"),
        ([{"Id": "e"}], {}, "ValidationError", "The query e has no MetricStat"),
        ([query("a"), query("a")], {}, "ValidationError", "are not unique"),
        ([query("A")], {}, "ValidationError", "begins with a small letter"),
        ([query("a", stat="IQM")], {}, "InvalidParameterValue", "IQM is not a statistic"),
        ([query("a", period=90)], {}, "ValidationError", "a multiple of 60"),
        ([query(f"a{n}") for n in range(501)], {}, "ValidationError", "500 queries at most"),
        ([query("a")], {"MaxDatapoints": 0}, "ValidationError", "from 1 to 100,800"),
        ([query("a")], {"NextToken": "bm9uZQ=="}, "InvalidNextToken", "begin again without it"),
        ([query("a")], {"NextToken": "WzAsICJhIl0="}, "InvalidNextToken", "begin again without it"),
    ],
)
def test_data_that_cannot_be(
    cloudwatch: Any, queries: list[dict[str, Any]], more: dict[str, Any], code: str, words: str
) -> None:
    with pytest.raises(ClientError) as caught:
        data(cloudwatch, *queries, **more)
    assert error_of(caught)[0] == code
    assert words in error_of(caught)[1]


def test_only_reads_are_there(watched: Watched, cloudwatch: Any) -> None:
    with pytest.raises(ClientError) as caught:
        cloudwatch.put_metric_data(Namespace="x", MetricData=[{"MetricName": "a", "Value": 1.0}])
    assert error_of(caught)[0] == "InvalidAction"
    assert "GetMetricData, GetMetricStatistics, ListMetrics" in error_of(caught)[1]
    assert watched.actions == []
    cloudwatch.list_metrics()
    assert watched.actions == ["cloudwatch:ListMetrics"]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ("Action=ListMetrics&Dimensions.member.x.Name=a", "MalformedInput"),
        ("Action=ListMetrics&Dimensions=a&Dimensions.member.1.Name=a", "MalformedInput"),
        ("Action=ListMetrics&" + "a." * 50 + "b=1", "MalformedInput"),
        ("Action=ListMetrics&Dimensions.member.1=a", "ValidationError"),
        ("Action=ListMetrics&Nothing=a", "ValidationError"),
        ("Action=ListMetrics&Namespace.a=a", "ValidationError"),
        ("Action=GetMetricStatistics&Period=x", "MalformedInput"),
        ("Action=GetMetricStatistics&StartTime=yesterday", "MalformedInput"),
        ("Action=GetMetricData&MetricDataQueries.member.1.ReturnData=perhaps", "MalformedInput"),
        ("Action=GetMetricData", "ValidationError"),
        ("Action=a&Action=b", "ValidationError"),
        ("", "InvalidAction"),
    ],
)
def test_nonsense_by_form_is_refused(address: str, fields: str, code: str) -> None:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    answer = requests.post(address, f"{fields}&Version=2010-08-01", headers=headers, timeout=30)
    assert answer.status_code == 400
    assert f"<Code>{code}</Code>" in answer.text


@pytest.mark.parametrize("start", ["-1e308", "-1e400", "-" + "9" * 30, "1e308", "NaN"])
def test_times_that_no_calendar_has_are_refused(address: str, start: str) -> None:
    """Not even botocore, which checks requests, can read them."""
    fields = '"Namespace": "AWS/SageMaker", "MetricName": "Invocations", "EndTime": 0, "Period": 60'
    headers = {
        "content-type": "application/x-amz-json-1.0",
        "x-amz-target": "GraniteServiceVersion20100801.GetMetricStatistics",
    }
    body = f'{{"StartTime": {start}, "Statistics": ["Sum"], {fields}}}'
    answer = requests.post(address, body, headers=headers, timeout=30)
    assert (answer.status_code, answer.json()["__type"]) == (400, "ValidationError")


@pytest.mark.parametrize("body", ["[]", "{", "1", '{"Namespace": {}}', '{"Dimensions": "x"}', "[" * 100_000])
def test_nonsense_by_json_is_refused(address: str, body: str) -> None:
    headers = {"x-amz-target": "GraniteServiceVersion20100801.ListMetrics"}
    answer = requests.post(address, body, headers=headers, timeout=30)
    assert answer.status_code == 400
    assert answer.json()["__type"] in ("SerializationException", "ValidationError")


# What is kept


def minute_of(at: datetime, metric: str, *values: float) -> Minute:
    datum = {"Values": [*values], "Counts": [1] * len(values), "Min": min(values), "Max": max(values)}
    return Minute(ENDPOINT, VARIANT, at.timestamp(), {metric: Datum("None", datum)})


def moments(minutes: Minutes) -> list[int]:
    _, points = minutes.points(ENDPOINT, VARIANT, "Invocations", 0, 2**40)
    return [moment for moment, _ in points]


def test_minutes_outlive_the_server(tmp_path: Path) -> None:
    """Also one that is read, and told again, before it is over."""
    for seconds, values in ((0, (1.0, 2.0)), (20, (2.0,))):
        with contextlib.closing(Minutes(tmp_path)) as minutes:
            minutes.add([minute_of(NOW + timedelta(seconds=seconds), "Invocations", *values)])
    with contextlib.closing(Minutes(tmp_path)) as minutes:
        _, ((moment, summary),) = minutes.points(ENDPOINT, VARIANT, "Invocations", 0, 2**40)
    assert (moment, summary) == (NOW.timestamp(), Summary((1.0, 2.0), (1, 2), 1.0, 2.0))
    assert (tmp_path / FILE).stat().st_mode & 0o077 == 0


def test_the_oldest_minutes_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their age, and by their number; what has no minutes left is not listed."""
    monkeypatch.setattr(minutes_module, "_MOST_POINTS", 3)
    long_ago = NOW - timedelta(seconds=KEPT_SECS + 60)
    with contextlib.closing(Minutes(tmp_path)) as minutes:
        minutes.add([minute_of(long_ago, "ModelLatency", 1.0), minute_of(NOW, "Invocations", 1.0)])
        assert [series.metric for series in minutes.series()] == ["Invocations"]
        minutes.add([minute_of(NOW + timedelta(minutes=number), "Invocations", 1.0) for number in range(1, 5)])
        assert moments(minutes) == [(NOW + timedelta(minutes=number)).timestamp() for number in (2, 3, 4)]


@pytest.mark.parametrize("content", [b"no database " * 100, None])
def test_a_file_that_cannot_be_used_costs_only_the_past(
    tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    if content is None:
        (tmp_path / FILE).mkdir()
    else:
        (tmp_path / FILE).write_bytes(content)
    with contextlib.closing(Minutes(tmp_path)) as minutes:
        minutes.add([minute_of(NOW, "Invocations", 1.0)])
        assert len(moments(minutes)) == 1
    assert "metrics are kept in memory" in caplog.text


def test_what_cannot_be_written_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And the next minute is written again."""
    with contextlib.closing(Minutes(tmp_path)) as minutes, contextlib.closing(Minutes(tmp_path)) as other:
        other._connection.execute("BEGIN IMMEDIATE")
        for _ in range(3):
            minutes.add([minute_of(NOW, "Invocations", 1.0)])
        other._connection.execute("ROLLBACK")
        minutes.add([minute_of(NOW, "Invocations", 1.0)])
        assert len(moments(minutes)) == 1
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_minute_that_is_read_again_and_again_stays_small() -> None:
    """Its sum, count, least and greatest are exact, and its percentiles near."""
    chosen = random.Random(3)
    parts = [
        Summary(tuple(sorted(chosen.lognormvariate(0, 1) for _ in range(60))), (1,) * 60, 0.0, 100.0) for _ in range(50)
    ]
    whole = condensed(parts[0])
    for part in parts[1:]:
        whole = condensed(together([whole, part]))
    every = sorted(value for part in parts for value in part.values)

    assert len(whole.values) <= 100
    assert whole.times == 3000
    assert whole.total == pytest.approx(math.fsum(every))
    assert (whole.lowest, whole.highest) == (0.0, 100.0)
    for percent in (10, 50, 90):
        assert whole.percentile(percent) == pytest.approx(every[math.ceil(percent / 100 * 3000) - 1], rel=0.1)
