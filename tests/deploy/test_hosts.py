"""deploy/ for one host and for Kubernetes: what it says about Polyhost is so, and a server starts with it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from botocore.exceptions import ClientError
from conftest import ROOT
from polyhost.config import Config, variable_of
from polyhost.errors import PolyhostError
from support.endpoint import EndpointServer, fill

DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
UNIT = (DEPLOY / "polyhost.service").read_text()
KUBERNETES = {kind["kind"]: kind for kind in yaml.safe_load_all((DEPLOY / "kubernetes" / "polyhost.yaml").read_text())}
SETTINGS = {variable_of(field): field for field in dataclasses.fields(Config)}
HOUSE = "1998,2150,3,2.5,0.4,2"


def settings_of(text: str, also: str = "") -> dict[str, str]:
    """Of an environment file; `also`: those behind this sign."""
    return dict(re.findall(rf"(?m)^{also}(\w+)=(.*)$", text))


ENV = settings_of((DEPLOY / "polyhost.env.example").read_text())


def make_secrets(folder: Path) -> str:
    """What it says."""
    made = subprocess.run([sys.executable, DEPLOY / "make-secrets", folder], check=True, capture_output=True, text=True)
    return made.stdout + made.stderr


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    make_secrets(tmp_path / "secrets")
    return tmp_path / "secrets"


def test_every_variable_in_deploy_is_a_setting() -> None:
    """
    Whatever begins with POLYHOST_ in a file of deploy/ is a setting of the server.
    """
    files = [file for file in DEPLOY.rglob("*") if file.is_file() and not {"models", "secrets"} & set(file.parts)]
    named = {name for file in files for name in re.findall(r"POLYHOST_[A-Z_]+", file.read_text())}

    assert "POLYHOST_MODELS" in named
    assert named <= set(SETTINGS)


def test_the_example_of_an_environment_is_valid(tmp_path: Path) -> None:
    """
    Also what stands there as a comment, but for folders that only a host has.
    """
    text = (DEPLOY / "polyhost.env.example").read_text()
    optional = settings_of(text, "#")
    for given in (ENV, {**ENV, **optional}):
        config = Config.build({}, {**given, "POLYHOST_MODELS": str(tmp_path)})
        assert config.auth == "sigv4"
    assert Config.build({}, optional).models == "s3://my-bucket/models/"
    with pytest.raises(PolyhostError):
        Config.build({}, {**ENV, "POLYHOST_DRAIN_SECS": "0"})


def test_models_are_confined_in_all_forms_of_deployment() -> None:
    """
    By the example's environment, which Compose and systemd read, by the unit itself and on Kubernetes.
    """
    unit = dict(re.findall(r"(?m)^Environment=(\w+)=(.*)$", UNIT))
    for given in (ENV, unit, KUBERNETES["ConfigMap"]["data"]):
        assert given["POLYHOST_HARDENED"] == "on"
    assert "landlock_restrict_self" in re.search(r"(?m)^SystemCallFilter=(.*)$", UNIT)[1].split()
    assert Config.build({}, {}).hardened is False


def test_secrets_are_for_their_owner_and_made_once(secrets: Path) -> None:
    """
    Others cannot enter the folder; a second run changes nothing; what is made differs each time.
    """
    before = {file: file.read_text() for file in secrets.rglob("*") if file.is_file()}
    said = make_secrets(secrets)
    owner = secrets / "polyhost" / "principals.json"

    assert secrets.stat().st_mode & 0o777 == 0o700
    assert owner.stat().st_mode & 0o777 == 0o600
    assert (secrets.parent / ".env").read_text() == f"RUN_AS={owner.stat().st_uid}:{owner.stat().st_gid}\n"
    assert {file: file.read_text() for file in before} == before
    assert not any(text.strip() in said for text in before.values())

    other = secrets.parent / "other" / "secrets"
    other.parent.mkdir()
    make_secrets(other)
    assert (other / "metrics-token").read_text() != (secrets / "metrics-token").read_text()


@pytest.fixture
def production(tmp_path: Path, samples_folder: Path, secrets: Path) -> Iterator[tuple[EndpointServer, dict[str, Any]]]:
    """A server with the example's environment, in folders of its own; and who may call."""
    folder = fill(tmp_path / "models", ["houston.tar.gz"], samples_folder / "houston.tar.gz")
    file = secrets / "polyhost" / "principals.json"
    environ = {**ENV, "POLYHOST_MODELS": "", "POLYHOST_AUTH_FILE": str(file)}
    server = EndpointServer("native", folder, environ=environ, model_root="/opt/ml/models")
    yield server, {user["name"]: user for user in json.loads(file.read_text())["users"]}
    assert server.stop() == 0, server.process.log


def test_a_server_starts_with_the_example_and_the_secrets(
    production: tuple[EndpointServer, dict[str, Any]], secrets: Path
) -> None:
    """
    The caller may ask models and nothing else, Prometheus's token opens /metrics, nobody else gets in.
    """
    server, users = production
    caller, operator = (
        {"aws_access_key_id": users[name]["access_key_id"], "aws_secret_access_key": users[name]["secret_access_key"]}
        for name in ("caller", "operator")
    )
    call = {"EndpointName": ENV["POLYHOST_ENDPOINT_NAME"], "TargetModel": "houston.tar.gz", "ContentType": "text/csv"}

    assert server.client("sagemaker-runtime", **caller).invoke_endpoint(Body=HOUSE, **call)["Body"].read()
    assert server.client("sagemaker", **operator).list_endpoints()["Endpoints"]
    with pytest.raises(ClientError, match="AccessDenied"):
        server.client("sagemaker", **caller).list_endpoints()
    with pytest.raises(ClientError, match="UnrecognizedClient"):
        server.client("sagemaker-runtime").invoke_endpoint(Body=HOUSE, **call)
    token = (secrets / "metrics-token").read_text()
    assert server.request("GET", "/metrics", Authorization=f"Bearer {token}").status == 200
    assert server.request("GET", "/metrics").status == 403
    assert "open to every user" not in server.process.log


def test_the_health_check_is_for_http_and_fails_when_nobody_answers(
    production: tuple[EndpointServer, dict[str, Any]],
) -> None:
    """
    The command of compose.yaml, as the container's Python runs it.
    """
    *_, code = COMPOSE["services"]["polyhost"]["healthcheck"]["test"]
    server, _ = production

    def healthy(port: int, **environ: str) -> bool:
        check = [sys.executable, "-IS", "-c", code]
        told = {"POLYHOST_PORT": str(port), **environ}
        return subprocess.run(check, env=told, capture_output=True, check=False).returncode == 0

    server.process.wait_for_line("ready for requests")
    # Compose asks again and again, too: one answer may be late.
    assert any(healthy(server.port) for _ in range(10))
    assert not healthy(server.port, POLYHOST_TLS_CERT="/etc/polyhost/tls.crt")
    assert not healthy(1)


def test_compose_hardens_every_service() -> None:
    """
    Read-only, no capabilities but what the one that makes the volume needs, limits; one port for other machines.
    """
    for name, service in COMPOSE["services"].items():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service.get("cap_add", []) == (["CHOWN"] if name == "state-owner" else [])
        if name != "state-owner":
            assert {"mem_limit", "cpus", "healthcheck"} <= set(service), name
    published = [port for service in COMPOSE["services"].values() for port in service.get("ports", ())]
    assert [port for port in published if not port.startswith("127.0.0.1:")] == ["8080:8080"]
    assert COMPOSE["services"]["polyhost"]["user"] == "${RUN_AS:-1000:1000}"


def test_compose_mounts_what_is_there() -> None:
    """
    Files of the repository or that make-secrets makes; volumes and secrets that are declared; what Polyhost is told.
    """
    made = {"./models", "./secrets/polyhost", *(secret["file"] for secret in COMPOSE["secrets"].values())}
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert source in made or (DEPLOY / source).exists(), source
            else:
                assert source in COMPOSE["volumes"]
        assert set(service.get("secrets", ())) <= set(COMPOSE["secrets"])
    mounted = {volume.split(":")[1] for volume in COMPOSE["services"]["polyhost"]["volumes"]}
    principals = Path(ENV["POLYHOST_AUTH_FILE"]).parent
    assert {ENV["POLYHOST_MODELS"].rstrip("/"), ENV["POLYHOST_STATE_DIR"], str(principals)} == mounted


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    """
    Provisioning names the service, the port and the folder that compose.yaml gives.
    """
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "polyhost.yaml").read_text())["providers"]
    scrape = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    grafana = COMPOSE["services"]["grafana"]

    assert source["url"] == "http://prometheus:9090"
    assert source["jsonData"]["timeInterval"] == scrape["global"]["scrape_interval"]
    assert f"./grafana/polyhost.json:{provider['options']['path']}/polyhost.json:ro" in grafana["volumes"]
    assert scrape["scrape_configs"][0]["static_configs"] == [{"targets": ["polyhost:8080"]}]
    assert scrape["scrape_configs"][0]["authorization"]["credentials_file"] == "/run/secrets/metrics-token"
    assert "metrics-token" in COMPOSE["services"]["prometheus"]["secrets"]


def test_whoever_stops_it_waits_longer_than_it_drains() -> None:
    """
    Compose, systemd and Kubernetes kill after the last request has had its time.
    """
    drain_secs = int(ENV["POLYHOST_DRAIN_SECS"])
    unready_secs = int(settings_of((DEPLOY / "polyhost.env.example").read_text(), "#")["POLYHOST_UNREADY_SECS"])
    pod = KUBERNETES["Deployment"]["spec"]["template"]["spec"]
    settings = KUBERNETES["ConfigMap"]["data"]

    longest_secs = unready_secs + drain_secs + 5
    assert int(COMPOSE["services"]["polyhost"]["stop_grace_period"].removesuffix("s")) > longest_secs
    assert int(re.findall(r"(?m)^TimeoutStopSec=(\d+)$", UNIT)[0]) > longest_secs
    assert settings["POLYHOST_DRAIN_SECS"] == str(drain_secs)
    assert settings["POLYHOST_UNREADY_SECS"] == str(unready_secs)
    assert pod["terminationGracePeriodSeconds"] > longest_secs


def test_who_asks_whether_the_server_is_ready() -> None:
    """
    Compose and Kubernetes by /ready, systemd by being told; whether it lives is /ping's.
    """
    (container,) = KUBERNETES["Deployment"]["spec"]["template"]["spec"]["containers"]
    paths = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}

    assert paths == {"startup": "/ping", "readiness": "/ready", "liveness": "/ping"}
    assert '/ready"' in COMPOSE["services"]["polyhost"]["healthcheck"]["test"][-1]
    assert settings_of(UNIT).items() >= {"Type": "notify", "NotifyAccess": "main"}.items()


def test_the_unit_gives_models_less_than_it_may_have() -> None:
    """
    The server does not see a unit's own limit: the unit says both.
    """
    unit = settings_of(UNIT)
    (budget,) = re.findall(r"(?m)^Environment=POLYHOST_MEMORY_BUDGET=(\d+)GiB$", UNIT)

    assert int(budget) * 1024 < 0.9 * int(unit["MemoryMax"].removesuffix("G")) * 1024
    assert unit["KillMode"] == "mixed"
    assert unit["OOMPolicy"] == "continue"
    assert set(unit["RestartPreventExitStatus"].split()) == {"2", "3"}


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """
    `systemd-analyze verify`, with a command that there is.
    """
    if shutil.which("systemd-analyze") is None:
        assert not os.environ.get("CI"), "there is no systemd-analyze: install systemd"
        pytest.skip("there is no systemd-analyze")
    unit = tmp_path / "polyhost.service"
    unit.write_text(UNIT.replace("/opt/polyhost/bin/polyhost", sys.executable))
    check = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)

    assert (check.returncode, check.stdout, check.stderr) == (0, "", "")


def test_kubernetes_gives_what_the_server_asks_for() -> None:
    """
    One server at a time on its state, a hardened pod, and mounts where the settings point.
    """
    deployment = KUBERNETES["Deployment"]["spec"]
    pod = deployment["template"]["spec"]
    (container,) = pod["containers"]
    settings = KUBERNETES["ConfigMap"]["data"]
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}

    Config.build({}, settings)
    assert (deployment["replicas"], deployment["strategy"]["type"]) == (1, "Recreate")
    assert {settings["POLYHOST_STATE_DIR"], str(Path(settings["POLYHOST_AUTH_FILE"]).parent), "/tmp"} == mounts
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    # A Service named polyhost would set POLYHOST_PORT=tcp://…
    assert pod["enableServiceLinks"] is False
    selector = KUBERNETES["Service"]["spec"]["selector"].items()
    assert selector <= deployment["template"]["metadata"]["labels"].items()
