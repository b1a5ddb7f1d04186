"""What deploy/ asks of Prometheus, and what a real Prometheus that scrapes a real server answers."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from botocore.exceptions import ClientError
from conftest import ROOT
from support.endpoint import EndpointServer, packed
from support.server import Process, free_port, request

from deploy.promql import assert_known, exposed, labels_of, series_of, tool

DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "polyhost.json").read_text())
RULES = [
    rule
    for group in yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())["groups"]
    for rule in group["rules"]
]
# What the head of the page lets one choose, and how long a time it shows.
CHOSEN = {
    "$job": ".*",
    "$instance": ".*",
    "$endpoint": ".*",
    "$variant": ".*",
    "$__rate_interval": "5m",
    "$__range": "5m",
}
# Until when it must have been seen. A server that is too busy to answer a scrape is scraped again.
SCRAPE_SECS = 120

HOLDS_MEMORY = """
def model_fn(model_dir):
    return bytearray(b"x" * 60 * 1024**2)

def input_fn(body, content_type):
    return int(body)

def predict_fn(data, model):
    return str(len(model) // data)

def output_fn(prediction, accept):
    return prediction
"""


def shown() -> list[str]:
    """Each expression of the dashboard, as Grafana sends it."""
    expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    return [re.sub(r"\$\w+", lambda match: CHOSEN[match[0]], expression) for expression in expressions]


class Served(EndpointServer):
    """Models that need 60 MiB each, where one fits."""

    def __init__(self, folder: Path) -> None:
        self.models, self.script = folder / "models", folder / "script"
        (self.script / "code").mkdir(parents=True)
        (self.script / "code" / "inference.py").write_text(HOLDS_MEMORY)
        self.add("a.tar.gz")
        self.add("b.tar.gz")
        super().__init__("native", self.models, "--memory-budget", "64MiB")

    def add(self, name: str) -> str:
        return packed(self.script, self.models / name).name

    def call_for_everything(self, round_: int) -> None:
        """Fetched, missed, hit, evicted; what the client did wrong, and the model. Six calls."""
        for target in ("a.tar.gz", "a.tar.gz", self.add(f"new-{round_}.tar.gz")):
            assert self.predict(target, "1")
        for target, body in (("a.tar.gz", "0"), ("b.tar.gz", "0"), ("none.tar.gz", "1")):
            with pytest.raises(ClientError):
                self.predict(target, body)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    server = Served(tmp_path_factory.mktemp("served"))
    server.call_for_everything(1)
    yield server
    assert server.stop() == 0, server.process.log


class Prometheus:
    def __init__(self, folder: Path, target: int) -> None:
        self.port = free_port()
        # As it is deployed, but for the address, the token's file and how often.
        config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "500ms"}
        config["rule_files"] = [str(DEPLOY / "prometheus" / "rules.yml")]
        config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{target}"]}]
        (folder / "token").write_text("nobody asks for it here")
        config["scrape_configs"][0]["authorization"]["credentials_file"] = str(folder / "token")
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.process = Process(
            [tool("prometheus"), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
             f"--web.listen-address=127.0.0.1:{self.port}"],
            {},
        )  # fmt: skip
        self.process.wait_for_line("Server is ready to receive web requests")

    def ask(self, expression: str) -> list[dict[str, Any]]:
        answer = request(self.port, "GET", "/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
        assert answer.status == 200, f"{expression}: {answer.text}"
        return list(answer.json()["data"]["result"])

    def wait_for(self, *expressions: str) -> None:
        """
        Until each has had an answer: Prometheus tells nobody when it has scraped.

        What it asks at a moment when a scrape has failed has none, and the next one has.
        """
        deadline, left = time.monotonic() + SCRAPE_SECS, expressions
        while left := tuple(one for one in left if not self.ask(one)):
            assert time.monotonic() < deadline, f"{left}: not within {SCRAPE_SECS} s\n{self.process.log}"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def prometheus(server: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It has seen each kind of call twice."""
    with contextlib.ExitStack() as stack:
        prometheus = Prometheus(tmp_path_factory.mktemp("prometheus"), server.port)
        stack.callback(prometheus.process.kill_tree)
        prometheus.wait_for("polyhost_invocations_total == 6")
        server.call_for_everything(2)
        prometheus.wait_for("polyhost_invocations_total == 12")
        prometheus.wait_for("increase(polyhost_invocations_total[5m]) > 0")
        yield prometheus


def test_the_dashboard_is_what_its_script_makes() -> None:
    """
    deploy/grafana/polyhost.json is not edited by hand.
    """
    script = [sys.executable, ROOT / "scripts" / "grafana_dashboard.py"]
    assert (
        subprocess.run(script, capture_output=True, check=True).stdout
        == (DEPLOY / "grafana" / "polyhost.json").read_bytes()
    )


def test_panels_do_not_overlap() -> None:
    """
    Each place of the grid of 24 columns has one panel.
    """
    taken = [
        (place["x"] + column, place["y"] + line)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for column in range(place["w"])
        for line in range(place["h"])
    ]

    assert len(taken) == len(set(taken))
    assert max(column for column, _ in taken) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_the_dashboard_names_what_a_server_exposes(server: Served) -> None:
    """
    Every metric and label of an expression, and of the choices at the page's head, is on a real server's /metrics.
    """
    series = exposed(server.request("GET", "/metrics").text)
    choices = [choice["definition"] for choice in DASHBOARD["templating"]["list"] if choice["type"] == "query"]

    assert_known(shown(), series)
    for choice in choices:
        names, label = re.fullmatch(r"label_values\((.*), (\w+)\)", choice).groups()
        assert_known([names], series)
        assert label in {"job", "instance"}.union(*(series[name] for name in series_of(names)))


def test_rules_name_what_a_server_exposes_or_they_record(server: Served) -> None:
    """
    Every metric of a rule is a real server's, Prometheus's own `up`, or another rule's.
    """
    series = exposed(server.request("GET", "/metrics").text)
    recorded = {rule["record"]: labels_of(rule["expr"]) for rule in RULES if "record" in rule}

    assert_known([rule["expr"] for rule in RULES], {**series, **recorded, "up": set()})


def test_every_panel_shows_something(prometheus: Prometheus) -> None:
    """
    Prometheus understands each expression, and has an answer after calls of each kind.
    """
    prometheus.wait_for(*shown())


def test_what_is_recorded_has_values(prometheus: Prometheus) -> None:
    """
    Each recording rule is evaluated by a real Prometheus, and none fails.
    """
    prometheus.wait_for(*(rule["record"] for rule in RULES if "record" in rule))
    groups = request(prometheus.port, "GET", "/api/v1/rules").json()["data"]["groups"]

    assert {
        rule["name"]: rule["lastError"] for group in groups for rule in group["rules"] if rule.get("lastError")
    } == {}


def test_every_alert_is_in_the_docs() -> None:
    """
    docs/metrics.md says when each fires.
    """
    page = (ROOT / "docs" / "metrics.md").read_text()

    documented = set(re.findall(r"(?m)^\| `(Polyhost\w+)` \|", page))
    assert documented == {rule["alert"] for rule in RULES if "alert" in rule}


def test_promtool_accepts_configuration_and_rules(tmp_path: Path) -> None:
    """
    `promtool check config`, with a file in the token's place.
    """
    text = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    (tmp_path / "token").write_text("secret")
    (tmp_path / "prometheus.yml").write_text(text.replace("/run/secrets/metrics-token", f"{tmp_path}/token"))
    (tmp_path / "rules.yml").write_bytes((DEPLOY / "prometheus" / "rules.yml").read_bytes())

    check = subprocess.run(
        [tool("promtool"), "check", "config", tmp_path / "prometheus.yml"], capture_output=True, text=True, check=False
    )
    assert check.returncode == 0, check.stdout + check.stderr
    assert f"{len(RULES)} rules found" in check.stdout


def test_alerts_fire_when_they_should_and_not_before() -> None:
    """
    `promtool test rules`: healthy, failing and thrashing servers, minute by minute.
    """
    cases = Path(__file__).with_name("alerts.yml")
    tested = {
        case["alertname"] for group in yaml.safe_load(cases.read_text())["tests"] for case in group["alert_rule_test"]
    }

    assert tested == {rule["alert"] for rule in RULES if "alert" in rule}
    check = subprocess.run([tool("promtool"), "test", "rules", cases], capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stdout + check.stderr
