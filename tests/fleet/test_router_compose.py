"""deploy/router/compose.yaml: HAProxy is hardened, finds its file, and is waited for."""

from __future__ import annotations

import re

import yaml
from conftest import ROOT
from polyhost.fleet.haproxy import configuration
from polyhost.fleet.layout import Fleet, servers_of

(HAPROXY,) = yaml.safe_load((ROOT / "deploy" / "router" / "compose.yaml").read_text())["services"].values()
PRINTED = configuration(Fleet(servers=servers_of(3, ["h{}:8080"])))


def test_haproxy_is_hardened_and_bounded() -> None:
    assert HAPROXY["read_only"]
    assert HAPROXY["cap_drop"] == ["ALL"]
    assert HAPROXY["security_opt"] == ["no-new-privileges:true"]
    assert {"mem_limit", "cpus", "healthcheck"} <= set(HAPROXY)


def test_it_agrees_with_what_is_printed() -> None:
    """The ports, the file in the folder that is mounted, and a longer wait than HAProxy's own."""
    (listen, metrics) = re.findall(r"(?m)^    bind :(\d+)", PRINTED)
    (hard_stop,) = re.findall(r"hard-stop-after (\d+)s", PRINTED)
    (volume,) = HAPROXY["volumes"]

    assert HAPROXY["ports"] == [f"{listen}:{listen}", f"127.0.0.1:{metrics}:{metrics}"]
    assert HAPROXY["command"][-1] == f"{volume.split(':')[1]}/haproxy.cfg"
    assert int(HAPROXY["stop_grace_period"].removesuffix("s")) > int(hard_stop)
    assert HAPROXY["healthcheck"]["test"][-1] == f"http://127.0.0.1:{metrics}/ready"
