"""The command `polyhost`: the only reader of argv and of the settings' environment variables."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from polyhost import __version__
from polyhost.aws.commands import COMMANDS
from polyhost.config import Config, flag_of, settings_table, variable_of
from polyhost.errors import PolyhostError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="polyhost %(version)s")
def cli() -> None:
    """Serve thousands of machine-learning models from one container."""


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """One option for each field of Config."""
    for field in reversed(dataclasses.fields(Config)):
        meta = field.metadata
        default = meta["shown"] or field.default
        words = f"{meta['words']} [env: {variable_of(field)}; default: {default}]".replace("`", "")
        command = click.option(flag_of(field), field.name, multiple=True, metavar="VALUE", help=words)(command)
    return command


@cli.command()
@with_settings
def serve(**flags: Any) -> None:
    """Start the server and stay in the foreground until SIGTERM or Ctrl-C."""
    from polyhost.server import serve as run

    sys.exit(run(Config.build(flags, os.environ), os.environ))


@cli.command()
def settings() -> None:
    """Print every setting as a Markdown table."""
    click.echo(settings_table(), nl=False)


@cli.command("mms-path")
def mms_path() -> None:
    """Print the folder that, first on the PATH, puts Polyhost in the place of `multi-model-server`."""
    from polyhost.mms_command import COMMAND_FOLDER

    click.echo(COMMAND_FOLDER)


# Sizing (docs/sizing.md): imported by this command alone, never by the server.


@cli.command()
@click.argument("source")
@click.option("--trace", type=click.Path(path_type=Path), help="Traffic: an access log, or a file, one target a line.")
@click.option("--zipf", type=float, metavar="S", help="Traffic by Zipf's law with this exponent [default: 1].")
@click.option("--requests-per-sec", type=float, metavar="R", help="How many CPUs are needed follows from it.")
@click.option(
    "--host", "hosts", multiple=True, metavar="NAME=GiB:CPUS:PRICE_PER_HOUR", help="A kind of host to compare."
)
@click.option("--copies", default=1, metavar="N", show_default=True, help="On how many hosts each model is to be.")
@click.option("--sample", default=20, metavar="N", show_default=True, help="How many models to load and measure.")
@click.option(
    "--request", "requests", multiple=True, type=click.Path(path_type=Path), metavar="FILE",
    help="A request that models take, its type by the file's suffix [default: a row of zeros].",
)  # fmt: skip
@click.option("--p99-ms", type=float, metavar="MS", help="What p99 may be [default: that of models in memory].")
@click.option("--json", "as_json", is_flag=True, help="Print all figures as JSON.")
def size(as_json: bool, **options: Any) -> None:
    """How much memory SOURCE, s3://BUCKET/PREFIX/ or a folder of archives, needs, and what hosts for it cost."""
    from polyhost.sizing.command import Options, run

    click.echo(run(Options(**options), as_json=as_json, say=lambda words: click.echo(words, err=True)))


for _command in COMMANDS:
    cli.add_command(_command)


def main() -> None:
    # As PID 1 of a container, signals without a handler are lost: docker-entrypoint blocks SIGTERM until here.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    try:
        cli(standalone_mode=False)
    except PolyhostError as error:
        click.echo(f"polyhost: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
