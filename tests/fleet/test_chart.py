"""The Helm chart, by Helm's own engine: all schemas take it, and it gives the servers what they ask for."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from conftest import ENVIRONMENTS, ROOT
from polyhost.cli import cli
from polyhost.config import Config
from polyhost.fleet.kubernetes import Options, Scaling, values

from fleet.custom_resources import kind_of, problems_of

CHART = ROOT / "deploy" / "helm" / "polyhost"
PYTHON = ENVIRONMENTS / "fleet" / "bin" / "python"
ALL_ON = {
    "autoscaling": {"enabled": True, "maxReplicas": 12},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "auth": {"metricsToken": {"name": "polyhost-metrics"}, "tokenKey": "token-key"},
    "state": "s3://bucket/state/",
    "router": {"haproxy": {"replicas": 3, "copyAt": 77, "tlsSecret": "polyhost-tls"}},
    "networkPolicy": {
        "clients": [{"namespaceSelector": {"matchLabels": {"team": "a"}}}],
        "monitoring": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
    },
    "disk": {"storageClass": "gp3"},
    "imagePullSecrets": [{"name": "registry"}],
    "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/polyhost"}},
    "settings": {"POLYHOST_WORKERS": "4"},
}
GATEWAY = {"router": {"kind": "envoy-gateway", "envoyGateway": {"gateway": "eg"}}}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("polyhost", {}),
    "all": ("polyhost", ALL_ON),
    "one": ("houses", {"replicas": 1, "auth": {"enabled": False}, "networkPolicy": {"enabled": False}}),
    "endpoints": ("polyhost", {"endpoints": {"Endpoints": [{"EndpointName": "a", "EndpointConfigName": "a"}]}}),
    "istio": ("polyhost", {"router": {"kind": "istio"}}),
    "gateway": ("polyhost", GATEWAY),
    "none": ("polyhost", {"router": {"kind": "none"}}),
    "unnamed gateway": ("polyhost", {"router": {"kind": "envoy-gateway"}}),
    "text for a number": ("polyhost", {"replicas": "3"}),
    "unknown value": ("polyhost", {"replica": 3}),
    "folder": ("polyhost", {"models": "/srv/models"}),
    "unknown router": ("polyhost", {"router": {"kind": "nginx"}}),
}
REFUSED = {"unnamed gateway", "text for a number", "unknown value", "folder", "unknown router"}
WANTED = [name for name in CASES if name not in REFUSED]
# Which case has a custom resource of this kind.
CUSTOM = {
    "ScaledObject": "all", "ServiceMonitor": "all", "DestinationRule": "istio", "VirtualService": "istio",
    "HTTPRoute": "gateway", "BackendTrafficPolicy": "gateway",
}  # fmt: skip
# Their keys are anybody's.
FREE = {("metadata", "labels"), ("selector", "matchLabels"), ("triggers", "metadata")}


@pytest.fixture(scope="module")
def rendered() -> dict[str, dict[str, Any]]:
    if not PYTHON.exists():
        assert not os.environ.get("CI"), "Helm's engine is not installed: scripts/install-fleet"
        pytest.skip("Helm's engine is not installed: scripts/install-fleet does it")
    printed = CliRunner().invoke(cli, ["fleet", "kubernetes", "--replicas=5", "--models=s3://b/m/", "--routers=3"])
    scaled = values(Options(replicas=2, models="s3://b/m/", scaling=Scaling(least=2, most=9, invocations=700.0)))
    cases = {
        **CASES,
        "printed": ("polyhost", yaml.safe_load(printed.output)),
        "scaled": ("polyhost", yaml.safe_load(scaled)),
    }
    ran = subprocess.run(
        [PYTHON, Path(__file__).parent / "render.py", CHART], input=json.dumps(list(cases.values())),
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return dict(zip(cases, json.loads(ran.stdout), strict=True))


def documents(case: dict[str, Any]) -> dict[tuple[str, str], Any]:
    """By kind and name."""
    assert "error" not in case, case["error"]
    texts = [text for file, text in case["manifests"].items() if file.endswith(".yaml")]
    found = [document for text in texts for document in yaml.safe_load_all(text) if document]
    by_name = {(one["kind"], one["metadata"]["name"]): one for one in found}
    assert len(by_name) == len(found)
    return by_name


@pytest.mark.parametrize("name", [*WANTED, "printed", "scaled"])
def test_kubernetes_takes_what_the_chart_makes(rendered: dict[str, dict[str, Any]], name: str) -> None:
    assert rendered[name].get("problems") == [], rendered[name]


def places(part: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Of all that is in a document."""
    for key, value in part.items() if isinstance(part, dict) else enumerate(part):
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def put(document: dict[str, Any], path: tuple[str | int, ...], key: str | int, value: Any) -> dict[str, Any]:
    """A copy, in which this is there instead of what was at `path`."""
    changed = copy.deepcopy(document)
    inside: Any = changed
    for step in path[:-1]:
        inside = inside[step]
    del inside[path[-1]]
    if isinstance(inside, list):
        inside.insert(int(key), value)
    else:
        inside[key] = value
    return changed


def value_at(document: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        document = document[step]
    return document


def custom(rendered: dict[str, dict[str, Any]], kind: str) -> list[Any]:
    return [one for (its_kind, _), one in documents(rendered[CUSTOM[kind]]).items() if its_kind == kind]


@pytest.mark.parametrize("kind", CUSTOM)
def test_no_field_of_a_custom_resource_can_be_misspelt(rendered: dict[str, dict[str, Any]], kind: str) -> None:
    for document in custom(rendered, kind):
        for path in places(document):
            names = [step for step in path if isinstance(step, str)]
            if isinstance(path[-1], str) and tuple(names[-3:-1]) not in FREE:
                misspelt = put(document, path, f"{path[-1]}s", value_at(document, path))
                assert problems_of(kind_of(document), misspelt), path


@pytest.mark.parametrize("kind", CUSTOM)
def test_no_value_of_a_custom_resource_can_be_of_another_type(rendered: dict[str, dict[str, Any]], kind: str) -> None:
    for document in custom(rendered, kind):
        for path in places(document):
            wrong: Any = "text" if isinstance(value_at(document, path), dict | list) else []
            assert problems_of(kind_of(document), put(document, path, path[-1], wrong)), path


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("ScaledObject", ("apiVersion",), "keda.sh/v1"),
        ("ScaledObject", ("spec", "fallback", "behavior"), "currentReplicasIfMore"),
        ("ScaledObject", ("spec", "maxReplicaCount"), "12"),
        ("DestinationRule", ("spec", "trafficPolicy", "loadBalancer"), {"simple": "MAGLEV"}),
        ("BackendTrafficPolicy", ("spec", "loadBalancer", "type"), "Maglev"),
        ("BackendTrafficPolicy", ("spec", "retry", "retryOn", "triggers", 0), "connection-failure"),
        ("HTTPRoute", ("spec", "rules", 0, "matches", 0, "path", "type"), "Regex"),
    ],
)
def test_values_that_a_custom_resource_does_not_know_are_found(
    rendered: dict[str, dict[str, Any]], kind: str, path: tuple[str | int, ...], value: Any
) -> None:
    for document in custom(rendered, kind):
        assert problems_of(kind_of(document), put(document, path, path[-1], value))


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_values_that_make_no_sense_are_refused(rendered: dict[str, dict[str, Any]], name: str) -> None:
    assert "error" in rendered[name]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("default", ["--replicas=3", "--routers=2"]),
        ("all", ["--replicas=12", "--routers=3", "--copy-at=77", "--tls-cert=/tls/tls.crt"]),
        ("printed", ["--replicas=5", "--routers=3"]),
    ],
)
def test_the_charts_haproxy_is_the_one_that_is_printed(
    rendered: dict[str, dict[str, Any]], name: str, arguments: list[str]
) -> None:
    """Otherwise: `python scripts/helm_haproxy.py --write`. Autoscaled, it knows all that there may be."""
    servers = "--server=polyhost-{}.polyhost-servers.models.svc.cluster.local:8080"
    printed = CliRunner().invoke(cli, ["fleet", "haproxy", "--resolve", servers, *arguments]).output

    assert documents(rendered[name])["ConfigMap", "polyhost-router"]["data"]["haproxy.cfg"].strip() == printed.strip()


@pytest.mark.parametrize("name", WANTED)
def test_servers_get_what_they_ask_for(rendered: dict[str, dict[str, Any]], name: str) -> None:
    made = documents(rendered[name])
    release, values = CASES[name]
    (settings,) = (one["data"] for (kind, at), one in made.items() if kind == "ConfigMap" and at == release)
    servers = made["StatefulSet", release]["spec"]
    pod = servers["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    wanted = {settings["POLYHOST_STATE_DIR"], "/tmp"}
    if file := settings.get("POLYHOST_AUTH_FILE"):
        wanted.add(str(Path(file).parent))
    if file := settings.get("POLYHOST_ENDPOINTS"):
        wanted.add(str(Path(file).parent))
        assert yaml.safe_load(made["ConfigMap", f"{release}-endpoints"]["data"][Path(file).name]) == values["endpoints"]

    config = Config.build({}, settings)
    assert wanted == mounts
    assert pod["terminationGracePeriodSeconds"] >= config.unready_secs + config.drain_secs + 5
    assert servers["serviceName"] == f"{release}-servers"
    assert made["Service", f"{release}-servers"]["spec"]["publishNotReadyAddresses"]
    assert ("replicas" in servers) is (not values.get("autoscaling"))
    probes = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    assert probes == {"startup": "/ping", "readiness": "/ready", "liveness": "/ping"}
    # A Service of this name would set POLYHOST_PORT=tcp://…
    assert pod["enableServiceLinks"] is False


@pytest.mark.parametrize("name", WANTED)
def test_every_selector_finds_its_pods(rendered: dict[str, dict[str, Any]], name: str) -> None:
    made = documents(rendered[name])
    pods = [one["spec"]["template"] for one in made.values() if one["kind"] in ("StatefulSet", "Deployment")]
    selectors = [
        (one["kind"], one["spec"]["selector"].get("matchLabels", one["spec"]["selector"]))
        for one in made.values()
        if one["kind"] in ("Service", "PodDisruptionBudget", "StatefulSet", "Deployment")
    ]
    selectors += [
        (one["kind"], one["spec"]["podSelector"]["matchLabels"])
        for one in made.values()
        if one["kind"] == "NetworkPolicy"
    ]
    for kind, selector in selectors:
        found = [pod for pod in pods if selector.items() <= pod["metadata"]["labels"].items()]
        assert len(found) == 1, (kind, selector)


@pytest.mark.parametrize("name", WANTED)
def test_every_pod_is_hardened_and_bounded(rendered: dict[str, dict[str, Any]], name: str) -> None:
    for one in documents(rendered[name]).values():
        if one["kind"] not in ("StatefulSet", "Deployment"):
            continue
        pod = one["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"]
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]


def test_the_route_of_clients_is_the_only_one_into_the_servers(rendered: dict[str, dict[str, Any]]) -> None:
    made = documents(rendered["all"])
    servers, router = (made["NetworkPolicy", name]["spec"] for name in ("polyhost", "polyhost-router"))
    labels = made["Deployment", "polyhost-router"]["spec"]["template"]["metadata"]["labels"]
    (first, monitoring) = servers["ingress"]

    assert first["from"] == [{"podSelector": {"matchLabels": labels}}]
    assert monitoring["from"] == ALL_ON["networkPolicy"]["monitoring"]  # type: ignore[index]
    assert router["ingress"][0]["from"] == ALL_ON["networkPolicy"]["clients"]  # type: ignore[index]
    assert {port["port"] for rule in servers["egress"] for port in rule["ports"]} == {53, 443}


def test_more_servers_come_by_load_and_misses_and_go_slowly(rendered: dict[str, dict[str, Any]]) -> None:
    scaled = documents(rendered["all"])["ScaledObject", "polyhost"]["spec"]
    cpu, misses = scaled["triggers"]
    behavior = scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]

    assert {trigger["type"] for trigger in scaled["triggers"]} == {"cpu", "prometheus"}
    assert (cpu["metadata"]["value"], cpu["metricType"]) == ("60", "Utilization")
    assert "< 0.98" in misses["metadata"]["query"]
    assert behavior["scaleDown"]["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 600}]


def test_alternatives_retry_what_haproxy_retries(rendered: dict[str, dict[str, Any]]) -> None:
    istio = documents(rendered["istio"])["VirtualService", "polyhost"]["spec"]["http"]
    gateway = documents(rendered["gateway"])
    policies = {
        name: gateway["BackendTrafficPolicy", f"polyhost-{name}"]["spec"]["retry"]["retryOn"]
        for name in ("predictions", "others")
    }

    assert [("503" in rule["retries"]["retryOn"], "reset" in rule["retries"]["retryOn"]) for rule in istio] == [
        (True, True),
        (False, False),
    ]
    assert policies["predictions"]["httpStatusCodes"] == [503]
    assert "httpStatusCodes" not in policies["others"]
    assert "reset" not in policies["others"]["triggers"]


def test_alternatives_close_idle_connections_before_servers_do(rendered: dict[str, dict[str, Any]]) -> None:
    istio = documents(rendered["istio"])["DestinationRule", "polyhost"]["spec"]["trafficPolicy"]
    gateway = documents(rendered["gateway"])["BackendTrafficPolicy", "polyhost-others"]["spec"]
    for idle in (istio["connectionPool"]["http"]["idleTimeout"], gateway["timeout"]["http"]["connectionIdleTimeout"]):
        assert int(idle.removesuffix("s")) < Config().keep_alive_secs


def test_helm_itself_takes_the_chart() -> None:
    """Where it is installed."""
    helm = shutil.which("helm")
    if helm is None:
        pytest.skip("there is no helm here: its engine is asked by the other tests")
    for command in (["lint", "--strict", CHART], ["template", "polyhost", CHART]):
        ran = subprocess.run([helm, *command], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_charts_template_is_written_from_the_one_file() -> None:
    """Otherwise: `python scripts/helm_haproxy.py --write`."""
    ran = subprocess.run(
        [sys.executable, ROOT / "scripts" / "helm_haproxy.py"], check=True, capture_output=True, text=True
    )
    assert ran.stdout == (CHART / "templates" / "_haproxy.tpl").read_text()


def test_scaling_policies_become_kedas_rules(rendered: dict[str, dict[str, Any]]) -> None:
    """SageMaker's metric is of each instance and a minute; KEDA divides the whole by the servers that it wants."""
    scaled = documents(rendered["scaled"])["ScaledObject", "polyhost"]["spec"]
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (2, 9)
    (rule,) = (one for one in scaled["triggers"] if one["metricType"] == "AverageValue")
    assert rule["metadata"]["threshold"] == "700"
    of = '{job="polyhost-servers", namespace="models"}'
    assert rule["metadata"]["query"] == f"sum(rate(polyhost_invocations_total{of}[2m])) * 60"
    others = documents(rendered["all"])["ScaledObject", "polyhost"]["spec"]["triggers"]
    assert not [one for one in others if one["metricType"] == "AverageValue"]
