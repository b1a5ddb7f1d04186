"""What scripts/audit and scripts/sbom compute: pip-audit's report in words, Debian's packages in a CycloneDX document."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

_NOT_REACHED = (
    "error: the vulnerability service knows none of these packages: this machine reaches a mirror without it. "
    "Run this where PyPI itself is reached, or with --offline to go on without."
)


def audit(constraints: str) -> int:
    """The exit code: 1 for known vulnerabilities, 2 where the service did not answer."""
    command = [str(Path(sys.executable).with_name("pip-audit")), "--requirement", constraints, "--no-deps", "--disable-pip",
               "--progress-spinner", "off", "--format", "json"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        print(f"error: pip-audit could not ask the vulnerability service. It says: {done.stderr.strip()[-300:]}")
        return 2
    text, code = report(packages)
    print(text)
    return code


def report(packages: list[dict[str, Any]]) -> tuple[str, int]:
    """Of pip-audit's `dependencies`: what to print, and the exit code."""
    asked = [package for package in packages if "vulns" in package]
    skipped = [package["name"] for package in packages if "vulns" not in package]
    if not asked:
        return _NOT_REACHED, 2
    lines = [
        f"{package['name']} {package['version']}: {found['id']}, mended in {', '.join(found['fix_versions']) or 'none'}"
        for package in asked
        for found in package["vulns"]
    ]
    if skipped:
        lines.append(f"not audited, since the service does not know them: {', '.join(skipped)}")
    vulnerable = sum(bool(package["vulns"]) for package in asked)
    lines.append(f"{len(asked)} packages audited, {vulnerable} with known vulnerabilities")
    return "\n".join(lines), 1 if vulnerable else 0


def merged(document: dict[str, Any], dpkg: str) -> dict[str, Any]:
    """A CycloneDX document with a component for each line `PACKAGE VERSION ARCHITECTURE` of dpkg's."""
    components = [*document.get("components", []), *(_debian(*line.split()) for line in dpkg.splitlines() if line)]
    return {**document, "components": components}


def _debian(name: str, version: str, architecture: str) -> dict[str, Any]:
    purl = f"pkg:deb/debian/{name}@{quote(version, safe='')}?arch={architecture}"
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def main(command: str, *arguments: str) -> int:
    if command == "audit":
        return audit(*arguments)
    document, dpkg = (Path(name).read_text() for name in arguments)
    print(json.dumps(merged(json.loads(document), dpkg), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
