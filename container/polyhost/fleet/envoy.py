"""Envoy's configuration: `envoy.yaml` beside this file, filled in."""

from __future__ import annotations

import string
from pathlib import Path

from polyhost.fleet.layout import Fleet, Server

# The size of Maglev's table, a prime. Some hundred places for each server divide the models evenly.
_TABLE, _LARGE_TABLE = 65537, 655373
_MANY_SERVERS = 100
_SERVER = """
              - endpoint: {{address: {{socket_address: {{address: "{host}", port_value: {port}}}}}}}
                metadata: {{filter_metadata: {{envoy.lb: {{hash_key: {name}}}}}}}
"""
_LISTENER_TLS = """
          transport_socket:
            name: envoy.transport_sockets.tls
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
              common_tls_context:
                tls_certificates:
                  - certificate_chain: {{filename: "{cert}"}}
                    private_key: {{filename: "{key}"}}
"""
_CLUSTER_TLS = """
      transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
          common_tls_context:
            validation_context: {{trusted_ca: {{filename: "{ca}"}}}}
"""


def configuration(fleet: Fleet) -> str:
    template = string.Template((Path(__file__).parent / "envoy.yaml").read_text(encoding="utf-8"))
    tls = _LISTENER_TLS.format(cert=fleet.tls_cert, key=fleet.tls_key).rstrip() if fleet.tls_cert else ""
    return template.substitute(
        count=str(len(fleet.servers)),
        listen=str(fleet.listen),
        metrics_listen=str(fleet.metrics_listen),
        endpoint_name=fleet.endpoint_name,
        ready_path=fleet.ready_path,
        table_size=str(_TABLE if len(fleet.servers) <= _MANY_SERVERS else _LARGE_TABLE),
        listener_tls=tls,
        cluster_tls=_CLUSTER_TLS.format(ca=fleet.server_ca).rstrip() if fleet.server_ca else "",
        servers="\n".join(_entry(server) for server in fleet.servers),
    )


def _entry(server: Server) -> str:
    return _SERVER.strip("\n").format(host=server.host.strip("[]"), port=server.port, name=server.name)
