"""
The chart's HAProxy configuration, from the same file as `polyhost fleet haproxy`: `.venv/bin/python scripts/helm_haproxy.py --write`.

What differs between fleets is then said by the chart's values, in Helm's templates. A test compares both.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from polyhost.fleet.haproxy import filled
from polyhost.fleet.layout import Fleet

ROOT = Path(__file__).parent.parent
FILE = ROOT / "deploy" / "helm" / "polyhost" / "templates" / "_haproxy.tpl"
BEGIN = """{{- /* Written by scripts/helm_haproxy.py from container/polyhost/fleet/haproxy.cfg: change that. */ -}}
{{- define "polyhost.haproxy" -}}
{{- $name := include "polyhost.name" . -}}
{{- $most := include "polyhost.most" . | int -}}
{{- $haproxy := .Values.router.haproxy -}}
"""
END = "{{- end }}\n"


def servers(more: str) -> str:
    address = "{{ $name }}-{{ . }}.{{ $name }}-servers.{{ $.Release.Namespace }}.svc.cluster.local:8080"
    return (
        "    {{- range until $most }}\n"
        f"    server polyhost-{{{{ . }}}} {address} id {{{{ add1 . }}}}{more}\n"
        "    {{- end }}"
    )


def template() -> str:
    text = filled(
        Fleet(servers=(), resolves=True),
        servers=servers(""),
        tracking_servers=servers(" track predictions/polyhost-{{ . }}"),
        count="{{ $most }}",
        everywhere="{{ max 2 (div (add $most 3) 4) }}",
        copy_at="{{ $haproxy.copyAt }}",
        requests_per_copy="{{ max 1 (round (divf (mulf $haproxy.copyAt 5) $haproxy.replicas) 0 | int) }}",
        of_routers=(
            "{{ if gt (int $haproxy.replicas) 1 }} that {{ $haproxy.replicas }} HAProxies get together{{ end }}"
        ),
        endpoint_name="{{ .Values.endpointName }}",
        bind_tls="{{ if $haproxy.tlsSecret }} ssl crt /tls/tls.crt{{ end }}",
        slow_start=" slowstart {{ $haproxy.slowStartSecs }}s",
    )
    return BEGIN + text + END


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"into {FILE.relative_to(ROOT)}")
    if parser.parse_args().write:
        FILE.write_text(template())
    else:
        print(template(), end="")


if __name__ == "__main__":
    main()
