"""deploy/grafana/fleet.json: what it asks for is on the real /metrics of HAProxy and of servers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, SAMPLES
from deploy.promql import exposed, labels_of, tool
from support.endpoint import fill

from benchmarks.fleet import ask_all, hosts
from routers.engines import Router, require

pytestmark = pytest.mark.routers
FILE = ROOT / "deploy" / "grafana" / "fleet.json"
DASHBOARD = json.loads(FILE.read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
CHOICES = [choice["definition"] for choice in DASHBOARD["templating"]["list"] if choice["type"] == "query"]
_OF_PROMETHEUS = {"job", "instance"}


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"(?:polyhost|haproxy)_\w+", re.sub(r'"[^"]*"', '""', expression)))


def test_the_dashboard_is_what_its_script_makes() -> None:
    """Otherwise: `python scripts/grafana_dashboard.py fleet > deploy/grafana/fleet.json`."""
    script = [sys.executable, ROOT / "scripts" / "grafana_dashboard.py", "fleet"]

    assert subprocess.run(script, capture_output=True, check=True).stdout == FILE.read_bytes()


def test_it_names_what_haproxy_and_servers_expose(samples_folder: Path, tmp_path: Path) -> None:
    require("haproxy")
    models = fill(tmp_path / "models", ["a.tar.gz", "b.tar.gz"], SAMPLES / "houston.tar.gz")
    with hosts(2, str(models)) as servers, Router("haproxy", tmp_path, [host.port for host in servers]) as router:
        ask_all(router.port, ["a.tar.gz", "b.tar.gz"])
        series = exposed(router.told("/metrics")) | exposed(servers[0].told("/metrics"))

    for expression in EXPRESSIONS:
        names = names_in(expression)
        assert names, expression
        assert names <= set(series), f"{names - set(series)} in {expression}"
        assert labels_of(expression) <= _OF_PROMETHEUS.union(*(series[name] for name in names)), expression
    for choice in CHOICES:
        assert names_in(choice) <= set(series)


def test_prometheus_reads_every_expression(tmp_path: Path) -> None:
    chosen = re.compile(r"\$(__rate_interval|__range|\w+)")
    read = [chosen.sub(lambda of: "1m" if of[1].startswith("__") else ".*", text) for text in EXPRESSIONS]
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(read)]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    ran = subprocess.run([tool("promtool"), "check", "rules", file], capture_output=True, text=True, check=False)

    assert ran.returncode == 0, ran.stdout + ran.stderr
