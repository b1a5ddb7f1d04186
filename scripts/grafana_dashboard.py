"""
Prints Grafana's dashboards: `python scripts/grafana_dashboard.py > deploy/grafana/polyhost.json`, of servers, and
`python scripts/grafana_dashboard.py fleet > deploy/grafana/fleet.json`, of many servers behind HAProxy.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
# Every choice of the page's head; Grafana puts `.*` or `(a|b)` in their places.
SERVER = 'job=~"$job",instance=~"$instance"'
VARIANT = f'{SERVER},endpoint=~"$endpoint",variant=~"$variant"'
COLUMNS = 24


@dataclass(frozen=True)
class Panel:
    """`queries`: an expression and its legend each. `thresholds`: a colour from a value on."""

    title: str
    queries: Sequence[tuple[str, str]]
    unit: str
    width: int = 8
    height: int = 8
    kind: str = "timeseries"
    words: str = ""
    thresholds: Sequence[tuple[str, float | None]] = ()
    most: float | None = None


def total(metric: str, by: str = "") -> str:
    """Each second, over all that was chosen."""
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate(polyhost_{metric}{{{VARIANT}}}[$__rate_interval]))"


def ratio(part: str, whole: str, by: str = "") -> str:
    """Nothing where there is nothing to divide by, rather than NaN."""
    return f"{total(part, by)} / ({total(whole, by)} > 0)"


def percentile(share: float, metric: str) -> str:
    return f"histogram_quantile({share:g}, {total(f'{metric}_seconds_bucket', 'le')})"


def mean(metric: str, by: str = "") -> str:
    return ratio(f"{metric}_seconds_sum", f"{metric}_seconds_count", by)


def percentiles(metric: str) -> list[tuple[str, str]]:
    return [(percentile(share, metric), f"p{share * 100:g}") for share in (0.5, 0.9, 0.99)]


def of_models(metric: str) -> str:
    """
    By model, in the time that the page shows.

    Not those that have no series of their own: their sum is no model.
    """
    chosen = f'{VARIANT},model!="(other)"'
    return f"sum by (endpoint, model) (increase(polyhost_per_model_{metric}{{{chosen}}}[$__range]))"


def most(metric: str) -> str:
    return f"topk(10, {of_models(metric)} > 0)"


def quotient(part: str, whole: str) -> str:
    return f"{of_models(part)} / ({of_models(whole)} > 0)"


FEW_ERRORS = (("green", None), ("orange", 0.001), ("red", 0.01))
MANY_HITS = (("red", None), ("orange", 0.8), ("green", 0.95))
NEARLY_FULL = (("green", None), ("orange", 0.85), ("red", 0.95))
MODEL = "{{endpoint}} {{model}}"
ENDPOINT = "{{endpoint}}/{{variant}}"
BY_VARIANT = "endpoint, variant"
THROTTLED = f"sum by (caller) (rate(polyhost_throttled_requests_total{{{SERVER}}}[$__rate_interval]))"

ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Now",
        (
            Panel("Requests", [(total("invocations_total"), "")], "reqps", 4, 4, "stat"),
            Panel(
                "Answered 5xx",
                [(ratio("invocation_5xx_errors_total", "invocations_total"), "")],
                "percentunit", 4, 4, "stat", "Of all requests. A ModelError (424) counts as what the model answered.",
                FEW_ERRORS,
            ),
            Panel(
                "Cache hits",
                [(ratio("model_cache_hits_total", "model_cache_lookups_total"), "")],
                "percentunit", 4, 4, "stat", "Requests that found their model in memory.", MANY_HITS,
            ),
            Panel("Model latency, p99", [(percentile(0.99, "model_latency"), "")], "s", 4, 4, "stat"),
            Panel(
                "Models in memory", [(f"sum(polyhost_loaded_model_count{{{VARIANT}}})", "")], "short", 4, 4, "stat"
            ),
            Panel(
                "Memory budget in use",
                [(f"max(polyhost_memory_utilization_ratio{{{SERVER}}})", "")],
                "percentunit", 4, 4, "stat", "The fullest server. Full is normal where models are evicted.", NEARLY_FULL,
            ),
        ),
    ),
    (
        "Traffic",
        (
            Panel("Requests", [(total("invocations_total", BY_VARIANT), ENDPOINT)], "reqps"),
            Panel(
                "Errors",
                [
                    (total("invocation_4xx_errors_total", BY_VARIANT), f"4xx {ENDPOINT}"),
                    (total("invocation_5xx_errors_total", BY_VARIANT), f"5xx {ENDPOINT}"),
                    (THROTTLED, "rate limit of {{caller}}"),
                ],
                "reqps",
                words="4xx: what the client must change. 5xx: the model's or the server's own. Rate limit: the caller "
                "sends more than it may.",
            ),
            Panel(
                "Cache hits",
                [(ratio("model_cache_hits_total", "model_cache_lookups_total", BY_VARIANT), ENDPOINT)],
                "percentunit", most=1,
            ),
        ),
    ),
    (
        "Latency",
        (
            Panel(
                "Model", percentiles("model_latency"), "s", words="From asking the model to its answer.",
            ),
            Panel(
                "Overhead", percentiles("overhead_latency"), "s",
                words="The rest of a request's time, a wait for the model's load too.",
            ),
            Panel(
                "Wait for a model", percentiles("model_loading_wait_time"), "s",
                words="Of those requests that did not find their model in memory.",
            ),
        ),
    ),
    (
        "Model cache",
        (
            Panel(
                "Models in memory", [(f"polyhost_loaded_model_count{{{VARIANT}}}", f"{{{{instance}}}} {ENDPOINT}")], "short"
            ),
            Panel(
                "Loads and evictions",
                [
                    (total("model_loading_time_seconds_count", BY_VARIANT), f"loads {ENDPOINT}"),
                    (total("model_evictions_total", BY_VARIANT), f"evictions {ENDPOINT}"),
                ],
                "ops", words="Many of both: more models are asked for than fit. Give more memory, or more servers.",
            ),
            Panel(
                "Mean times",
                [
                    (mean("model_downloading_time"), "fetch"),
                    (mean("model_loading_time"), "load"),
                    (mean("model_unloading_time"), "unload"),
                ],
                "s", words="Fetch: an archive that was not on disk.",
            ),
        ),
    ),
    (
        "Servers",
        (
            Panel(
                "Memory budget in use", [(f"polyhost_memory_utilization_ratio{{{SERVER}}}", "{{instance}}")],
                "percentunit", most=1,
            ),
            Panel(
                "Disk cache in use", [(f"polyhost_disk_utilization_ratio{{{SERVER}}}", "{{instance}}")], "percentunit",
                most=1,
            ),
            Panel(
                "Busy cores", [(f"polyhost_cpu_utilization_ratio{{{SERVER}}}", "{{instance}}")], "short",
                words="Of the server and its models' processes.",
            ),
        ),
    ),
    (
        "Models, in the time shown",
        (
            Panel("Most asked for", [(most("invocations_total"), MODEL)], "short", kind="bargauge"),
            Panel(
                "Most often loaded", [(most("loads_total"), MODEL)], "short", kind="bargauge",
                words="Asked for, evicted, asked for again: candidates for --preload.",
            ),
            Panel("Most errors", [(most("errors_total"), MODEL)], "short", kind="bargauge"),
            Panel(
                "Slowest: mean latency",
                [(f"topk(10, {quotient('latency_seconds_sum', 'latency_seconds_count')})", MODEL)],
                "s", kind="bargauge", width=12,
            ),
            Panel(
                "Fewest cache hits",
                [(f"bottomk(10, {quotient('cache_hits_total', 'invocations_total')})", MODEL)],
                "percentunit", kind="bargauge", width=12, most=1,
            ),
        ),
    ),
)  # fmt: skip

# HAProxy's own metrics: of the part that sends predictions to servers, `polyhost fleet haproxy` calls it so.
ROUTER = 'job=~"$router"'
PREDICTIONS = f'{ROUTER},proxy="predictions"'
ANSWERED = f'{ROUTER},proxy="polyhost"'
BUSY = (("green", None), ("orange", 1.7), ("red", 2.5))


def routed(metric: str, chosen: str, by: str = "") -> str:
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate(haproxy_{metric}{{{chosen}}}[$__rate_interval]))"


def busiest(of_each: str) -> str:
    return f"max({of_each}) / (avg({of_each}) > 0)"


FAILED = "{} / ({} > 0)".format(
    routed("frontend_http_responses_total", f'{ANSWERED},code="5xx"'),
    routed("frontend_http_responses_total", ANSWERED),
)

FLEET_ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Fleet, now",
        (
            Panel(
                "Servers that get requests",
                [(f'count(max by (server) (haproxy_server_status{{{PREDICTIONS},state="UP"}}) == 1)', "")],
                "short", 4, 4, "stat", "As HAProxy sees them by /ready.",
            ),
            Panel("Requests", [(total("invocations_total"), "")], "reqps", 4, 4, "stat"),
            Panel(
                "Answered 5xx, to clients",
                [(FAILED, "")],
                "percentunit", 4, 4, "stat", "After what could be sent again was sent again.", FEW_ERRORS,
            ),
            Panel(
                "Cache hits of all servers", [(ratio("model_cache_hits_total", "model_cache_lookups_total"), "")],
                "percentunit", 4, 4, "stat", "Requests that found their model in memory at the server that got them.",
                MANY_HITS,
            ),
            Panel(
                "Load of the busiest server",
                [(busiest(f"max by (instance) (polyhost_cpu_utilization_ratio{{{SERVER}}})"), "")],
                "short", 4, 4, "stat", "Its busy cores over the mean. Above 1.7: lower --copy-at, so that hot models get "
                "more copies.", BUSY,
            ),
            Panel(
                "Sent again",
                [(routed("server_redispatch_warnings_total", PREDICTIONS), "")],
                "reqps", 4, 4, "stat", "To another server: the first did not take the connection, did not answer, or "
                "had no room.",
            ),
        ),
    ),
    (
        "Each server",
        (
            Panel("Requests", [(total("invocations_total", "instance"), "{{instance}}")], "reqps"),
            Panel(
                "Cache hits",
                [(ratio("model_cache_hits_total", "model_cache_lookups_total", "instance"), "{{instance}}")],
                "percentunit", most=1, words="One far below the others has come back, or got models of one that went.",
            ),
            Panel(
                "Busy cores", [(f"max by (instance) (polyhost_cpu_utilization_ratio{{{SERVER}}})", "{{instance}}")],
                "short",
            ),
            Panel(
                "Loads and evictions",
                [
                    (total("model_loading_time_seconds_count", "instance"), "loads {{instance}}"),
                    (total("model_evictions_total", "instance"), "evictions {{instance}}"),
                ],
                "ops", words="Evictions at all servers, with few hits: add servers.",
            ),
            Panel(
                "Models in memory", [(f"sum by (instance) (polyhost_loaded_model_count{{{VARIANT}}})", "{{instance}}")],
                "short",
            ),
            Panel(
                "Memory budget in use", [(f"polyhost_memory_utilization_ratio{{{SERVER}}}", "{{instance}}")],
                "percentunit", most=1,
            ),
        ),
    ),
    (
        "HAProxy",
        (
            Panel(
                "Answers to clients",
                [(routed("frontend_http_responses_total", ANSWERED, "code"), "{{code}}")],
                "reqps",
            ),
            Panel(
                "Time to an answer, mean of the last 1,024",
                [(f"max by (server) (haproxy_server_response_time_average_seconds{{{PREDICTIONS}}})", "{{server}}")],
                "s",
            ),
            Panel(
                "Failures by server",
                [
                    (routed("server_connection_errors_total", PREDICTIONS, "server"), "no connection {{server}}"),
                    (routed("server_response_errors_total", PREDICTIONS, "server"), "no answer {{server}}"),
                    (routed("server_retry_warnings_total", PREDICTIONS, "server"), "tried again {{server}}"),
                ],
                "reqps",
            ),
            Panel(
                "Requests by server", [(routed("server_http_responses_total", PREDICTIONS, "server"), "{{server}}")],
                "reqps",
            ),
            Panel(
                "Connections of clients",
                [(f"sum by (instance) (haproxy_frontend_current_sessions{{{ANSWERED}}})", "{{instance}}")],
                "short",
            ),
            Panel(
                "Models whose rate is known",
                [(f"max by (instance) (haproxy_sticktable_used{{{ROUTER}}})", "{{instance}}")],
                "short", words="Asked for in the last 30 seconds; those with a high rate get copies.",
            ),
        ),
    ),
)  # fmt: skip


def dashboard() -> dict[str, Any]:
    return page(
        "polyhost", "Polyhost", "Endpoints of many models: traffic, latency, the model cache, each model.", ROWS,
        variables(),
    )  # fmt: skip


def fleet_dashboard() -> dict[str, Any]:
    choices = [*variables(), choice("job", "haproxy_server_status", name="router")]
    return page(
        "polyhost-fleet", "Polyhost: fleet", "Many servers behind HAProxy: how models and load are divided.", FLEET_ROWS,
        choices,
    )  # fmt: skip


def page(
    uid: str, title: str, words: str, rows: Sequence[tuple[str, Sequence[Panel]]], choices: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "uid": uid,
        "title": title,
        "description": words,
        "tags": ["polyhost"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": choices},
        "annotations": {"list": []},
        "links": [],
        "panels": list(panels(rows)),
    }


def variables() -> list[dict[str, Any]]:
    datasource = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    return [
        datasource,
        choice("job", "polyhost_memory_utilization_ratio"),
        choice("instance", 'polyhost_memory_utilization_ratio{job=~"$job"}'),
        choice("endpoint", f"polyhost_invocations_total{{{SERVER}}}"),
        choice("variant", f'polyhost_invocations_total{{{SERVER},endpoint=~"$endpoint"}}'),
    ]


def choice(label: str, series: str, name: str = "") -> dict[str, Any]:
    """A list of a label's values, all of them chosen at first. `name`: if another than the label's."""
    query = f"label_values({series}, {label})"
    return {
        "name": name or label,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"qryType": 1, "query": query, "refId": label},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def panels(rows: Sequence[tuple[str, Sequence[Panel]]]) -> Iterator[dict[str, Any]]:
    number, top = 0, 0
    for title, row in rows:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "panels": [],
            "gridPos": place(COLUMNS, 1, 0, top),
        }
        top, left = top + 1, 0
        for panel in row:
            if left + panel.width > COLUMNS:
                top, left = top + panel.height, 0
            number += 1
            yield rendered(panel, number, place(panel.width, panel.height, left, top))
            left += panel.width
        top += row[-1].height


def place(width: int, height: int, left: int, top: int) -> dict[str, int]:
    return {"w": width, "h": height, "x": left, "y": top}


def rendered(panel: Panel, number: int, where: dict[str, int]) -> dict[str, Any]:
    is_instant = panel.kind == "bargauge"
    steps = [{"color": colour, "value": value} for colour, value in panel.thresholds or (("green", None),)]
    limits = {} if panel.most is None else {"max": panel.most}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.words,
        "datasource": DATASOURCE,
        "gridPos": where,
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": 0,
                "noValue": "-",
                **limits,
                "thresholds": {"mode": "absolute", "steps": steps},
            },
            "overrides": [],
        },
        "options": OPTIONS[panel.kind],
        "targets": [
            {
                "refId": chr(ord("A") + place),
                "datasource": DATASOURCE,
                "expr": expression,
                "legendFormat": legend or "__auto",
                "instant": is_instant,
                "range": not is_instant,
            }
            for place, (expression, legend) in enumerate(panel.queries)
        ],
    }


LAST = {"calcs": ["lastNotNull"], "fields": "", "values": False}
OPTIONS: dict[str, dict[str, Any]] = {
    "stat": {"reduceOptions": LAST, "graphMode": "area", "colorMode": "value", "textMode": "value"},
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "bargauge": {"reduceOptions": LAST, "orientation": "horizontal", "displayMode": "basic", "showUnfilled": True},
}


if __name__ == "__main__":
    print(json.dumps(fleet_dashboard() if sys.argv[1:] == ["fleet"] else dashboard(), indent=2))
