"""
CloudWatch's three reads, over the minutes of this server: which metrics there are, and what they were.

Synchronous; they belong to the thread that has the minutes.
"""

from __future__ import annotations

import base64
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from polyhost.endpoint.monitoring.minutes import KEPT_SECS, MINUTE_SECS, Minutes, Series
from polyhost.endpoint.monitoring.summary import STATISTICS, Summary, is_percentile, together
from polyhost.endpoint.service_model import Service
from polyhost.service_errors import EndpointError

Parameters = Mapping[str, Any]

OPERATIONS = ("GetMetricData", "GetMetricStatistics", "ListMetrics")
SERVICE = Service("cloudwatch", OPERATIONS)

_REQUESTS, _INSTANCES = "AWS/SageMaker", "/aws/sagemaker/Endpoints"
# SageMaker has these in its second namespace; the number of models is looked for in both.
_NAMESPACES: Mapping[str, tuple[str, ...]] = {
    "CPUUtilization": (_INSTANCES,),
    "MemoryUtilization": (_INSTANCES,),
    "DiskUtilization": (_INSTANCES,),
    "LoadedModelCount": (_REQUESTS, _INSTANCES),
}
_DIMENSIONS = ("EndpointName", "VariantName")
# CloudWatch's own limits.
_MOST_METRICS = 500
_MOST_QUERIES = 500
_MOST_DATAPOINTS = 100_800
_MOST_STATISTICS = 1_440
# What a page may read, so that no request has the processor for long.
_MOST_MINUTES = 25_000
_SECOND_PERIODS = (1, 5, 10, 20, 30)
_ACTIVE_SECS = 3 * 3600
_ID = re.compile(r"[a-z][a-zA-Z0-9_]*", re.ASCII)
_MOST_MESSAGE_CHARS = 4000


class MonitoringError(EndpointError):
    """`type` is AWS's code."""

    status = 400

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.type = code


class Moment(float):
    """Seconds since 1970, which each protocol writes in its own way."""


class Window(NamedTuple):
    """The time that is asked for, in periods from `begin` on. All in seconds."""

    begin: int
    end: int
    period: int

    @property
    def minutes(self) -> int:
        """The most of them that can be kept."""
        return min(self.end - self.begin, KEPT_SECS) // MINUTE_SECS


def perform(minutes: Minutes, operation: str, asked: Parameters) -> dict[str, Any]:
    """One of OPERATIONS. Raises MonitoringError."""
    faults = SERVICE.faults(operation, asked)
    if faults:
        raise MonitoringError("ValidationError", faults[:_MOST_MESSAGE_CHARS])
    return _METHODS[operation](minutes, asked)


# Which there are


def _list_metrics(minutes: Minutes, asked: Parameters) -> dict[str, Any]:
    since = time.time() - (_ACTIVE_SECS if asked.get("RecentlyActive") else KEPT_SECS)
    wanted = [
        (namespace, one)
        for one in minutes.series()
        if one.latest >= since
        for namespace in _NAMESPACES.get(one.metric, (_REQUESTS,))
        if _is_wanted(namespace, one, asked)
    ]
    first = _token_of(asked, [0])[0]
    page = wanted[first : first + _MOST_METRICS]
    answer: dict[str, Any] = {"Metrics": [_metric(namespace, one) for namespace, one in page]}
    if first + len(page) < len(wanted):
        answer["NextToken"] = _written_token([first + len(page)])
    return answer


def _is_wanted(namespace: str, one: Series, asked: Parameters) -> bool:
    dimensions = {"EndpointName": one.endpoint, "VariantName": one.variant}
    return (
        asked.get("Namespace", namespace) == namespace
        and asked.get("MetricName", one.metric) == one.metric
        and all(
            dimension["Name"] in dimensions
            and dimension.get("Value", dimensions[dimension["Name"]]) == dimensions[dimension["Name"]]
            for dimension in asked.get("Dimensions", ())
        )
    )


def _metric(namespace: str, one: Series) -> dict[str, Any]:
    dimensions = [
        {"Name": name, "Value": value} for name, value in zip(_DIMENSIONS, (one.endpoint, one.variant), strict=True)
    ]
    return {"Namespace": namespace, "MetricName": one.metric, "Dimensions": dimensions}


# What they were


def _get_statistics(minutes: Minutes, asked: Parameters) -> dict[str, Any]:
    statistics, extended = asked.get("Statistics", ()), asked.get("ExtendedStatistics", ())
    if not statistics and not extended:
        raise MonitoringError(
            "InvalidParameterCombination", "At least one of the parameters Statistics and ExtendedStatistics is needed."
        )
    for name in extended:
        _require_percentile(name)
    window = _window(asked, asked["Period"], "InvalidParameterValue")
    count = -(-(window.end - window.begin) // window.period)
    if count > _MOST_STATISTICS:
        raise MonitoringError(
            "InvalidParameterCombination",
            f"You have requested up to {count:,} datapoints, which exceeds the limit of {_MOST_STATISTICS:,}. You may "
            "reduce the datapoints requested by increasing Period, or decreasing the time range.",
        )
    unit, points = _points(minutes, asked, window, asked.get("Unit"))
    datapoints = []
    for moment, summary in points:
        datapoint: dict[str, Any] = {name: summary.statistic(name) for name in statistics}
        if extended:
            datapoint["ExtendedStatistics"] = {name: summary.statistic(name) for name in extended}
        datapoints.append({"Timestamp": Moment(moment), **datapoint, "Unit": unit})
    return {"Label": asked["MetricName"], "Datapoints": datapoints}


def _get_data(minutes: Minutes, asked: Parameters) -> dict[str, Any]:
    """
    Query after query, until there are as many points as one answer may have, or as many minutes were read.

    A token names the query that goes on, and the last moment that was told of it.
    """
    queries = asked["MetricDataQueries"]
    _check_queries(queries)
    most = asked.get("MaxDatapoints", _MOST_DATAPOINTS)
    if not 0 < most <= _MOST_DATAPOINTS:
        raise MonitoringError("ValidationError", f"MaxDatapoints is a number from 1 to {_MOST_DATAPOINTS:,}.")
    is_descending = asked.get("ScanBy", "TimestampDescending") == "TimestampDescending"
    windows = [_window(asked, query["MetricStat"]["Period"], "ValidationError") for query in queries]
    number, seen = _token_of(asked, [0, None])
    answer: dict[str, Any] = {"MetricDataResults": [], "Messages": []}
    read = 0
    while number < len(queries) and most > 0 and read < _MOST_MINUTES:
        query = queries[number]
        told = _values(minutes, query, windows[number], is_descending)
        read += windows[number].minutes
        if seen is not None:
            told = [(moment, value) for moment, value in told if (moment < seen if is_descending else moment > seen)]
        page = told[:most]
        is_whole = len(page) == len(told)
        if query.get("ReturnData", True):
            answer["MetricDataResults"].append(_result(query, page, is_whole=is_whole))
            most -= len(page)
        number, seen = (number + 1, None) if is_whole else (number, page[-1][0])
    if number < len(queries):
        answer["NextToken"] = _written_token([number, seen])
    return answer


def _check_queries(queries: Sequence[Parameters]) -> None:
    """Raises MonitoringError."""
    if len(queries) > _MOST_QUERIES:
        raise MonitoringError("ValidationError", f"MetricDataQueries has {_MOST_QUERIES} queries at most.")
    if len({query["Id"] for query in queries}) < len(queries):
        raise MonitoringError("ValidationError", "The values for parameter Id in MetricDataQueries are not unique.")
    for query in queries:
        if not _ID.fullmatch(query["Id"]):
            raise MonitoringError(
                "ValidationError",
                "An Id of MetricDataQueries is letters, digits and _, and begins with a small letter.",
            )
        if "Expression" in query:
            raise MonitoringError(
                "ValidationError",
                "Expression is not supported: there is no metric math here. Ask for the metrics by MetricStat, and "
                "compute from their values.",
            )
        if "MetricStat" not in query:
            raise MonitoringError("ValidationError", f"The query {query['Id']} has no MetricStat.")
        if query["MetricStat"]["Stat"] not in STATISTICS:
            _require_percentile(query["MetricStat"]["Stat"])


def _values(minutes: Minutes, query: Parameters, window: Window, is_descending: bool) -> list[tuple[int, float]]:
    """The moments and values of a query; none where they are not to be told."""
    stat = query["MetricStat"]
    if not query.get("ReturnData", True):
        return []
    _, points = _points(minutes, stat["Metric"], window, stat.get("Unit"))
    told = [(moment, summary.statistic(stat["Stat"])) for moment, summary in points]
    return told[::-1] if is_descending else told


def _result(query: Parameters, page: Sequence[tuple[int, float]], *, is_whole: bool) -> dict[str, Any]:
    return {
        "Id": query["Id"],
        "Label": query.get("Label") or query["MetricStat"]["Metric"]["MetricName"],
        "Timestamps": [Moment(moment) for moment, _ in page],
        "Values": [value for _, value in page],
        "StatusCode": "Complete" if is_whole else "PartialData",
    }


# Parts of both


def _window(asked: Parameters, period: int, code: str) -> Window:
    """Raises MonitoringError."""
    if period % MINUTE_SECS and period not in _SECOND_PERIODS:
        raise MonitoringError(
            code,
            f"The parameter Period must be a value in the set {[*_SECOND_PERIODS]}, or a multiple of {MINUTE_SECS}.",
        )
    if asked["StartTime"] >= asked["EndTime"]:
        raise MonitoringError(code, "The parameter StartTime must be less than the parameter EndTime.")
    begin = int(asked["StartTime"]) // MINUTE_SECS * MINUTE_SECS
    return Window(begin, math.ceil(asked["EndTime"]), max(period, MINUTE_SECS))


def _require_percentile(name: str) -> None:
    """Raises MonitoringError."""
    if not is_percentile(name):
        raise MonitoringError(
            "InvalidParameterValue",
            f"{name[:64]} is not a statistic of this server: there are {', '.join(STATISTICS)} and percentiles from p0 "
            "to p100.",
        )


def _points(
    minutes: Minutes, metric: Parameters, window: Window, unit: str | None
) -> tuple[str, list[tuple[int, Summary]]]:
    """The unit, and the periods that have anything, the oldest first. None are of another unit than was asked for."""
    name = metric.get("MetricName", "")
    dimensions = {dimension["Name"]: dimension["Value"] for dimension in metric.get("Dimensions", ())}
    if set(dimensions) != set(_DIMENSIONS) or metric.get("Namespace") not in _NAMESPACES.get(name, (_REQUESTS,)):
        return "", []
    # What is not kept any more need not be looked for, however long ago it was.
    first = max(window.begin, int(time.time()) - 2 * KEPT_SECS)
    own_unit, points = minutes.points(dimensions["EndpointName"], dimensions["VariantName"], name, first, window.end)
    if unit not in (None, own_unit):
        return "", []
    return own_unit, list(_by_period(points, window))


def _by_period(points: Sequence[tuple[int, Summary]], window: Window) -> Iterator[tuple[int, Summary]]:
    periods: dict[int, list[Summary]] = {}
    for minute, summary in points:
        periods.setdefault((minute - window.begin) // window.period, []).append(summary)
    for number, summaries in periods.items():
        yield window.begin + number * window.period, together(summaries)


def _token_of(asked: Parameters, first: list[Any]) -> list[Any]:
    """Raises MonitoringError."""
    token = asked.get("NextToken")
    if not token:
        return first
    try:
        read = json.loads(base64.urlsafe_b64decode(token))
        is_ours = len(read) == len(first) and all(type(one) in (int, type(None)) for one in read) and read[0] >= 0
    except (ValueError, TypeError, RecursionError):
        is_ours = False
    if not is_ours:
        raise MonitoringError("InvalidNextToken", "NextToken is not one of this list: begin again without it.")
    return list(read)


def _written_token(place: list[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode()


_METHODS: Mapping[str, Callable[[Minutes, Parameters], dict[str, Any]]] = {
    "GetMetricData": _get_data,
    "GetMetricStatistics": _get_statistics,
    "ListMetrics": _list_metrics,
}
