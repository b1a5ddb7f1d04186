"""
Schemas of the custom resources that the Helm chart makes: `.venv/bin/python scripts/custom_resources.py`, with npm.

They are made of the types of the packages below, all of one author and licence (MIT), which their authors generate from what each project publishes.
Every field of every object is in them, and no other is allowed. `status` is left out: controllers write it, not we.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent.parent / "tests" / "fleet" / "custom_resources.json"
# Istio's are of 1.29.2.
PACKAGES = {
    "@kubernetes-models/envoy-gateway": "2.0.0",
    "@kubernetes-models/gateway-api": "2.0.0",
    "@kubernetes-models/istio": "3.0.1",
    "@kubernetes-models/keda": "2.0.0",
    "@kubernetes-models/prometheus-operator": "6.0.0",
}
TOOLS = {"ts-json-schema-generator": "2.4.0", "typescript": "5.9.3"}
KINDS = {
    "gateway.envoyproxy.io/v1alpha1/BackendTrafficPolicy": "envoy-gateway",
    "gateway.networking.k8s.io/v1/HTTPRoute": "gateway-api",
    "keda.sh/v1alpha1/ScaledObject": "keda",
    "monitoring.coreos.com/v1/ServiceMonitor": "prometheus-operator",
    "networking.istio.io/v1/DestinationRule": "istio",
    "networking.istio.io/v1/VirtualService": "istio",
}
OPTIONS = {"target": "es2022", "module": "nodenext", "moduleResolution": "nodenext", "skipLibCheck": True}


def schema(folder: Path, kind: str, package: str) -> dict[str, Any]:
    name = "I" + kind.rpartition("/")[2]
    (folder / "entry.ts").write_text(f'export type {{ {name} }} from "@kubernetes-models/{package}/{kind}";\n')
    command = ["npx", "ts-json-schema-generator", "--path", "entry.ts", "--tsconfig", "tsconfig.json", "--type", name]
    made = subprocess.run(
        [*command, "--no-type-check", "--jsDoc", "none"], cwd=folder, check=True, stdout=subprocess.PIPE
    )
    found: dict[str, Any] = json.loads(made.stdout)
    del found["definitions"][name]["properties"]["status"]
    return {**found, "definitions": used(found["definitions"], found["$ref"])}


def used(definitions: dict[str, Any], first: str) -> dict[str, Any]:
    """Those that `first` leads to."""
    names, ahead = set[str](), [first]
    while ahead:
        name = ahead.pop().rpartition("/")[2]
        if name not in names:
            names.add(name)
            ahead.extend(references(definitions[name]))
    return {name: definitions[name] for name in sorted(names)}


def references(part: object) -> list[str]:
    if isinstance(part, list):
        return [one for item in part for one in references(item)]
    if isinstance(part, dict):
        return [part["$ref"]] if "$ref" in part else references(list(part.values()))
    return []


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "package.json").write_text('{"private": true, "type": "module"}')
        (folder / "tsconfig.json").write_text(json.dumps({"compilerOptions": OPTIONS, "files": ["entry.ts"]}))
        wanted = [f"{package}@{version}" for package, version in {**PACKAGES, **TOOLS}.items()]
        subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", *wanted], cwd=folder, check=True)
        schemas = {kind: schema(folder, kind, package) for kind, package in KINDS.items()}
        licence = (folder / "node_modules" / next(iter(PACKAGES)) / "LICENSE").read_text()
    head = json.dumps({"made of": PACKAGES, "licence": licence})[:-1]
    lines = ",\n".join(
        f"{json.dumps(kind)}: {json.dumps(made, separators=(',', ':'))}" for kind, made in schemas.items()
    )
    FILE.write_text(f"{head},\n{lines}}}\n")


if __name__ == "__main__":
    main()
