"""
The commands of a fleet: `polyhost fleet haproxy`, `envoy`, `kubernetes`, `warm` and `refresh`.

Read at every start of the command, also by `polyhost serve`: what is heavy is imported inside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from polyhost.help_groups import GroupedCommand

_replicas = click.option(
    "--replicas", type=click.IntRange(1, 1000), required=True, metavar="N", help="Count on this many servers."
)
_endpoint_name = click.option(
    "--endpoint-name", default="polyhost", show_default=True, envvar="POLYHOST_ENDPOINT_NAME", show_envvar=True,
    metavar="NAME", help="Send /invocations to this endpoint.",
)  # fmt: skip
_copy_at = click.option(
    "--copy-at", type=click.FloatRange(0.2), default=50, show_default=True, metavar="RATE",
    help="Give a model one more copy for each RATE requests/s. Choose a twentieth of what one server answers.",
)  # fmt: skip
_routers = click.option(
    "--routers", type=click.IntRange(1), default=1, show_default=True, metavar="N",
    help="Count on this many HAProxies, each of which sees its part of a model's requests.",
)  # fmt: skip
_servers = click.option(
    "--server", "addresses", multiple=True, default=["polyhost-{}:8080"], show_default=True, metavar="HOST:PORT",
    help="Reach a server at this address. Repeat it for each, or write {} where their numbers stand, from 0.",
)  # fmt: skip
_GROUPS = {
    "Servers": ("replicas", "addresses", "resolve", "ready_path", "server_ca", "slow_start_secs"),
    "Clients": ("listen", "metrics_listen", "endpoint_name", "tls_cert", "tls_key"),
    "Copies of hot models": ("copy_at", "routers"),
}


def _router(command: Callable[..., None]) -> Callable[..., None]:
    """The options that both engines have."""
    options = (
        _replicas,
        _servers,
        _endpoint_name,
        click.option("--listen", type=click.IntRange(1, 65535), default=8080, show_default=True, metavar="PORT",
            help="Listen for clients on this port.",
        ),
        click.option(
            "--metrics-listen", type=click.IntRange(1, 65535), default=8405, show_default=True, metavar="PORT",
            help="Answer Prometheus, and probes of the router itself, on this port.",
        ),
        click.option(
            "--ready-path", default="/ready", show_default=True, metavar="PATH",
            help="Ask a server with this path whether it is ready.",
        ),
        click.option(
            "--server-ca", default="", metavar="FILE",
            help="Call the servers by HTTPS, and check their certificates against this one, a file at the router.",
        ),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@click.group()
def fleet() -> None:
    """Print routers' configurations, load or refresh models."""


@fleet.command(cls=GroupedCommand, groups=_GROUPS)
@_router
@_copy_at
@_routers
@click.option(
    "--slow-start",
    "slow_start_secs",
    type=click.IntRange(0),
    default=20,
    show_default=True,
    metavar="SECONDS",
    help="Give a server that comes back its models again over this time.",
)
@click.option(
    "--tls-cert",
    default="",
    metavar="FILE",
    help="Serve HTTPS with this certificate. The key is in this file, or beside it as .key.",
)
@click.option("--resolve", is_flag=True, help="Look servers' names up again and again, for Kubernetes and Docker.")
def haproxy(replicas: int, addresses: Sequence[str], resolve: bool, **options: Any) -> None:
    """Print HAProxy's configuration for N servers."""
    from polyhost.fleet.haproxy import configuration

    click.echo(configuration(_fleet(replicas, addresses, resolves=resolve, **options)), nl=False)


@fleet.command(cls=GroupedCommand, groups=_GROUPS)
@_router
@click.option("--tls-cert", default="", metavar="FILE", help="Serve HTTPS with this certificate.")
@click.option("--tls-key", default="", metavar="FILE", help="Read the certificate's key from this file.")
def envoy(replicas: int, addresses: Sequence[str], **options: Any) -> None:
    """Print Envoy's configuration for N servers. It gives hot models no copies."""
    from polyhost.errors import InvalidSetting
    from polyhost.fleet.envoy import configuration

    if bool(options["tls_cert"]) != bool(options["tls_key"]):
        raise InvalidSetting("--tls-cert and --tls-key: Envoy reads them from two files. Give both, or neither.")
    click.echo(configuration(_fleet(replicas, addresses, **options)), nl=False)


@fleet.command()
@_replicas
@click.option(
    "--routers", type=click.IntRange(1), default=2, show_default=True, metavar="N", help="Start this many HAProxies."
)
@_copy_at
@_endpoint_name
@click.option("--models", required=True, metavar="s3://BUCKET/PREFIX/", help="Serve these models.")
@click.option(
    "--region",
    default="",
    envvar="AWS_REGION",
    show_envvar=True,
    metavar="REGION",
    help="Use this region for the bucket.",
)
@click.option("--state", default="", metavar="s3://BUCKET/PREFIX/", help="Keep endpoints that clients make here.")
@click.option("--image", default="polyhost:native", show_default=True, metavar="NAME:TAG", help="Run this image.")
@click.option(
    "--memory-gib",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    metavar="N",
    help="Give each server this memory.",
)
@click.option(
    "--disk-gib", type=click.IntRange(2), default=50, show_default=True, metavar="N", help="Give each server this disk."
)
@click.option(
    "--scaling-of",
    metavar="URL",
    help="Scale as the endpoint's scaling policies say that boto3 has put at this server.",
)
def kubernetes(scaling_of: str | None, **options: Any) -> None:
    """
    Print the values of the Helm chart for N servers.

    Save them in FILE, and: helm install polyhost deploy/helm/polyhost -f FILE
    """
    from polyhost.fleet import scaling
    from polyhost.fleet.kubernetes import Options, values

    found = scaling.scaling_of(scaling_of, options["endpoint_name"]) if scaling_of else None
    click.echo(values(Options(**options, scaling=found)), nl=False)


@fleet.command()
@click.argument("url")
@click.option("--models", default="", metavar="FOLDER|s3://BUCKET/PREFIX/", help="Load all models that are there.")
@click.option(
    "--targets", type=click.Path(path_type=Path), metavar="FILE", help="Load the models in this file, one a line."
)
@_endpoint_name
@click.option(
    "--request",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Send each model this request, its type by the file's suffix  [default: nothing; a model may refuse it].",
)
@click.option(
    "--at-once", type=click.IntRange(1, 256), default=8, show_default=True, metavar="N", help="Load this many at once."
)
@click.option(
    "--secs",
    type=click.FloatRange(1),
    default=300,
    show_default=True,
    metavar="SECONDS",
    help="Wait this long for a model.",
)
def warm(**options: Any) -> None:
    """
    Have each model loaded by its server, through the router at URL.

    Each model is called once. Requests are signed as boto3 signs them.
    """
    from polyhost.fleet.warm import Options
    from polyhost.fleet.warm import warm as run

    click.echo(run(Options(**options), lambda words: click.echo(words, err=True)))


@fleet.command()
@_replicas
@_servers
@click.option("--https", "is_https", is_flag=True, help="Ask the servers by HTTPS.")
def refresh(replicas: int, addresses: Sequence[str], is_https: bool) -> None:
    """Have all N servers look at their archives now. Requests are signed as boto3 signs them."""
    from polyhost.fleet.layout import servers_of
    from polyhost.fleet.refresh import refresh as run

    servers = servers_of(replicas, addresses)
    click.echo(run(servers, lambda words: click.echo(words, err=True), is_https=is_https))


def _fleet(replicas: int, addresses: Sequence[str], **options: Any) -> Any:
    """Raises InvalidSetting."""
    from polyhost.fleet.layout import Fleet, plain, servers_of

    for name, value in options.items():
        if isinstance(value, str):
            plain("--" + name.replace("_", "-"), value)
    return Fleet(servers=servers_of(replicas, addresses), **options)


COMMANDS: Sequence[click.Command] = (fleet,)
